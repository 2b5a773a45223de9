"""What a trial measures: builds, found or made in the worker process and opened for search. A graph
comes from the cache or is built into it; a Lance index lies in the index's store by its name, and
one that is there already is taken as it is. What is live is brought up to the trial's version first.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.autotune.harness import EvalSet
from actors.backends.hnsw import HnswBackend
from actors.backends.lance import LanceBackend
from actors.backends.lance_store import Place, build_index, library
from actors.graphs import LIVE, GraphCache
from actors.ports import Snapshot
from actors.vector_backend import VectorBackend
from schemas.config import GraphConfig, HnswConfig, IndexConfig, LanceBuild, LanceConfig
from schemas.documents.index import IndexDocument
from schemas.names import Bytes, IndexName, Metric, Rows, Seconds, Sha256

T = TypeVar("T")

REPORT_S = 0.2
"""Time between two progress reports of a build."""
PERCENT = 100


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
class LiveLance:
    """The Lance index that serves; the store keeps it up to date."""

    name: str  # in the store
    config: LanceConfig
    rows: Rows  # it was trained over


Live = LiveGraph | LiveLance


@dataclass(frozen=True)
class Site:
    """Where a trial's builds are found and made."""

    vectors: Vectors
    eval_set: EvalSet
    rows: NDArray[np.int64]  # (n,)
    stored: NDArray[np.float32]  # (n, d), memory-mapped
    cache: GraphCache
    store: Place | None  # of the index, at the vectors' version; None: it has none


@dataclass(frozen=True)
class Phase:
    """How far a job is."""

    phase: str
    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class Built:
    """A build and where it came from."""

    backend: VectorBackend
    build: str  # identity: same build, same graph or index
    bytes: Bytes
    library: str
    build_s: Seconds = 0.0
    build_cpu_s: Seconds = 0.0
    added: Rows = 0
    deleted: Rows = 0


def fresh(site: Site, config: IndexConfig) -> Generator[Phase, None, Built]:
    """A build over the trial's version. Raises ValueError for what can't be built."""
    if isinstance(config, HnswConfig):
        return (yield from _fresh_graph(site, config.build))
    return (yield from _fresh_lance(site, config.build))


def there(site: Site, config: IndexConfig) -> Generator[Phase, None, Built | None]:
    """A build that an earlier trial made over the same version; None when it is gone. One of Lance is made again:
    who names it needs it, and the store may have dropped it since."""
    if isinstance(config, LanceConfig):
        return None if site.store is None else (yield from _fresh_lance(site, config.build))
    vectors = site.vectors
    cached = site.cache.find(vectors.index, config.build, vectors.version)
    if cached is None:
        return None
    graph = HnswBackend.load(cached.path, site.stored.shape[1], vectors.metric, cached.sha256)
    return Built(graph, _name_of(config.build, vectors.version), cached.path.stat().st_size, hnsw.LIBRARY)


def live(site: Site, live: Live) -> Generator[Phase, None, Built]:
    """What serves, with the rows that came since and without those that went."""
    return (yield from _live_graph(site, live)) if isinstance(live, LiveGraph) else _live_lance(site, live)


def _fresh_graph(site: Site, config: GraphConfig) -> Generator[Phase, None, Built]:
    """From the cache, or built and put there: a promotion needs no second build."""
    vectors, cache = site.vectors, site.cache
    found = yield from there(site, HnswConfig(config.M, config.ef_construction, seed=config.seed))
    if found is not None:
        return found
    started, cpu = time.perf_counter(), time.process_time()
    building = HnswBackend.build(site.stored, site.rows, vectors.metric, config)
    backend = yield from _reported("build", building, len(site.rows))
    build_s, build_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    path = cache.path_for(vectors.index, config, vectors.version)
    sha256 = backend.save(path)
    cache.add(vectors.index, config, vectors.version, sha256=sha256, rows=len(site.rows), build_s=build_s)
    name = _name_of(config, vectors.version)
    return Built(backend, name, path.stat().st_size, hnsw.LIBRARY, build_s, build_cpu_s)


