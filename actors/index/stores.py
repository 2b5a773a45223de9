"""The stores' shell (control): keeps every Lance store in step with its dataset, says when one is to be
optimised, and answers what is asked of one. Which store must exist is the catalog's; making, indexing
and optimising are the builder's.

By difference of row sets, so it may stop anywhere and be run again at will. What it commits is
visible when the store's head moves.
"""

from collections.abc import Callable, Sequence
from typing import Never, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog

from actors.backends import lance_store
from actors.backends.lance import LanceBackend
from actors.base import Actor, concurrent, every, handles
from actors.errors import CorruptState, Refused, Transient
from actors.index import core
from actors.index.config import IndexConfig
from actors.index.fitness import unfit
from actors.index.heads import StoreHeads, companion_name, renewed
from actors.index.store_sync import StoreSync, Synced
from actors.ports import Buckets, Bus, Registry, Snapshots, Tables
from actors.refusals import no_index
from actors.vector_backend import BackendStats
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Refusal
from schemas.events.dataset import DeleteRows, UpsertRows
from schemas.events.index import GenerationReady, IndexAppended, IndexDropped, RebuildIndex, RecallDrifted
from schemas.events.lance import (
    AppendDocuments,
    BuildTexts,
    DeleteDocuments,
    GetDocument,
    GetStoreStats,
    IndexedBy,
    OptimizeQueued,
    OptimizeStore,
    RunOptimize,
    StoreAdvanced,
    StoreBuilt,
    StoreChanged,
    StoredDocument,
    StoreDropped,
    StoreOptimized,
    StoreStats,
)
from schemas.names import IndexName, Rows

log = structlog.get_logger(__name__)

WAIT_S = 30.0
"""An append waits so long for its rows to be embedded and searchable."""

Moved = StoreAdvanced | RunOptimize
R = TypeVar("R")
Seen = tuple[IndexDocument, DatasetDocument, StoreDocument, R]


class Measured(msgspec.Struct, frozen=True):
    """A store's version, as Lance tells it."""

    stats: BackendStats
    fragments: int
    indexed_rows: dict[str, Rows]
    """By vector index."""
    versions: set[int]
    """That can be read."""

    @classmethod
    def of(cls, backend: LanceBackend, _: DatasetDocument) -> "Measured":
        return cls(backend.stats(), backend.fragments, backend.indexed_rows(), backend.versions())


