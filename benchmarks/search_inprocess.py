"""What does the daemon add to a bare hnswlib call? And filters, and a build going on beside?

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.search_inprocess [--rows 20000] [--dim 384]

Everything in one process: real tables and buckets in a temporary folder, the in-memory bus, the
real runtime and a real niced worker. Vectors are clustered synthetic ones.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from actors import hnsw
from actors.graphs import GraphCache
from actors.index.builder import Builder
from actors.index.catalog import Catalog
from actors.index.config import IndexConfig
from actors.index.heads import StoreHeads
from actors.index.jobs import build_graph
from actors.index.searcher import Searcher
from actors.planner.config import PlannerConfig
from actors.planner.planners import Planners
from actors.ports import TableRef
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.codes import ArtifactCodecs
from daemon.compute import WorkerCompute
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.factory import EmbedderFactory
from daemon.models.config import ModelsConfig
from daemon.runtime import Runtime
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.journal import TableJournal
from daemon.storage.query_log import TableQueryLog
from daemon.storage.registry import DocumentRegistry
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.config import GraphConfig
from schemas.documents.dataset import DatasetDocument
from schemas.events.dataset import ColumnInfo, CommitInfo
from schemas.events.index import CreateIndex, EmbedderSpec, GetIndexStats, Search

EF, K, QUERIES = 50, 10, 2000
SHARES = [0.001, 0.01, 0.1, 0.5]


class Bench:
    """The index actors, and the same vectors in a bare hnswlib graph."""

    def __init__(self, folder: Path, n: int, dim: int) -> None:
        rng = np.random.default_rng(42)
        centres = rng.standard_normal((100, dim), dtype=np.float32)

        def points(count: int) -> Any:
            noise = rng.standard_normal((count, dim), dtype=np.float32)
            return hnsw.normalise(centres[rng.integers(0, 100, count)] + np.float32(0.8) * noise)

        self.vectors, self.queries, self.draw = points(n), points(QUERIES), rng.random(n)
        self.folder = folder
        self.clock = SystemClock()
        self.buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        self.tables = DeltaTables(self.buckets, folder / "cache")
        self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        self.snapshots = TableSnapshots(self.tables, self.registry, folder / "cache")
        self.bus = MemoryBus(clock=self.clock)
        self.lab, self.embed = WorkerCompute("lab"), WorkerCompute("embed")
        self.planners = Planners(PlannerConfig())  # in shadow, as by default

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Bench"]:
        config = IndexConfig()
        ports = (self.registry, self.tables, self.buckets, self.snapshots)
        embedders = EmbedderFactory(EmbeddingConfig(), ModelsConfig(), self.embed)
        graphs = GraphCache(self.folder / "graphs", 1 << 30)
        actors = [
            Catalog(
                *ports,
                embedders,
                self.bus,
                self.clock,
                config,
                0.95,
                EmbedderSpec(),
                TableJournal(self.tables),
                StoreHeads(self.registry),
            ),
            Builder(
                self.registry, self.tables, self.snapshots, self.buckets, self.lab, graphs, self.bus, self.clock, config
            ),
            Searcher(
                *ports,
                embedders,
                ArtifactCodecs(self.buckets, self.folder / "artifacts"),
                TableQueryLog(self.tables),
                self.bus,
                self.clock,
                config,
                "benchmark",
                np.random.default_rng(0),
                self.planners,
            ),
        ]
        async with Runtime(self.bus, actors):
            await self._fill()
            yield self
        await self.lab.aclose()
        await self.embed.aclose()
        await embedders.aclose()

    async def _fill(self) -> None:
        n, dim = self.vectors.shape
        offsets = pa.array(np.arange(n + 1, dtype=np.int32) * dim)
        table = pa.table(
            {
                "id": [f"row-{i}" for i in range(n)],
                "title": [f"the title of row {i}" for i in range(n)],
                "draw": pa.array(self.draw),
                "vector": pa.ListArray.from_arrays(offsets, pa.array(self.vectors.ravel())),
            }
        )
        columns = [
            ColumnInfo("id", "string", "id"),
            ColumnInfo("title", "string", "text"),
            ColumnInfo("draw", "double", "value"),
            ColumnInfo("vector", "list<item: float>", "vector", dim),
        ]
        document = DatasetDocument(
            dataset="data",
            bucket="primary",
            path="datasets/data/table",
            id_column="id",
            generated_id=False,
            columns=columns,
            created=0.0,
        )
        await self.registry.save("data", document, expected=None)
        note = CommitInfo(0, 0.0, "append", 0, "benchmark")
        await self.tables.commit(TableRef("primary", document.path), table.to_batches(), note, schema=table.schema)
        await self.bus.ask(CreateIndex("docs", "data", "vector"))
        while not (await self.bus.ask(GetIndexStats("docs"))).loaded:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def bare(self) -> Any:
        """The daemon's own graph file, loaded by hnswlib alone."""
        (path,) = (self.folder / "graphs").glob("docs/*.hnsw")
        graph = hnswlib.Index("cosine", self.vectors.shape[1])
        graph.load_index(str(path))
        graph.set_ef(EF)
        return graph


async def latencies(run: Callable[[int], Awaitable[Any]], count: int, pause_s: float = 0.0) -> Any:
    """(count,) microseconds."""
    took = np.empty(count)
    for i in range(count):
        started = time.perf_counter()
        await run(i % QUERIES)
        took[i] = (time.perf_counter() - started) * 1e6
        await asyncio.sleep(pause_s)
    return took


