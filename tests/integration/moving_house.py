"""A dataset with a text index, an eval set and a promotion, on real storage, and a process that can die at any write.

`Mortal` counts what a process changes in buckets and heads; told to, it dies before one of these changes and does
nothing from then on, as a killed process doesn't. `House.restart` is the next process over the same state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.base import Actor, Origin
from actors.errors import Refused
from actors.graphs import GraphCache
from actors.index.builder import Builder
from actors.index.catalog import Catalog
from actors.index.config import IndexConfig
from actors.index.heads import StoreHeads
from actors.ingest.actor import Ingest
from actors.ingest.config import IngestConfig
from actors.mirror import Mirror
from actors.ports import Artifact, TableRef
from actors.storage.desk import StorageDesk
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.factory import EmbedderFactory
from daemon.models.config import ModelsConfig
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.journal import TableJournal
from daemon.storage.registry import DocumentRegistry
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.move import MoveDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.events.base import Message, Refusal
from schemas.events.dataset import IngestFile
from schemas.events.index import BuildGeneration, CreateIndex, EmbedderSpec, GenerationBuilt, IndexCreated
from tests.unit.inline_compute import InlineCompute

TEXTS = [f"{animal} {place} number {n}" for n in range(30) for animal in ("cat", "dog") for place in ("house", "sea")]


class Killed(BaseException):
    """The process is gone."""


class Life:
    """What one process may still change."""

    def __init__(self) -> None:
        self.changes = 0
        self.dies_before: int | None = None

    def change(self) -> None:
        if self.dies_before is not None and self.changes >= self.dies_before:
            raise Killed
        self.changes += 1


class MortalBuckets(ObjectBuckets):
    life: Life

    async def put(self, bucket: str, key: str, data: bytes, **how: Any) -> Artifact:
        self.life.change()
        return await super().put(bucket, key, data, **how)

    async def upload(self, bucket: str, key: str, path: Path, **how: Any) -> Artifact:
        self.life.change()
        return await super().upload(bucket, key, path, **how)

    async def delete(self, bucket: str, key: str) -> None:
        self.life.change()
        await super().delete(bucket, key)

    async def delete_prefix(self, bucket: str, prefix: str) -> None:
        """One object after another, so that it can be cut short."""
        for key in await self.list(bucket, prefix):
            await self.delete(bucket, key)
        await super().delete_prefix(bucket, prefix)


class MortalHeads(MemoryHeads):
    life: Life

    async def set(self, key: str, value: bytes, expected: int | None) -> int:
        self.life.change()
        return await super().set(key, value, expected)


class DirectBus(MemoryBus):
    """Asks go straight to the handlers; what they publish is kept in `said`."""

    actors: Sequence[Actor] = ()
    asked = 0

    async def ask(self, request: Any, **_: Any) -> Any:
        self.asked += 1
        origin = Origin(f"m{id(self)}-{self.asked}", "m", 0.0)
        for actor in self.actors:
            for route in type(actor).routes():
                if route.takes is type(request):
                    handler = getattr(actor, route.method)
                    said = await (handler(request, origin) if route.wants_origin else handler(request))
                    if isinstance(said[0], Refusal):
                        raise Refused(said[0])
                    return said[0]
        raise AssertionError(f"nobody takes {request}")


class House:
    def __init__(self, folder: Path, urls: Mapping[str, str], options: Mapping[str, Mapping[str, str]]) -> None:
        self.folder, self.urls, self.options = folder, urls, options
        self.heads = MortalHeads()

    async def restart(self) -> "House":
        """The next process."""
        self.life = self.heads.life = Life()
        cache = self.folder / "cache"
        self.buckets = MortalBuckets(self.urls, cache, self.options, profile_root=(self.folder / "made").as_uri())
        self.buckets.life = self.life
        self.registry = DocumentRegistry(self.buckets, self.heads)
        self.tables = DeltaTables(self.buckets, cache)
        snapshots = TableSnapshots(self.tables, self.registry, cache)
        self.snapshots = snapshots
        self.bus, clock, mirror = DirectBus(), SystemClock(), Mirror(self.buckets)
        embedders = EmbedderFactory(EmbeddingConfig(), ModelsConfig(), InlineCompute())
        roots = IngestConfig(allowed_roots=[str(self.folder)])
        self.ingest = Ingest(
            self.tables, self.registry, self.buckets, self.bus, clock, roots, self.folder / "uploads", mirror=mirror
        )
        ports = (self.registry, self.tables, self.buckets, snapshots, embedders, self.bus, clock)
        journal, heads = TableJournal(self.tables), StoreHeads(self.registry)
        self.catalog = Catalog(*ports, IndexConfig(), 0.95, EmbedderSpec(), journal, heads, mirror)
        graphs = GraphCache(cache / "graphs", 1 << 30)
        self.builder = Builder(
            self.registry, self.tables, snapshots, self.buckets, InlineCompute(), graphs, self.bus, clock, IndexConfig()
        )
        self.desk = StorageDesk(self.registry, self.buckets, mirror, self.bus, clock, [self.folder])
        self.desk.moving.linger_s = 0.0
        self.bus.actors = [self.ingest, self.catalog, self.builder, self.desk]
        await self.ingest.start()
        return self

    async def fill(self) -> None:
        """Dataset `notes`, index `docs` over it with a generation, an eval set and a promotion."""
        path = self.folder / "notes.jsonl"
        path.write_text("".join(f'{{"id": "n{n}", "text": "{text}"}}\n' for n, text in enumerate(TEXTS)))
        await self.bus.ask(IngestFile(str(path), "notes", bucket="here", id_column="id"))
        await self.bus.ask(CreateIndex("docs", "notes", "text"))
        said: Sequence[Message] = await self.catalog.on_created(IndexCreated("docs", "notes", "text"))
        (order,) = [message for message in said if isinstance(message, BuildGeneration)]
        (built,) = await self.builder.on_build(order)
        assert isinstance(built, GenerationBuilt)
        await self.catalog.on_built(built)
        artifact = await self.buckets.put("here", "indexes/docs/harnesses/docs-0.npz", b"truth")
        harness = HarnessDocument(
            harness="docs", index="docs", bucket="here", key=artifact.key, sha256=artifact.sha256, queries=1, k=1,
            source="rows", version=0, rows=1, seed=1, created=1.0, merged=1.0,
        )  # fmt: skip
        await self.registry.save("docs", harness, expected=None, bucket="here")
        entry = PromotionEntry(
            config=HnswConfig(), trial="t", recall=1, recall_lower=1, p50_us=1, promoted_by="test", note="", time=1.0,
            cause="test",
        )  # fmt: skip
        await self.registry.save("docs", PromotionDocument(index="docs", current=entry), expected=None, bucket="here")

    async def recover(self) -> None:
        """What a new process does by itself: it goes on with what was begun, then clears up."""
        await self.desk.on_sweep()

    async def contents(self) -> dict[str, Any]:
        """All that there is of dataset and index, read as their users do. Raises when any of it can't be had."""
        dataset, index, head, harness, promotion = [
            await self._document(kind, name)
            for kind, name in (
                (DatasetDocument, "notes"),
                (IndexDocument, "docs"),
                (GenerationDocument, "docs"),
                (HarnessDocument, "docs"),
                (PromotionDocument, "docs"),
            )
        ]
        rows = await self.tables.read(TableRef(dataset.bucket, dataset.path))
        vectors = await self.tables.read(TableRef(index.bucket, "indexes/docs/vectors"))
        graph = await self.buckets.fetch(index.bucket, head.key, head.sha256)
        model = await self.buckets.fetch(index.bucket, index.embedder_key)
        truth = await self.buckets.fetch(harness.bucket, harness.key, harness.sha256)
        return {
            "rows": rows.to_pylist(),
            "vectors": np.array(vectors["vector"].to_pylist()).tobytes(),
            "graph": graph.read_bytes(),
            "model": model.read_bytes(),
            "truth": truth.read_bytes(),
            "generation": head.generation,
            "promoted": promotion.current.trial,
        }

    async def home(self, what: str) -> str:
        document = await self._document(*((DatasetDocument, "notes") if what == "dataset" else (IndexDocument, "docs")))
        return str(document.bucket)

    async def leftovers(self, bucket: str, folder: str) -> list[str]:
        """Keys of a bucket that belong to something, documents too; tombstones don't count."""
        keys = await self.buckets.list(bucket, "")
        name = folder.rpartition("/")[2]
        return [key for key in keys if key.startswith(f"{folder}/") or f"/{name}/" in key]

    async def moves(self) -> list[Any]:
        return await self.registry.all(MoveDocument)

    async def _document(self, kind: Any, name: str) -> Any:
        found = await self.registry.load(kind, name)
        assert found is not None, f"{kind.__name__} {name} is gone"
        return found[0]
