"""Cells to stored types, with the place and reason of each that won't convert.

A whole column is cast at once; only when that fails are its cells looked at one by one. The
result has null where a cell was bad, and says which and why.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.ingest.core import VECTOR, Column

T = TypeVar("T")

Bad = dict[int, str]
"""Row within the batch → why its cell was refused."""

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "-"})
"""What stands for "no value" in a CSV column that isn't text, in any case."""

_CAST_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeError, OverflowError)
_INT64 = range(-(2**63), 2**63)
_numbers = msgspec.json.Decoder(list[float])
_many_numbers = msgspec.json.Decoder(list[list[float]])


def from_text(cells: pa.Array, column: Column) -> tuple[pa.Array, Bad]:
    """Cells of a CSV file, binary (n,), as the column's type."""
    text, bad = _utf8(cells)
    if pa.types.is_string(column.type):
        return text, bad
    if column.role == "vector":
        vectors, unread = _text_vectors(text)
        return _checked(vectors, column.dim, unread | bad)
    if not bad:
        try:
            values = text.cast(column.type)
            return (_nan_is_null(values) if pa.types.is_floating(column.type) else values), {}
        except _CAST_ERRORS:
            pass
    values, unread = _one_by_one(text.to_pylist(), _text_parser(column.type), column.type)
    return values, unread | bad


def from_json(values: Sequence[Any], column: Column) -> tuple[pa.Array, Bad]:
    """Decoded JSON values as the column's type. In a text column with role `value`, which holds
    mixed or nested values, what isn't text is kept as JSON."""
    lenient = pa.types.is_floating(column.type) and bool in set(map(type, values))
    if not lenient:
        try:
            array = pa.array(values, column.type)
            return _checked(array, column.dim, {}) if column.role == "vector" else (array, {})
        except (*_CAST_ERRORS, TypeError, ValueError):
            pass
    array, bad = _one_by_one(values, _json_parser(column), column.type)
    return _checked(array, column.dim, bad) if column.role == "vector" else (array, bad)


def from_arrow(values: pa.Array, column: Column) -> tuple[pa.Array, Bad]:
    """An Arrow array as the column's type; casts that would lose digits refuse the cell,
    except nanoseconds, which become microseconds, and float64 vectors."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    bad: Bad = {}
    if pa.types.is_string(column.type) and not pa.types.is_integer(values.type):
        values, bad = _utf8(values.cast(pa.binary()) if not pa.types.is_null(values.type) else values)
    options = pc.CastOptions(target_type=column.type, allow_time_truncate=True)
    try:
        array = values.cast(options=options)
    except _CAST_ERRORS:
        array, unread = _cast_one_by_one(values, column.type, options)
        bad = unread | bad
    return _checked(array, column.dim, bad) if column.role == "vector" else (array, bad)


def int_of(text: str) -> int:
    """An integer of 64 bits. Raises ValueError. `007` is no integer: it is a code."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and digits != "0"):
        raise ValueError(f"expected an integer, found {_shown(text)}")
    if len(digits) > 19 or int(text) not in _INT64:
        raise ValueError(f"integer {_shown(text)} does not fit 64 bits")
    return int(text)


def float_of(text: str) -> float:
    """A float. Raises ValueError. An integer is one only when it survives exactly."""
    if "_" in text or (text[:1] == "0" and text[1:2].isdigit()):
        raise ValueError(f"expected a number, found {_shown(text)}")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"expected a number, found {_shown(text)}") from None
    if len(text) > 15 and text.removeprefix("-").isdigit() and int(value) != int(text):
        raise ValueError(f"integer {_shown(text)} does not fit a float exactly")
    return value


