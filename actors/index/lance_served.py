"""An index as a searcher serves it from its Lance store: nothing of it is in memory but the pages that
Lance caches and the few rows outside the vector index. Searches read `view` once and keep to it; a
later version of the store is another view.
"""

import threading
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.backends.lance import FRESH_BYTES, Allowed, LanceBackend
from actors.index import core
from actors.index.answer import Near, Stopwatch
from actors.index.filters import Matching
from actors.index.heads import StoreHeads
from actors.index.live import THREADS
from actors.index.sampling import RecallWindow
from actors.index.vectors import ExactSearch
from actors.planner_ports import Plan
from actors.ports import Buckets, Embedder, Snapshots, TableRef
from actors.vector_backend import Neighbours
from schemas.config import LanceConfig, LanceEffort
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.index import Hit, Search
from schemas.names import Backend, BucketName, Bytes, Rows, Timestamp

MASKS = 16
"""Filters whose rows are kept as Lance takes them, of one version."""


class StoreColumns:
    """What a search may ask of the dataset's columns."""

    def __init__(self, dataset: DatasetDocument) -> None:
        self.id_column = dataset.id_column
        self.names = [column.name for column in dataset.columns if column.role != "vector"]
        self.default = [name for name in self.names if name != dataset.id_column]


class StoreVectors:
    """The store at one version."""

    def __init__(self, backend: LanceBackend, version: int, config: LanceConfig | None = None) -> None:
        """config: of the backend's index; None: it has none, and is searched exactly."""
        self.backend = backend
        self.version = version
        self.config = config
        self.masks: dict[str, Allowed] = {}  # by predicate
        self.rows = backend.rows
        self.stats = backend.stats()

    def __len__(self) -> int:
        return self.rows

    def exact(self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Neighbours:
        """`among`: row numbers."""
        return self.backend.exact(queries, k, among)


class View(msgspec.Struct, frozen=True):
    """What a search works on."""

    bucket: BucketName
    store: StoreDocument
    head: GenerationDocument
    vectors: StoreVectors


class LanceServed:
    """The same face as ServedIndex."""

    backend: Backend = "lance"
    graph = codes = codec = None

    def __init__(
        self,
        document: IndexDocument,
        dataset: DatasetDocument,
        embedder: Embedder | None,
        view: View,
        exact_below_rows: Rows,
        now: Timestamp,
        place: str,
    ) -> None:
        self.place = place  # the registry name of its head
        self.document = document
        self.dataset = TableRef(dataset.bucket, dataset.path)
        self.embedder = embedder
        self.columns = StoreColumns(dataset)
        self.view = view
        self.exact_below_rows = exact_below_rows
        self._masking = threading.Lock()
        self.following = anyio.Lock()
        self.window = RecallWindow(view.head.generation, now)
        self.queries = 0

    @property
    def head(self) -> GenerationDocument:
        return self.view.head

    @property
    def generation(self) -> int:
        return self.view.head.generation

    @property
    def config(self) -> LanceConfig:
        return lance_config(self.view.head)

    @property
    def vectors(self) -> StoreVectors:
        return self.view.vectors

    @property
    def fresh_rows(self) -> Rows:
        return self.view.vectors.backend.unindexed_rows

    @property
    def deleted(self) -> Rows:
        return self.view.vectors.stats.deleted

    @property
    def bytes(self) -> Bytes:
        """Memory that unloading frees; the pages are Lance's cache."""
        return min(self.fresh_rows * self.document.dim * 4, FRESH_BYTES)

    @property
    def stored_bytes(self) -> Bytes:
        """On disk, or S3: rows and indexes."""
        return self.view.vectors.stats.bytes

    def effort(self, query: Search, config: LanceConfig) -> LanceEffort:
        """What the configuration says, but for what the query says."""
        own = config.effort
        nprobes = min(query.nprobes or own.nprobes, config.partitions)
        ef = max(query.ef_search or own.ef, query.k) if own.ef else 0
        return LanceEffort(nprobes, query.refine_factor or own.refine_factor, ef)

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
        """vectors: those that `matching` was found for; a later version may serve by now."""
        assert isinstance(vectors, StoreVectors)
        config = vectors.config or self.config
        effort, rows = self.effort(query, config), len(vectors)
        if plan is not None and plan.acting:
            effort = core.planned_effort(config, plan.effort)
        if matching is not None and core.store_exact(len(matching), rows, self.exact_below_rows):
            found = await anyio.to_thread.run_sync(vectors.exact, queries, k, matching.rows, limiter=THREADS)
            watch.step("exact", "%d rows", len(matching))
            return Near(found, "exact", vectors, None)
        if matching is not None:
            effort = msgspec.structs.replace(
                effort, nprobes=core.widened_probes(effort.nprobes, len(matching), rows, config.partitions)
            )
        near = await anyio.to_thread.run_sync(
            self._search, vectors, queries, k, effort, query, matching, columns, limiter=THREADS
        )
        short = min(k, rows if matching is None else len(matching))
        if any(len(line[0]) < short for line in near):  # its cells hold too few
            watch.step("lance", "%s: too few", effort)
            among = None if matching is None else matching.rows
            found = await anyio.to_thread.run_sync(vectors.exact, queries, k, among, limiter=THREADS)
            watch.step("exact", "%d rows", rows if among is None else len(among))
            return Near(found, "exact", vectors, None)
        watch.step("lance", "%s, %d rows outside the index", effort, vectors.backend.unindexed_rows)
        found = (
            np.stack([line[0][:short] for line in near]),
            np.stack([line[1][:short] for line in near]),
        )
        hits = [_hits(line, columns, self.columns.id_column) for line in near]
        return Near(found, "lance", vectors, effort, hits)

    async def values(self, rows: NDArray[np.int64], names: list[str]) -> tuple[list[int], list[list[Any]]]:
        return await anyio.to_thread.run_sync(self.view.vectors.backend.values, rows, names, limiter=THREADS)

    async def sync(self, snapshots: Snapshots) -> bool:
        """Following the store's head is the loader's: `view` changes with the generation or the version."""
        return False

    def _search(
        self,
        vectors: StoreVectors,
        queries: NDArray[np.float32],
        k: int,
        effort: LanceEffort,
        query: Search,
        matching: Matching | None,
        columns: list[str],
    ) -> list[Any]:
        backend, allowed = vectors.backend, None
        if matching is not None and query.filter is not None:
            with self._masking:  # searches of one filter at the same time make it once
                allowed = vectors.masks.get(query.filter)
                if allowed is None:
                    allowed = vectors.masks[query.filter] = backend.allowed(matching.rows)
                    if len(vectors.masks) > MASKS:
                        del vectors.masks[next(iter(vectors.masks))]
        names = [self.columns.id_column, *columns]
        return [backend.near(line, k, effort, allowed, names) for line in queries]


def lance_config(head: GenerationDocument) -> LanceConfig:
    assert isinstance(head.config, LanceConfig)
    return head.config


async def view_of(document: IndexDocument, head: GenerationDocument, heads: StoreHeads, buckets: Buckets) -> View:
    """The store as it is to be served. Raises FileNotFoundError, CorruptState; Transient when its bucket is away."""
    store = await heads.load(document.index)
    if store is None or store.key != head.key:
        raise FileNotFoundError(f"the Lance store of {document.index}")
    place = await buckets.lance_place(document.bucket, store.key, store.lance_version)
    backend = await anyio.to_thread.run_sync(LanceBackend.load, place, document.metric, head.vector_index)
    return View(document.bucket, store, head, StoreVectors(backend, store.version, lance_config(head)))


def _hits(line: tuple[Any, Any, dict[str, list[Any]]], columns: list[str], id_column: str) -> list[Hit]:
    ids, values = line[2][id_column], [line[2][name] for name in columns]
    if not columns:
        return list(map(Hit, ids, line[1].tolist()))
    made = [dict(zip(columns, more, strict=True)) for more in zip(*values, strict=True)]
    return list(map(Hit, ids, line[1].tolist(), made))