class Stores(Actor):
    role = "control"

    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        snapshots: Snapshots,
        heads: StoreHeads,
        bus: Bus,
        config: IndexConfig,
    ) -> None:
        """heads: the catalog's too."""
        self.heal_s = 30.0
        self._registry = registry
        self._buckets = buckets
        self._heads = heads
        self._bus = bus
        self._config = config
        self._sync = StoreSync(registry, tables, buckets, snapshots, heads)
        self._ordered: dict[IndexName, Rows] = {}  # to be optimised, and not done yet: rows outside the index then

    # --- in step ---

    async def start(self) -> Sequence[Moved]:
        """What came while nobody looked."""
        return await self.on_heal()

    @handles
    @concurrent(4)
    async def on_appended(self, event: IndexAppended) -> Sequence[Moved]:
        return await self._advance(event.index)

    @handles
    async def on_built(self, event: StoreBuilt) -> Sequence[Moved]:
        """Rows came while it was made; whoever searches texts hears that it is there."""
        said = await self._advance(event.index)
        store = await self._heads.load(event.index)
        if said or store is None:
            return said
        return [StoreAdvanced(event.index, store.version, store.lance_version, 0, 0)]

    @handles
    async def on_ready(self, event: GenerationReady) -> Sequence[BuildTexts]:
        """The first generation is there: its texts get a store, unless one has them."""
        return await self._texts_of(event.index)

    @handles
    async def on_store_dropped(self, event: StoreDropped) -> Sequence[BuildTexts]:
        """Its texts are still searched."""
        return await self._texts_of(event.index)

    @every("heal_s")
    async def on_heal(self) -> Sequence[Moved]:
        """What no event told."""
        said: list[Moved] = []
        for name, _, _ in await self._registry.all(StoreDocument):
            try:
                said += await self._advance(name)
            except (Transient, FileNotFoundError) as error:
                log.warning("a Lance store can't follow its dataset", index=name, why=str(error))
        return said

    @handles
    async def on_dropped(self, event: IndexDropped) -> Sequence[Never]:
        """Its files went with the index's."""
        async with self._heads.lock(event.index):
            if await self._registry.load(IndexDocument, event.index) is None:
                await self._registry.delete(StoreDocument, event.index)
        self._ordered.pop(event.index, None)
        return ()

    # --- optimised ---

    @handles
    async def on_optimize(
        self, command: OptimizeStore
    ) -> Sequence[OptimizeQueued | RunOptimize | RebuildIndex | Refusal]:
        store = await self._heads.load(command.index)
        if store is None:
            return [await self._no_store(command.index)]
        queued, head = OptimizeQueued(command.index, store.unindexed_rows), await self._serving(command.index)
        if command.retrain and head is not None:  # trained anew, it is another generation
            return [queued, RebuildIndex(command.index, command.reason)]
        return [queued, RunOptimize(command.index, command.retrain, command.reason)]

    @handles
    async def on_drift(self, event: RecallDrifted) -> Sequence[RebuildIndex]:
        """Cells that were trained on other rows than today's are trained again, as another generation; a promotion
        that failed is promotion's to take back."""
        store, head = await self._heads.load(event.index), await self._serving(event.index)
        if store is None or head is None or head.generation != event.generation:
            return []
        grown = core.retrain_due(head.rows, store.rows)
        if not grown:
            return []
        return [RebuildIndex(event.index, f"live recall {event.recall.mean:.4f} under {event.target:g}; {grown}")]

    @handles
    async def on_optimised(self, event: StoreOptimized) -> Sequence[StoreAdvanced]:
        """Its head moves to the version that was made."""
        async with self._heads.lock(event.index):
            store = await self._heads.load(event.index)
            if store is None or store.lance_version >= event.lance_version:
                return []
            fewer = max(0, store.unindexed_rows - event.indexed_rows)
            moved = await self._heads.change(
                event.index, store.key, lambda one: renewed(one, event.lance_version, fewer)
            )
        self._ordered.pop(event.index, None)
        return [StoreAdvanced(event.index, moved.version, moved.lance_version, 0, 0)] if moved else []

    # --- asked ---

    @handles
    @concurrent(8)
    async def on_append(self, command: AppendDocuments) -> Sequence[StoreChanged | Moved | Refusal]:
        return await self._through_dataset(command.index, command)

    @handles
    @concurrent(8)
    async def on_delete(self, command: DeleteDocuments) -> Sequence[StoreChanged | Moved | Refusal]:
        return await self._through_dataset(command.index, command)

    @handles
    @concurrent(16)
    async def on_document(self, query: GetDocument) -> Sequence[StoredDocument | Refusal]:
        found = await self._read(query.index, lambda backend, dataset: backend.document(dataset.id_column, query.id))
        if isinstance(found, Refusal):
            return [found]
        _, dataset, _, row = found
        if row is None:
            reason = f"index {query.index!r} has no document {query.id!r}"
            return [Refusal("not_found", reason, f"ids are those of column {dataset.id_column!r} of {dataset.dataset}")]
        vector, id = row.pop(lance_store.VECTOR), row.pop(dataset.id_column)
        row.pop(lance_store.ROW)
        return [StoredDocument(query.index, id, row, vector)]

    @handles
    @concurrent(8)
    async def on_stats(self, query: GetStoreStats) -> Sequence[StoreStats | Refusal]:
        found = await self._read(query.index, Measured.of, texts=True)
        if isinstance(found, Refusal):
            return [found]
        document, _, store, measured = found
        head = await self._registry.load(GenerationDocument, query.index)
        beside = await self._registry.load(GenerationDocument, companion_name(query.index, "lance"))
        serving = [one[0].vector_index for one in (head, beside) if one is not None and one[0].vector_index]
        indexes = []
        for index in store.indexes:
            rows = measured.indexed_rows.get(index.name, 0)
            outside = max(0, store.rows - rows)
            indexes.append(IndexedBy(index.name, index.build, index.version, rows, outside, index.name in serving))
        outside = next((one.unindexed_rows for one in indexes if one.serves), store.rows)
        return [
            StoreStats(
                index=query.index,
                bucket=document.bucket,
                key=store.key,
                vectors=store.vectors,
                rows=store.rows,
                deleted=measured.stats.deleted,
                fragments=measured.fragments,
                bytes=measured.stats.bytes,
                lance_version=store.lance_version,
                version=store.version,
                indexes=indexes,
                text_column=store.text_column,
                unindexed_share=outside / max(1, store.rows),
                versions=[one for one in store.history if one.lance_version in measured.versions],
                library=lance_store.library(),
            )
        ]

    # --- the shell's own ---

    async def _serving(self, name: IndexName) -> GenerationDocument | None:
        """The generation that serves the index, if it is Lance's."""
        head = await self._registry.load(GenerationDocument, name)
        return head[0] if head is not None and head[0].vector_index else None

    async def _texts_of(self, name: IndexName) -> list[BuildTexts]:
        found = await self._registry.load(IndexDocument, name)
        if found is None or found[0].text_column is None or not self._config.full_text:
            return []
        index, column = found[0], found[0].text_column
        dataset = await self._registry.load(DatasetDocument, index.dataset)
        if dataset is None:
            return []
        if await unfit(index.dataset, [dataset[0].id_column, column], index.bucket, self._buckets):
            return []  # a search by text says so
        return [] if await self._heads.load(name) else [BuildTexts(name)]

    async def _advance(self, name: IndexName) -> list[Moved]:
        try:
            synced = await self._sync.run(name)
        except CorruptState as error:  # whoever serves from it has it made anew
            log.error("a Lance store can't be read", index=name, why=str(error))
            return []
        except FileNotFoundError:
            if await self._registry.load(IndexDocument, name) is not None:
                raise
            return []  # dropped meanwhile
        return [] if synced is None else self._moved(name, synced)

    def _moved(self, name: IndexName, synced: Synced) -> list[Moved]:
        store = synced.store
        said: list[Moved] = [StoreAdvanced(name, store.version, store.lance_version, synced.added, synced.deleted)]
        why = core.optimise_due(store.unindexed_rows, store.rows, synced.fragments, self._config.optimise_share)
        if why and (name not in self._ordered or store.unindexed_rows >= 2 * self._ordered[name]):
            self._ordered[name] = max(1, store.unindexed_rows)
            said.append(RunOptimize(name, False, why))
        return said

    async def _through_dataset(
        self, name: IndexName, command: AppendDocuments | DeleteDocuments
    ) -> list[StoreChanged | Moved | Refusal]:
        """Rows go into the dataset, or out of it, by its owner; the answer waits until the store has them."""
        found = await self._registry.load(IndexDocument, name)
        store = await self._heads.load(name)
        if found is None or store is None:
            return [await self._no_store(name)]
        dataset = found[0].dataset
        try:
            if isinstance(command, AppendDocuments):
                version = (await self._bus.ask(UpsertRows(dataset, command.rows))).version
                count = len(command.rows)
            else:
                gone = await self._bus.ask(DeleteRows(dataset, command.ids))
                version, count = gone.version, gone.rows
        except Refused as refused:
            return [refused.refusal]
        said: list[StoreChanged | Moved | Refusal] = []
        with anyio.move_on_after(WAIT_S):
            while (store := await self._heads.load(name)) is not None and store.version < version:
                said += await self._advance(name)
                await anyio.sleep(0.005)
            if store is not None:
                await self._heads.followed(name)
                return [StoreChanged(name, store.version, store.lance_version, count), *said]
        reason = f"the rows are in dataset {dataset!r}, and index {name!r} is still taking them in"
        return [Refusal("unavailable", reason, f"look again: lakehouse lance stats {name}", retry_after_s=2.0)]

    async def _read(
        self, name: IndexName, look: Callable[[LanceBackend, DatasetDocument], R], texts: bool = False
    ) -> Seen[R] | Refusal:
        """What `look` sees in the store."""

        async def read(
            store: StoreDocument | None,
        ) -> Seen[R] | Refusal:
            found = await self._registry.load(IndexDocument, name)
            dataset = await self._registry.load(DatasetDocument, found[0].dataset) if found else None
            if found is None or dataset is None or store is None or not (store.vectors or texts):
                return await self._no_store(name)
            place = await self._buckets.lance_place(found[0].bucket, store.key, store.lance_version)
            backend = await anyio.to_thread.run_sync(LanceBackend.load, place, found[0].metric)
            return found[0], dataset[0], store, await anyio.to_thread.run_sync(look, backend, dataset[0])

        try:
            return await self._heads.reading(name, read)
        except (FileNotFoundError, CorruptState) as error:
            hint = f"make it anew: lakehouse lance drop {name}, then lakehouse lance migrate {name}"
            return Refusal("unavailable", f"the Lance store of {name!r} can't be read: {error}", hint)

    async def _no_store(self, name: IndexName) -> Refusal:
        if await self._registry.load(IndexDocument, name) is None:
            return no_index(name)
        hint = f"make one: lakehouse lance migrate {name}"
        return Refusal("not_found", f"index {name!r} has no Lance store", hint)
