"""The catalog: which indexes there are, and which generation each must have. It keeps text
indexes' vectors in step with their datasets and moves the generation heads; building and
serving are others' work.
"""

from collections.abc import Sequence
from typing import Literal, Never

import anyio
import structlog

from actors.base import Actor, Origin, concurrent, every, handles
from actors.errors import Transient
from actors.index.artifacts import vectors_table
from actors.index.catchup import CatchUp, Covered
from actors.index.choosing import BackendChooser
from actors.index.config import IndexConfig
from actors.index.creation import Creation
from actors.index.generations import Generations
from actors.index.heads import StoreHeads, companion, serving_names
from actors.index.migration import Migration, Said
from actors.index.moving import IndexMoves
from actors.mirror import Mirror
from actors.ports import Buckets, Bus, Clock, Embedder, Embedders, Journal, Registry, Snapshots, TableRef, Tables
from actors.refusals import no_index
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.base import Refusal
from schemas.events.dataset import DatasetAppended, RowsDeleted
from schemas.events.index import (
    BuildGeneration,
    CreateIndex,
    DropIndex,
    EmbedderSpec,
    GenerationBuilt,
    GenerationFailed,
    GenerationReady,
    GetIndex,
    IndexAppended,
    IndexCreated,
    IndexDropped,
    IndexInfo,
    IndexList,
    IndexServed,
    ListIndexes,
    RebuildIndex,
    RebuildQueued,
    ServeIndex,
)
from schemas.events.lance import DropStore, IndexStore, MigrateIndex, SetBackend, StoreDropped
from schemas.events.promotion import ConfigPromoted, PromotionCleared
from schemas.events.storage import Cleared, ClearIndex, Switched, SwitchIndex
from schemas.names import DatasetName, IndexName, Share

log = structlog.get_logger(__name__)

Grown = IndexAppended | BuildGeneration | GenerationReady


