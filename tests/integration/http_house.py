"""A daemon's HTTP side for tests: the real server, bus, runtime, registry and Promotion; the
asks of the other actors are answered by small actors that do something checkable."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from actors.base import Actor, Origin, handles
from actors.errors import CorruptState, Poison, Transient
from actors.gate.work import job_of
from actors.planner.actor import Planner
from actors.planner.config import PlannerConfig
from actors.planner.planners import Planners
from actors.promotion.actor import Promotion
from actors.sql.config import SqlConfig
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.http.config import HttpConfig
from daemon.http.route import ProcessStatus
from daemon.http.server import HttpServer
from daemon.metrics import Metrics
from daemon.runtime import Runtime
from daemon.sql.catalogue import Catalogue
from daemon.sql.engine import DuckEngine
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig, IndexConfig
from schemas.documents.index import IndexDocument
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import (
    AgentStatus,
    AutotuneStarted,
    EnqueueTuning,
    GetAgentStatus,
    ListTrials,
    StartAutotune,
    TrialCompleted,
    TrialList,
    TuningFinished,
    TuningQueued,
)
from schemas.events.base import Message, Progress, Refusal
from schemas.events.codec import CodecJobFailed, CodecJobStarted, SweepCodec, SweepFinished, SweepPointSkipped
from schemas.events.dataset import (
    DatasetAppended,
    DatasetInfo,
    DatasetList,
    DeleteRows,
    GetDataset,
    IngestFile,
    IngestReport,
    ListDatasets,
    RowsDeleted,
    UpsertRows,
)
from schemas.events.gate import ExportGate, GateExported
from schemas.events.index import (
    CreateIndex,
    EmbedderSpec,
    GetIndex,
    GetIndexStats,
    Hit,
    IndexInfo,
    IndexList,
    IndexStats,
    ListIndexes,
    LiveRecall,
    Search,
    SearchResult,
)
from schemas.events.lance import SetBackend
from schemas.names import VectorBackend
from tests.integration.http_lance import Stores
from tests.integration.http_models import Profiles, Slot
from tests.unit.inline_compute import InlineCompute

TOKEN = "secret-token-für-tests"


def index_document(name: str = "docs") -> IndexDocument:
    return IndexDocument(
        index=name, dataset="notes", column="text", metric="cosine", backend="hnsw", bucket="primary",
        target_recall=0.95, embedder=EmbedderSpec(), embedder_key=None, dim=384, config=HnswConfig(), created=5.0,
    )  # fmt: skip


def point(trial: str, ef_search: int = 64, recall_lower: float = 0.96, **more: Any) -> TrialPoint:
    values: dict[str, Any] = dict(  # noqa: C408
        trial=trial, campaign="c1", index="docs", build="b1", harness="docs", dataset_version=1, rows=1000, M=24,
        ef_construction=120, ef_search=ef_search, seed=42, queries=500, recall=min(1.0, recall_lower + 0.01),
        recall_ties=1.0, recall_lower=recall_lower, recall_worst_decile=0.8, p50_us=90.0, p95_us=180.0, p99_us=270.0,
        cpu_us=90.0, build_s=2.0, build_cpu_s=2.0, bytes=1000, library="hnswlib 0.8.0 native", proposer="exploit",
        rule="exploit: champion M 16 + 8", draw=0.7312, journal_rows=12, asked_by="agent", trigger="m-append",
        trigger_tag="dataset.appended", host="h", time=50.0, chosen=True,
    )  # fmt: skip
    return TrialPoint(**{**values, **more})


class ListJournal:
    """The Journal port over a list."""

    def __init__(self, points: Sequence[TrialPoint] = ()) -> None:
        self.rows = list(points)

    async def append(self, points: Sequence[TrialPoint]) -> None:
        self.rows.extend(points)

    async def points(self, index: str) -> list[TrialPoint]:
        return [row for row in self.rows if row.index == index]

    async def trial(self, index: str, trial: str) -> list[TrialPoint]:
        return [row for row in self.rows if (row.index, row.trial) == (index, trial)]


class Files(Actor):
    """Answers for ingest: reports the bytes and the checksum of what it was given."""

    def __init__(self) -> None:
        self.seen: list[IngestFile] = []

    @handles
    async def on_file(self, command: IngestFile, origin: Origin) -> Sequence[DatasetAppended | IngestReport | Refusal]:
        self.seen.append(command)
        try:
            data = await asyncio.to_thread(Path(command.path).read_bytes)
        except FileNotFoundError as error:
            return [Refusal("not_found", str(error), "look at [ingest] allowed_roots")]
        appended = DatasetAppended(
            command.dataset, "primary", 1, len(data), len(data), ingest=origin.id, source=command.source or ""
        )
        return [appended, IngestReport(hashlib.sha256(data).hexdigest(), command.dataset, 1, len(data), len(data), 0)]

    @handles
    async def on_upsert(self, command: UpsertRows, origin: Origin) -> Sequence[IngestReport]:
        return [IngestReport(origin.id, command.dataset, 2, len(command.rows), len(command.rows), 0)]

    @handles
    async def on_delete(self, command: DeleteRows) -> Sequence[RowsDeleted]:
        return [RowsDeleted(command.dataset, "primary", 3, len(command.ids), 0)]

    @handles
    async def on_list(self, query: ListDatasets) -> Sequence[DatasetList]:
        return [DatasetList([DatasetInfo("notes", "primary", 1, 3, 100, "id", [])])]

    @handles
    async def on_get(self, query: GetDataset) -> Sequence[DatasetInfo | Refusal]:
        match query.dataset:
            case "poison":
                raise Poison("this can never be read")
            case "away":
                raise Transient("the object store is away", 7)
            case "corrupt":
                raise CorruptState("head dataset.corrupt fails its checksum: run `lakehouse repair`")
            case "broken":
                raise RuntimeError("secret detail of the inside")
            case "slow":
                await asyncio.sleep(0.3)
            case "full":
                return [Refusal("busy", "too much at once", "later", retry_after_s=3)]
        return [Refusal("not_found", f"there is no dataset {query.dataset}", "lakehouse datasets")]


class Shelf(Actor):
    """Answers for the catalog and the searcher."""

    def __init__(self) -> None:
        self.created: list[CreateIndex] = []
        self.searched: list[Search] = []

    @handles
    async def on_create(self, command: CreateIndex) -> Sequence[IndexInfo]:
        self.created.append(command)
        return [self.info(command.name, command.lance or command.config, command.backend)]

    @handles
    async def on_backend(self, command: SetBackend) -> Sequence[IndexInfo | Refusal]:
        if command.index != "docs":
            return [Refusal("not_found", f"there is no index {command.index}", "lakehouse indexes")]
        return [self.info("docs", HnswConfig(), command.backend)]

    @handles
    async def on_get(self, query: GetIndex) -> Sequence[IndexInfo | Refusal]:
        if query.name != "docs":
            return [Refusal("not_found", f"there is no index {query.name}", "lakehouse indexes")]
        return [self.info("docs", HnswConfig())]

    @handles
    async def on_list(self, query: ListIndexes) -> Sequence[IndexList]:
        return [IndexList([self.info("docs", HnswConfig())])]

    @handles
    async def on_stats(self, query: GetIndexStats) -> Sequence[IndexStats]:
        return [IndexStats("docs", True, 3, HnswConfig(), 1000, 0, 0, 10, 77, LiveRecall(100, 0.97, 0.96, 0.98, 1.0))]

    @handles
    async def on_search(self, query: Search) -> Sequence[SearchResult | Refusal]:
        self.searched.append(query)
        if query.vector is not None and len(query.vector) != 384:
            reason = f"a query has {len(query.vector)} dimensions, index {query.index!r} has 384"
            return [Refusal("invalid", reason, "give a vector of 384 numbers")]
        hits = [Hit(f"r{n}", n / 10, {"title": "ü"}) for n in range(query.k)]
        return [SearchResult(query.index, 3, [hits], 12.5)]

    @staticmethod
    def info(name: str, config: IndexConfig, backend: VectorBackend = "hnsw") -> IndexInfo:
        return IndexInfo(
            name, "notes", "text", "cosine", backend, "primary", 0.95, EmbedderSpec(), 384, "ready", 3, config, 1, 1000
        )


class Tuner(Actor):
    """Answers for the agent. A started autotune is over before its answer arrives: whoever
    listens too late misses everything."""

    def __init__(self) -> None:
        self.busy = False
        self.started: list[StartAutotune] = []
        self.enqueued: list[EnqueueTuning] = []

    @handles
    async def on_start(
        self, command: StartAutotune
    ) -> Sequence[AutotuneStarted | TrialCompleted | TuningFinished | Progress | Refusal]:
        if self.busy:
            return [Refusal("busy", f"index {command.index} is being tuned", "wait for it to end")]
        self.started.append(command)
        return [
            Progress("t9", command.index, "build", 10, 100),
            Progress("t1", "another-index", "build", 10, 100),
            TrialCompleted("t0", "another-campaign", "other", point("t0"), True, 1),
            TrialCompleted("t9", "c9", command.index, point("t9"), True, 1),
            TuningFinished("c9", command.index, "kept", "the champion is as fast", 1),
            AutotuneStarted("c9", command.index, 1),
        ]

    @handles
    async def on_enqueue(self, command: EnqueueTuning) -> Sequence[TuningQueued]:
        self.enqueued.append(command)
        return [TuningQueued(command.index, command.reason)]

    @handles
    async def on_trials(self, query: ListTrials) -> Sequence[TrialList]:
        return [TrialList(query.index, [point("t1")][: query.limit], 1)]

    @handles
    async def on_status(self, query: GetAgentStatus) -> Sequence[AgentStatus]:
        return [AgentStatus(True, [], [], 4, 20, {}, [])]


class Codecs(Actor):
    """Answers for the codecs' desk. A sweep is over before its answer arrives, too, unless it is to go on."""

    def __init__(self) -> None:
        self.goes_on = False
        self.sweeps: list[SweepCodec] = []

    @handles
    async def on_sweep(
        self, command: SweepCodec
    ) -> Sequence[CodecJobStarted | SweepPointSkipped | SweepFinished | CodecJobFailed | Progress]:
        self.sweeps.append(command)
        if self.goes_on:
            return [CodecJobStarted("c9", "sweep", 1)]
        return [
            Progress("c8", "/model", "measure", 1, 2),
            CodecJobFailed("c8", "sweep", "another's"),
            SweepPointSkipped("c9", "up.weight", {"family": "pq"}, "no such"),
            Progress("c9", "/model", "measure", 1, 2),
            SweepFinished("c9", "sweep", command.asked_by),
            CodecJobStarted("c9", "sweep", 1),
        ]


