"""Which columns hold personal data, and of which kind, from a sample of their values.

Pre-filter (shapes.py, over the whole sample), then validators (checks.py, on some hundred distinct
values of the right shape), then what is sure and frequent enough to be told. Values within nested
columns, and in text that is JSON, are looked at under the name that they have there. Prose isn't
searched: a value counts when it is personal data as a whole.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.ingest.pii.checks import CHECKS
from actors.ingest.pii.evidence import LOOKED_AT, Asked, Evidence
from actors.ingest.pii.hints import hint
from actors.ingest.pii.sampling import NESTED
from actors.ingest.pii.shapes import shaped
from schemas.events.dataset import PiiFinding, PiiKind

SURE = 0.5
"""Confidence from which a column is told."""
FREQUENT: dict[PiiKind, float] = {
    "email": 0.01,
    "iban": 0.01,
    "credit_card": 0.02,
    "national_id": 0.2,
    "ip_address": 0.05,
    "phone": 0.05,
    "street_address": 0.2,
    "person_name": 0.5,
    "date_of_birth": 0.5,
}
"""Share of matching values from which a column is told: a few addresses that can't come about by
chance are enough, a few numbers that can aren't."""
_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|(\d+)\b)')
"""A name with a text or a whole number, in JSON."""
_LEAVES = 64
"""Different places within nested values that are looked at."""


def detect(column: str, sample: pa.Array) -> list[PiiFinding]:
    """What a sample (n,) of a column's values, without null, holds; surest first, at most one of a
    kind. Raises nothing for a type that can't hold anything: it finds nothing."""
    type_ = sample.type
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        return _born(column, sample)
    if pa.types.is_nested(type_):
        return _nested(column, sample.slice(0, NESTED).to_pylist())
    texts, integers = _texts(sample)
    if texts is None:
        return []
    found = _of_texts(column, column, texts, integers)
    if not found and not integers and (opened := _opened(texts)):
        return _nested(column, opened)
    return found


def _of_texts(column: str, name: str, texts: pa.Array, integers: bool) -> list[PiiFinding]:
    """As `detect`, of texts (n,) that are known as `name` there."""
    texts = texts.filter(pc.greater(pc.binary_length(texts), 0))
    counted = texts.value_counts()
    values, counts = counted.field("values"), counted.field("counts").to_numpy()  # (k,) distinct
    if not len(values):
        return []
    candidates = shaped(values)
    asked = Asked(name, values.to_pylist(), integers)
    evidence: list[tuple[Evidence, NDArray[np.int64]]] = []
    for kind, check in CHECKS.items():
        which = candidates[kind].to_numpy()
        if len(which) and (said := check(asked, which[:LOOKED_AT].tolist())) is not None:
            evidence.append((said, which))
    evidence = [pair for pair in evidence if pair[0].confidence >= SURE and pair[0].matched.any()]
    evidence.sort(key=lambda pair: -pair[0].confidence)  # stable: of equals the order of CHECKS
    taken = np.zeros(len(values), dtype=bool)
    found = []
    for said, which in evidence:
        if 2 * np.count_nonzero(said.matched & taken) >= np.count_nonzero(said.matched):
            continue  # those values are something else, more likely
        matched = round(_matched(said, which, counts))
        share = matched / len(texts)
        if share >= FREQUENT[said.kind]:
            taken |= said.matched
            found.append(_finding(column, said, share, len(texts), matched))
    return found


def _matched(said: Evidence, candidates: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """Values that matched: those looked at, and as large a share of the candidates that weren't."""
    looked_at, rest = candidates[:LOOKED_AT], candidates[LOOKED_AT:]
    matched = float(counts[said.matched].sum())
    return matched + matched / int(counts[looked_at].sum()) * float(counts[rest].sum())


def _finding(column: str, said: Evidence, share: float, sampled: int, matched: int) -> PiiFinding:
    return PiiFinding(
        column, said.kind, round(min(said.confidence, 0.999), 3), round(share, 4), sampled, matched, said.detail
    )


def _texts(sample: pa.Array) -> tuple[pa.Array | None, bool]:
    """The values as text without space around; whether they are whole numbers. None for types
    that hold nothing of interest."""
    type_ = sample.type
    if pa.types.is_dictionary(type_):
        return _texts(sample.dictionary_decode())
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return pc.utf8_trim_whitespace(sample.cast(pa.string())), False
    if pa.types.is_integer(type_):
        return pc.abs(sample.cast(pa.int64(), safe=False)).cast(pa.string()), True
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        # Numbers with gaps come as floats from many a tool.
        numbers = sample.cast(pa.float64())
        whole = pc.and_(pc.equal(numbers, pc.floor(numbers)), pc.less(pc.abs(numbers), 2.0**63))
        if not len(sample) or not pc.all(whole).as_py():
            return None, False
        return _texts(numbers.cast(pa.int64()))
    return None, False


def _born(column: str, dates: pa.Array) -> list[PiiFinding]:
    if hint(column, "date_of_birth") != "for" or not len(dates):
        return []
    years = pc.year(dates)
    plausible = pc.sum(pc.and_(pc.greater_equal(years, 1900), pc.less(years, 2100))).as_py()
    share = plausible / len(dates)
    if share < FREQUENT["date_of_birth"]:
        return []
    return [PiiFinding(column, "date_of_birth", 0.98, round(share, 4), len(dates), plausible)]


def _opened(texts: pa.Array) -> list[Any]:
    """The values of a column that holds JSON objects or arrays, decoded; empty when it doesn't."""
    head = texts.slice(0, NESTED)
    if not len(head) or 2 * pc.sum(pc.match_substring_regex(head, r"^[{\[]")).as_py() < len(head):
        return []
    opened = []
    for text in head.to_pylist():
        try:
            opened.append(msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError):
            # Cut in the middle, most likely.
            opened.append({name: int(number) if number else value for name, value, number in _PAIR.findall(text)})
    return opened


def _nested(column: str, values: Sequence[Any]) -> list[PiiFinding]:
    """What is in objects and arrays, place by place. A share is one of the values at that place."""
    places: dict[str, list[Any]] = {}
    for value in values:
        for place, leaf in _leaves(value, ""):
            if place in places or len(places) < _LEAVES:
                places.setdefault(place, []).append(leaf)
    best: dict[PiiKind, PiiFinding] = {}
    for place, leaves in places.items():
        texts = pa.array([str(leaf).strip() for leaf in leaves], pa.string())
        name = place.rpartition(".")[2] or column
        for found in _of_texts(column, name, texts, all(type(leaf) is int for leaf in leaves)):
            detail = " ".join(filter(None, (f"at {place}" if place else "", found.detail)))
            if found.kind not in best or best[found.kind].confidence < found.confidence:
                best[found.kind] = msgspec.structs.replace(found, detail=detail)
    return sorted(best.values(), key=lambda found: -found.confidence)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Texts and whole numbers within a value, each with the names on the way to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, place)
    elif isinstance(value, str) or type(value) is int:
        yield place, value
