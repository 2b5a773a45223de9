"""The composition root: every actor and the ports that it is given, by hand.

Which actors exist is ACTORS; everything that lists them (topology, docs, the runtime) reads it
from here. How the process lives and dies is daemon/service.py.
"""

import os
from dataclasses import dataclass

import msgspec
import numpy as np

from actors.autotune.agent import Agent
from actors.autotune.lab import Lab
from actors.base import Actor
from actors.codec.calibrator import Calibrator
from actors.codec.codecs import Codecs
from actors.codec.targets import Targets
from actors.gate.embedding import PromptEmbedders
from actors.gate.gates import Gates
from actors.gate.lab import GateLab
from actors.graphs import GraphCache
from actors.index.builder import Builder
from actors.index.catalog import Catalog
from actors.index.heads import StoreHeads
from actors.index.searcher import Searcher
from actors.index.stores import Stores
from actors.ingest.actor import Ingest
from actors.ingest.watcher import Watcher
from actors.lineage.actor import Lineage
from actors.mirror import Mirror
from actors.planner.actor import Planner
from actors.planner.planners import Planners
from actors.profile.profiles import Profiles
from actors.profile.slot import VramSlot
from actors.promotion.actor import Promotion
from actors.sql.actor import Sql
from actors.storage.desk import StorageDesk
from daemon.bus.base import MessageBus
from daemon.bus.heads import Heads
from daemon.codes import ArtifactCodecs
from daemon.compute import WorkerCompute
from daemon.config import Config
from daemon.embedding.factory import EmbedderFactory
from daemon.gpu.system import SystemGpus
from daemon.lineage_sink import HttpLineageSink
from daemon.models.servers import ModelServers
from daemon.sql.catalogue import Catalogue
from daemon.sql.engine import DuckEngine
from daemon.state_dir import StateDir
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.codec_journal import TableCodecJournal
from daemon.storage.gate_journal import TableGateJournal
from daemon.storage.journal import TableJournal
from daemon.storage.lineage_log import TableLineageLog
from daemon.storage.query_log import TableQueryLog
from daemon.storage.registry import DocumentRegistry
from daemon.storage.seen_files import TableSeenFiles
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.events.index import EmbedderSpec

ACTORS: tuple[type[Actor], ...] = (
    Ingest,
    Watcher,
    Catalog,
    Stores,
    Builder,
    Searcher,
    Planner,
    Agent,
    Lab,
    Promotion,
    Profiles,
    VramSlot,
    Codecs,
    Calibrator,
    Gates,
    GateLab,
    Lineage,
    Sql,
    StorageDesk,
)


@dataclass
class House:
    """One process's actors, and what has to be closed after them."""

    actors: list[Actor]
    workers: list[WorkerCompute]
    embedders: EmbedderFactory
    servers: ModelServers
    sink: HttpLineageSink
    sql: DuckEngine

    async def give_up_jobs(self) -> None:
        """Kill the workers: jobs in hand go back to the queue."""
        for worker in self.workers:
            await worker.aclose()

    async def aclose(self) -> None:
        await self.give_up_jobs()
        await self.embedders.aclose()
        await self.servers.aclose()
        await self.sink.aclose()


def open_buckets(config: Config, state: StateDir) -> ObjectBuckets:
    """The configured buckets with `primary` and `rescue`, and those made for profiles. Raises
    ValueError for a bad URL."""
    named = config.buckets()
    return ObjectBuckets(
        {bucket.name: bucket.url for bucket in named},
        state.cache,
        {bucket.name: bucket.options for bucket in named},
        profile_root=config.profile_root,
        profile_options=config.storage.profile_options,
    )


