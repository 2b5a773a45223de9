"""The port `VectorBackend`: one build of an index's vectors, open for search. HNSW in memory and Lance
on disk or S3 implement it (actors/backends/); the lab measures through it and the index actors serve
through it. No type of either library crosses it: row numbers, vectors, distances, plain values.

What a build and a load need differs, so they stand beside the port: `HnswBackend.build` and `.load`,
`lance_store.build_index` and `LanceBackend.load`.

Synchronous and blocking: a worker calls it as it is, a searcher in a thread. Distances are those
of `actors/hnsw.py` whatever the backend: cosine 1 - <q, v> of unit vectors, ip 1 - <q, v>, l2 squared.

Notation: n rows, q queries, d dimensions, k neighbours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.config import Effort
from schemas.names import Backend, Bytes, Rows

NOWHERE = -1
"""Pads the rows of a query that found fewer than k; its distance is inf."""

Neighbours = tuple[NDArray[np.int64], NDArray[np.float32]]
"""(q, k) row numbers and (q, k) distances, ascending."""

Values = Mapping[str, Sequence[Any]]
"""Column name to the values of n rows."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a backend can do beyond its vectors."""

    backend: Backend
    in_memory: bool  # all of it is in this process's memory
    shared: bool  # rows added by one process are found by every other
    columns: bool  # it keeps the rows' columns too
    versions: bool  # it can be read as it was


class BackendStats(msgspec.Struct, frozen=True):
    rows: Rows
    unindexed_rows: Rows  # found by scanning them
    deleted: Rows  # marked, still taking up room
    bytes: Bytes  # in memory, or on disk


class VectorBackend(Protocol):
    capabilities: Capabilities

    def add(self, rows: NDArray[np.int64], vectors: NDArray[np.float32], values: Values | None = None) -> None:
        """rows (n,) new ones, vectors (n, d): found from the return on. `values`: of their columns, where the
        backend keeps some. Raises ValueError for a wrong dimension or a number that isn't finite."""
        ...

    def delete(self, rows: NDArray[np.int64]) -> None:
        """Not found from the return on. Rows that aren't there are no error."""
        ...

    def search(
        self, queries: NDArray[np.float32], k: int, effort: Effort, among: NDArray[np.int64] | None = None
    ) -> Neighbours:
        """queries (q, d) -> (q, k), padded with NOWHERE where fewer are found. among: (m,) ascending, the only
        rows that count. Raises ValueError for the other backend's effort or a wrong dimension."""
        ...

    def fetch(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of `rows` that are there, in the order asked for, and their (m, d) vectors."""
        ...

    def stats(self) -> BackendStats: ...
