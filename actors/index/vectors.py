"""The vectors of an index at one dataset version, memory-mapped from a snapshot, and exact
search over all or some of them. Immutable: a new version is a new value.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.ports import Snapshot
from actors.vector_backend import Neighbours
from schemas.names import Metric

GATHER_FLOATS = 1 << 24
"""Vectors gathered at a time for exact search over chosen rows: 64 MB."""


class ExactSearch(Protocol):
    """Vectors at one version of their dataset, that can be searched exactly."""

    version: int

    def __len__(self) -> int: ...
    def exact(self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Neighbours:
        """Nearest rows; `among`: positions in a VectorSet, row numbers in a store."""
        ...


class VectorSet:
    """rows (n,) int64 ascending, vectors (n, d) float32."""

    def __init__(self, version: int, rows: NDArray[np.int64], vectors: NDArray[np.float32], metric: Metric) -> None:
        self.version = version
        self.rows = rows
        self.vectors = vectors
        self.metric = metric

    @classmethod
    def open(cls, snapshot: Snapshot, metric: Metric) -> "VectorSet":
        """Maps the files; reads the row numbers, not the vectors. Blocks on the disk."""
        if snapshot.rows == 0:  # an empty file can't be mapped
            return cls(snapshot.version, np.empty(0, np.int64), np.empty((0, snapshot.dim), np.float32), metric)
        vectors: Any = np.load(snapshot.vectors_path, mmap_mode="r")
        return cls(snapshot.version, np.load(snapshot.rows_path), vectors, metric)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where those of `rows` that are here lie; ascending if `rows` are."""
        found = np.searchsorted(self.rows, rows)
        found[found == len(self.rows)] = 0
        here: NDArray[np.int64] = found[self.rows[found] == rows] if len(self.rows) else found[:0]
        return here

    def exact(self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Neighbours:
        """Exact nearest rows, among those at the given positions if any are given."""
        if among is None:
            positions, distances = hnsw.exact_topk(queries, self.vectors, k, self.metric)
            return self.rows[positions], distances
        step = max(1, GATHER_FLOATS // self.dim)
        best: Neighbours = (np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
        for start in range(0, len(among), step):
            some = among[start : start + step]
            positions, distances = hnsw.exact_topk(queries, self.vectors[some], k, self.metric)
            best = merged(best, (self.rows[some][positions], distances), k)
        return best


def merged(one: Neighbours, other: Neighbours, k: int) -> Neighbours:
    """The k nearest of two results without common rows; equal distances by lower row."""
    rows = np.concatenate([one[0], other[0]], axis=1)
    distances = np.concatenate([one[1], other[1]], axis=1)
    order = np.lexsort((rows, distances), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
