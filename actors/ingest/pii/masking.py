"""What is stored instead of personal data. No way leads back: what isn't shown isn't kept, and
nothing is derived from it.

email           ***@***.de           the top-level domain, when it is plain ASCII
phone           ***67                the last two digits
credit_card     ****1111             the last four digits
iban            DE****3000           the country and the last four characters
ip_address      203.0.*.*  2001:db8:*    the first half of an IPv4 address, the first two groups of an IPv6
date_of_birth   1984-**-**           the year; 1 January of it in columns of dates
others          ***                  nothing

Every value of the column is masked, those that don't have the kind's shape as `***`; nulls and
empty texts stay. Columns that can't hold text keep their type, so that numbers and nested values
become null. What tells of the source as a whole, its name and its digest, stays in the commit.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from schemas.events.dataset import PiiKind

HIDDEN = "***"

_CHAR = "([0-9A-Za-z])"
_RULES: tuple[tuple[PiiKind, str, str], ...] = (
    ("email", r"^[^@]*@[^@]*\.([A-Za-z]+)$", r"***@***.\1"),
    ("phone", r"^[+(\d].*(\d)\D?(\d)$", r"***\1\2"),
    ("credit_card", r"^(?:\d[ -]?){9,15}(\d)[ -]?(\d)[ -]?(\d)[ -]?(\d)$", r"****\1\2\3\4"),
    ("iban", rf"^([A-Za-z]{{2}})\d\d[0-9A-Za-z -]{{7,40}}{_CHAR} ?{_CHAR} ?{_CHAR} ?{_CHAR}$", r"\1****\2\3\4\5"),
    ("ip_address", r"^(\d{1,3}\.\d{1,3})\.\d{1,3}\.\d{1,3}(?:/\d+)?$", r"\1.*.*"),
    ("ip_address", r"^([0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}):[0-9A-Fa-f:.]*(?:/\d+)?$", r"\1:*"),
    ("date_of_birth", r"^(?:.*[^\d])?((?:19|20)\d\d)(?:\D.*)?$", r"\1-**-**"),
)  # fmt: skip
"""What a value of a kind must look like as a whole, and what is left of it."""
_QUOTED = re.compile(r"""(['"]).*\1""", re.DOTALL)
_ID = re.compile(r"""\bid [^'"\s]\S* is already""")


def masked(values: pa.Array, kinds: Sequence[PiiKind]) -> pa.Array:
    """The values (n,) of a column that holds the kinds, of the same type."""
    type_ = values.type
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return _masked_text(values, kinds)
    if "date_of_birth" in kinds and (pa.types.is_date(type_) or pa.types.is_timestamp(type_)):
        return _years(values)
    return pa.nulls(len(values), type_)


def masked_text(value: str, kinds: Sequence[PiiKind]) -> str:
    """One value."""
    return str(_masked_text(pa.array([value], pa.string()), kinds)[0].as_py())


def masked_reason(reason: str) -> str:
    """Why a row was refused, without the value that it quotes."""
    return _ID.sub(f"id {HIDDEN} is already", _QUOTED.sub(f"'{HIDDEN}'", reason))


def masked_content(content: str, kinds: Mapping[str, Sequence[PiiKind]], columns: Sequence[str], delimiter: str) -> str:
    """A refused row as it is shown, without the values of columns with personal data. It is JSON,
    or a line of cells in the order of `columns`; when it can't be told which cell is which (it has
    too many or too few, or was cut), nothing of it is shown."""
    cells = _cells(content, delimiter) if delimiter else None
    if cells is not None and len(cells) == len(columns):
        shown = [
            masked_text(cell, kinds[name]) if name in kinds and cell else cell
            for name, cell in zip(columns, cells, strict=True)
        ]
        return _line(shown, delimiter)
    if not delimiter:
        try:
            row = msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError):
            row = None
        if isinstance(row, dict):
            return msgspec.json.encode({name: _json_masked(name, value, kinds) for name, value in row.items()}).decode()
    return "(not shown: the dataset has personal data, and which cell is which can't be told)"


def _masked_text(values: pa.Array, kinds: Sequence[PiiKind]) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(values)
    result = pc.if_else(pc.equal(pc.binary_length(trimmed), 0), "", HIDDEN)  # null where null
    for kind, pattern, left in reversed(_RULES):
        if kind in kinds:
            fits = pc.match_substring_regex(trimmed, pattern)
            result = pc.if_else(fits, pc.replace_substring_regex(trimmed, pattern, left), result)
    return result.cast(values.type)


def _years(values: pa.Array) -> pa.Array:
    return pc.floor_temporal(values, unit="year").cast(values.type)


def _json_masked(name: str, value: object, kinds: Mapping[str, Sequence[PiiKind]]) -> object:
    if name not in kinds or value is None:
        return value
    return masked_text(value, kinds[name]) if isinstance(value, str) else None


def _cells(line: str, delimiter: str) -> list[str] | None:
    """The cells of a record of CSV; None when it isn't one record."""
    try:
        records = list(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _line(cells: Sequence[str], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerow(cells)
    return out.getvalue().removesuffix("\r\n")
