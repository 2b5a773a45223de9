"""Measuring one build, of whatever backend: recall and latency of every query at an effort, and two
builds against each other. Queries run one at a time, as a searcher runs them; one pass gives both
recall and latency, so a point costs no more than its queries.

Not pure: it reads the clocks of the machine it runs on.
"""

import time
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.autotune import harness
from actors.autotune.bounds import Ratio, mean_lower_bound, median_ratio
from actors.autotune.harness import EvalSet
from actors.vector_backend import NOWHERE, VectorBackend
from schemas.config import Effort
from schemas.names import Micros, Share

K = 10
PAIRS = 200
"""Queries that champion and challenger are compared on."""
ROUNDS = 3
"""Times each of them is asked on each side; the fastest counts, the others met a busy machine."""
NOT_FOUND = -2
"""Pads what a query found; NOWHERE is the own row of a query that is no stored row."""


@dataclass(frozen=True)
class Pass:
    """Every query asked once."""

    rows: NDArray[np.int64]  # (q, k + 1)
    distances: NDArray[np.float32]  # (q, k + 1)
    us: NDArray[np.float64]  # (q,) wall time
    cpu_us: float  # CPU time per query, of every thread: Lance searches in threads of its own


class Point(msgspec.Struct, frozen=True):
    """A build at an effort. Fields as in the journal."""

    effort: Effort
    recall: Share
    recall_ties: Share
    recall_lower: Share
    recall_worst_decile: Share
    p50_us: Micros
    p95_us: Micros
    p99_us: Micros
    cpu_us: Micros


def ask_all(backend: VectorBackend, queries: NDArray[np.float32], k: int, effort: Effort) -> Pass:
    """k + 1 neighbours of each query: one may be the query's own row."""
    q = len(queries)
    rows = np.empty((q, k + 1), np.int64)
    distances = np.empty((q, k + 1), np.float32)
    us = np.empty(q)
    cpu = time.process_time_ns()
    for i in range(q):
        started = time.perf_counter_ns()
        found = backend.search(queries[i : i + 1], k + 1, effort)
        us[i] = (time.perf_counter_ns() - started) / 1e3
        rows[i], distances[i] = found[0][0], found[1][0]
    rows[rows == NOWHERE] = NOT_FOUND
    return Pass(rows, distances, us, (time.process_time_ns() - cpu) / 1e3 / q)


def point(backend: VectorBackend, eval_set: EvalSet, effort: Effort, k: int = K) -> Point:
    """One row of the journal, as far as it can be measured."""
    asked = ask_all(backend, eval_set.queries, k, effort)
    scores = harness.score(asked.rows, asked.distances, eval_set, k)
    worst = np.sort(scores.recall)[: max(1, len(scores.recall) // 10)]
    p50, p95, p99 = np.percentile(asked.us, (50, 95, 99))
    return Point(
        effort=effort,
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
    challenger: tuple[VectorBackend, Effort],
    champion: tuple[VectorBackend, Effort],  # another backend's, perhaps
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
                backend, effort = sides[side]
                started = time.perf_counter_ns()
                backend.search(query[None], k + 1, effort)
                best[side, i] = min(best[side, i], time.perf_counter_ns() - started)
    return median_ratio(best[0], best[1])


def warm_up(backend: VectorBackend, queries: NDArray[np.float32], effort: Effort, k: int = K) -> None:
    """Touches the build's pages before anything is timed."""
    ask_all(backend, queries[:50], k, effort)
