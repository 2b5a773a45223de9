"""A lab on a bench, for its tests: real builds over small data, a registry, a journal, and whatever else
it needs, in memory or in a folder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actors import hnsw
from actors.autotune import harness
from actors.autotune.config import AgentConfig
from actors.autotune.lab import Lab
from actors.base import Origin
from actors.graphs import GraphCache
from actors.ports import Envelope, Snapshot
from daemon.bus.heads import MemoryHeads
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from schemas.config import HnswConfig
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.autotune import Proposal, RunTrial, TrialCompleted, TrialFailed
from schemas.events.base import Message
from schemas.events.index import EmbedderSpec
from tests.unit.inline_compute import InlineCompute
from tests.unit.tuning_play import HandClock, ListJournal

D = 32
VECTORS = np.random.default_rng(11).normal(size=(3000, D)).astype(np.float32)


class HeardBus:
    """Notes signals."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    async def publish(self, message: Message, *, cause: Origin | None = None, id: str | None = None) -> str:
        raise AssertionError("handlers return messages")

    async def ask(self, request: Any, *, cause: Origin | None = None, timeout_s: float = 60.0) -> Any:
        raise AssertionError("the lab asks nobody")

    async def signal(self, message: Message) -> None:
        self.heard.append(message)

    async def listen(self, *subjects: str) -> AsyncIterator[Envelope]:
        return
        yield


class FileSnapshots:
    """Snapshots of rows that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now: Snapshot | None = None

    def set(self, version: int, rows: np.ndarray) -> None:
        rows_path, vectors_path = self.folder / f"rows-{version}.npy", self.folder / f"vectors-{version}.npy"
        np.save(rows_path, rows.astype(np.int64))
        np.save(vectors_path, VECTORS[rows])
        self.now = Snapshot(version, len(rows), D, rows_path, vectors_path)

    @asynccontextmanager
    async def held(self, index: str, version: int | None = None) -> AsyncIterator[Snapshot]:
        if self.now is None:
            raise FileNotFoundError(index)
        yield self.now

    async def covered(self, index: str) -> int:
        return self.now.version if self.now else -1

    async def forget(self, index: str) -> None:
        self.now = None


class FixedLog:
    """A query log with so many vectors."""

    def __init__(self, many: int) -> None:
        self.many = many

    async def append(self, index: str, vectors: np.ndarray, times: Any) -> None:
        raise AssertionError("the lab logs no query")

    async def sample(self, index: str, n: int, seed: int) -> np.ndarray:
        return VECTORS[: min(n, self.many)] + np.float32(0.01)


class Bench:
    """A lab with one index of 2,000 rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        self.journal, self.bus, self.log = ListJournal(), HeardBus(), FixedLog(50)
        self.snapshots = FileSnapshots(folder)
        self.snapshots.set(1, np.arange(2000))
        self.graphs = GraphCache(folder / "graphs", 1 << 30)
        self.lab = Lab(
            self.registry, self.journal, self.snapshots, self.buckets, InlineCompute(), self.graphs, self.log,
            None, self.bus, HandClock(), "host-1", AgentConfig(harness_queries=100),  # type: ignore[arg-type]
        )  # fmt: skip

    async def open(self) -> "Bench":
        document = IndexDocument(
            index="docs", dataset="rows", column="v", metric="l2", backend="hnsw", bucket="primary",
            target_recall=0.9, embedder=EmbedderSpec(kind="none"), embedder_key=None, dim=D,
            config=HnswConfig(), created=0.0,
        )  # fmt: skip
        await self.registry.save("docs", document, expected=None)
        return self

    async def go_live(self, config: HnswConfig, rows: int = 2000) -> None:
        building = hnsw.build(VECTORS[:rows], np.arange(rows), "l2", config.build)
        while True:
            try:
                next(building)
            except StopIteration as stop:
                graph = stop.value
                break
        path = self.folder / "live.hnsw"
        hnsw.save(graph, path)
        artifact = await self.buckets.upload("primary", "indexes/docs/generations/000001/graph.hnsw", path)
        document = GenerationDocument(
            index="docs", generation=1, config=config, key=artifact.key, sha256=artifact.sha256,
            bytes=artifact.bytes, version=1, rows=rows, build_s=1.0, reason="created", library=hnsw.LIBRARY, built=0.0,
        )  # fmt: skip
        await self.registry.save("docs", document, expected=None)

    async def trial(
        self, name: str, proposal: Proposal, delivery: int = 1, **more: Any
    ) -> TrialCompleted | TrialFailed:
        order = RunTrial(
            trial=name, campaign="c-1", index="docs", proposal=proposal, target_recall=0.9, harness=None,
            asked_by="agent", trigger="m-1", trigger_tag="dataset.appended",
        )  # fmt: skip
        order = msgspec.structs.replace(order, **more)
        (said,) = await self.lab.on_trial(order, Origin(id="o", cause="o", time=0.0, delivery=delivery))
        return said

    async def eval_set(self, name: str = "docs") -> tuple[HarnessDocument, harness.EvalSet]:
        found = await self.registry.load(HarnessDocument, name)
        assert found is not None
        return found[0], harness.parse(await self.buckets.get("primary", found[0].key))
