"""National ids of people: which of python-stdnum's checks the values of a column pass.

Each scheme has the shape of its numbers (a regular expression over the number without separators)
and the `chance` that another value of that shape passes: measured on random digits and letters,
rounded up (tests/unit/test_pii_national.py measures again). A number that was stored as an integer
has lost its leading zeros; they are put back.
"""

import importlib
import re
from collections.abc import Sequence

import msgspec

from actors.ingest.pii.evidence import Asked, Evidence, posterior
from actors.ingest.pii.hints import Hint, hint

_FIRST = 32
"""Values that may rule a scheme out."""
_SEPARATORS = str.maketrans("", "", " .-/")


class Scheme(msgspec.Struct, frozen=True):
    """One country's number."""

    name: str  # of python-stdnum's module
    shape: str  # of the number without separators
    chance: float  # that a random value of the shape passes
    written: str = ""  # a shape with separators that must be there; values without them prove nothing


def _digits(name: str, count: int, chance: float) -> Scheme:
    return Scheme(name, rf"\d{{{count}}}", chance)


SCHEMES: tuple[Scheme, ...] = (
    # No check digit: the hyphens are the evidence, or the column's name.
    Scheme("us.ssn", r"\d{9}", 0.1, written=r"\d{3}-\d{2}-\d{4}"),
    Scheme("us.ssn", r"\d{9}", 0.9),
    _digits("us.itin", 9, 0.04),
    _digits("gb.nhs", 10, 0.1),
    _digits("de.idnr", 11, 0.01),
    Scheme("fr.nir", r"[1-478]\d{4}(?:\d\d|2[AB])\d{8}", 0.015),
    Scheme("es.dni", r"\d{8}[A-Z]", 0.05),
    Scheme("es.nie", r"[XYZ]\d{7}[A-Z]", 0.05),
    Scheme("it.codicefiscale", r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", 0.05),
    _digits("nl.bsn", 9, 0.1),
    _digits("be.nn", 11, 0.01),
    Scheme("pt.cc", r"\d{9}[A-Z]{2}\d", 0.11),
    _digits("pt.nif", 9, 0.11),
    _digits("pl.pesel", 11, 0.025),
    Scheme("se.personnummer", r"(?:\d{2})?\d{10}", 0.01),
    _digits("no.fodselsnummer", 11, 0.01),
    # No check digit since 2007, only a date: half the French mobile numbers have one too.
    Scheme("dk.cpr", r"\d{10}", 0.1, written=r"\d{6}-\d{4}"),
    _digits("dk.cpr", 10, 0.5),
    Scheme("fi.hetu", r"\d{6}[+A-FU-Y]?\d{3}[0-9A-Y]", 0.02, written=r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]"),
    _digits("ee.ik", 11, 0.01),
    _digits("lt.asmens", 11, 0.02),
    _digits("cz.rc", 10, 0.03),
    _digits("ro.cnp", 13, 0.01),
    _digits("bg.egn", 10, 0.02),
    _digits("hr.oib", 11, 0.11),
    Scheme("ch.ssn", r"756\d{10}", 0.11),
    _digits("at.vnr", 10, 0.1),
    Scheme("ie.pps", r"\d{7}[A-W][A-IW]?", 0.06),
    _digits("gr.amka", 11, 0.01),
    _digits("br.cpf", 11, 0.02),
    _digits("ar.cuit", 11, 0.02),
    Scheme("cl.rut", r"\d{7,8}[0-9K]", 0.1),
    Scheme("mx.curp", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d", 0.05),
    Scheme("cn.ric", r"\d{17}[0-9X]", 0.01),
    _digits("in_.aadhaar", 12, 0.1),
    Scheme("in_.pan", r"[A-Z]{3}[ABCFGHLJPTK][A-Z]\d{4}[A-Z]", 0.3),
    _digits("kr.rrn", 13, 0.02),
    _digits("th.pin", 13, 0.1),
    Scheme("my.nric", r"\d{12}", 0.03),
    _digits("za.idnr", 13, 0.01),
    _digits("tr.tckimlik", 11, 0.02),
    _digits("il.idnr", 9, 0.11),
    _digits("au.tfn", 9, 0.11),
    _digits("ca.sin", 9, 0.1),
    Scheme("is_.kennitala", r"\d{10}", 0.01),
    _digits("si.emso", 13, 0.01),
    _digits("ec.ci", 10, 0.05),
    _digits("do.cedula", 11, 0.11),
)

_SHAPES = [(scheme, re.compile(scheme.shape), re.compile(scheme.written or r".*")) for scheme in SCHEMES]
_PRODUCT_CODES = ("isbn", "ean")


def is_valid(scheme: str, number: str) -> bool:
    """Whether python-stdnum's check passes."""
    try:
        return bool(importlib.import_module(f"stdnum.{scheme}").is_valid(number))
    except (LookupError, ValueError, TypeError, AttributeError):
        return False  # its tables of birth places have holes, into which some checks fall


def national_id(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    """The scheme that the candidates (indices of the column's values) speak for most, if any."""
    bare = {i: asked.values[i].upper().translate(_SEPARATORS) for i in candidates}
    said = hint(asked.column, "national_id")
    if said != "for" and _are_product_codes(list(bare.values())[:_FIRST], said):
        return None
    best: Evidence | None = None
    for scheme, shape, written in _SHAPES:
        passed, shaped = _check(scheme, shape, written, asked, bare, candidates[:_FIRST])
        if len(passed) * 2 < len(shaped) or not passed:
            continue
        passed, shaped = _check(scheme, shape, written, asked, bare, candidates)
        confidence = posterior(said, len(passed), len(shaped), scheme.chance)
        if best is None or (confidence, len(passed)) > (best.confidence, int(best.matched.sum())):
            best = Evidence("national_id", confidence, asked.mask(passed), scheme.name.replace("_", ""))
    return best


def _check(
    scheme: Scheme,
    shape: re.Pattern[str],
    written: re.Pattern[str],
    asked: Asked,
    bare: dict[int, str],
    which: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Those that pass, and those that have the shape."""
    shaped, passed = [], []
    for i in which:
        number = bare[i] if not scheme.written else asked.values[i].upper()
        forms = [number, "0" + number, "00" + number] if asked.integers else [number]
        fitting = [form for form in forms if (shape if not scheme.written else written).fullmatch(form)]
        if fitting:
            shaped.append(i)
            if any(is_valid(scheme.name, form) for form in fitting):
                passed.append(i)
    return passed, shaped


def _are_product_codes(numbers: Sequence[str], said: Hint) -> bool:
    """Books and articles have check digits too, and ISBN-10 has the very one of the NHS."""
    coded = [n for n in numbers if len(n) in (8, 10, 12, 13)]
    if len(coded) < 3:
        return False
    # 756 begins the numbers of the Swiss social security, which are EAN-13 otherwise.
    ean13 = sum(len(n) == 13 and n[:3] != "756" and is_valid("ean", n) for n in coded)
    ean12 = sum(len(n) == 12 and is_valid("ean", "0" + n) for n in coded)
    isbn10 = [n for n in coded if len(n) == 10 and is_valid("isbn", n)]
    # One ISBN-10 in eleven ends in X, which no number of a person of this length does; when none of a few does, the
    # column's name has to tell.
    books = any(n[-1] == "X" for n in isbn10) or (said == "against" and len(isbn10) > 0.9 * len(coded))
    return ean13 + ean12 > 0.9 * len(coded) or books
