"""Everything a searcher keeps of one index in memory, and how it follows the index's versions and
generations. Searches read it between two awaits and never see half a change. How an index is served
from its Lance store is lance_served.py's, with the same face.
"""

from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import structlog
from numpy.typing import NDArray

from actors.index import core
from actors.index.answer import Near, Stopwatch
from actors.index.coded import CodedVectors
from actors.index.columns import ColumnCache
from actors.index.filters import Matching
from actors.index.live import INLINE_US, THREADS, LiveGraph
from actors.index.sampling import RecallWindow
from actors.index.vectors import ExactSearch, VectorSet
from actors.planner_ports import Plan
from actors.ports import Embedder, Snapshots, TableRef
from actors.vector_backend import Neighbours
from schemas.config import HnswConfig, HnswEffort
from schemas.documents.codec import IndexCodecDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.index import Search, Strategy
from schemas.names import Backend, Bytes, Rows, Timestamp

EXACT_US_PER_FLOAT = 0.0005
"""Time of exact search per row and dimension."""

STRATEGIES: dict[str, Strategy] = {
    "graph": "graph",
    "filtered_graph": "filtered_graph",
    "exact": "exact",
    "exact_all": "exact",
}
"""What a planner calls them."""

log = structlog.get_logger(__name__)


class ServedIndex:
    """A loaded index. Without a graph (none built yet, or its file is unreadable) it is
    searched exactly."""

    backend: Backend = "hnsw"

    def __init__(
        self,
        document: IndexDocument,
        dataset: TableRef,
        embedder: Embedder | None,
        columns: ColumnCache,
        vectors: VectorSet,
        exact_below_rows: Rows,
        place: str = "",
    ) -> None:
        self.place = place or document.index  # the registry name of its head
        self.exact_below_rows = exact_below_rows  # a filter that leaves fewer is answered exactly
        self.document = document
        self.dataset = dataset
        self.embedder = embedder
        self.columns = columns
        self.graph: LiveGraph | None = None
        self.codes: CodedVectors | None = None  # searched in place of the graph, which isn't in memory then
        self.codec: IndexCodecDocument | None = None  # that the codes are of
        self.following = anyio.Lock()  # one at a time brings it in line with what it is to serve
        self.head: GenerationDocument | None = None  # the generation that serves, or would without codes
        self.window = RecallWindow(0, 0.0)
        self.queries = 0
        self._vectors = vectors
        self._changing = anyio.Lock()

    @property
    def vectors(self) -> VectorSet:
        if self.codes:
            return self.codes.vectors
        return self.graph.view.vectors if self.graph else self._vectors

    @property
    def generation(self) -> int:
        return self.head.generation if self.head else 0

    @property
    def config(self) -> HnswConfig:
        config = self.head.config if self.head else self.document.config
        return config if isinstance(config, HnswConfig) else self.document.config

    @property
    def fresh_rows(self) -> Rows:
        return len(self.graph.view.fresh_rows) if self.graph else 0

    @property
    def deleted(self) -> Rows:
        return self.graph.deleted if self.graph else 0

    @property
    def bytes(self) -> Bytes:
        """Memory that unloading frees; the mapped vectors belong to the page cache."""
        searched = (self.graph.bytes if self.graph else 0) + (self.codes.bytes if self.codes else 0)
        return self.columns.bytes + self._vectors.rows.nbytes + searched

    @property
    def stored_bytes(self) -> Bytes:
        """Of its graph's file."""
        return self.head.bytes if self.head else 0

    async def sync(self, snapshots: Snapshots) -> bool:
        """Follow the newest version that the vectors cover; False when this is it. From the
        return on, its rows and no others are found."""
        async with self._changing:
            if await snapshots.covered(self.document.index) <= self.vectors.version:
                return False
            async with snapshots.held(self.document.index) as snapshot:
                vectors = await anyio.to_thread.run_sync(VectorSet.open, snapshot, self.document.metric)
            await self.columns.sync(vectors.rows, vectors.version)
            if self.graph:
                await self.graph.reconcile(vectors)
            if self.codes:
                try:
                    self.codes = await anyio.to_thread.run_sync(self.codes.at, vectors)
                except ValueError as error:  # a row that the codec can't keep: it must be found all the same
                    log.error("codec can't take a row", index=self.document.index, why=str(error))
                    self.without_codes()
            self._vectors = vectors
            return True

    async def swap(self, document: GenerationDocument, graph: LiveGraph | None, now: Timestamp) -> None:
        """Serve another generation. `graph` None: it is the same file, searched with another
        ef. Searches under way end on the old one."""
        async with self._changing:
            if graph is not None:
                if graph.view.vectors.version != self.vectors.version:
                    await graph.reconcile(self._vectors)
                self.graph, self.codes, self.codec = graph, None, None
            elif self.graph:
                self.graph.document = document
            self.head = document
            self.window = RecallWindow(document.generation, now)

    async def swap_codes(
        self, codes: CodedVectors, codec: IndexCodecDocument, head: GenerationDocument | None, now: Timestamp
    ) -> None:
        """Serve by codes; the graph leaves memory. Searches under way end on what they began with. Raises ValueError
        when the codec can't keep a row that came meanwhile; then nothing has changed."""
        async with self._changing:
            if codes.vectors.version != self._vectors.version:
                codes = await anyio.to_thread.run_sync(codes.at, self._vectors)
            self.codes, self.codec, self.graph, self.head = codes, codec, None, head
            self.window = RecallWindow(self.generation, now, codec.artifact)

    def without_codes(self) -> None:
        """It is searched exactly until there is a graph to go back to."""
        self.codes, self.codec, self.head = None, None, None
        self.window = RecallWindow(0, 0.0)

    # --- searched ---

    async def neighbours(
        self,
        vectors: ExactSearch,
        queries: NDArray[np.float32],
        k: int,
        query: Search,
        matching: Matching | None,
        columns: list[str],
        watch: Stopwatch,
        plan: Plan | None = None,
    ) -> Near:
        """vectors: those that `matching` was found for; later ones may serve by now, and a filter's positions mean
        nothing in them. The plain road (one vector, no filter, low ef, columns in memory) awaits nothing."""
        assert isinstance(vectors, VectorSet)
        coded = self.codes if self.codes and self.codes.vectors is vectors else None
        graph, rows = None if coded else self.graph, len(vectors)
        left = None if matching is None else len(matching)
        ef, limit = max(query.ef_search or self.config.ef_search, k), left or 0
        chosen = core.strategy(k, ef, rows, left, self.exact_below_rows)
        if plan is not None and plan.acting:
            ef, limit, chosen = max(plan.effort, k), core.UNBOUND, STRATEGIES[plan.strategy]
        if graph is not None and chosen == "graph":
            for wide in (ef, min(4 * ef, core.EF_LIMIT)):
                found, view = await graph.search(queries, k, wide)
                watch.step("graph", "ef %d, %d fresh rows", wide, len(view.fresh_rows))
                if found is not None:
                    return Near(found, "graph", view.vectors, HnswEffort(wide))
        if graph is not None and chosen == "filtered_graph" and matching is not None:
            near_by = await self.by_filtered_graph(queries, k, ef, matching, watch, limit)
            if near_by is not None:
                return near_by
        among = None if matching is None else matching.positions
        if coded is not None and core.by_codes(k, rows, left, self.exact_below_rows):
            near = await anyio.to_thread.run_sync(coded.search, queries, k, among, limiter=THREADS)
            watch.step("codes", "%s, %d rows", coded.artifact, rows if among is None else len(among))
            return Near(near, "codes", vectors, None)
        scanned = rows if among is None else len(among)
        if len(queries) * scanned * vectors.dim * EXACT_US_PER_FLOAT < INLINE_US:
            exact = vectors.exact(queries, k, among)
        else:
            exact = await anyio.to_thread.run_sync(vectors.exact, queries, k, among, limiter=THREADS)
        watch.step("exact", "%d rows", scanned)
        return Near(exact, "exact", vectors, None)

    async def by_filtered_graph(
        self, queries: NDArray[np.float32], k: int, ef: int, matching: Matching, watch: Stopwatch, limit: Rows
    ) -> Near | None:
        """Neighbours by the graph, widened until k of them match; None when there is no graph, or that would take
        longer than exact search over `limit` rows."""
        graph, vectors = self.graph, self.vectors
        fetch, wide = core.widened(k, ef, len(vectors), len(matching))
        while graph is not None and core.ROWS_PER_EF * wide < limit and wide <= core.EF_LIMIT:
            found, _ = await graph.search(queries, fetch, wide)
            kept = None if found is None else await anyio.to_thread.run_sync(_first, found, matching, k)
            watch.step("graph", "ef %d, %d neighbours, %s match", wide, fetch, "enough" if kept else "too few")
            if kept is not None:
                return Near(kept, "filtered_graph", vectors, HnswEffort(wide))
            fetch, wide = min(len(vectors), 2 * fetch), 2 * wide
        return None

    async def values(self, rows: NDArray[np.int64], names: list[str]) -> tuple[list[int], list[list[Any]]]:
        """Those of `rows` that are there, and per column their values: from memory where they are there."""
        return self.columns.values(rows, names) if self.columns.has(names) else await self.columns.read(rows, names)


def _first(found: Neighbours, matching: Matching, k: int) -> Neighbours | None:
    """The first k matching neighbours of each query; None when a query has fewer."""
    holds = matching.holds(found[0])  # (q, k')
    if holds.sum(axis=1).min() < k:
        return None
    order = np.argsort(~holds, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found[0], order, axis=1), np.take_along_axis(found[1], order, axis=1)