class Catalog(Actor):
    role = "control"

    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        snapshots: Snapshots,
        embedders: Embedders,
        bus: Bus,
        clock: Clock,
        config: IndexConfig,
        default_target_recall: Share,
        default_embedder: EmbedderSpec,
        journal: Journal,
        heads: StoreHeads,
        mirror: Mirror | None = None,
    ) -> None:
        """heads: the stores' shell's too. mirror: the storage desk's, which knows what its first pass has copied."""
        self.heal_s = 30.0
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._snapshots = snapshots
        self._embedders = embedders
        self._catch_up = CatchUp(tables, snapshots, bus, clock, config.embed_batch)
        self._creation = Creation(
            registry, tables, buckets, embedders, bus, clock, default_target_recall, default_embedder
        )
        self._moves = IndexMoves(registry, tables, buckets, heads, mirror or Mirror(buckets))
        self._chooser = BackendChooser(registry, buckets, journal, config.memory_budget_mb << 20)
        self._generations = Generations(registry, buckets, heads, self._chooser, clock, config.keep_generations)
        self._migration = Migration(registry, buckets, heads, self._creation, self._generations)
        self._loaded: dict[IndexName, tuple[float, Embedder]] = {}  # by index: when it was created, its embedder
        self._locks: dict[IndexName, anyio.Lock] = {}

    async def start(self) -> Sequence[BuildGeneration]:
        """Orders again what was ordered and not answered: a builder that did it answers at once."""
        documents = [document for _, document, _ in await self._registry.all(IndexDocument)]
        orders = [order for one in documents for order in (one.building, one.companion_building)]
        return [order for order in orders if order is not None]

    # --- made and dropped ---

    @handles
    async def on_create(self, command: CreateIndex, origin: Origin) -> Sequence[IndexInfo | IndexCreated | Refusal]:
        async with self._lock(command.name):
            document = await self._creation.create(command, again=origin.delivery > 1)
        if isinstance(document, Refusal):
            return (document,)
        info = await self._info(document) or no_index(document.index)
        return info, IndexCreated(document.index, document.dataset, document.column)

    @handles
    @concurrent(4)
    async def on_created(self, event: IndexCreated) -> Sequence[Grown]:
        """The first vectors and the first generation."""
        return await self._grow(event.index)

    @handles
    async def on_drop(self, command: DropIndex, origin: Origin) -> Sequence[IndexDropped | Refusal]:
        name = command.name
        async with self._lock(name):
            found = await self._registry.load(IndexDocument, name)
            if found is None:
                return (IndexDropped(name) if origin.delivery > 1 else no_index(name),)
            document = found[0]
            for place in serving_names(name):
                await self._registry.delete(GenerationDocument, place)
            await self._tables.drop(vectors_table(document))
            await self._buckets.delete_prefix(document.bucket, f"indexes/{name}")
            await self._snapshots.forget(name)
            await self._registry.delete(IndexDocument, name)
            self._loaded.pop(name, None)
        return (IndexDropped(name),)

    # --- its backend ---

    @handles
    @concurrent(4)
    async def on_migrate(self, command: MigrateIndex, origin: Origin) -> Sequence[Said | Refusal]:
        return await self._migrate(command, origin)

    @handles
    @concurrent(4)
    async def on_index_store(self, command: IndexStore, origin: Origin) -> Sequence[Said | Refusal]:
        return await self._migrate(command, origin)

    async def _migrate(self, command: MigrateIndex | IndexStore, origin: Origin) -> Sequence[Said | Refusal]:
        async with self._lock(command.index):
            said = await self._migration.migrate(command, await self._rows(command.index), origin.id)
        return (said,) if isinstance(said, Refusal) else said

    @handles
    @concurrent(4)
    async def on_set_backend(
        self, command: SetBackend
    ) -> Sequence[IndexInfo | BuildGeneration | GenerationReady | Refusal]:
        async with self._lock(command.index):
            said = await self._migration.set_backend(command, await self._rows(command.index))
        if isinstance(said, Refusal):
            return (said,)
        found = await self._registry.load(IndexDocument, command.index)
        info = await self._info(found[0]) if found else None
        return [info or no_index(command.index), *said]

    @handles
    @concurrent(4)
    async def on_drop_store(self, command: DropStore) -> Sequence[StoreDropped | Refusal]:
        async with self._lock(command.index):
            return (await self._migration.drop_store(command),)

    # --- moved to another bucket ---

    @handles
    @concurrent(4)
    async def on_switch(self, command: SwitchIndex) -> Sequence[Switched | Refusal]:
        async with self._lock(command.index):
            return (await self._moves.switch(command),)

    @handles
    @concurrent(4)
    async def on_clear(self, command: ClearIndex) -> Sequence[Cleared]:
        async with self._lock(command.index):
            return (await self._moves.clear(command),)

    # --- in step with the dataset ---

    @handles
    @concurrent(4)
    async def on_append(self, event: DatasetAppended) -> Sequence[Grown]:
        return await self._follow(event.dataset, event.version, event.rows, event.replaced, event.total_rows)

    @handles
    @concurrent(4)
    async def on_delete(self, event: RowsDeleted) -> Sequence[Grown]:
        return await self._follow(event.dataset, event.version, 0, event.rows, event.total_rows)

    @every("heal_s")
    async def on_heal(self) -> Sequence[Grown]:
        """What no event told: text indexes that lag behind, indexes that have rows and nothing
        built or ordered."""
        said: list[Grown] = []
        for name, document, _ in await self._registry.all(IndexDocument):
            if document.failure:
                continue  # a build that fails is tried again when rows come or someone asks
            try:
                said += await self._grow(name, only_if_behind=True)
            except (Transient, FileNotFoundError) as error:
                log.warning("index can't catch up", index=document.index, why=error)
        return said

    async def _follow(self, dataset: DatasetName, version: int, added: int, deleted: int, total: int) -> list[Grown]:
        """After a commit to a dataset: every index on it covers it and says so, also when it
        turns out to have done so already (then the commit was announced a second time)."""
        said: list[Grown] = []
        for name, document, _ in await self._registry.all(IndexDocument):
            if document.dataset != dataset:
                continue
            if document.embedder.kind != "none":
                said += await self._grow(name)
                continue
            said.append(IndexAppended(name, dataset, version, added, total, deleted))
            said += await self._first(name, total)
        return said

    async def _grow(self, name: IndexName, only_if_behind: bool = False) -> list[Grown]:
        """Bring an index's vectors up to its dataset, and build when it has no generation."""
        async with self._lock(name):
            found = await self._registry.load(IndexDocument, name)
            dataset = await self._registry.load(DatasetDocument, found[0].dataset) if found else None
            if found is None or dataset is None:
                return []
            document = found[0]
            before = await self._snapshots.covered(name)
            covered = await self._covered(document, dataset[0])
        said: list[Grown] = []
        if not only_if_behind or covered.version > before:
            event = IndexAppended(name, document.dataset, covered.version, covered.added, covered.rows, covered.deleted)
            said.append(event)
        return [*said, *await self._first(name, covered.rows)]

    async def _covered(self, document: IndexDocument, dataset: DatasetDocument) -> Covered:
        if document.embedder.kind == "none":
            state = await self._tables.state(TableRef(dataset.bucket, dataset.path))
            return Covered(state.version, state.rows) if state else Covered(-1, 0)
        return await self._catch_up.run(document, dataset, await self._embedder(document))

    async def _first(self, name: IndexName, rows: int) -> list[BuildGeneration | GenerationReady]:
        """The first generation, once there are rows."""
        if rows == 0:
            return []
        async with self._lock(name):
            return await self._generations.ensure(name, "created", rows, only_first=True)

    # --- generations ---

    @handles
    async def on_promoted(self, event: ConfigPromoted) -> Sequence[BuildGeneration | GenerationReady]:
        return await self._serve(event.index, "rolled back" if event.rolled_back else "promoted")

    @handles
    async def on_cleared(self, event: PromotionCleared) -> Sequence[BuildGeneration | GenerationReady]:
        return await self._serve(event.index, "rolled back")

    @handles
    async def on_rebuild(
        self, command: RebuildIndex, origin: Origin
    ) -> Sequence[RebuildQueued | BuildGeneration | Refusal]:
        name = command.index
        async with self._lock(name):
            order = await self._generations.rebuild(name, command.reason, await self._rows(name))
        return (
            (order,)
            if isinstance(order, Refusal)
            else (
                RebuildQueued(name, order.generation, origin.id),
                order,
            )
        )

    @handles
    @concurrent(16)
    async def on_serve(
        self, command: ServeIndex, origin: Origin
    ) -> Sequence[IndexServed | BuildGeneration | GenerationReady | Refusal]:
        """Who activates a profile waits for it: where all is well it costs three reads, and
        doesn't wait for a catch-up that holds the index's lock."""
        name = command.index
        if origin.delivery == 1:  # what came before may have died before anyone heard
            standing = await self._generations.standing(name, command.default)
            if standing is not None and command.backend in (None, standing.config.backend):
                return (standing,)
        async with self._lock(name):
            rows = await self._rows(name)
            said = await self._generations.serve(name, command.default, rows)
            if command.backend is not None:
                beside = await self._migration.keep_ready(name, command.backend, rows)
                if isinstance(beside, Refusal):
                    return (beside,)
                said = [*said, *beside]
        return said or (no_index(name),)

    @handles
    async def on_built(self, event: GenerationBuilt) -> Sequence[GenerationReady]:
        async with self._lock(event.index):
            return await self._generations.built(event)

    @handles
    async def on_failed(self, event: GenerationFailed) -> Sequence[Never]:
        async with self._lock(event.index):
            await self._generations.failed(event)
        return ()

    async def _serve(self, name: IndexName, reason: str) -> list[BuildGeneration | GenerationReady]:
        async with self._lock(name):
            return await self._generations.ensure(name, reason, await self._rows(name))

    # --- asked ---

    @handles
    @concurrent(16)
    async def on_get(self, query: GetIndex) -> Sequence[IndexInfo | Refusal]:
        found = await self._registry.load(IndexDocument, query.name)
        info = await self._info(found[0]) if found else None
        return (info or no_index(query.name),)

    @handles
    @concurrent(16)
    async def on_list(self, query: ListIndexes) -> Sequence[IndexList]:
        documents = [document for _, document, _ in await self._registry.all(IndexDocument)]
        infos = [await self._info(document) for document in documents]
        return (IndexList([info for info in infos if info is not None]),)

    async def _info(self, document: IndexDocument) -> IndexInfo | None:
        """None when it was dropped meanwhile."""
        name = document.index
        try:
            version = await self._snapshots.covered(name)
        except FileNotFoundError:
            if await self._registry.load(IndexDocument, name) is None:
                return None
            version = -1  # it is its dataset that is gone
        head = await self._registry.load(GenerationDocument, name)
        rows = await self._rows(name)
        without: Literal["failed", "building"] = "failed" if document.failure else "building"
        return IndexInfo(
            index=name,
            dataset=document.dataset,
            column=document.column,
            metric=document.metric,
            backend=document.backend,
            bucket=document.bucket,
            target_recall=document.target_recall,
            embedder=document.embedder,
            dim=document.dim,
            state="ready" if head else without,
            generation=head[0].generation if head else 0,
            config=head[0].config if head else document.config,
            version=version,
            rows=rows,
            reason=document.failure,
            why_backend=(await self._chooser.choose(document, rows)).why,
            companions=[one for one in document.companions if await companion(self._registry, name, one) is not None],
            text_column=document.text_column,
        )

    async def _rows(self, name: IndexName) -> int:
        """Rows that have a vector."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return 0
        if found[0].embedder.kind != "none":
            state = await self._tables.state(vectors_table(found[0]))
        else:
            dataset = await self._registry.load(DatasetDocument, found[0].dataset)
            state = await self._tables.state(TableRef(dataset[0].bucket, dataset[0].path)) if dataset else None
        return state.rows if state else 0

    async def _embedder(self, document: IndexDocument) -> Embedder:
        known = self._loaded.get(document.index)
        if known is None or known[0] != document.created:
            key = document.embedder_key
            model = await self._buckets.fetch(document.bucket, key) if key else None
            known = (document.created, await self._embedders.load(document.embedder, model))
            self._loaded[document.index] = known
        return known[1]

    def _lock(self, name: IndexName) -> anyio.Lock:
        """Changes to one index come one after another."""
        return self._locks.setdefault(name, anyio.Lock())
