"""What runs in the worker process: eval sets and trials. Generators, so that progress streams;
their arguments are plain values and local paths, and nothing here knows a bus or a registry.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.autotune import harness, measure
from actors.autotune.bounds import Ratio
from actors.autotune.decide import choose_ef
from actors.autotune.harness import EvalSet
from actors.autotune.measure import Point
from actors.autotune.sweep import sweep
from actors.graphs import LIVE, GraphCache
from actors.ports import Snapshot
from schemas.config import GraphConfig, HnswConfig
from schemas.documents.index import IndexDocument
from schemas.names import Bytes, IndexName, Metric, Rows, Seconds, Sha256, TrialId

REPORT_S = 0.2
"""Time between two progress reports of a build."""


@dataclass(frozen=True)
class Vectors:
    """A snapshot's files."""

    index: IndexName
    version: int
    metric: Metric
    rows_path: Path
    vectors_path: Path

    @classmethod
    def of(cls, index: IndexDocument, snapshot: Snapshot) -> "Vectors":
        return cls(index.index, snapshot.version, index.metric, snapshot.rows_path, snapshot.vectors_path)

    def load(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(n,) row numbers, (n, d) vectors, memory-mapped. A job does this once, at its start."""
        return np.load(self.rows_path), np.load(self.vectors_path, mmap_mode="r")


@dataclass(frozen=True)
class LiveGraph:
    """The graph that serves, as its generation's artifact has it."""

    path: Path
    sha256: Sha256
    config: HnswConfig
    rows: Rows  # it was built over


@dataclass(frozen=True)
class Champion:
    """What a challenger is measured against."""

    trial: TrialId
    config: HnswConfig


@dataclass(frozen=True)
class TrialOrder:
    vectors: Vectors
    eval_set: Path  # .npz, with truth at the vectors' version
    config: HnswConfig
    extra_ef: Sequence[int]
    ef_bounds: tuple[int, int]
    target_recall: float
    reuse_live: bool
    live: LiveGraph | None
    champion: Champion | None
    cache: GraphCache


@dataclass(frozen=True)
class Trial:
    """An order with its arrays."""

    order: TrialOrder
    eval_set: EvalSet
    rows: NDArray[np.int64]  # (n,)
    stored: NDArray[np.float32]  # (n, d), memory-mapped


@dataclass(frozen=True)
class Phase:
    """How far a job is."""

    phase: str
    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class Built:
    """A graph and where it came from."""

    graph: hnsw.Graph
    build: str  # identity: same build, same graph
    bytes: Bytes
    build_s: Seconds = 0.0
    build_cpu_s: Seconds = 0.0
    added: Rows = 0
    deleted: Rows = 0


@dataclass(frozen=True)
class Measured:
    """A trial's result, the job's last item."""

    points: list[Point]
    chosen: int  # ef_search of the point that the trial stands for
    champion: Champion | None  # None when there was none to compare with
    ratio: Ratio | None
    champion_recall_lower: float | None
    build: str
    build_s: Seconds
    build_cpu_s: Seconds
    bytes: Bytes
    added: Rows
    deleted: Rows


def make_eval_set(
    vectors: Vectors, queries: NDArray[np.float32] | None, many: int, seed: int
) -> Iterator[Phase | EvalSet]:
    """An eval set of given queries, or of `many` sampled rows."""
    rows, stored = vectors.load()
    if queries is None:
        picked = harness.sample(rows, many, seed)
        queries, own = np.ascontiguousarray(stored[picked]), rows[picked]
    else:
        own = np.full(len(queries), harness.NOWHERE, np.int64)
    yield Phase("truth", 0, len(queries), "queries")
    yield harness.create(queries, own, rows, stored, vectors.metric)


def merge_eval_set(path: Path, vectors: Vectors) -> Iterator[Phase | EvalSet]:
    """The eval set with its truth brought up to the snapshot."""
    eval_set = harness.parse(path.read_bytes())
    yield Phase("truth", 0, len(eval_set.queries), "queries")
    yield harness.bring_up(eval_set, *vectors.load(), vectors.metric)


def run_trial(order: TrialOrder) -> Iterator[Phase | Measured]:
    """One build, its sweep, and the comparison with the champion."""
    eval_set = harness.parse(order.eval_set.read_bytes())
    trial = Trial(order, eval_set, *order.vectors.load())
    if order.reuse_live:
        if order.live is None:
            raise ValueError("there is no live graph to measure")
        built = yield from _live(trial, order.live)
    else:
        built = yield from _fresh(trial, order.config.graph)
    measure.warm_up(built.graph, eval_set.queries, order.config.ef_search)
    points = yield from _sweep(order, built.graph, eval_set)
    chosen = choose_ef(points, order.target_recall)
    yield Phase("compare", 0, min(measure.PAIRS, len(eval_set.queries)), "queries")
    ratio, champion_lower = yield from _against_champion(trial, built, points, chosen)
    yield Measured(
        points=points,
        chosen=chosen,
        champion=order.champion if ratio is not None else None,
        ratio=ratio,
        champion_recall_lower=champion_lower,
        build=built.build,
        build_s=built.build_s,
        build_cpu_s=built.build_cpu_s,
        bytes=built.bytes,
        added=built.added,
        deleted=built.deleted,
    )


def _sweep(order: TrialOrder, graph: hnsw.Graph, eval_set: EvalSet) -> Generator[Phase, None, list[Point]]:
    low, high = order.ef_bounds
    low = max(low, measure.K + 1)  # hnswlib searches with max(ef, k), and k + 1 are asked for
    points: list[Point] = []
    search = sweep(order.config.ef_search, low, max(low, high), order.extra_ef)
    ef = next(search)
    while True:
        points.append(measure.point(graph, eval_set, ef))
        yield Phase("sweep", len(points), None, "points")
        try:
            ef = search.send(points[-1].recall_lower >= order.target_recall)
        except StopIteration:
            return points


def _against_champion(
    trial: Trial, built: Built, points: list[Point], chosen: int
) -> Generator[Phase, None, tuple[Ratio | None, float | None]]:
    """The latency ratio, and the lower bound of the champion's recall. None for a challenger that
    misses the target, and where the champion's graph is nowhere to be had."""
    order, eval_set, champion = trial.order, trial.eval_set, trial.order.champion
    if champion is None:
        return None, None
    serves = order.live is not None and champion.config.graph == order.live.config.graph
    held = next(p for p in points if p.ef_search == chosen).recall_lower >= order.target_recall
    if not held and not order.reuse_live:
        return None, None  # it can't win, however fast it is
    if serves and order.live is not None:  # the graph in hand, at another ef, when that is the live one
        graph = built.graph if order.reuse_live else (yield from _live(trial, order.live)).graph
    else:
        cached = order.cache.find(order.vectors.index, champion.config.graph, order.vectors.version)
        if cached is None:
            return None, None
        graph = hnsw.load(cached.path, eval_set.queries.shape[1], order.vectors.metric, cached.sha256)
    ef = champion.config.ef_search
    measured = [p for p in points if p.ef_search == ef] if graph is built.graph else []
    lower = (measured[0] if measured else measure.point(graph, eval_set, ef)).recall_lower
    if graph is built.graph and ef == chosen:
        return Ratio(1.0, 1.0, 1.0), lower
    return measure.compare((built.graph, chosen), (graph, ef), eval_set.queries), lower


def _fresh(trial: Trial, config: GraphConfig) -> Generator[Phase, None, Built]:
    """The graph from the cache, or built and put there: a promotion needs no second build."""
    vectors, cache, rows, stored = trial.order.vectors, trial.order.cache, trial.rows, trial.stored
    build = f"v{vectors.version}-M{config.M}-efc{config.ef_construction}-s{config.seed}"
    cached = cache.find(vectors.index, config, vectors.version)
    if cached is not None:
        graph = hnsw.load(cached.path, stored.shape[1], vectors.metric, cached.sha256)
        return Built(graph, build, cached.path.stat().st_size)
    started, cpu = time.perf_counter(), time.process_time()
    graph = yield from _reported("build", hnsw.build(stored, rows, vectors.metric, config), len(rows))
    build_s, build_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    path = cache.path_for(vectors.index, config, vectors.version)
    sha256 = hnsw.save(graph, path)
    cache.add(vectors.index, config, vectors.version, sha256=sha256, rows=len(rows), build_s=build_s)
    return Built(graph, build, path.stat().st_size, build_s, build_cpu_s)


def _live(trial: Trial, live: LiveGraph) -> Generator[Phase, None, Built]:
    """The live graph with the rows that came since and without those that went. Kept in the
    cache under a name that no index can have: every trial of a campaign needs it."""
    vectors, cache, rows, stored = trial.order.vectors, trial.order.cache, trial.rows, trial.stored
    dim = stored.shape[1]
    name = f"{vectors.index}{LIVE}{live.sha256[:12]}"
    build = f"live-{live.sha256[:12]}-v{vectors.version}"
    cached = cache.find(name, live.config.graph, vectors.version)
    if cached is not None:
        graph, size = hnsw.load(cached.path, dim, vectors.metric, cached.sha256), cached.path.stat().st_size
        ever = len(graph.get_ids_list())
        return Built(graph, build, size, added=ever - live.rows, deleted=ever - len(rows))
    graph = hnsw.load(live.path, dim, vectors.metric, capacity=live.rows + len(rows))
    labels = np.array(graph.get_ids_list(), np.int64)
    missing = np.flatnonzero(~np.isin(rows, labels))
    gone = labels[~np.isin(labels, rows)]
    for label in gone.tolist():
        graph.mark_deleted(label)
    yield from _reported("update", _add(graph, stored, rows, missing), len(missing))
    path = live.path
    if len(missing) or len(gone):
        path = cache.path_for(name, live.config.graph, vectors.version)
        sha256 = hnsw.save(graph, path)
        cache.add(name, live.config.graph, vectors.version, sha256=sha256, rows=len(rows), build_s=0.0)
    return Built(graph, build, path.stat().st_size, added=len(missing), deleted=len(gone))


def _add(
    graph: hnsw.Graph, stored: NDArray[np.float32], rows: NDArray[np.int64], missing: NDArray[np.int64]
) -> Generator[int, None, hnsw.Graph]:
    for start in range(0, len(missing), hnsw.BUILD_STEP):
        some = missing[start : start + hnsw.BUILD_STEP]
        graph.add_items(stored[some], rows[some], num_threads=1)
        yield start + len(some)
    return graph


def _reported(phase: str, work: Generator[int, None, hnsw.Graph], total: int) -> Generator[Phase, None, hnsw.Graph]:
    """Runs `work` to its end and says now and then how far it is."""
    reported = 0.0
    while True:
        try:
            done = next(work)
        except StopIteration as stop:
            return stop.value
        if time.perf_counter() - reported > REPORT_S:
            reported = time.perf_counter()
            yield Phase(phase, done, total, "rows")
