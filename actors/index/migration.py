"""What users order about an index's backend: a Lance store beside it, another index in the store, another
backend to serve it, the store removed. The catalog's part; it holds the index's lock meanwhile.
"""

from typing import Literal

import msgspec

from actors.backends import lance_rules
from actors.index.creation import Creation
from actors.index.fitness import unfit
from actors.index.generations import Generations
from actors.index.heads import StoreHeads, companion_name
from actors.index.store_making import column_names
from actors.ports import Buckets, Registry
from actors.refusals import no_index
from schemas.config import LanceConfig, LanceType
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Refusal
from schemas.events.index import BuildGeneration, CreateIndex, GenerationReady, IndexCreated
from schemas.events.lance import DropStore, IndexStore, MigrateIndex, SetBackend, StoreDropped, StoreQueued
from schemas.names import Backend, IndexName, MessageId, Rows

Said = StoreQueued | BuildGeneration | GenerationReady | IndexCreated


class Migration:
    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        heads: StoreHeads,
        creation: Creation,
        generations: Generations,
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._heads = heads
        self._creation = creation
        self._generations = generations

    async def migrate(self, command: MigrateIndex | IndexStore, rows: Rows, cause: MessageId) -> list[Said] | Refusal:
        """Orders the index in the store, and the store with it. What Lance serves already is built anew when another
        type is asked for."""
        name = command.index
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return await self._made(command, cause) if isinstance(command, MigrateIndex) else no_index(name)
        document, revision = found
        wrong = await self._unfit(document)
        if wrong is not None:
            return wrong
        if rows == 0:
            return Refusal("invalid", f"index {name!r} has no rows to build from", "ingest some into its dataset")
        if isinstance(command, IndexStore) and await self._heads.load(name) is None:
            hint = f"make one first: lakehouse lance migrate {name}"
            return Refusal("not_found", f"index {name!r} has no Lance store", hint)
        try:
            config = _asked(document, command.index_type, command.partitions, command.sub_vectors, rows)
        except ValueError as error:
            return Refusal("invalid", f"index {name!r} can't be built so: {error}")
        promoted = await self._registry.load(PromotionDocument, name)
        current = promoted[0].current if promoted else None
        if current is not None and current.config.backend == "lance" and current.config.build != config.build:
            reason = f"index {name!r} serves {current.config} of trial {current.trial}, which was promoted"
            hint = f"try it and promote it: lakehouse tune {name}; or take that back: lakehouse rollback {name}"
            return Refusal("conflict", reason, hint)
        companions = list(dict.fromkeys([*document.companions, "lance"]))
        changed = msgspec.structs.replace(document, lance=config, companions=companions)
        if changed != document:
            await self._registry.save(name, changed, expected=revision, bucket=document.bucket)
        said = await self._generations.ensure(name, "asked", rows)
        order = next((one for one in said if one.config.backend == "lance"), None)
        number = order.generation if order else 0
        return [StoreQueued(name, number, config, cause), *said]

    async def _made(self, command: MigrateIndex, cause: MessageId) -> list[Said] | Refusal:
        """An index that isn't there yet, over the column that the order names, with Lance to serve it."""
        if command.dataset is None or command.column is None:
            hint = "lakehouse indexes lists them; or give dataset and column, and it is made"
            return Refusal("not_found", f"there is no index {command.index!r}", hint)
        order = CreateIndex(
            command.index,
            command.dataset,
            command.column,
            command.metric,
            "lance",
            target_recall=command.target_recall,
            embedder=command.embedder,
        )
        document = await self._creation.create(order, again=False)
        if isinstance(document, Refusal):
            return document
        rows = await self._creation.rows(document)
        try:
            config = _asked(document, command.index_type, command.partitions, command.sub_vectors, max(1, rows))
        except ValueError as error:
            await self._registry.delete(IndexDocument, command.index)
            return Refusal("invalid", f"index {command.index!r} can't be built so: {error}")
        found = await self._registry.load(IndexDocument, command.index)
        if found is not None and rows:
            changed = msgspec.structs.replace(document, lance=config)
            await self._registry.save(command.index, changed, expected=found[1], bucket=document.bucket)
        created = IndexCreated(document.index, document.dataset, document.column)
        return [StoreQueued(document.index, 1, config, cause), created]

    async def set_backend(self, command: SetBackend, rows: Rows) -> list[BuildGeneration | GenerationReady] | Refusal:
        found = await self._registry.load(IndexDocument, command.index)
        if found is None:
            return no_index(command.index)
        document, revision = found
        if command.backend == "lance":
            wrong = await self._unfit(document)
            if wrong is not None:
                return wrong
        changed = msgspec.structs.replace(document, backend=command.backend, why_backend="")
        if command.backend == "auto" and await self._unfit(document) is None:
            changed = msgspec.structs.replace(changed, companions=list(dict.fromkeys([*document.companions, "lance"])))
        if changed != document:
            await self._registry.save(command.index, changed, expected=revision, bucket=document.bucket)
        return await self._generations.ensure(command.index, f"backend {command.backend}", rows)

    async def keep_ready(
        self, name: IndexName, backend: Backend, rows: Rows
    ) -> list[BuildGeneration | GenerationReady] | Refusal:
        """A profile needs this backend: beside what serves, unless it is that."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return no_index(name)
        document, revision = found
        if backend == "lance":
            wrong = await self._unfit(document)
            if wrong is not None:
                return wrong
        if backend not in document.companions:
            changed = msgspec.structs.replace(document, companions=[*document.companions, backend])
            await self._registry.save(name, changed, expected=revision, bucket=document.bucket)
        return await self._generations.ensure(name, "activated", rows)

    async def drop_store(self, command: DropStore) -> StoreDropped | Refusal:
        """Raises Transient when the bucket is away."""
        name = command.index
        found, store = await self._registry.load(IndexDocument, name), await self._heads.load(name)
        if found is None:
            return no_index(name)
        if store is None:
            return Refusal(
                "not_found", f"index {name!r} has no Lance store", f"lakehouse lance migrate {name} makes one"
            )
        document, revision = found
        head = await self._registry.load(GenerationDocument, name)
        if document.backend != "hnsw" or (head is not None and head[0].config.backend == "lance"):
            hint = f"have it served from memory first: lakehouse index backend {name} hnsw"
            return Refusal("conflict", f"index {name!r} is served by Lance, or may be", hint)
        building = document.companion_building
        if building is not None:
            reason = f"generation {building.generation} of index {name!r} is being built in its store"
            return Refusal("busy", reason, "wait until it is done", retry_after_s=5.0)
        changed = msgspec.structs.replace(
            document, companions=[one for one in document.companions if one != "lance"], lance=None
        )
        await self._registry.save(name, changed, expected=revision, bucket=document.bucket)
        async with self._heads.lock(name):
            await self._registry.delete(GenerationDocument, companion_name(name, "lance"))
            await self._registry.delete(StoreDocument, name)
            await self._buckets.delete_prefix(document.bucket, store.key)
        return StoreDropped(name)

    async def _unfit(self, document: IndexDocument) -> Refusal | None:
        """Why there can be no store of the index; None when there can."""
        dataset = await self._registry.load(DatasetDocument, document.dataset)
        if dataset is None:
            return Refusal("not_found", f"dataset {document.dataset!r} is gone", "lakehouse datasets lists them")
        return await unfit(document.dataset, column_names(dataset[0]), document.bucket, self._buckets)


def _asked(
    document: IndexDocument,
    wanted: LanceType | Literal["auto"],
    partitions: int | None,
    sub_vectors: int | None,
    rows: Rows,
) -> LanceConfig:
    """Raises ValueError. What was built before stays as it is when nothing is said."""
    if wanted == "auto" and partitions is None and sub_vectors is None and document.lance is not None:
        return document.lance
    return lance_rules.first_config(lance_rules.resolve(rows, document.dim, wanted, partitions, sub_vectors))
