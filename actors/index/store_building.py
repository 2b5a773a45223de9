"""The builder's work on a Lance store: an index built in it, a store of texts, optimising. What is
built lies in the store under its name; the catalog and the stores' shell move the heads.
"""

from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import structlog

from actors.backends import lance_rules
from actors.backends.lance_store import library, opened, read_through
from actors.errors import CorruptState, Transient
from actors.index import artifacts
from actors.index.core import serves
from actors.index.heads import StoreHeads, companion_name
from actors.index.jobs import PER_MILLE, BuildProgress, InStore, build_vector_index, optimise_store
from actors.index.store_making import StoreMaking
from actors.ports import Buckets, Bus, Clock, Compute, Registry, Snapshot, Tables
from schemas.config import LanceConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Progress
from schemas.events.index import BuildGeneration, GenerationBuilt
from schemas.events.lance import RunOptimize, StoreBuilt, StoreOptimized
from schemas.names import IndexName, Seconds

POLL_S, POLLS = 0.1, 200
"""A build waits so long for its store to take in the rows of its version."""

log = structlog.get_logger(__name__)


class StoreBuilding:
    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        compute: Compute,
        bus: Bus,
        clock: Clock,
        keep_s: Seconds,
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._compute = compute
        self._bus = bus
        self._keep_s = keep_s
        self._heads = StoreHeads(registry)
        self._making = StoreMaking(registry, tables, buckets, bus, clock)

    async def build(
        self, document: IndexDocument, command: BuildGeneration, config: LanceConfig, snapshot: Snapshot
    ) -> tuple[GenerationBuilt, StoreBuilt | None]:
        """The index in the store, which is made first where there is none. Raises ValueError for what can't be
        built, Transient while the store lags behind the snapshot."""
        name = command.index
        lance_rules.check_dim(config.build, document.dim)
        lance_rules.check_rows(config.build, snapshot.rows)
        store, made = await self._heads.load(name), None
        again = await self._serves_already(command)
        if store is None or not store.vectors or await self._is_damaged(document, store, again):
            store = await self._making.with_vectors(document, await self._dataset(document), snapshot, store)
            made = StoreBuilt(name, store.version, True)
        store = await self._at_least(store, snapshot.version)
        lance_version = store.at(snapshot.version)
        vector_index = f"{config.build.name}-v{snapshot.version}"
        place = await self._buckets.lance_place(document.bucket, store.key, lance_version or store.lance_version)
        done = await self._run(
            f"{name}-{command.generation}", name, "build", build_vector_index, place, document.metric, config.build,
            vector_index,
        )  # fmt: skip
        built = GenerationBuilt(
            index=name,
            generation=command.generation,
            config=config,
            version=snapshot.version,
            rows=snapshot.rows,
            bytes=0,
            sha256=artifacts.name_sha256(f"{store.key}/{vector_index}"),
            key=store.key,
            build_s=done.seconds,
            reason=command.reason,
            library=library(),
            trial=command.trial,
            vector_index=vector_index,
            lance_version=done.lance_version,
            companion=command.companion,
        )
        return built, made

    async def texts(self, document: IndexDocument) -> StoreBuilt | None:
        """A store for full-text search, unless there is a store already."""
        if await self._heads.load(document.index) is not None:
            return None
        store = await self._making.with_texts(document, await self._dataset(document))
        return None if store is None else StoreBuilt(document.index, store.version, store.vectors)

    async def optimise(
        self, document: IndexDocument, store: StoreDocument, command: RunOptimize, serving: list[str]
    ) -> StoreOptimized:
        """`serving`: the indexes that rows are taken into; the others are kept as they are."""
        place = await self._buckets.lance_place(document.bucket, store.key)
        keep = [index.name for index in store.indexes]
        done = await self._run(
            f"{store.index}-optimise", store.index, "optimise", optimise_store, place, keep, serving, command.retrain,
            self._keep_s,
        )  # fmt: skip
        return StoreOptimized(
            store.index, done.lance_version, store.unindexed_rows, command.retrain, command.reason, done.seconds
        )

    async def _run(self, job: str, index: IndexName, phase: str, work: Any, *args: Any) -> InStore:
        done: InStore | None = None
        async with aclosing(self._compute.stream(work, *args)) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, BuildProgress):
                    await self._bus.signal(Progress(job, index, phase, item.done, PER_MILLE, "‰"))
                else:
                    done = item
        if done is None:
            raise Transient(f"the {phase} of {index} ended without a result")
        return done

    async def _at_least(self, store: StoreDocument, version: int) -> StoreDocument:
        """The store once it covers a dataset version: rows may come all the while. Raises Transient when it doesn't
        get there."""
        for _ in range(POLLS):
            if store.version >= version:
                return store
            await anyio.sleep(POLL_S)
            store = await self._heads.load(store.index) or store
        raise Transient(f"the store of {store.index} covers version {store.version}, {version} is to be built")

    async def _serves_already(self, command: BuildGeneration) -> bool:
        """Whether it is to be built anew as it is: then something may be wrong with it."""
        place = companion_name(command.index, "lance") if command.companion else command.index
        head = await self._registry.load(GenerationDocument, place)
        return head is not None and serves(head[0], command.config, command.trial)

    async def _is_damaged(self, document: IndexDocument, store: StoreDocument, thoroughly: bool) -> bool:
        """Whether it can't be opened; `thoroughly`, whether any of it can't be read."""
        place = await self._buckets.lance_place(document.bucket, store.key, store.lance_version)
        try:
            await anyio.to_thread.run_sync(read_through if thoroughly else opened, place)
        except (CorruptState, FileNotFoundError) as error:
            log.error("a Lance store is damaged and made anew", index=store.index, why=str(error))
            return True
        return False

    async def _dataset(self, document: IndexDocument) -> DatasetDocument:
        found = await self._registry.load(DatasetDocument, document.dataset)
        if found is None:
            raise FileNotFoundError(f"dataset {document.dataset}")
        return found[0]