def _fresh_lance(site: Site, build: LanceBuild) -> Generator[Phase, None, Built]:
    """Searched without the rows that came after: they are no neighbours in the eval set."""
    if site.store is None:
        raise ValueError(f"index {site.vectors.index!r} has no Lance store")
    name = lance_name(build, site.vectors.version)
    newest = msgspec.structs.replace(site.store, lance_version=None)
    started, cpu = time.perf_counter(), time.process_time()
    known = name in LanceBackend.load(newest, site.vectors.metric).indexed_rows()
    building = _in_percent(build_index(site.store, site.vectors.metric, build, name))
    lance_version = yield from _reported("build", building, PERCENT, "percent")
    took = (0.0, 0.0) if known else (time.perf_counter() - started, time.process_time() - cpu)
    place = msgspec.structs.replace(site.store, lance_version=lance_version)
    backend = LanceBackend.load(place, site.vectors.metric, name, unindexed=False)
    return Built(backend, name, backend.stats().bytes, library(), *took)


def _live_graph(site: Site, live: LiveGraph) -> Generator[Phase, None, Built]:
    """Kept in the cache under a name that no index can have: every trial of a campaign needs it."""
    vectors, cache, rows = site.vectors, site.cache, site.rows
    dim, config = site.stored.shape[1], live.config.build
    name = f"{vectors.index}{LIVE}{live.sha256[:12]}"
    build = f"live-{live.sha256[:12]}-v{vectors.version}"
    cached = cache.find(name, config, vectors.version)
    if cached is not None:
        backend = HnswBackend.load(cached.path, dim, vectors.metric, cached.sha256)
        ever, size = len(backend.rows), cached.path.stat().st_size
        return Built(backend, build, size, hnsw.LIBRARY, added=ever - live.rows, deleted=ever - len(rows))
    backend = HnswBackend.load(live.path, dim, vectors.metric, capacity=live.rows + len(rows))
    missing = np.flatnonzero(~np.isin(rows, backend.rows))
    gone = backend.rows[~np.isin(backend.rows, rows)]
    backend.delete(gone)
    yield from _reported("update", _add(backend, site, missing), len(missing))
    path = live.path
    if len(missing) or len(gone):
        path = cache.path_for(name, config, vectors.version)
        sha256 = backend.save(path)
        cache.add(name, config, vectors.version, sha256=sha256, rows=len(rows), build_s=0.0)
    return Built(backend, build, path.stat().st_size, hnsw.LIBRARY, added=len(missing), deleted=len(gone))


def _add(backend: HnswBackend, site: Site, missing: NDArray[np.int64]) -> Generator[int, None, None]:
    for start in range(0, len(missing), hnsw.BUILD_STEP):
        some = missing[start : start + hnsw.BUILD_STEP]
        backend.add(site.rows[some], site.stored[some])
        yield start + len(some)


def _live_lance(site: Site, live: LiveLance) -> Built:
    """As the store had it at the trial's version; as it is now, where the index is younger than that."""
    if site.store is None:
        raise ValueError(f"index {site.vectors.index!r} has no Lance store")
    metric = site.vectors.metric
    try:
        backend = LanceBackend.load(site.store, metric, live.name)
    except FileNotFoundError:
        backend = LanceBackend.load(msgspec.structs.replace(site.store, lance_version=None), metric, live.name)
    deleted = backend.stats().deleted
    added = max(0, len(site.rows) - live.rows + deleted)
    build = f"live-{live.name}-v{site.vectors.version}"
    return Built(backend, build, backend.stats().bytes, library(), added=added, deleted=deleted)


def lance_name(build: LanceBuild, version: int) -> str:
    """Its name in the store: a generation that is promoted from a trial finds the trial's."""
    return f"{build.name}-v{version}"


def _name_of(config: GraphConfig, version: int) -> str:
    return f"v{version}-M{config.M}-efc{config.ef_construction}-s{config.seed}"


def _in_percent(work: Generator[float, None, T]) -> Generator[int, None, T]:
    while True:
        try:
            share = next(work)
        except StopIteration as stop:
            made: T = stop.value
            return made
        yield round(PERCENT * share)


def _reported(phase: str, work: Generator[int, None, T], total: int, unit: str = "rows") -> Generator[Phase, None, T]:
    """Runs `work` to its end and says now and then how far it is."""
    reported = 0.0
    while True:
        try:
            done = next(work)
        except StopIteration as stop:
            made: T = stop.value
            return made
        if time.perf_counter() - reported > REPORT_S:
            reported = time.perf_counter()
            yield Phase(phase, done, total, unit)
