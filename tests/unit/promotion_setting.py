"""Promotion on a real registry, for its tests: the index, a journal, and what was saved."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.base import Origin
from actors.promotion.actor import Promotion
from daemon.bus.heads import MemoryHeads
from daemon.clock import SystemClock
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig
from schemas.documents.base import Document
from schemas.documents.index import IndexDocument
from schemas.documents.promotion import PromotionDocument
from schemas.documents.trial import TrialPoint
from schemas.events.base import Message
from schemas.events.index import EmbedderSpec

INDEX = IndexDocument(
    index="docs", dataset="notes", column="text", metric="cosine", backend="hnsw", bucket="primary",
    target_recall=0.95, embedder=EmbedderSpec(), embedder_key=None, dim=384, config=HnswConfig(ef_search=33),
    created=5.0,
)  # fmt: skip


def point(number: int, **more: Any) -> TrialPoint:
    values: dict[str, Any] = {
        "trial": f"t{number}", "campaign": "c1", "index": "docs", "build": "b1", "harness": "docs",
        "dataset_version": 1, "rows": 1000, "M": 24, "ef_construction": 120, "ef_search": 10 + number, "seed": 42,
        "queries": 500, "recall": 0.97, "recall_ties": 1.0, "recall_lower": 0.96, "recall_worst_decile": 0.8,
        "p50_us": 90.0, "p95_us": 180.0, "p99_us": 270.0, "cpu_us": 90.0, "build_s": 2.0, "build_cpu_s": 2.0,
        "bytes": 1000, "library": "hnswlib 0.8.0 native", "proposer": "exploit", "rule": "exploit: champion M 16 + 8",
        "draw": 0.7312, "journal_rows": 12, "asked_by": "agent", "trigger": "m-append",
        "trigger_tag": "dataset.appended", "host": "h", "time": 50.0, "chosen": True,
    }  # fmt: skip
    return TrialPoint(**{**values, **more})


class ListJournal:
    """The Journal port over a list."""

    def __init__(self, *points: TrialPoint) -> None:
        self.rows = list(points)

    async def append(self, points: Sequence[TrialPoint]) -> None:
        self.rows.extend(points)

    async def points(self, index: str) -> list[TrialPoint]:
        return [row for row in self.rows if row.index == index]

    async def trial(self, index: str, trial: str) -> list[TrialPoint]:
        await asyncio.sleep(0)
        return [row for row in self.rows if (row.index, row.trial) == (index, trial)]


class Recording(DocumentRegistry):
    """Notes every promotion document that became the head, under its revision."""

    def __init__(self, buckets: ObjectBuckets, heads: MemoryHeads) -> None:
        super().__init__(buckets, heads)
        self.heads: dict[int, PromotionDocument] = {}

    async def save(self, name: str, document: Document, *, expected: int | None, bucket: str = "primary") -> int:
        revision = await super().save(name, document, expected=expected, bucket=bucket)
        if isinstance(document, PromotionDocument):
            assert revision not in self.heads, "two writers moved the same head"
            self.heads[revision] = document
        return revision


class Setting:
    def __init__(self, folder: Path, url: str = "memory://", heads: MemoryHeads | None = None) -> None:
        buckets = ObjectBuckets({"primary": url}, folder / "cache")
        self.heads = heads or MemoryHeads()
        self.registry = Recording(buckets, self.heads)
        self.journal = ListJournal(*(point(n) for n in range(1, 9)))
        self.tables = DeltaTables(buckets, folder / "cache")
        self.actor = Promotion(self.registry, self.journal, self.tables, SystemClock())

    async def document(self) -> PromotionDocument:
        found = await self.registry.load(PromotionDocument, "docs")
        assert found is not None
        return found[0]


def origin(id: str, *, delivery: int = 1, time: float = 10.0) -> Origin:
    return Origin(id, id, time, delivery, True)


def only(said: Sequence[Message]) -> Any:
    (message,) = said
    return message
