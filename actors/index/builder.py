"""The builder: turns an order for a generation into a graph file in the index's bucket, or into an
index in its Lance store."""

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Never

import anyio.to_thread
import structlog

from actors.backends.lance_store import said
from actors.base import Actor, handles
from actors.errors import CorruptState, Transient
from actors.graphs import CachedGraph, GraphCache
from actors.hnsw import LIBRARY, sha256_of
from actors.index import artifacts
from actors.index.config import IndexConfig
from actors.index.heads import serving_names
from actors.index.jobs import BuildProgress, GraphFile, build_graph
from actors.index.store_building import StoreBuilding
from actors.ports import Buckets, Bus, Clock, Compute, Registry, Snapshot, Snapshots, Tables
from schemas.config import GraphConfig, LanceConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Progress
from schemas.events.index import BuildGeneration, GenerationBuilt, GenerationFailed, IndexDropped
from schemas.events.lance import BuildTexts, RunOptimize, StoreBuilt, StoreOptimized

log = structlog.get_logger(__name__)


class Builder(Actor):
    """Does each generation once: an order that comes again finds the artifact."""

    role = "work"

    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        snapshots: Snapshots,
        buckets: Buckets,
        compute: Compute,
        graphs: GraphCache,
        bus: Bus,
        clock: Clock,
        config: IndexConfig,
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._buckets = buckets
        self._compute = compute
        self._graphs = graphs
        self._bus = bus
        self._stores = StoreBuilding(
            registry, tables, buckets, compute, bus, clock, config.store_history_days * 86400.0
        )

    @handles
    async def on_build(self, command: BuildGeneration) -> Sequence[GenerationBuilt | GenerationFailed | StoreBuilt]:
        name, generation = command.index, command.generation
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return ()  # dropped meanwhile
        document, dataset = found[0], await self._registry.load(DatasetDocument, found[0].dataset)
        try:
            built = await artifacts.recorded(self._buckets, document.bucket, name, generation)
        except Transient:  # the bucket is away: what is built goes to rescue
            if command not in (document.building, document.companion_building):
                raise
            built = None
        if built is not None and built.config == command.config:
            return [built]
        try:
            async with self._snapshots.held(name) as snapshot:  # rows may come all the while
                if snapshot.rows == 0:
                    return [GenerationFailed(name, generation, "the index has no rows")]
                if isinstance(command.config, LanceConfig):
                    built, made = await self._stores.build(document, command, command.config, snapshot)
                    return await self._recorded(document, built, made)
                path, file = await self._graph(document, command, command.config.build, snapshot)
        except FileNotFoundError as error:
            if await self._registry.load(DatasetDocument, document.dataset) != dataset:
                raise Transient(f"dataset {document.dataset} moved while {name} was built from it") from error
            return [GenerationFailed(name, generation, f"there are no vectors to build from: {error}")]
        except (
            ValueError,
            RuntimeError,
            MemoryError,
            ModuleNotFoundError,
            CorruptState,  # of the store: it is made anew when what serves is ordered anew
        ) as error:  # the job's own; a dead worker is Transient
            log.warning("build failed", index=name, generation=generation, why=error)
            return [GenerationFailed(name, generation, f"{type(error).__name__}: {error}")]
        again = await self._registry.load(IndexDocument, name)
        if again is None or again[0].created != document.created:
            self._graphs.drop(name)
            return ()  # dropped during the build; a new index of the name has numbers of its own
        document = again[0]  # its bucket may be another by now
        key = artifacts.graph_key(name, generation)
        await self._buckets.delete(document.bucket, key)  # left by an attempt that was killed
        try:
            artifact = await self._buckets.upload(document.bucket, key, path)
        except FileNotFoundError as error:  # a trial's graph took its place in the cache
            raise Transient(f"the graph of {name} went before it was stored: {error}") from error
        built = GenerationBuilt(
            index=name,
            generation=generation,
            config=command.config,
            version=snapshot.version,
            rows=file.rows,
            bytes=artifact.bytes,
            sha256=artifact.sha256,
            key=key,
            build_s=file.build_s,
            reason=command.reason,
            library=LIBRARY,
            trial=command.trial,
            companion=command.companion,
        )
        await artifacts.record(self._buckets, document.bucket, built)
        return [built]

    @handles
    async def on_build_texts(self, command: BuildTexts) -> Sequence[StoreBuilt]:
        found = await self._registry.load(IndexDocument, command.index)
        made = await self._stores.texts(found[0]) if found else None
        return [made] if made else []

    @handles
    async def on_optimise(self, command: RunOptimize) -> Sequence[StoreOptimized]:
        """Raises Transient when somebody changed the store in a way that it can't go beside: then it comes again."""
        found = await self._registry.load(StoreDocument, command.index)
        home = await self._registry.load(IndexDocument, command.index)
        if found is None or home is None:  # dropped meanwhile: whoever waits hears that it is over
            return [StoreOptimized(command.index, 0, 0, False, "its store is gone", 0.0)]
        heads = [await self._registry.load(GenerationDocument, name) for name in serving_names(command.index)]
        serving = [head[0].vector_index for head in heads if head is not None and head[0].vector_index]
        try:
            return [await self._stores.optimise(home[0], found[0], command, serving)]
        except FileNotFoundError:
            if await self._registry.load(IndexDocument, command.index) is not None:
                raise
            return [StoreOptimized(command.index, 0, 0, False, "its store is gone", 0.0)]
        except (RuntimeError, ValueError) as error:
            raise Transient(f"the store of {command.index} can't be optimised now: {said(error)}", 5.0) from error

    async def _recorded(
        self, document: IndexDocument, built: GenerationBuilt, made: StoreBuilt | None
    ) -> list[GenerationBuilt | GenerationFailed | StoreBuilt]:
        """The record that it is whole. Nothing for an index that was dropped during the build."""
        again = await self._registry.load(IndexDocument, built.index)
        if again is None or again[0].created != document.created:
            return []
        await artifacts.record(self._buckets, again[0].bucket, built)
        return [*([made] if made else []), built]

    @handles
    async def on_dropped(self, event: IndexDropped) -> Sequence[Never]:
        await self._snapshots.forget(event.index)
        self._graphs.drop(event.index)
        return ()

    async def _graph(
        self, document: IndexDocument, command: BuildGeneration, graph: GraphConfig, snapshot: Snapshot
    ) -> tuple[Path, GraphFile]:
        """The graph's local file, from the cache or built into it."""
        name = command.index
        cached = self._graphs.find(name, graph, snapshot.version)
        if cached is not None and cached.rows == snapshot.rows and await anyio.to_thread.run_sync(_is_whole, cached):
            return cached.path, GraphFile(cached.sha256, cached.rows, 0.0)
        path = self._graphs.path_for(name, graph, snapshot.version)
        job = f"{name}-{command.generation}"
        items: Any = self._compute.stream(
            build_graph, snapshot.rows_path, snapshot.vectors_path, document.metric, graph, path
        )
        file: GraphFile | None = None
        async with aclosing(items):
            async for item in items:
                if isinstance(item, BuildProgress):
                    await self._bus.signal(Progress(job, name, "build", item.done, snapshot.rows))
                else:
                    file = item
        if file is None:
            raise RuntimeError("the build ended without a graph")
        self._graphs.add(name, graph, snapshot.version, sha256=file.sha256, rows=file.rows, build_s=file.build_s)
        return path, file


def _is_whole(cached: CachedGraph) -> bool:
    try:
        return sha256_of(cached.path) == cached.sha256
    except FileNotFoundError:  # a trial's graph took its place in the cache
        return False
