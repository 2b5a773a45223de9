"""The dataset's columns in memory, so that a hit's values cost microseconds and not a table read.

The id column is always here; the others as long as they fit the limit, else they are read from
the table for the rows of a result. Rows that left the dataset stay until half of what is here
is such. Values are kept as Python objects: turning ten Arrow scalars into them takes 8 us, more
than a tenth of a search.
"""

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.ports import ROW, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.names import Bytes

OBJECT_BYTES = 56
"""What a Python string takes beyond its text."""

Values = tuple[list[int], list[list[Any]]]
"""Those of the rows asked for that are still there, and per column their values."""


class ColumnCache:
    """Columns of one dataset, aligned to ascending row numbers."""

    def __init__(self, tables: Tables, dataset: DatasetDocument, limit_bytes: Bytes) -> None:
        self.id_column = dataset.id_column
        self.names = [column.name for column in dataset.columns]
        self.default = [c.name for c in dataset.columns if c.role != "vector" and c.name != dataset.id_column]
        self._tables = tables
        self.table = TableRef(dataset.bucket, dataset.path)
        self._limit_bytes = limit_bytes
        self._rows = np.empty(0, np.int64)
        self._columns: dict[str, NDArray[Any]] = {}  # (n,) aligned to _rows
        self._bytes = 0
        self._version = -1

    @property
    def bytes(self) -> int:
        return self._bytes

    async def sync(self, rows: NDArray[np.int64], version: int) -> None:
        """Have the columns of `rows`, those of dataset version `version`."""
        if not self._columns or len(self._rows) > 2 * len(rows):
            names = [self.id_column, *self.default]
            state = await self._tables.state(self.table, version)
            if state is not None and state.bytes > self._limit_bytes:
                names = names[:1]
            read = await self._tables.read(self.table, names, version=version)
            if _object_bytes(read) > self._limit_bytes:
                read = read.select([ROW, self.id_column])
            have, columns = np.empty(0, np.int64), {}
            self._bytes = 0
        else:
            missing = np.setdiff1d(rows, self._rows, assume_unique=True)
            if not len(missing):
                self._version = version
                return
            read = await self._tables.read(self.table, list(self._columns), version=version, rows=missing)
            have, columns = self._rows, self._columns
        self._rows, self._columns = await anyio.to_thread.run_sync(_joined, have, columns, read)
        self._bytes += _object_bytes(read)
        self._version = version

    def has(self, columns: Sequence[str]) -> bool:
        return self._columns.keys() >= set(columns)

    def values(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Values:
        """For columns that `has`: microseconds."""
        positions = self._rows.searchsorted(rows)
        wanted, there = rows.tolist(), self._rows.take(positions, mode="clip")
        if there.tolist() != wanted:
            rows, positions = rows[there == rows], positions[there == rows]
            wanted = rows.tolist()
        return wanted, [self._columns[name][positions].tolist() for name in columns]

    async def read(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Values:
        """As `values`, from the table: milliseconds."""
        table = await self._tables.read(self.table, list(columns), version=self._version, rows=np.unique(rows))
        there = table[ROW].to_numpy()
        rows = rows[np.isin(rows, there)]
        at = pa.array(np.searchsorted(there, rows))
        return rows.tolist(), [table[name].take(at).to_pylist() for name in columns]


def _joined(
    have: NDArray[np.int64], columns: dict[str, NDArray[Any]], read: Any
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    """One array per column, ascending by row."""
    joined = {name: _objects(read[name]) for name in read.column_names if name != ROW}
    rows = np.asarray(read[ROW].to_numpy(), np.int64)
    if len(have):
        joined = {name: np.concatenate([columns[name], more]) for name, more in joined.items()}
        rows = np.concatenate([have, rows])
        if np.any(rows[1:] < rows[:-1]):
            order = np.argsort(rows)
            rows, joined = rows[order], {name: column[order] for name, column in joined.items()}
    return rows, joined


def _objects(column: Any) -> NDArray[Any]:
    """An Arrow column as (n,) Python objects, or plain numbers where that says the same."""
    if column.null_count == 0 and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.asarray(column.to_numpy())
    return np.fromiter(column.to_pylist(), object, len(column))


def _object_bytes(table: Any) -> Bytes:
    """Memory of the table's values as Python objects, roughly."""
    rows, columns = table.shape
    return int(table.nbytes) + OBJECT_BYTES * int(rows) * int(columns)