def build(config: Config, state: StateDir, bus: MessageBus, heads: Heads, buckets: ObjectBuckets, host: str) -> House:
    """Every actor with its ports; starts nothing. `host` names the machine in the journal;
    with the process id after it, this process in events."""
    clock = bus.clock
    registry = DocumentRegistry(buckets, heads)
    tables = DeltaTables(buckets, state.cache)
    mirror = Mirror(buckets)
    heads_of_stores = StoreHeads(registry)
    journal = TableJournal(tables)
    query_log = TableQueryLog(tables)
    snapshots = TableSnapshots(tables, registry, state.cache)
    graphs = GraphCache(state.cache / "graphs", config.index.graph_cache_mb << 20)
    # Builds have a worker of their own: what was promoted must not wait for a trial that runs.
    lab, builds, embed = WorkerCompute("lab"), WorkerCompute("build"), WorkerCompute("embed")
    codec, planning, gate = WorkerCompute("codec"), WorkerCompute("planner"), WorkerCompute("gate")
    embedders = EmbedderFactory(config.embedding, config.models, embed)
    servers = ModelServers(config.models, config.embedding)
    codec_journal = TableCodecJournal(tables)
    targets = Targets(buckets, registry, tables, snapshots, state.cache / "codec", config.codec.allowed_roots)
    default_embedder = EmbedderSpec(kind=config.embedding.kind, model=config.embedding.model)
    prompts = PromptEmbedders(embedders, default_embedder, servers.servers)
    gate_journal = TableGateJournal(tables)
    watched = [watch.path for watch in config.watch]
    readable = msgspec.structs.replace(config.ingest, allowed_roots=config.ingest.allowed_roots + watched)
    sink = HttpLineageSink(config.lineage)
    planners, process_id = Planners(config.planner), f"{host}:{os.getpid()}"
    sql = DuckEngine(Catalogue(tables, registry), config.sql)
    actors: list[Actor] = [
        Ingest(tables, registry, buckets, bus, clock, readable, state.uploads, config.sources, mirror, state.ids_key),
        Watcher(TableSeenFiles(tables), bus, clock, config.watch),
        Catalog(
            registry,
            tables,
            buckets,
            snapshots,
            embedders,
            bus,
            clock,
            config.index,
            config.agent.target_recall,
            default_embedder,
            journal,
            heads_of_stores,
            mirror,
        ),
        Stores(registry, tables, buckets, snapshots, heads_of_stores, bus, config.index),
        Builder(registry, tables, snapshots, buckets, builds, graphs, bus, clock, config.index),
        Searcher(
            registry,
            tables,
            buckets,
            snapshots,
            embedders,
            ArtifactCodecs(buckets, state.cache / "codec" / "artifacts"),
            query_log,
            bus,
            clock,
            config.index,
            process_id,
            np.random.default_rng(),
            planners,
            heads_of_stores,
        ),
        Planner(planners, registry, snapshots, planning, clock, config.planner, process_id),
        Agent(registry, journal, bus, clock, config.agent),
        Lab(registry, journal, snapshots, buckets, lab, graphs, query_log, embedders, bus, clock, host, config.agent),
        Promotion(registry, journal, tables, clock),
        Profiles(registry, bus, clock, servers.servers),
        VramSlot(registry, servers.servers, SystemGpus(config.slot.gpus), buckets, bus, clock, config.slot),
        Codecs(registry, buckets, targets, codec_journal, clock),
        Calibrator(
            registry,
            buckets,
            targets,
            codec_journal,
            codec,
            bus,
            clock,
            host,
            config.codec,
            state.cache / "codec",
        ),
        Gates(registry, buckets, prompts, gate_journal, servers.servers, bus),
        GateLab(
            registry,
            tables,
            buckets,
            prompts,
            gate_journal,
            gate,
            bus,
            clock,
            config.gate,
            state.cache / "gate",
        ),
        Lineage(TableLineageLog(tables), sink, registry, journal, clock, config.lineage),
        Sql(sql),
        StorageDesk(registry, buckets, mirror, bus, clock, [state.buckets, *config.storage.allowed_roots]),
    ]
    workers = [lab, builds, embed, codec, planning, gate]
    return House(actors, workers, embedders, servers, sink, sql)
