"""Which rows a filter leaves: SQL predicates answered by the tables, remembered per version.

Row sets are kept for as long as they fit LIMIT_BYTES, least recently used go first; the same
predicate asked at the same time is matched once.
"""

from collections import OrderedDict

import anyio
import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.index.vectors import ExactSearch, VectorSet
from actors.ports import TableRef, Tables
from schemas.documents.index import IndexDocument
from schemas.names import IndexName, Timestamp

LIMIT_BYTES = 128 << 20

Key = tuple[IndexName, Timestamp, int, str, bool]
"""An index as it was made, the dataset version, the predicate, whether positions are in a vector set."""


class Matching(msgspec.Struct, frozen=True):
    """The rows of a vector set that a predicate holds for."""

    rows: NDArray[np.int64]  # (m,) ascending
    positions: NDArray[np.int64]  # (m,) of these rows in the vector set; of a store, the rows again

    def __len__(self) -> int:
        return len(self.rows)

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `rows`, any shape, are among them."""
        if not len(self.rows):
            return np.zeros(rows.shape, np.bool_)
        found = np.searchsorted(self.rows, rows)
        found[found == len(self.rows)] = 0
        there: NDArray[np.bool_] = self.rows[found] == rows
        return there


class Filters:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._kept: OrderedDict[Key, Matching] = OrderedDict()
        self._bytes = 0
        self._asking: dict[Key, anyio.Lock] = {}

    async def matching(self, index: IndexDocument, dataset: TableRef, predicate: str, vectors: ExactSearch) -> Matching:
        """Raises ValueError with the engine's words for a predicate that isn't one."""
        key = (index.index, index.created, vectors.version, predicate, isinstance(vectors, VectorSet))
        lock = self._asking.setdefault(key, anyio.Lock())
        try:
            async with lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
                rows = await self._tables.match(dataset, predicate, version=vectors.version)
                if isinstance(vectors, VectorSet):
                    positions = vectors.positions(rows)
                    found = Matching(vectors.rows[positions], positions)
                else:  # a store finds rows by their numbers
                    found = Matching(rows, rows)
                self._keep(key, found)
                return found
        finally:
            if lock.statistics().tasks_waiting == 0:
                self._asking.pop(key, None)

    def _keep(self, key: Key, found: Matching) -> None:
        self._kept[key] = found
        self._bytes += _bytes(found)
        while self._bytes > LIMIT_BYTES and len(self._kept) > 1:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(matching: Matching) -> int:
    return matching.rows.nbytes + matching.positions.nbytes