def bool_of(text: str) -> bool:
    """true or false, in any case. Raises ValueError."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, found {_shown(text)}")
    return text.lower() == "true"


def _checked(vectors: pa.Array, dim: int | None, bad: Bad) -> tuple[pa.Array, Bad]:
    """Refuse vectors that are missing, of another length than dim, or not finite."""
    lengths = pc.fill_null(pc.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)  # (n,)
    found = dict(bad)
    for row in np.flatnonzero((lengths != dim) | (lengths == 0)):
        length = int(lengths[row])
        reason = "the vector is missing" if length < 0 else f"the vector has {length} dimensions, not {dim}"
        found.setdefault(int(row), reason if length else "the vector is empty")
    flat = vectors.flatten()  # leaves nulls out
    if len(flat):
        finite = np.isfinite(flat.to_numpy(zero_copy_only=False))  # a null within a vector is NaN here
        if not finite.all():
            owner = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 0))  # row of each component
            for row in np.unique(owner[~finite]):
                found.setdefault(int(row), "the vector has components that are not finite float32 numbers")
    return vectors, found


def _utf8(cells: pa.Array) -> tuple[pa.Array, Bad]:
    try:
        return cells.cast(pa.string()), {}
    except pa.ArrowInvalid:
        return _one_by_one(cells.to_pylist(), _decoded, pa.string())


def _decoded(cell: bytes) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{cell[error.start]:02x} at position {error.start}") from None


def _text_vectors(text: pa.Array) -> tuple[pa.Array, Bad]:
    if not text.null_count:
        try:
            rows = _many_numbers.decode("[" + ",".join(text.to_pylist()) + "]")
            if len(rows) == len(text):
                return pa.array(rows, VECTOR), {}
        except msgspec.DecodeError:
            pass
    return _one_by_one(text.to_pylist(), _vector_of, VECTOR)


def _vector_of(text: str) -> list[float]:
    try:
        return _numbers.decode(text)
    except msgspec.DecodeError:
        raise ValueError(f"expected a JSON array of numbers, found {_shown(text)}") from None


def _text_parser(type_: pa.DataType) -> Callable[[str], Any]:
    parse: Callable[[str], Any]
    if pa.types.is_integer(type_):
        parse = int_of
    elif pa.types.is_floating(type_):
        parse = float_of
    elif pa.types.is_boolean(type_):
        parse = bool_of
    elif pa.types.is_list(type_):
        parse = _json_list
    else:
        parse = _caster(type_)
    return lambda text: None if text.strip().lower() in MISSING else parse(text.strip())


def _caster(type_: pa.DataType) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return pa.scalar(text).cast(type_).as_py()
        except _CAST_ERRORS:
            raise ValueError(f"expected {type_}, found {_shown(text)}") from None

    return parse


def _json_list(text: str) -> Any:
    try:
        return msgspec.json.decode(text, type=list)
    except (msgspec.DecodeError, RecursionError):
        raise ValueError(f"expected a JSON array, found {_shown(text)}") from None


def _json_parser(column: Column) -> Callable[[Any], Any]:
    def vector(value: Any) -> Any:
        if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
            raise ValueError(f"expected an array of numbers, found {_shown_json(value)}")
        return [float(x) for x in value]

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        if column.role == "value" or (column.role == "id" and type(value) is int):
            return msgspec.json.encode(value).decode()
        raise ValueError(f"expected text, found {_shown_json(value)}")

    def number(value: Any) -> Any:
        integral = pa.types.is_integer(column.type)
        if type(value) is int and (value in _INT64 if integral else int(float(value)) == value):
            return value if integral else float(value)
        if type(value) is float and (not integral or value.is_integer()):
            return int(value) if integral else value
        expected = "a 64-bit integer" if integral else "a number that a float holds"
        raise ValueError(f"expected {expected}, found {_shown_json(value)}")

    if column.role == "vector":
        return vector
    if pa.types.is_string(column.type):
        return text
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return number
    return lambda value: value


def _one_by_one(values: Sequence[T | None], parse: Callable[[T], Any], type_: pa.DataType) -> tuple[pa.Array, Bad]:
    good: list[Any] = []
    bad: Bad = {}
    for row, value in enumerate(values):
        parsed = None
        if value is not None:
            try:
                parsed = parse(value)
                pa.scalar(parsed, type_)
            except (*_CAST_ERRORS, TypeError, ValueError) as error:
                parsed = None
                bad[row] = (
                    str(error) if isinstance(error, ValueError) else f"expected {type_}, found {_shown_json(value)}"
                )
        good.append(parsed)
    return pa.array(good, type_), bad


def _cast_one_by_one(values: pa.Array, type_: pa.DataType, options: pc.CastOptions) -> tuple[pa.Array, Bad]:
    parts: list[pa.Array] = []
    bad: Bad = {}
    for row in range(len(values)):
        cell = values.slice(row, 1)
        try:
            parts.append(cell.cast(options=options))
        except _CAST_ERRORS:
            parts.append(pa.nulls(1, type_))
            bad[row] = f"{_shown(str(cell[0]))} does not fit {type_}"
    return pa.concat_arrays(parts), bad


def _nan_is_null(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(values), None, values) if pc.any(pc.is_nan(values)).as_py() else values


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _shown_json(value: Any) -> str:
    return _shown(msgspec.json.encode(value, enc_hook=str).decode(errors="replace"))
