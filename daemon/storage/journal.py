"""The trial journal as a table: one row per measured point, the columns those of TrialPoint."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import anyio
import msgspec
import pyarrow as pa

from actors.ports import ROW, TableRef, Tables
from schemas.documents.trial import TrialPoint
from schemas.events.dataset import CommitInfo
from schemas.names import IndexName

JOURNAL = TableRef("primary", "system/trials")

_COLUMNS: dict[type, pa.DataType] = {
    msgspec.inspect.StrType: pa.string(),
    msgspec.inspect.LiteralType: pa.string(),
    msgspec.inspect.IntType: pa.int64(),
    msgspec.inspect.FloatType: pa.float64(),
    msgspec.inspect.BoolType: pa.bool_(),
}


class TableJournal:
    """The port `Journal`. The table only grows, so what was read stays and only rows added
    since are read."""

    def __init__(self, tables: Tables, now: Callable[[], float] = time.time) -> None:
        self._tables = tables
        self._lock = anyio.Lock()
        self._read = 0  # rows below this number are in `_points`
        self._version = -1
        self._points: defaultdict[IndexName, list[TrialPoint]] = defaultdict(list)

    async def append(self, points: Sequence[TrialPoint]) -> None:
        """A trial is written as a whole, by the commit that carries its id."""
        for trial, group in groupby(sorted(points, key=lambda point: point.trial), key=lambda point: point.trial):
            rows = [msgspec.to_builtins(point) for point in group]
            note = CommitInfo(version=0, time=0, operation="append", rows=0, message=f"trial-{trial}", source=trial)
            batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
            await self._tables.commit(JOURNAL, [batch], note, schema=SCHEMA)

    async def points(self, index: IndexName) -> list[TrialPoint]:
        async with self._lock:
            await self._catch_up()
            return list(self._points[index])

    async def trial(self, index: IndexName, trial: str) -> list[TrialPoint]:
        return [point for point in await self.points(index) if point.trial == trial]

    async def _catch_up(self) -> None:
        state = await self._tables.state(JOURNAL)
        if state is None or state.version == self._version:
            return
        table = await self._tables.read(JOURNAL, version=state.version, min_row=self._read)
        for row in table.drop_columns([ROW]).to_pylist():
            point = _decode(row)
            self._points[point.index].append(point)
        self._read, self._version = state.next_row, state.version


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


def _decode(row: dict[str, Any]) -> TrialPoint:
    """A row as it was written; a field that is younger than the row has its default."""
    known = {name: row[name] for name in _NAMES if row.get(name) is not None or name in _REQUIRED}
    return msgspec.convert(known, TrialPoint)


SCHEMA = schema_of(TrialPoint)
_NAMES = TrialPoint.__struct_fields__
_REQUIRED = {field.name for field in _fields(TrialPoint) if field.required}
