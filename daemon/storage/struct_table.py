"""A table whose rows are structs of plain values, a column a field, and that only grows: what journals are made of."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.ports import ROW, TableRef, Tables, TableState
from schemas.events.dataset import CommitInfo

S = TypeVar("S", bound=msgspec.Struct)

_COLUMNS: dict[type, pa.DataType] = {
    msgspec.inspect.StrType: pa.string(),
    msgspec.inspect.LiteralType: pa.string(),
    msgspec.inspect.IntType: pa.int64(),
    msgspec.inspect.FloatType: pa.float64(),
    msgspec.inspect.BoolType: pa.bool_(),
}


class StructTable(Generic[S]):
    def __init__(self, tables: Tables, ref: TableRef, struct: type[S]) -> None:
        self.schema = schema_of(struct)
        self._tables = tables
        self._ref = ref
        self._struct = struct
        self._required = {field.name for field in _fields(struct) if field.required}

    async def append(self, rows: Sequence[S], belongs_to: Callable[[S], tuple[str, str]]) -> None:
        """Durable on return. `belongs_to` tells the commit's message and its source; rows of one message are written
        as a whole, and not again when a commit of that message is there already."""
        for (message, source), group in groupby(sorted(rows, key=belongs_to), key=belongs_to):
            values = [msgspec.to_builtins(row) for row in group]
            note = CommitInfo(version=0, time=0, operation="append", rows=0, message=message, source=source)
            batch = pa.RecordBatch.from_pylist(values, schema=self.schema)
            await self._tables.commit(self._ref, [batch], note, schema=self.schema)

    async def state(self) -> TableState | None:
        return await self._tables.state(self._ref)

    async def read(
        self, *, version: int | None = None, min_row: int | None = None, rows: NDArray[np.int64] | None = None
    ) -> list[S]:
        """In the order written. The table has to be there."""
        table = await self._tables.read(self._ref, version=version, min_row=min_row, rows=rows)
        return [self._decode(row) for row in table.drop_columns([ROW]).to_pylist()]

    def _decode(self, row: dict[str, Any]) -> S:
        """A row as it was written; a field that is younger than the row has its default."""
        names = self._struct.__struct_fields__
        known = {name: row[name] for name in names if row.get(name) is not None or name in self._required}
        return msgspec.convert(known, self._struct)


def schema_of(struct: type[msgspec.Struct]) -> pa.Schema:
    """A column per field. Raises TypeError for a field that is no plain value."""
    return pa.schema([pa.field(field.name, _column(field)) for field in _fields(struct)])


def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def _column(field: msgspec.inspect.Field) -> pa.DataType:
    of: Any = field.type
    while isinstance(of, msgspec.inspect.Metadata):
        of = of.type
    if isinstance(of, msgspec.inspect.UnionType):
        (of,) = (option for option in of.types if not isinstance(option, msgspec.inspect.NoneType))
    while isinstance(of, msgspec.inspect.Metadata):
        of = of.type
    if type(of) not in _COLUMNS:
        raise TypeError(f"{field.name}: the journal has no column type for {of}")
    return _COLUMNS[type(of)]
