"""The surface that the tuning benchmark plays on: every graph of a grid, built once, with recall
and cost measured at every ef_search of a ladder. Measurements are cached in a file, so that
thirty seeds of five tuners cost no build at all.

Cost is CPU time per query of one thread: wall time on a shared machine is mostly noise.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from schemas.config import GraphConfig

M_AXIS = (6, 10, 16, 24, 40)
EF_CONSTRUCTION_AXIS = (40, 100, 200)
EF_LADDER = tuple(sorted({round(11 * (400 / 11) ** (i / 47)) for i in range(48)}))
K = 10
QUERIES = 500


@dataclass(frozen=True)
class Surface:
    """g graphs × e ladder rungs × q queries."""

    name: str
    graphs: tuple[GraphConfig, ...]  # (g,)
    ef: NDArray[np.int64]  # (e,)
    recall: NDArray[np.float32]  # (g, e, q) recall@10 of each query
    cost_us: NDArray[np.float64]  # (g, e) CPU time per query
    build_s: NDArray[np.float64]  # (g,) CPU seconds

    def rung(self, ef: int) -> int:
        """The lowest rung of the ladder at or above ef."""
        return int(min(np.searchsorted(self.ef, ef), len(self.ef) - 1))


def clustered(n: int, d: int, seed: int = 7) -> NDArray[np.float32]:
    """(n, d) unit vectors: 50 clusters of uneven size, each spread over a subspace of its own
    with 64 dimensions, and a little noise in all of them."""
    rng = np.random.default_rng(seed)
    clusters, local = 50, 64
    centres = rng.normal(size=(clusters, d))
    bases = rng.normal(size=(clusters, local, d)) / np.sqrt(local)
    member = rng.choice(clusters, size=n, p=rng.dirichlet(np.full(clusters, 2.0)))
    vectors = np.empty((n, d), np.float32)
    for c in range(clusters):
        own = np.flatnonzero(member == c)
        spread = rng.normal(size=(len(own), local)) @ bases[c]
        vectors[own] = centres[c] * 0.25 + spread + 0.2 * rng.normal(size=(len(own), d))
    return hnsw.normalise(vectors)


def measure(name: str, vectors_of: Callable[[], NDArray[np.float32]], cache: Path, rounds: int = 3) -> Surface:
    """Builds and measures the grid, or loads it when it was measured before; `name` says of what."""
    path = cache / f"surface-{name}.npz"
    graphs = tuple(GraphConfig(m, efc) for m in M_AXIS for efc in EF_CONSTRUCTION_AXIS)
    ef = np.array(EF_LADDER)
    if path.exists():
        kept = np.load(path)
        return Surface(name, graphs, ef, kept["recall"], kept["cost_us"], kept["build_s"])
    vectors = vectors_of()
    print(f"  {name}: {len(vectors)} x {vectors.shape[1]}, building {len(graphs)} graphs", flush=True)
    rng = np.random.default_rng(1)
    rows = np.arange(len(vectors), dtype=np.int64)
    picked = np.sort(rng.choice(len(vectors), QUERIES, replace=False))
    queries = vectors[picked]
    truth, _ = hnsw.exact_topk(queries, vectors, K + 1, "cosine")
    truth = without(truth, picked)[:, :K]
    recall = np.zeros((len(graphs), len(ef), QUERIES), np.float32)
    cost = np.zeros((len(graphs), len(ef)))
    build_s = np.zeros(len(graphs))
    for g, config in enumerate(graphs):
        started = time.process_time()
        building = hnsw.build(vectors, rows, "cosine", config)
        graph = finish(building)
        build_s[g] = time.process_time() - started
        for e, value in enumerate(ef):
            recall[g, e], cost[g, e] = points(graph, queries, picked, truth, int(value), rounds)
        print(
            f"  M {config.M:2} ef_construction {config.ef_construction:3}: built in {build_s[g]:.1f} s CPU", flush=True
        )
    cache.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, recall=recall, cost_us=cost, build_s=build_s)
    return Surface(name, graphs, ef, recall, cost, build_s)


def finish(building: Generator[int, None, hnsw.Graph]) -> hnsw.Graph:
    """The value that a build returns."""
    while True:
        try:
            next(building)
        except StopIteration as stop:
            return stop.value


def without(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """(q, k) from (q, k + 1): each query's own row taken out, or the last when it isn't there."""
    mask = found != own[:, None]
    mask[mask.all(axis=1), -1] = False
    return found[mask].reshape(len(found), -1)


def points(
    graph: hnsw.Graph,
    queries: NDArray[np.float32],
    own: NDArray[np.int64],
    truth: NDArray[np.int64],
    ef: int,
    rounds: int,
) -> tuple[NDArray[np.float32], float]:
    """Recall of each query, and the least CPU time per query of `rounds` passes."""
    best = np.inf
    for _ in range(rounds):
        started = time.thread_time()
        found, _ = hnsw.knn(graph, queries, K + 1, ef)
        best = min(best, time.thread_time() - started)
    found = without(found, own)
    hits = (found[:, :, None] == truth[:, None, :]).any(axis=2).mean(axis=1)
    return hits.astype(np.float32), best / len(queries) * 1e6
