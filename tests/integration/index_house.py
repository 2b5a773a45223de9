"""The index actors on real storage and the in-memory bus: what the search tests share.

Datasets are written straight to the tables and announced on the bus, as ingest does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pyarrow as pa

from actors import hnsw
from actors.base import Actor
from actors.codec.calibrator import Calibrator
from actors.codec.codecs import Codecs
from actors.codec.config import CodecConfig
from actors.codec.targets import Targets
from actors.errors import Transient
from actors.graphs import GraphCache
from actors.index.builder import Builder
from actors.index.catalog import Catalog
from actors.index.config import IndexConfig
from actors.index.heads import StoreHeads
from actors.index.searcher import Searcher
from actors.index.stores import Stores
from actors.planner.actor import Planner
from actors.planner.config import PlannerConfig
from actors.planner.planners import Planners
from actors.ports import ROW, TableRef
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.codes import ArtifactCodecs
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.factory import EmbedderFactory
from daemon.models.config import ModelsConfig
from daemon.runtime import Runtime
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.codec_journal import TableCodecJournal
from daemon.storage.journal import TableJournal
from daemon.storage.query_log import TableQueryLog
from daemon.storage.registry import DocumentRegistry
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.events.dataset import ColumnInfo, CommitInfo, DatasetAppended, RowsDeleted
from schemas.events.index import CreateIndex, EmbedderSpec, GetIndex, GetIndexStats, IndexInfo, Search
from schemas.events.promotion import ConfigPromoted
from tests.unit.inline_compute import InlineCompute


class IndexHouse:
    """What survives a restart: the folder and the heads. `running` is one life of the daemon."""

    def __init__(
        self, folder: Path, urls: dict[str, str] | None = None, options: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """urls, options: of buckets beside `primary`."""
        self.folder = folder
        self.urls = {"primary": (folder / "primary").as_uri(), **(urls or {})}
        self.options = options
        self.config = IndexConfig(**settings)
        self.planner_config = PlannerConfig()
        self.heads = MemoryHeads()
        self.clock = SystemClock()
        self.builds = 0
        self.deaths: list[str] = []  # jobs at whose first item the worker dies
        self.commits = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["IndexHouse"]:
        self.buckets = ObjectBuckets(self.urls, self.folder / "cache", self.options)
        self.tables = DeltaTables(self.buckets, self.folder / "cache")
        self.registry = DocumentRegistry(self.buckets, self.heads)
        self.snapshots = TableSnapshots(self.tables, self.registry, self.folder / "cache")
        self.graphs = GraphCache(self.folder / "cache" / "graphs", 1 << 30)
        self.bus = MemoryBus(clock=self.clock)
        house = self

        class Counted(InlineCompute):
            async def stream(self, job: Any, *args: Any) -> Any:
                house.builds += job.__name__ == "build_graph"
                async for item in super().stream(job, *args):
                    if job.__name__ in house.deaths:
                        house.deaths.remove(job.__name__)
                        raise Transient("the worker died", 0.01)
                    yield item

        embedders = EmbedderFactory(EmbeddingConfig(), ModelsConfig(), InlineCompute())
        codecs = ArtifactCodecs(self.buckets, self.folder / "cache" / "artifacts")
        ports = (self.registry, self.tables, self.buckets, self.snapshots, embedders)
        journal, heads = TableJournal(self.tables), StoreHeads(self.registry)
        self.journal = journal
        catalog = Catalog(*ports, self.bus, self.clock, self.config, 0.95, EmbedderSpec(), journal, heads)
        stores = Stores(self.registry, self.tables, self.buckets, self.snapshots, heads, self.bus, self.config)
        builder = Builder(
            self.registry, self.tables, self.snapshots, self.buckets, Counted(), self.graphs, self.bus, self.clock,
            self.config,
        )  # fmt: skip
        log, rng = TableQueryLog(self.tables), np.random.default_rng(7)
        self.query_log = log
        self.planners = Planners(self.planner_config)
        self.searcher = Searcher(
            *ports, codecs, log, self.bus, self.clock, self.config, "test", rng, self.planners, heads
        )
        self.planner = Planner(
            self.planners, self.registry, self.snapshots, Counted(), self.clock, self.planner_config, "test"
        )
        actors = [catalog, stores, builder, self.searcher, self.planner, *self._codecs()]
        async with Runtime(self.bus, actors):
            yield self
        await embedders.aclose()

    def _codecs(self) -> list[Actor]:
        cache = self.folder / "cache" / "codec"
        targets = Targets(self.buckets, self.registry, self.tables, self.snapshots, cache, [])
        journal = TableCodecJournal(self.tables)
        worker = Calibrator(
            self.registry, self.buckets, targets, journal, InlineCompute(), self.bus, self.clock, "test", CodecConfig(),
            cache,
        )  # fmt: skip
        return [Codecs(self.registry, self.buckets, targets, journal, self.clock), worker]

    async def dataset(self, name: str, table: pa.Table, vector: str | None = None) -> None:
        """A new dataset with these rows; the column `id` is its id."""
        roles = {"id": "id", vector: "vector"}
        dim = len(table[vector][0]) if vector and len(table) else None
        columns = [
            ColumnInfo(
                f.name,
                str(f.type),
                roles.get(f.name, "text" if f.type == pa.string() else "value"),  # type: ignore[arg-type]
                dim if f.name == vector else None,
            )
            for f in table.schema
        ]
        document = DatasetDocument(
            dataset=name,
            bucket="primary",
            path=f"datasets/{name}/table",
            id_column="id",
            generated_id=False,
            columns=columns,
            created=self.clock.now(),
        )
        await self.registry.save(name, document, expected=None)
        await self.append(name, table)

    async def append(self, name: str, table: pa.Table, remove: Any = ()) -> None:
        state = await self._commit(name, table.to_batches(), table.schema, remove)
        await self.bus.publish(
            DatasetAppended(name, "primary", state.version, table.num_rows, state.rows, len(remove), "test")
        )

    async def delete(self, name: str, ids: list[str]) -> None:
        table = await self.tables.read(TableRef("primary", f"datasets/{name}/table"), ["id"])
        wanted = set(ids)
        rows = [row for row, id in zip(*(table[c].to_pylist() for c in (ROW, "id")), strict=True) if id in wanted]
        state = await self._commit(name, [], None, rows)
        await self.bus.publish(RowsDeleted(name, "primary", state.version, len(rows), state.rows))

    async def _commit(self, name: str, batches: Any, schema: Any, remove: Any) -> Any:
        self.commits += 1
        note = CommitInfo(0, 0.0, "append", 0, f"{name}-{self.commits}-{self.clock.now()}")
        table = TableRef("primary", f"datasets/{name}/table")
        return await self.tables.commit(table, batches, note, remove=remove, schema=schema)

    async def create(self, index: str, dataset: str, column: str, **more: Any) -> IndexInfo:
        """A new index, ready."""
        await self.bus.ask(CreateIndex(index, dataset, column, **more))
        return await self.ready(index)

    async def ready(self, index: str, generation: int = 1) -> IndexInfo:
        """Once the searcher serves that generation or a later one."""
        await self.until(lambda: self._serves(index, generation))
        return await self.bus.ask(GetIndex(index))

    async def _serves(self, index: str, generation: int) -> bool:
        stats = await self.bus.ask(GetIndexStats(index))
        return stats.loaded and stats.generation >= generation

    async def promote(self, index: str, config: HnswConfig, trial: str) -> None:
        """As the promotion actor does it: the document, then the event."""
        entry = PromotionEntry(
            config=config,
            trial=trial,
            recall=1,
            recall_lower=1,
            p50_us=1,
            promoted_by="test",
            note="",
            time=self.clock.now(),
            cause="test",
        )
        found = await self.registry.load(PromotionDocument, index)
        document = PromotionDocument(index=index, current=entry)
        await self.registry.save(index, document, expected=found[1] if found else None)
        await self.bus.publish(ConfigPromoted(index, entry, None))

    async def ids(self, index: str, vector: Any, k: int = 10, **more: Any) -> list[Any]:
        result = await self.bus.ask(Search(index, vector=np.asarray(vector).tolist(), k=k, **more))
        return [hit.id for hit in result.queries[0]]

    async def until(self, condition: Any, seconds: float = 20.0) -> None:
        with anyio.fail_after(seconds):
            while not await condition():  # noqa: ASYNC110 - it is the world that changes
                await anyio.sleep(0.01)


def clustered(n: int, dim: int, seed: int = 0, spread: float = 0.6) -> np.ndarray:
    """(n, dim) float32 unit vectors around 50 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, dim), dtype=np.float32)
    noise = rng.standard_normal((n, dim), dtype=np.float32)
    return hnsw.normalise(centres[rng.integers(0, 50, n)] + np.float32(spread) * noise)


def rows_of(vectors: np.ndarray, first: int = 0, **columns: Any) -> pa.Table:
    """Rows with ids r0, r1 …, a number, and the vectors."""
    n = len(vectors)
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * vectors.shape[1])
    return pa.table(
        {
            "id": [f"r{first + i}" for i in range(n)],
            "number": pa.array(np.arange(first, first + n)),
            "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel())),
            **columns,
        }
    )
