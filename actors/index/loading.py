"""From what is stored to what is served: documents, embedder, snapshot, columns, graph file."""

from functools import partial

import anyio.to_thread
import structlog

from actors import hnsw
from actors.codec_ports import VectorCodecs
from actors.errors import CorruptState, Transient
from actors.index.coded import CodedVectors
from actors.index.columns import ColumnCache
from actors.index.config import IndexConfig
from actors.index.core import grown_capacity
from actors.index.live import LiveGraph
from actors.index.sampling import RecallWindow
from actors.index.served import ServedIndex
from actors.index.vectors import VectorSet
from actors.ports import Buckets, Clock, Embedders, Registry, Snapshots, TableRef, Tables
from schemas.documents.codec import IndexCodecDocument
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.base import Refusal
from schemas.names import IndexName

COLUMN_SHARE = 4
"""One index's columns are kept in memory up to this fraction of the budget, one in so many."""

log = structlog.get_logger(__name__)


class Loader:
    """Loads indexes. `unreadable` collects those whose graph file must be built anew."""

    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        snapshots: Snapshots,
        embedders: Embedders,
        codecs: VectorCodecs,
        clock: Clock,
        config: IndexConfig,
    ) -> None:
        self.unreadable: dict[IndexName, str] = {}
        self._unfit: dict[IndexName, tuple[IndexCodecDocument, int]] = {}  # codecs that can't keep a version's rows
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._snapshots = snapshots
        self._embedders = embedders
        self._codecs = codecs
        self._clock = clock
        self._config = config

    async def load(self, name: IndexName) -> ServedIndex | Refusal:
        """An index as it stands now, at its newest version and generation. One whose table or
        documents are damaged is refused with the reason: the others must go on being served."""
        try:
            return await self._load(name)
        except CorruptState as error:
            log.error("index can't be loaded", index=name, why=str(error))
            return Refusal("unavailable", f"index {name!r} can't be loaded: {error}", "restore it, or drop it")

    async def _load(self, name: IndexName) -> ServedIndex | Refusal:
        found = await self._registry.load(IndexDocument, name)
        dataset = await self._registry.load(DatasetDocument, found[0].dataset) if found else None
        if found is None or dataset is None:
            return Refusal("not_found", f"there is no index {name!r}", "lakehouse indexes lists them")
        document = found[0]
        try:
            async with self._snapshots.held(name) as snapshot:
                vectors = await anyio.to_thread.run_sync(VectorSet.open, snapshot, document.metric)
        except FileNotFoundError:
            return Refusal(
                "unavailable", f"index {name!r} is still being embedded", "try again in a moment", retry_after_s=2.0
            )
        columns = ColumnCache(self._tables, dataset[0], (self._config.memory_budget_mb << 20) // COLUMN_SHARE)
        await columns.sync(vectors.rows, vectors.version)
        embedder = None
        if document.embedder.kind != "none":
            try:
                model = document.embedder_key and await self._buckets.fetch(document.bucket, document.embedder_key)
            except FileNotFoundError as error:
                raise CorruptState(f"its embedder is gone: {error}") from error
            embedder = await self._embedders.load(document.embedder, model or None)
        table = TableRef(dataset[0].bucket, dataset[0].path)
        index = ServedIndex(document, table, embedder, columns, vectors, self._config.exact_below_rows)
        index.window = RecallWindow(0, self._clock.now())
        try:
            await self.follow(index)
        except Transient as error:  # its graph's bucket is away: upkeep looks again
            log.warning("graph can't be had, index is served exactly until then", index=name, why=str(error))
        return index

    async def follow(self, index: ServedIndex) -> bool:
        """Put the codec that the index uses, or the generation of the head, under it; False when it serves it already
        or its file can't be read (then `unreadable` says so)."""
        async with index.following:
            return await self._follow(index)

    async def _follow(self, index: ServedIndex) -> bool:
        name = index.document.index
        await self._relocate(index)
        codec = await self._registry.load(IndexCodecDocument, name)
        if codec is not None and await self._follow_codec(index, codec[0]):
            return True
        found = await self._registry.load(GenerationDocument, name)
        if codec is not None and index.codec == codec[0]:  # what is promoted meanwhile waits for its turn
            index.head = found[0] if found else None
            return False
        if index.codes is not None and found is None:
            index.without_codes()
            return True
        if found is None or (found[0].generation <= index.generation and index.codes is None):
            return False
        head, live = found[0], index.graph
        if live is not None and (live.document.key, live.document.sha256) == (head.key, head.sha256):
            await index.swap(head, None, self._clock.now())
            return True
        graph = await self._graph(index, head)
        if graph is None:
            if index.codes is not None:
                index.without_codes()
            return False
        await index.swap(head, graph, self._clock.now())
        return True

    async def _relocate(self, index: ServedIndex) -> None:
        """Read from where the index and its dataset lie now: they may have been moved."""
        found = await self._registry.load(IndexDocument, index.document.index)
        dataset = await self._registry.load(DatasetDocument, index.document.dataset)
        if found is not None and found[0].created == index.document.created:
            index.document = found[0]
        if dataset is not None:
            index.dataset = index.columns.table = TableRef(dataset[0].bucket, dataset[0].path)

    async def _follow_codec(self, index: ServedIndex, document: IndexCodecDocument) -> bool:
        """False when it is searched by that codec already, or the artifact can't be used: then by its graph."""
        tried = (document, index.vectors.version)
        if index.codec == document or self._unfit.get(index.document.index) == tried:
            return False
        found = await self._registry.load(GenerationDocument, index.document.index)
        try:
            coded = await self._codecs.load(document)
            try:
                make = partial(CodedVectors.of, coded, index.vectors, document.oversample, document.candidates)
                codes = await anyio.to_thread.run_sync(make)
                await index.swap_codes(codes, document, found[0] if found else None, self._clock.now())
            except ValueError:
                self._unfit[index.document.index] = tried
                raise
        except (CorruptState, ValueError) as error:
            log.error("codec unusable, the index is served by its graph", index=index.document.index, why=str(error))
            return False
        log.info("serving by codes", index=index.document.index, codec=document.artifact, bytes=codes.bytes)
        return True

    async def _graph(self, index: ServedIndex, head: GenerationDocument) -> LiveGraph | None:
        document = index.document
        try:
            if head.library != hnsw.LIBRARY:
                raise CorruptState(f"it was written by {head.library}, this is {hnsw.LIBRARY}")
            path = await self._buckets.fetch(document.bucket, head.key, head.sha256)
            # hnswlib holds the GIL while it reads: the loop waits as long, some 0.1 s per 100 MB
            graph = await anyio.to_thread.run_sync(
                hnsw.load, path, document.dim, document.metric, None, grown_capacity(head.rows)
            )
        except (CorruptState, FileNotFoundError) as error:
            log.error("graph unreadable, index is served exactly until it is rebuilt", index=document.index, why=error)
            self.unreadable[document.index] = f"generation {head.generation} can't be read: {error}"
            return None
        return await LiveGraph.adopt(head, graph, index.vectors)
