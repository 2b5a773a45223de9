"""The validators: for each kind, which candidates of a column are genuine and how sure that makes
us. National ids are in national.py, phones in phones.py.

Each takes a column, and the indices of those of its distinct values that have the kind's shape.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from email_validator import EmailNotValidError, validate_email
from stdnum import iban, luhn

from actors.ingest.pii.evidence import Asked, Evidence, posterior
from actors.ingest.pii.given_names import GIVEN_NAMES, plain
from actors.ingest.pii.hints import allows_people, hint, means_surname
from actors.ingest.pii.national import national_id
from actors.ingest.pii.phones import phone
from actors.ingest.pii.shapes import ADDRESS
from schemas.events.dataset import PiiKind

Check = Callable[[Asked, Sequence[int]], Evidence | None]

_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
"""Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay."""
_LOW = re.compile(r"1?\d(?:\.\d{1,2}){3}")
"""An IPv4 address that a version could be."""


def email(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    return _by(asked, "email", candidates, _is_email, chance=0.002)


def credit_card(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    return _by(asked, "credit_card", candidates, _is_card, chance=0.04)


def bank_account(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    return _by(asked, "iban", candidates, iban.is_valid, chance=0.005)


def ip_address(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    # 4.18.0.2 is a version. Addresses of a network with such numbers are told by the column's name.
    low = all(_LOW.fullmatch(asked.values[i]) for i in candidates)
    return _by(asked, "ip_address", candidates, _is_ip, chance=0.9 if low else 0.02)


def street_address(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    texts = pa.array([asked.values[i] for i in candidates], pa.string())
    found = pc.and_(pc.match_substring_regex(texts, ADDRESS), pc.less_equal(pc.utf8_length(texts), 120)).to_pylist()
    genuine = [i for i, passes in zip(candidates, found, strict=True) if passes]
    said = hint(asked.column, "street_address")
    # Not every street has a word for "street" in its name, so that a third is enough.
    wrong = 0 if 3 * len(genuine) >= len(candidates) else len(candidates) - len(genuine)
    confidence = posterior(said, len(genuine), len(genuine) + wrong, 0.1)
    return Evidence("street_address", confidence, asked.mask(genuine))


def person_name(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    """By the dictionary, and by the column's name; in columns of other things' names never."""
    said = hint(asked.column, "person_name")
    if said == "against":
        return None
    share = sum(_has_given_name(asked.values[i]) for i in candidates) / len(candidates)
    # Candidates come in the order of the values: how many of those up to the last one they are.
    of_names = len(candidates) / (candidates[-1] + 1)
    if said == "for" and of_names >= 0.7:
        if share >= 0.05 or means_surname(asked.column):
            return Evidence("person_name", 0.7 + 0.28 * min(1.0, 2 * share), asked.mask(candidates))
        return None
    if allows_people(asked.column) and of_names >= 0.7 and share >= 0.15:
        return Evidence("person_name", 0.55 + 0.4 * min(1.0, 2 * share), asked.mask(candidates))
    capitals = sum(asked.values[i][0] != asked.values[i][0].lower() for i in candidates) / len(candidates)
    if said == "none" and share >= 0.5 and of_names >= 0.8 and capitals >= 0.8 and len(candidates) >= 5:
        return Evidence("person_name", 0.5 + 0.4 * share, asked.mask(candidates))
    return None


def date_of_birth(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    """A date is one of birth only by its column's name."""
    if hint(asked.column, "date_of_birth") != "for":
        return None
    seen = len(candidates)
    return Evidence("date_of_birth", posterior("for", seen, seen, 0.5), asked.mask(candidates))


CHECKS: dict[PiiKind, Check] = {
    "email": email,
    "iban": bank_account,
    "credit_card": credit_card,
    "national_id": national_id,
    "ip_address": ip_address,
    "date_of_birth": date_of_birth,
    "phone": phone,
    "street_address": street_address,
    "person_name": person_name,
}
"""Of values that are equally sure of two kinds, the earlier wins."""


def _by(
    asked: Asked, kind: PiiKind, candidates: Sequence[int], is_valid: Callable[[str], bool], chance: float
) -> Evidence:
    genuine = [i for i in candidates if is_valid(asked.values[i])]
    return Evidence(
        kind, posterior(hint(asked.column, kind), len(genuine), len(candidates), chance), asked.mask(genuine)
    )


def _is_email(text: str) -> bool:
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _is_card(text: str) -> bool:
    number = text.replace(" ", "").replace("-", "")
    return bool(_CARD.fullmatch(number)) and bool(luhn.is_valid(number))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return True


def _has_given_name(text: str) -> bool:
    """`Anna Schmidt`, `Schmidt, Anna`, `Dr. Anna Schmidt`, `Jean-Pierre`."""
    return any(plain(word) in GIVEN_NAMES for word in re.split(r"[\s,.-]+", text)[:4] if word)
