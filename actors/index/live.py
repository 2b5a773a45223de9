"""One generation in memory: its graph, and the rows that came or went since it was built.

New rows are found at once, by exact search over the fresh ones, and are taken into the graph
little by little between searches. Deleted rows are marked in the graph. A search reads `view`
inside the gate and never sees a row half way.
"""

import os
import time
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.index.core import ROWS_PER_EF, grown_capacity
from actors.index.lanes import EfGate
from actors.index.vectors import VectorSet, merged
from actors.vector_backend import Neighbours
from schemas.config import GraphConfig
from schemas.documents.index import GenerationDocument

INLINE_US = 1000.0
"""A search that should take less than this runs on the event loop: a thread costs 60-100 us."""

FIRST_US_PER_FLOAT = 0.005
"""Time of a graph search per unit of ef and dimension, until it is measured."""

WRITE_S = 0.002
"""Time that readers may wait for one step of taking fresh rows in."""

TAKE_IN_S = 2.0
"""Time that one call of `take_in` works, so that a drain of the daemon needn't wait longer."""

MARK_STEP = 2000
"""Rows marked as deleted in one step: 2 ms."""

THREADS = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))


class View(msgspec.Struct, frozen=True):
    """What a search works on. `fresh` rows aren't in the graph yet."""

    vectors: VectorSet
    fresh_rows: NDArray[np.int64]  # (f,) ascending
    fresh_vectors: NDArray[np.float32]  # (f, d)


class LiveGraph:
    """A loaded generation. Made by `LiveGraph.adopt`; everything but `run` is called on the loop."""

    def __init__(self, document: GenerationDocument, graph: Any, view: View, held: NDArray[np.int64]) -> None:
        self.document = document
        self.view = view
        self.gate = EfGate()
        self.deleted = 0  # rows marked in the graph
        self._graph = graph
        self._held = held  # rows in the graph that aren't marked, ascending, as of the last reconcile
        self._taken: list[NDArray[np.int64]] = []  # rows taken in since
        self._us_per_ef = FIRST_US_PER_FLOAT * view.vectors.dim
        self._row_s = WRITE_S / 4
        self._changing = anyio.Lock()

    @classmethod
    async def adopt(cls, document: GenerationDocument, graph: Any, vectors: VectorSet) -> "LiveGraph":
        """A loaded graph, brought in line with today's vectors."""
        held = await anyio.to_thread.run_sync(lambda: np.sort(np.array(graph.get_ids_list(), np.int64)))
        none = View(vectors, np.empty(0, np.int64), np.empty((0, vectors.dim), np.float32))
        live = cls(document, graph, none, held)
        await live.reconcile(vectors)
        return live

    @property
    def bytes(self) -> int:
        return int(self._graph.index_file_size()) + self.view.fresh_vectors.nbytes

    async def reconcile(self, vectors: VectorSet) -> None:
        """From the return on, exactly the rows of `vectors` are found. A change of up to
        MARK_STEP deleted rows becomes visible all at once, together with the rows added."""
        async with self._changing:
            held = np.sort(np.concatenate([self._held, *self._taken]))
            view, gone = await anyio.to_thread.run_sync(_difference, vectors, held)
            for start in range(0, max(1, len(gone)), MARK_STEP):
                async with self.gate.write():
                    for row in gone[start : start + MARK_STEP].tolist():
                        self._graph.mark_deleted(row)
                    self.view = view
            self._held, self._taken = np.setdiff1d(held, gone, assume_unique=True), []
            self.deleted += len(gone)

    async def take_in(self, for_s: float = TAKE_IN_S) -> None:
        """Adds fresh rows to the graph, in steps that hold readers up for WRITE_S at most, half
        of the time. Returns when none is left or the time is up."""
        end = time.perf_counter() + for_s
        while len(self.view.fresh_rows) and time.perf_counter() < end:
            async with self._changing:
                step = max(1, min(512, int(WRITE_S / self._row_s)))
                rows, vectors = self.view.fresh_rows[:step], self.view.fresh_vectors[:step]
                async with self.gate.write():
                    started = time.perf_counter()
                    if not len(self._held) and not self._taken:
                        self._begin_anew()
                    await anyio.to_thread.run_sync(self._add, rows, vectors)
                    took = time.perf_counter() - started
                    view = self.view
                    self.view = View(view.vectors, view.fresh_rows[step:], view.fresh_vectors[step:])
                    self._taken.append(rows)
            if len(rows):
                self._row_s = 0.7 * self._row_s + 0.3 * took / len(rows)
            await anyio.sleep(took)

    def cheap(self, queries: int, ef: int) -> bool:
        """Whether a search is short enough for the loop and the gate would let it in now."""
        us = queries * (ef + len(self.view.fresh_rows) / ROWS_PER_EF) * self._us_per_ef
        return us < INLINE_US and self.gate.free_for(ef)

    async def search(self, queries: NDArray[np.float32], k: int, ef: int) -> tuple[Neighbours | None, View]:
        """Nearest rows by the graph and the fresh ones; None when the graph finds too few:
        then exact search over the view must answer. queries (q, d) -> min(k, rows) neighbours."""
        ef = max(ef, k)
        if self.cheap(len(queries), ef):
            view = self.view
            return self.run(queries, k, ef, view), view
        async with self.gate.read(ef):
            view = self.view
            found = await anyio.to_thread.run_sync(self.run, queries, k, ef, view, limiter=THREADS)
        return found, view

    def run(self, queries: NDArray[np.float32], k: int, ef: int, view: View) -> Neighbours | None:
        """The search itself; the caller is inside the gate, in the lane of `ef`."""
        fresh = len(view.fresh_rows)
        in_graph = min(k, len(view.vectors) - fresh)
        if in_graph > 0:
            started = time.thread_time()  # CPU time: what else the machine does is not this query's cost
            try:
                found = hnsw.knn(self._graph, queries, in_graph, ef)
            except RuntimeError:  # fewer than asked: deleted or unreachable rows in the way
                return None
            us = (time.thread_time() - started) * 1e6
            self._us_per_ef += 0.05 * (us / (len(queries) * ef) - self._us_per_ef)
        else:
            found = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        if not fresh:
            return found
        positions, distances = hnsw.exact_topk(queries, view.fresh_vectors, k, view.vectors.metric)
        return merged(found, (view.fresh_rows[positions], distances), k)

    def _begin_anew(self) -> None:
        """Rows that are added to a graph whose rows are all deleted find each other badly: their links lead through
        those that are gone."""
        vectors = self.view.vectors
        self._graph = hnsw.empty(
            vectors.dim, vectors.metric, _graph_config(self.document), grown_capacity(len(vectors))
        )
        self.deleted = 0

    def _add(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if self._graph.get_current_count() + len(rows) > self._graph.get_max_elements():
            self._graph.resize_index(grown_capacity(self._graph.get_current_count() + len(rows)))
        self._graph.add_items(vectors, rows, num_threads=1)


def _graph_config(document: GenerationDocument) -> GraphConfig:
    build = document.config.build
    assert isinstance(build, GraphConfig)
    return build


def _difference(vectors: VectorSet, held: NDArray[np.int64]) -> tuple[View, NDArray[np.int64]]:
    """What `vectors` has over `held`, as a view, and the rows of `held` that it lacks."""
    fresh = np.setdiff1d(vectors.rows, held, assume_unique=True)
    view = View(vectors, fresh, np.array(vectors.vectors[vectors.positions(fresh)], np.float32))
    return view, np.setdiff1d(held, vectors.rows, assume_unique=True)