class Lab(Actor):
    """Answers for the gate lab: tells how far it is, then ends as it is to."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.says: list[Progress] = []
        self.pace_s = self.lasts_s = 0.0
        self.ended = 0
        self.end: Message | Exception = Refusal("conflict", "no such gate", "train one")

    @handles
    async def on_export(self, command: ExportGate, origin: Origin) -> Sequence[GateExported | Refusal]:
        await self.bus.signal(Progress("another", command.profile, "merge", 1, 2, "modules"))
        for said in self.says:
            await self.bus.signal(msgspec.structs.replace(said, job=job_of(origin.id)))
            await asyncio.sleep(self.pace_s)
        await asyncio.sleep(self.lasts_s)
        self.ended += 1
        if isinstance(self.end, Exception):
            raise self.end
        return [self.end]  # type: ignore[list-item]


class NoCommits:
    """The Tables port as far as Promotion reads it."""

    async def history(self, table: Any, limit: int = 50) -> list[Any]:
        return []


class ThisProcess:
    def __init__(self) -> None:
        self.broken: dict[str, str] = {}

    def status(self) -> ProcessStatus:
        return ProcessStatus("0.1.0", 0.0, ["control", "work", "serve"], {"connected": True})

    def down(self) -> dict[str, str]:
        return self.broken

    def topology(self) -> str:
        return "flowchart LR\n"

    def asyncapi(self) -> dict[str, Any]:
        return {"asyncapi": "3.0.0"}


async def until(condition: Callable[[], Any]) -> None:
    """Returns when it holds. Raises TimeoutError after 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class House:
    server: HttpServer
    client: aiohttp.ClientSession
    bus: MemoryBus
    files: Files
    shelf: Shelf
    stores: Stores
    tuner: Tuner
    codecs: Codecs
    lab: Lab
    slot: Slot
    profiles: Profiles
    process: ThisProcess
    registry: DocumentRegistry
    metrics: Metrics
    uploads: Path
    planners: Planners

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.client.request(method, path, **more) as response:
            return response.status, await response.json()


