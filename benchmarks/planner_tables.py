"""What the planner's benchmark plays on: recall and cost of every query at every rung of the ladder of efforts,
measured once on one graph, or on a Lance index as it is built by default, and kept in a file, so that all policies are
compared on the same measurements. Between two rungs both are interpolated over log2 of the effort.

Cost is CPU time, one query at a time: of one thread, and on Lance of all of its threads. The corpora: docstrings of
this machine's Python packages by the lexical embedder, asked for by first sentences; and vectors of uneven clusters.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors import hnsw
from actors.backends import lance_store
from actors.backends.lance import LanceBackend
from actors.backends.lance_rules import first_config, resolve
from actors.backends.lance_store import Place, batch_of, schema_of
from actors.index.core import planned_effort
from actors.planner.core_labels import FULL, LADDER, RUNGS
from benchmarks.docstrings import embedded, fitted
from benchmarks.tuning_surface import finish
from schemas.config import GraphConfig, LanceConfig
from schemas.names import Backend

K = 10
TIE = 1e-5
GRAPH = GraphConfig(24, 200)
"""Questions lie far from what they ask for: with M 16 no ef_search holds 0.99."""
BLOCK = 50
"""Queries that are asked at all rungs, in a drawn order, before the next: other load meets all rungs."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """q queries x e rungs. Queries are shuffled but for `topic`, by which drift orders them."""

    name: str
    vectors: F32  # (n, d) rows of the graph
    queries: F32  # (q, d)
    topic: NDArray[np.int64]  # (q,)
    recall: F32  # (q, e)
    cost_us: F64  # (q, e)
    backend: Backend = "hnsw"

    def at(self, ef: F64, among: NDArray[np.int64]) -> tuple[F64, F64]:
        """(m,) recall and cost of the queries `among`, each at its own ef."""
        place = np.clip(np.log2(ef / LADDER[0]) * 2, 0, len(LADDER) - 1)
        low = np.minimum(place.astype(np.int64), len(LADDER) - 2)
        part = place - low
        recall = self.recall[among, low] * (1 - part) + self.recall[among, low + 1] * part
        cost = self.cost_us[among, low] * (1 - part) + self.cost_us[among, low + 1] * part
        return recall, cost

    def sufficient(self, among: NDArray[np.int64]) -> F64:
        """(m,) log2 of the first rung of full recall; of the last where none is."""
        full = self.recall[among] > FULL
        return RUNGS[np.where(full.any(axis=1), full.argmax(axis=1), len(LADDER) - 1)]


def docstrings(rows: int, queries: int) -> tuple[F32, F32, NDArray[np.int64]]:
    """Vectors, queries and their topics: the package that a question is about."""
    from daemon.demo import corpus

    found = corpus.harvest(rows).rows
    texts = [row.text for row in found]
    model = fitted(texts)
    asked = corpus.questions(found, queries, 7)
    names = sorted({row.package for row in found})
    topic = np.array([names.index(found[place].package) for place, _ in asked])
    return embedded(model, texts), np.concatenate([model.embed([text]) for _, text in asked]), topic


def clusters(rows: int, queries: int) -> tuple[F32, F32, NDArray[np.int64]]:
    """100 clusters of uneven size and of uneven dimension (4 to 96), so of uneven difficulty; the
    queries are drawn as the rows are, but as often from a small cluster as from a large one."""
    rng = np.random.default_rng(5)
    d, many = 128, 100
    centres = rng.normal(size=(many, d)) * 0.6
    dims = rng.integers(4, 97, many)
    bases = [rng.normal(size=(local, d)) / np.sqrt(local) for local in dims]
    share = rng.dirichlet(np.full(many, 1.0))

    def draw(member: NDArray[np.int64]) -> F32:
        made = np.empty((len(member), d), np.float32)
        for c in range(many):
            own = np.flatnonzero(member == c)
            spread = rng.normal(size=(len(own), dims[c])) @ bases[c]
            made[own] = centres[c] + spread + 0.05 * rng.normal(size=(len(own), d))
        return hnsw.normalise(made)

    topic = rng.integers(0, many, queries)
    return draw(rng.choice(many, rows, p=share)), draw(topic), topic


CORPORA: dict[str, Callable[[int, int], tuple[F32, F32, NDArray[np.int64]]]] = {
    "docstrings": docstrings,
    "clusters": clusters,
}


def measured(name: str, rows: int, queries: int, cache: Path, backend: Backend = "hnsw") -> Tables:
    """From the cache, or measured now: about a minute for 6,000 queries, on Lance some eight."""
    path = cache / f"planner-{backend}-{name}-{rows}-{queries}.npz"
    if path.exists():
        kept = np.load(path)
        return Tables(name, kept["vectors"], kept["queries"], kept["topic"], kept["recall"], kept["cost_us"], backend)
    vectors, asked, topic = CORPORA[name](rows, queries)
    size = f"{len(vectors):,} x {vectors.shape[1]}"
    print(f"  {name} on {backend}: {size}, {len(asked):,} queries on {len(LADDER)} rungs", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    search, now = searching(name, vectors, cache, backend)
    _, truth = hnsw.exact_topk(asked, vectors, K, "cosine")
    recall = np.empty((len(asked), len(LADDER)), np.float32)
    cost = np.empty((len(asked), len(LADDER)))
    rng = np.random.default_rng(3)
    for block in range(0, len(asked), BLOCK):
        for rung in rng.permutation(len(LADDER)):
            for i in range(block, min(block + BLOCK, len(asked))):
                started = now()
                distances = search(asked[i], LADDER[rung])
                cost[i, rung] = (now() - started) / 1e3
                recall[i, rung] = np.count_nonzero(distances <= truth[i, -1] + TIE) / K
    np.savez(path, vectors=vectors, queries=asked, topic=topic, recall=recall, cost_us=cost)
    return Tables(name, vectors, asked, topic, recall, cost, backend)


def searching(
    name: str, vectors: F32, cache: Path, backend: Backend
) -> tuple[Callable[[F32, int], F32], Callable[[], int]]:
    """The distances that a query finds at an effort, (<= K,); and the clock that counts what it takes, in
    nanoseconds."""
    place = cache / f"planner-{name}.{backend}"
    if backend == "hnsw":
        graph = graph_of(vectors, place)
        return lambda query, effort: hnsw.knn(graph, query[None], K, effort)[1][0], time.thread_time_ns
    config = first_config(resolve(len(vectors), vectors.shape[1]))
    store = stored(vectors, place, config)
    return lambda query, effort: store.near(query, K, planned_effort(config, effort))[1], time.process_time_ns


def stored(vectors: F32, folder: Path, config: LanceConfig) -> LanceBackend:
    """From `folder` where it lies there."""
    place, schema = Place(str(folder)), schema_of(pa.schema([]), vectors.shape[1])
    try:
        return LanceBackend.load(place, "cosine", config.build.name)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
    lance_store.create(place, schema)
    rows = np.arange(len(vectors), dtype=np.int64)
    lance_store.append(place, schema, [batch_of(schema, rows, hnsw.normalise(vectors), {})])
    for _ in lance_store.build_index(place, "cosine", config.build, config.build.name):
        pass
    return LanceBackend.load(place, "cosine", config.build.name)


def graph_of(vectors: F32, path: Path | None = None) -> hnsw.Graph:
    """From `path` where it lies there."""
    if path is not None and path.exists():
        return hnsw.load(path, vectors.shape[1], "cosine")
    graph = finish(hnsw.build(vectors, np.arange(len(vectors), dtype=np.int64), "cosine", GRAPH))
    if path is not None:
        hnsw.save(graph, path)
    return graph