async def overhead(bench: Bench, console: Console) -> None:
    """Interleaved in a drawn order, so that noise, and what the way before left in the caches, meet all ways alike. The
    planner is in shadow, and looks at one query in ten; with it off the same ask is another way."""
    graph = bench.bare()
    lists = [query.tolist() for query in bench.queries]
    ways: dict[str, Callable[[int], Awaitable[Any]]] = {}

    async def alone(i: int) -> None:
        graph.knn_query(bench.queries[i : i + 1], k=K, num_threads=1)

    ways["hnswlib knn_query"] = alone
    ways["ask(Search), ids only"] = lambda i: bench.bus.ask(Search("docs", vector=lists[i], k=K, columns=[]))

    async def unplanned(i: int) -> None:
        planned = bench.planners.indexes["docs"]
        planned.mode = "off"
        await bench.bus.ask(Search("docs", vector=lists[i], k=K, columns=[]))
        planned.mode = "shadow"

    ways["the same, planner off"] = unplanned
    ways["ask(Search), 2 columns"] = lambda i: bench.bus.ask(Search("docs", vector=lists[i], k=K))
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in list(ways.values())[1:2] * 200:  # the first queries meet cold caches, and no planner yet
        await way(0)
    rng = np.random.default_rng(0)
    for i in range(QUERIES):
        for turn, place in enumerate(rng.permutation(len(ways))):  # never the query of the way before
            name = list(ways)[place]
            query = (i + 700 * turn) % QUERIES
            started, cpu = time.perf_counter(), time.thread_time()
            await ways[name](query)
            took[name].append(((time.perf_counter() - started) * 1e6, (time.thread_time() - cpu) * 1e6))
    table = Table(
        "single query", "p50 µs", "mean µs", "p95 µs", "CPU p50 µs", "over hnswlib (goal <= 60)", "CPU over",
        title="overhead",
    )  # fmt: skip
    figures = {name: np.array(values) for name, values in took.items()}  # (QUERIES, 2)
    base = np.median(figures["hnswlib knn_query"], axis=0)
    for name, values in figures.items():
        wall, cpu = np.median(values, axis=0)
        p95 = np.percentile(values[:, 0], 95)
        mean = values[:, 0][values[:, 0] <= np.percentile(values[:, 0], 99.5)].mean()  # but for stalls of the machine
        over = wall - base[0], cpu - base[1]
        table.add_row(name, *(f"{figure:.0f}" for figure in (wall, mean, p95, cpu, *over)))
    console.print(table)


async def filters(bench: Bench, console: Console) -> None:
    table = Table("rows that match", "recall@10 (goal >= 0.95)", "p50 ms", "first call ms", "strategy", title="filters")
    for share in SHARES:
        predicate = f"draw < {share}"
        rows = np.flatnonzero(bench.draw < share)
        truth = rows[hnsw.exact_topk(bench.queries[:200], bench.vectors[rows], K, "cosine")[0]]
        took, recalls, strategies = [], [], set()
        for i in range(200):
            started = time.perf_counter()
            query = Search("docs", vector=bench.queries[i].tolist(), k=K, filter=predicate, explain=True)
            result = await bench.bus.ask(query)
            took.append((time.perf_counter() - started) * 1e3)
            found = {int(str(hit.id)[4:]) for hit in result.queries[0]}
            recalls.append(len(found & set(truth[i].tolist())) / K)
            assert result.explain is not None
            strategies.add(result.explain.strategy)
        figures = f"{np.mean(recalls):.3f}", f"{np.median(took[1:]):.2f}", f"{took[0]:.1f}", ", ".join(strategies)
        table.add_row(f"{share:.1%} ({len(rows)})", *figures)
    console.print(table)


async def beside_a_build(bench: Bench, console: Console) -> None:
    """Search at 200 queries a second, idle and while the niced worker builds graphs."""
    lists = [query.tolist() for query in bench.queries]

    async def ask(i: int) -> None:
        await bench.bus.ask(Search("docs", vector=lists[i], k=K))

    snapshot = await bench.snapshots.snapshot("docs")
    built = 0

    async def build() -> None:
        nonlocal built
        while True:
            path = bench.folder / "beside.hnsw"
            items: Any = bench.lab.stream(
                build_graph, snapshot.rows_path, snapshot.vectors_path, "cosine", GraphConfig(16, 200), path
            )
            async with aclosing(items):
                async for _ in items:
                    pass
            built += 1

    idle = await latencies(ask, 3000, 0.005)
    task = asyncio.create_task(build())
    await asyncio.sleep(0.5)
    busy = await latencies(ask, 3000, 0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    table = Table("", "p50 µs", "p95 µs", "p99 µs", title=f"search while the worker builds ({built} graphs finished)")
    for name, values in (("idle", idle), ("building", busy)):
        table.add_row(name, *(f"{np.percentile(values, p):.0f}" for p in (50, 95, 99)))
    ratio = np.percentile(busy, 99) / np.percentile(idle, 99)
    table.add_row("ratio of p99 (goal < 3)", "", "", f"{ratio:.2f}")
    console.print(table)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    asked = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        async with Bench(Path(folder), asked.rows, asked.dim).running() as bench:
            console.print(f"{asked.rows} x {asked.dim}, k {K}, ef {EF}, {hnsw.LIBRARY}")
            await overhead(bench, console)
            await filters(bench, console)
            await beside_a_build(bench, console)


if __name__ == "__main__":
    asyncio.run(main())
