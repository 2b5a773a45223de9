"""From what is stored to what is served: documents, embedder, and either snapshot, columns and graph
file, or the Lance store."""

from functools import partial

import anyio
import anyio.to_thread
import structlog

from actors import hnsw
from actors.codec_ports import VectorCodecs
from actors.errors import CorruptState, Transient
from actors.index.coded import CodedVectors
from actors.index.columns import ColumnCache
from actors.index.config import IndexConfig
from actors.index.core import grown_capacity
from actors.index.heads import BESIDE, StoreHeads, index_of
from actors.index.lance_served import LanceServed, view_of
from actors.index.live import LiveGraph
from actors.index.sampling import RecallWindow
from actors.index.served import ServedIndex
from actors.index.vectors import VectorSet
from actors.ports import Buckets, Clock, Embedder, Embedders, Registry, Snapshots, TableRef, Tables
from actors.refusals import no_index
from schemas.config import LanceConfig
from schemas.documents.codec import IndexCodecDocument
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Refusal
from schemas.names import IndexName

POLL_S, POLLS = 0.05, 100
"""A store that is about to serve may take so long to catch up."""

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
        heads: StoreHeads,
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
        self._heads = heads
        self._clock = clock
        self._config = config

    async def load(self, place: str) -> ServedIndex | LanceServed | Refusal:
        """An index as it stands now, at its newest version and generation; `place`: the registry name of the head.
        One whose table or documents are damaged is refused with the reason: the others must go on being
        served. Raises Transient when a bucket is away."""
        name = index_of(place)
        try:
            return await self._load(name, place)
        except CorruptState as error:
            log.error("index can't be loaded", index=name, why=str(error))
            return Refusal("unavailable", f"index {name!r} can't be loaded: {error}", "restore it, or drop it")
        except FileNotFoundError as error:  # its dataset's table went meanwhile: with the index, or to another bucket
            if await self._registry.load(IndexDocument, name) is None:
                return no_index(name)
            reason = f"index {name!r} can't be loaded: {error}"
            return Refusal("unavailable", reason, "try again in a moment", retry_after_s=2.0)

    async def _load(self, name: IndexName, place: str) -> ServedIndex | LanceServed | Refusal:
        found = await self._registry.load(IndexDocument, name)
        dataset = await self._registry.load(DatasetDocument, found[0].dataset) if found else None
        if found is None or dataset is None:
            return no_index(name)
        document = found[0]
        head = await self._registry.load(GenerationDocument, place)
        if place != name and head is None:
            primary = await self._registry.load(GenerationDocument, name)
            return no_companion(document, place, primary[0] if primary else None)
        if head is not None and isinstance(head[0].config, LanceConfig):
            stored = await self._stored(document, dataset[0], head[0], place)
            if stored is not None:
                return stored
        return await self._in_memory(document, dataset[0], place)

    async def _in_memory(self, document: IndexDocument, dataset: DatasetDocument, place: str) -> ServedIndex | Refusal:
        name = document.index
        try:
            async with self._snapshots.held(name) as snapshot:
                vectors = await anyio.to_thread.run_sync(VectorSet.open, snapshot, document.metric)
        except FileNotFoundError:
            return Refusal(
                "unavailable", f"index {name!r} is still being embedded", "try again in a moment", retry_after_s=2.0
            )
        columns = ColumnCache(self._tables, dataset, (self._config.memory_budget_mb << 20) // COLUMN_SHARE)
        await columns.sync(vectors.rows, vectors.version)
        embedder, table = await self._embedder(document), TableRef(dataset.bucket, dataset.path)
        index = ServedIndex(document, table, embedder, columns, vectors, self._config.exact_below_rows, place)
        index.window = RecallWindow(0, self._clock.now())
        try:
            await self.follow(index)
        except Transient as error:  # its graph's bucket is away: upkeep looks again
            log.warning("graph can't be had, index is served exactly until then", index=name, why=str(error))
        return index

    async def _stored(
        self, document: IndexDocument, dataset: DatasetDocument, head: GenerationDocument, place: str
    ) -> LanceServed | None:
        """From its Lance store; None when that can't be read: then it is searched exactly until it is built anew."""
        try:
            view = await view_of(document, head, self._heads, self._buckets)
        except (CorruptState, FileNotFoundError) as error:
            log.error("Lance store unreadable, index is served exactly until it is rebuilt", index=place, why=error)
            if place == document.index:
                self.unreadable[document.index] = f"generation {head.generation} can't be read: {error}"
            return None
        embedder = await self._embedder(document)
        below = self._config.exact_below_rows
        return LanceServed(document, dataset, embedder, view, below, self._clock.now(), place)

    async def _embedder(self, document: IndexDocument) -> Embedder | None:
        if document.embedder.kind == "none":
            return None
        try:
            model = document.embedder_key and await self._buckets.fetch(document.bucket, document.embedder_key)
        except FileNotFoundError as error:
            raise CorruptState(f"its embedder is gone: {error}") from error
        return await self._embedders.load(document.embedder, model or None)

    async def follow(self, index: ServedIndex | LanceServed) -> bool:
        """Put the codec that the index uses, or the generation of the head, under it; False when it serves it already
        or its file can't be read (then `unreadable` says so)."""
        async with index.following:
            if isinstance(index, LanceServed):
                return await self._follow_store(index)
            return await self._follow(index)

    async def caught_up(self, name: IndexName) -> None:
        """Before a Lance store takes the place of what serves. Raises Transient while it lacks rows that the index
        has vectors of."""
        covered = await self._snapshots.covered(name)
        for _ in range(POLLS):  # of the version that was covered then: more may come all the while
            store = await self._heads.load(name)
            if store is None or store.version >= covered:
                return
            await anyio.sleep(POLL_S)
        raise Transient(f"the Lance store of {name} takes in version {covered}")

    async def _follow_store(self, index: LanceServed) -> bool:
        await self._relocate(index)
        head, store = await self._heads_of(index)
        while True:
            view = index.view
            if head is None or store is None or not isinstance(head.config, LanceConfig):
                return False  # the searcher loads it anew
            if (head, store, index.document.bucket) == (view.head, view.store, view.bucket):
                return False
            try:
                index.view = await view_of(index.document, head, self._heads, self._buckets)
                break
            except (CorruptState, FileNotFoundError) as error:
                tried = head, store
                head, store = await self._heads_of(index)
                if (head, store) == tried:  # damaged, or made anew and not yet indexed; who searches it says so
                    log.warning("Lance store can't be followed", index=index.place, why=str(error))
                    return False
        if head.generation != view.head.generation:
            index.window = RecallWindow(head.generation, self._clock.now())
        return True

    async def _heads_of(self, index: LanceServed) -> tuple[GenerationDocument | None, StoreDocument | None]:
        found = await self._registry.load(GenerationDocument, index.place)
        return found[0] if found else None, await self._heads.load(index.document.index)

    async def _follow(self, index: ServedIndex) -> bool:
        name = index.document.index
        await self._relocate(index)
        codec = await self._registry.load(IndexCodecDocument, name) if index.place == name else None
        if codec is not None and await self._follow_codec(index, codec[0]):
            return True
        found = await self._registry.load(GenerationDocument, index.place)
        if found is not None and isinstance(found[0].config, LanceConfig):
            return False  # the searcher loads it anew
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

    async def _relocate(self, index: ServedIndex | LanceServed) -> None:
        """Read from where the index and its dataset lie now: they may have been moved."""
        found = await self._registry.load(IndexDocument, index.document.index)
        dataset = await self._registry.load(DatasetDocument, index.document.dataset)
        if found is not None and found[0].created == index.document.created:
            index.document = found[0]
        if dataset is not None:
            index.dataset = TableRef(dataset[0].bucket, dataset[0].path)
            if isinstance(index, ServedIndex):
                index.columns.table = index.dataset

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


def no_companion(document: IndexDocument, place: str, primary: GenerationDocument | None) -> Refusal:
    """Asked for a backend that doesn't serve the index, and has nothing ready beside it. `primary` may be about to."""
    name, backend = document.index, place.rpartition(BESIDE)[2]
    coming = [one.config.backend for one in (document.building, document.companion_building, primary) if one]
    if backend in (document.backend, *document.companions, *coming):
        reason = f"index {name!r} is still being built for {backend}"
        return Refusal("unavailable", reason, "try again in a moment", retry_after_s=2.0)
    hint = f"lakehouse lance migrate {name}" if backend == "lance" else f"lakehouse index backend {name} hnsw"
    return Refusal("not_found", f"index {name!r} isn't kept ready for {backend}", hint)
