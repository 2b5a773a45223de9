"""Measuring one graph: recall and latency of every query at an ef, and two graphs against each
other. Queries run one at a time in one thread, as a searcher runs them; one pass gives both
recall and latency, so a point costs no more than its queries.

Not pure: it reads the clocks of the machine it runs on.
"""

import contextlib
import time
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.autotune import harness
from actors.autotune.bounds import Ratio, mean_lower_bound, median_ratio
from actors.autotune.harness import EvalSet
from schemas.names import Micros, Share

K = 10
PAIRS = 200
"""Queries that champion and challenger are compared on."""
ROUNDS = 3
"""Times each of them is asked on each side; the fastest counts, the others met a busy machine."""
NOT_FOUND = -2


@dataclass(frozen=True)
class Pass:
    """Every query asked once."""

    rows: NDArray[np.int64]  # (q, k + 1)
    distances: NDArray[np.float32]  # (q, k + 1)
    us: NDArray[np.float64]  # (q,) wall time
    cpu_us: float  # CPU time per query


class Point(msgspec.Struct, frozen=True):
    """A graph at an ef. Fields as in the journal."""

    ef_search: int
    recall: Share
    recall_ties: Share
    recall_lower: Share
    recall_worst_decile: Share
    p50_us: Micros
    p95_us: Micros
    p99_us: Micros
    cpu_us: Micros


def ask_all(graph: hnsw.Graph, queries: NDArray[np.float32], k: int, ef: int) -> Pass:
    """k + 1 neighbours of each query: one may be the query's own row."""
    q = len(queries)
    rows = np.full((q, k + 1), NOT_FOUND, np.int64)
    distances = np.full((q, k + 1), np.inf, np.float32)
    us = np.empty(q)
    graph.set_ef(max(ef, k + 1))
    cpu = time.thread_time_ns()
    for i in range(q):
        started = time.perf_counter_ns()
        try:
            found = graph.knn_query(queries[i], k=k + 1, num_threads=1)
        except RuntimeError:  # a graph in pieces finds fewer than k + 1: this query finds nothing
            found = None
        us[i] = (time.perf_counter_ns() - started) / 1e3
        if found is not None:
            rows[i], distances[i] = found[0][0], found[1][0]
    return Pass(rows, distances, us, (time.thread_time_ns() - cpu) / 1e3 / q)


def point(graph: hnsw.Graph, eval_set: EvalSet, ef: int, k: int = K) -> Point:
    """One row of the journal, as far as it can be measured."""
    asked = ask_all(graph, eval_set.queries, k, ef)
    scores = harness.score(asked.rows, asked.distances, eval_set, k)
    worst = np.sort(scores.recall)[: max(1, len(scores.recall) // 10)]
    p50, p95, p99 = np.percentile(asked.us, (50, 95, 99))
    return Point(
        ef_search=ef,
        recall=float(scores.recall.mean()),
        recall_ties=float(scores.recall_ties.mean()),
        recall_lower=mean_lower_bound(scores.recall),
        recall_worst_decile=float(worst.mean()),
        p50_us=float(p50),
        p95_us=float(p95),
        p99_us=float(p99),
        cpu_us=asked.cpu_us,
    )


def compare(
    challenger: tuple[hnsw.Graph, int],  # graph, ef
    champion: tuple[hnsw.Graph, int],
    queries: NDArray[np.float32],  # (q, d)
    k: int = K,
) -> Ratio:
    """Challenger's latency over champion's, query by query. The two take turns, and each goes
    first every other time: whatever slows the machine slows both."""
    sides = (challenger, champion)
    queries = queries[:PAIRS]
    best = np.full((2, len(queries)), np.inf)
    for turn in range(ROUNDS):
        for i, query in enumerate(queries):
            for side in (0, 1) if (turn + i) % 2 else (1, 0):
                graph, ef = sides[side]
                graph.set_ef(max(ef, k + 1))
                best[side, i] = min(best[side, i], _time(graph, query, k + 1))
    return median_ratio(best[0], best[1])


def warm_up(graph: hnsw.Graph, queries: NDArray[np.float32], ef: int, k: int = K) -> None:
    """Touches the graph's pages before anything is timed."""
    ask_all(graph, queries[:50], k, ef)


def _time(graph: hnsw.Graph, query: NDArray[np.float32], k: int) -> float:
    started = time.perf_counter_ns()
    with contextlib.suppress(RuntimeError):  # found fewer than k; it took the time it took
        graph.knn_query(query, k=k, num_threads=1)
    return float(time.perf_counter_ns() - started)
