"""The dataset's columns in memory, so that a hit's values cost microseconds and not a table read.

The id column is always here; the others as long as they fit the limit, else they are read from
the table for the rows of a result. Rows that left the dataset stay until half of what is here
is such.
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

Values = tuple[list[int], list[list[Any]]]
"""Those of the rows asked for that are still there, and per column their values."""


class ColumnCache:
    """Columns of one dataset, aligned to ascending row numbers."""

    def __init__(self, tables: Tables, dataset: DatasetDocument, limit_bytes: Bytes) -> None:
        self.id_column = dataset.id_column
        self.names = [column.name for column in dataset.columns]
        self.default = [c.name for c in dataset.columns if c.role != "vector" and c.name != dataset.id_column]
        self._tables = tables
        self._table = TableRef(dataset.bucket, dataset.path)
        self._limit_bytes = limit_bytes
        self._rows = np.empty(0, np.int64)
        self._columns: dict[str, Any] = {}  # pyarrow arrays, aligned to _rows
        self._version = -1

    @property
    def bytes(self) -> int:
        return sum(column.nbytes for column in self._columns.values())

    async def sync(self, rows: NDArray[np.int64], version: int) -> None:
        """Have the columns of `rows`, those of dataset version `version`."""
        if not self._columns or len(self._rows) > 2 * len(rows):
            names = [self.id_column, *self.default]
            state = await self._tables.state(self._table, version)
            if state is not None and state.bytes > self._limit_bytes:
                names = names[:1]
            read = await self._tables.read(self._table, names, version=version)
            if read.nbytes > self._limit_bytes:
                read = read.select([ROW, self.id_column])
            have = np.empty(0, np.int64)
        else:
            missing = np.setdiff1d(rows, self._rows, assume_unique=True)
            if not len(missing):
                self._version = version
                return
            read = await self._tables.read(self._table, list(self._columns), version=version, rows=missing)
            have = self._rows
        self._rows, self._columns = await anyio.to_thread.run_sync(_joined, have, self._columns, read)
        self._version = version

    def has(self, columns: Sequence[str]) -> bool:
        return all(column in self._columns for column in columns)

    def values(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Values:
        """For columns that `has`: microseconds."""
        positions = np.searchsorted(self._rows, rows)
        positions[positions == len(self._rows)] = 0
        present = self._rows[positions] == rows
        if not present.all():
            rows, positions = rows[present], positions[present]
        at = positions.tolist()
        return rows.tolist(), [[self._columns[name][i].as_py() for i in at] for name in columns]

    async def read(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Values:
        """As `values`, from the table: milliseconds."""
        table = await self._tables.read(self._table, list(columns), version=self._version, rows=np.unique(rows))
        there = table[ROW].to_numpy()
        rows = rows[np.isin(rows, there)]
        at = pa.array(np.searchsorted(there, rows))
        return rows.tolist(), [table[name].take(at).to_pylist() for name in columns]


def _joined(have: NDArray[np.int64], columns: dict[str, Any], read: Any) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """One array per column, ascending by row."""
    more = read[ROW].to_numpy()
    rows = np.concatenate([have, more]) if len(have) else more
    names = [name for name in read.column_names if name != ROW]
    parts = {name: [columns[name]] if len(have) else [] for name in names}
    joined = {name: pa.concat_arrays(parts[name] + _chunks(read[name])) for name in names}
    if len(have) and len(more) and more[0] < have[-1]:
        order = np.argsort(rows)
        rows = rows[order]
        joined = {name: column.take(pa.array(order)) for name, column in joined.items()}
    return np.asarray(rows, np.int64), joined


def _chunks(column: Any) -> list[Any]:
    return list(column.chunks) or [pa.array([], column.type)]