@asynccontextmanager
async def house(folder: Path, sql: DuckEngine | None = None, **config: Any) -> AsyncIterator[House]:
    buckets = ObjectBuckets({"primary": "memory://"}, folder)
    registry = DocumentRegistry(buckets, MemoryHeads())
    await registry.save("docs", index_document(), expected=None)
    journal = ListJournal([point("t1"), point("t2", 80), point("low", 20, 0.9)])
    files, tuner, codecs, process, metrics = Files(), Tuner(), Codecs(), ThisProcess(), Metrics()
    bus, clock, uploads = MemoryBus(), SystemClock(), folder / "uploads"
    slot = Slot(bus, clock)
    profiles = Profiles(slot)
    promotion = Promotion(registry, journal, NoCommits(), clock)  # type: ignore[arg-type]
    settings = HttpConfig(**{"port": 0, "min_free_mb": 1, "shutdown_s": 2.0, **config})
    tables = DeltaTables(buckets, uploads)
    engine = sql or DuckEngine(Catalogue(tables, registry), SqlConfig())
    server = HttpServer(bus, bus, process, metrics, settings, token=TOKEN, uploads=uploads, sql=engine)
    shelf, stores, lab = Shelf(), Stores(), Lab(bus)
    planners = Planners(PlannerConfig())
    planner = Planner(
        planners, registry, TableSnapshots(tables, registry, uploads), InlineCompute(), clock, planners.config, "test"
    )
    actors = [files, shelf, stores, tuner, codecs, lab, promotion, slot, profiles, planner]
    async with Runtime(bus, actors, observe=metrics.handled), server.running():
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as client:
            yield House(
                server, client, bus, files, shelf, stores, tuner, codecs, lab, slot, profiles, process, registry,
                metrics, uploads, planners,
            )  # fmt: skip
