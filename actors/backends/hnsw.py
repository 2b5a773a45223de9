"""The backend `hnsw`: a graph in memory. What hnswlib computes is in actors/hnsw.py; how a searcher
keeps queries and writers apart is the index actor's (actors/index/lanes.py).
"""

from collections.abc import Generator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.vector_backend import NOWHERE, BackendStats, Capabilities, Neighbours, Values
from schemas.config import Effort, GraphConfig, HnswEffort
from schemas.names import Metric, Sha256

CAPABILITIES = Capabilities(backend="hnsw", in_memory=True, shared=False, columns=False, versions=False)


class HnswBackend:
    """Not for a search beside a write, or beside a search with another effort: ef belongs to the graph."""

    capabilities = CAPABILITIES

    def __init__(self, graph: hnsw.Graph, metric: Metric) -> None:
        self.graph = graph
        self._metric = metric
        self._deleted = 0

    @classmethod
    def build(
        cls, vectors: NDArray[np.float32], rows: NDArray[np.int64], metric: Metric, config: GraphConfig
    ) -> Generator[int, None, "HnswBackend"]:
        """`backend = yield from HnswBackend.build(...)`; yields the number of rows added so far."""
        return cls((yield from hnsw.build(vectors, rows, metric, config)), metric)

    @classmethod
    def load(
        cls, path: Path, dim: int, metric: Metric, sha256: Sha256 | None = None, capacity: int = 0
    ) -> "HnswBackend":
        """Raises CorruptState when the file isn't the one that was saved."""
        return cls(hnsw.load(path, dim, metric, sha256, capacity), metric)

    def save(self, path: Path) -> Sha256:
        return hnsw.save(self.graph, path)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) of every row that was ever added."""
        return np.array(self.graph.get_ids_list(), np.int64)

    def add(self, rows: NDArray[np.int64], vectors: NDArray[np.float32], values: Values | None = None) -> None:
        if vectors.ndim != 2 or vectors.shape != (len(rows), self.graph.dim):
            raise ValueError(f"{len(rows)} rows of {self.graph.dim} dimensions, but vectors are {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector holds a number that isn't finite")
        held = self.graph.get_current_count() + len(rows)
        if held > self.graph.get_max_elements():
            self.graph.resize_index(grown_capacity(held))
        self.graph.add_items(vectors, rows, num_threads=1)

    def delete(self, rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            try:
                self.graph.mark_deleted(row)
                self._deleted += 1
            except RuntimeError:  # not there, or marked already
                continue

    def search(
        self, queries: NDArray[np.float32], k: int, effort: Effort, among: NDArray[np.int64] | None = None
    ) -> Neighbours:
        if not isinstance(effort, HnswEffort):
            raise ValueError(f"a graph can't be searched with {effort}")
        if queries.shape[1] != self.graph.dim:
            raise ValueError(f"a query has {queries.shape[1]} dimensions, the graph {self.graph.dim}")
        allowed = None if among is None else set(among.tolist()).__contains__
        out = np.full((len(queries), k), NOWHERE, np.int64), np.full((len(queries), k), np.inf, np.float32)
        most = len(among) if among is not None else self.graph.get_current_count() - self._deleted
        fetch = min(k, most)
        self.graph.set_ef(max(effort.ef_search, k))
        for line in range(len(queries)):
            while fetch > 0:
                try:
                    labels, distances = self.graph.knn_query(queries[line], k=fetch, num_threads=1, filter=allowed)
                except RuntimeError:  # a graph in pieces, or deleted rows in the way: fewer can be had
                    fetch //= 2
                    continue
                out[0][line, :fetch], out[1][line, :fetch] = labels[0].view(np.int64), distances[0]
                break
            fetch = min(k, most)
        return out

    def fetch(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        there = []
        vectors = []
        for row in rows.tolist():
            try:
                vectors.append(self.graph.get_items([row])[0])
            except RuntimeError:  # not there, or deleted
                continue
            there.append(row)
        empty = np.empty((0, self.graph.dim), np.float32)
        return np.array(there, np.int64), np.array(vectors, np.float32) if vectors else empty

    def stats(self) -> BackendStats:
        count = int(self.graph.get_current_count())
        return BackendStats(count - self._deleted, 0, self._deleted, int(self.graph.index_file_size()))


def grown_capacity(rows: int) -> int:
    """Room that a graph of so many rows gets: appends then seldom resize it."""
    return rows + max(1024, rows // 4)
