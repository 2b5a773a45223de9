"""Which Arrow types a table stores, and how others become them. Delta has fewer than Arrow:

    dictionary                          its values
    large or view string, binary        string, binary; fixed-size binary: binary
    any list of floats                  list<float32>: it is a vector
    other lists, structs, maps          the same of stored types
    float16                             float32
    uint8, uint16, uint32               the next larger signed integer
    uint64                              int64; a value that doesn't fit is refused
    timestamp of any unit               microseconds; a zone other than UTC becomes UTC
    date64; time; duration              date32; string; int64 microseconds
    null (no value seen)                string

Everything else (unions, intervals, decimal256 …) is refused. Values never change silently: a
cast that would lose one raises, except float64 in a vector and nanoseconds.
"""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from actors.ports import ROW

WHOLE = re.compile(r"[+-]?\d{1,19}")

_INTEGERS = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.int64()}


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that a table keeps for columns of `schema`, the row number first (deltalake
    reads file statistics of the first 32 columns only). Raises ValueError."""
    names = schema.names
    for name in names:
        if names.count(name) > 1 or not name or name == ROW:
            raise ValueError(f"column name {name!r} is {'reserved' if name == ROW else 'empty or there twice'}")
    fields = [pa.field(field.name, stored_type(field.type, field.name)) for field in schema]
    return pa.schema([pa.field(ROW, pa.int64()), *fields])


def stored_type(of: pa.DataType, column: str) -> pa.DataType:
    """The type that stores `of`. Raises ValueError that names the column."""
    kind = pa.types
    if kind.is_dictionary(of):
        return stored_type(of.value_type, column)
    if kind.is_list(of) or kind.is_large_list(of) or kind.is_fixed_size_list(of):
        value = pa.float32() if kind.is_floating(of.value_type) else stored_type(of.value_type, column)
        return pa.list_(pa.field("element", value))
    if kind.is_struct(of):
        return pa.struct([pa.field(field.name, stored_type(field.type, column)) for field in of])
    if kind.is_map(of):
        return pa.map_(stored_type(of.key_type, column), stored_type(of.item_type, column))
    if kind.is_timestamp(of):
        return pa.timestamp("us", "UTC" if of.tz else None)
    if (
        kind.is_string(of)
        or kind.is_large_string(of)
        or kind.is_string_view(of)
        or kind.is_null(of)
        or kind.is_time(of)
    ):
        return pa.string()
    if kind.is_binary(of) or kind.is_large_binary(of) or kind.is_fixed_size_binary(of) or kind.is_binary_view(of):
        return pa.binary()
    if kind.is_float16(of):
        return pa.float32()
    if kind.is_date(of):
        return pa.date32()
    if kind.is_duration(of):
        return pa.int64()
    if kind.is_integer(of):
        return _INTEGERS.get(of, of)
    if kind.is_boolean(of) or kind.is_floating(of) or kind.is_decimal128(of):
        return of
    raise ValueError(f"column {column!r}: a table can't store {of}")


def user_schema(stored: pa.Schema) -> pa.Schema:
    """Without the row number."""
    return pa.schema([field for field in stored if field.name != ROW])


def widened(stored: pa.Schema, given: pa.Schema) -> pa.Schema:
    """A table's schema with the columns added that only `given` has; both are stored schemas.
    Raises ValueError when a column has another type."""
    for field in given:
        if field.name in stored.names and stored.field(field.name).type != field.type:
            raise ValueError(f"column {field.name!r} is {stored.field(field.name).type} in the table, not {field.type}")
    return pa.schema([*stored, *(field for field in given if field.name not in stored.names)])


def conform(batch: pa.RecordBatch, schema: pa.Schema, first_row: int) -> pa.Table:
    """A batch as the table stores it: columns by name in the schema's order, missing ones null,
    numbered from `first_row`. Raises ValueError when it doesn't fit."""
    unknown = [name for name in batch.schema.names if name == ROW or name not in schema.names]
    if unknown:
        raise ValueError(
            f"the table has no column {', '.join(map(repr, unknown))}; it has {', '.join(schema.names[1:])}"
        )
    columns = [pa.array(range(first_row, first_row + batch.num_rows), pa.int64())]
    for field in list(schema)[1:]:
        if field.name in batch.schema.names:
            columns.append(_cast(batch.column(field.name), field))
        else:
            columns.append(pa.nulls(batch.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(values: pa.Array, field: pa.Field) -> pa.Array:
    if values.type == field.type:
        return values
    try:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_duration(values.type):
            values = values.cast(pa.duration("us"), safe=False)
        if pa.types.is_timestamp(values.type):
            return values.cast(field.type, safe=False)
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
            return _vectors(values, field.type)
        return values.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"column {field.name!r}: {values.type} doesn't fit the table's {field.type}: {error}"
        ) from error


def _vectors(values: pa.Array, to: pa.DataType) -> pa.Array:
    """A list column with float32 values, whatever the lists and floats were."""
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))  # nulls become null lists
    inner = values.type.value_type
    if pa.types.is_float16(inner) or pa.types.is_float64(inner):
        values = pc.cast(values, pa.list_(pa.float32()), safe=False)
    return values.cast(to)


def converted(values: Sequence[str | int], type: pa.DataType) -> pa.Array:
    """The values as an array of a column's type; those that can't be are left out."""
    if pa.types.is_integer(type):
        numbers = [int(value) for value in values if isinstance(value, int) or WHOLE.fullmatch(value)]
        return pa.array([number for number in numbers if -(2**63) <= number < 2**63], pa.int64()).cast(type)
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        return pa.array([str(value) for value in values], type)
    return pa.array([], type)
