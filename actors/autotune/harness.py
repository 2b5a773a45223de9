"""Eval sets: queries, their exact nearest rows, and recall scored against them.

Ground truth is kept deeper than it is scored (KEPT neighbours), as an exact prefix of each
query's ranking by (distance, row). Appended rows are merged into it and deleted ones dropped;
only a query whose prefix became too short is searched again. Row numbers only ever grow, so
rows above `last_row` are the new ones.

Notation: n rows, q queries, d dimensions, k scored neighbours.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from schemas.names import Metric

KEPT = 64
"""Neighbours kept per query."""
TIE = 1e-6
"""Rounding between a graph's float32 distance and ours: rows this close to the k-th are tied with it."""
ANN_BENCHMARKS_TIE = 1e-3
"""The absolute slack of ann-benchmarks' recall."""

NOWHERE = -1  # pads truth rows; the own row of a query that is no stored row


@dataclass(frozen=True)
class EvalSet:
    query_rows: NDArray[np.int64]  # (q,) the stored row a query was taken from: no neighbour of itself
    queries: NDArray[np.float32]  # (q, d)
    truth_rows: NDArray[np.int64]  # (q, KEPT) by (distance, row); NOWHERE after the end of the prefix
    truth_distances: NDArray[np.float32]  # (q, KEPT); inf after the end
    rows: int  # rows that the truth covers
    last_row: int  # the highest of their numbers

    @property
    def depth(self) -> int:
        """The shortest prefix."""
        return int((self.truth_rows != NOWHERE).sum(axis=1).min())


@dataclass(frozen=True)
class Scores:
    """Per query. See `score`."""

    recall: NDArray[np.float64]  # (q,)
    recall_ties: NDArray[np.float64]  # (q,)


def sample(rows: NDArray[np.int64], queries: int, seed: int) -> NDArray[np.int64]:
    """(<= queries,) positions of rows to ask with, ascending, none twice."""
    return np.sort(np.random.default_rng(seed).choice(len(rows), min(queries, len(rows)), replace=False))


def create(
    queries: NDArray[np.float32],  # (q, d)
    query_rows: NDArray[np.int64],  # (q,)
    rows: NDArray[np.int64],  # (n,) ascending
    vectors: NDArray[np.float32],  # (n, d)
    metric: Metric,
    kept: int = KEPT,
) -> EvalSet:
    """An eval set with exact truth over all rows. Raises ValueError without queries or rows."""
    if len(queries) == 0 or len(rows) == 0:
        raise ValueError(f"an eval set of {len(queries)} queries over {len(rows)} rows says nothing")
    truth_rows, truth_distances = _exact(queries, query_rows, rows, vectors, metric, kept)
    return EvalSet(query_rows, queries, truth_rows, truth_distances, len(rows), int(rows[-1]))


def bring_up(
    eval_set: EvalSet,
    rows: NDArray[np.int64],  # (n,) ascending
    vectors: NDArray[np.float32],  # (n, d)
    metric: Metric,
    k: int = 10,
) -> EvalSet:
    """The eval set with truth over today's rows: what `create` would give, up to the depth that
    is left, which is k at least where there are k rows. A query whose own row was deleted stays:
    it is a vector to ask with like any other."""
    kept = eval_set.truth_rows.shape[1]
    first_new = int(np.searchsorted(rows, eval_set.last_row, side="right"))
    old_rows = eval_set.truth_rows
    alive = (old_rows != NOWHERE) & np.isin(old_rows, rows[:first_new])
    own = np.isin(eval_set.query_rows, rows).astype(np.int64)  # (q,) 1 where the own row is stored
    complete = (old_rows != NOWHERE).sum(axis=1) >= eval_set.rows - own  # holds every row there was
    old = np.where(alive, eval_set.truth_distances, np.inf)
    fresh_rows, fresh = _exact(
        eval_set.queries, eval_set.query_rows, rows[first_new:], vectors[first_new:], metric, kept
    )
    # Beyond the last row of a prefix lie old rows that it doesn't name: a new row counts only before it.
    last = np.where(alive, eval_set.truth_distances, -np.inf).max(axis=1, keepdims=True)  # (q, 1)
    beyond = (fresh >= last) & ~complete[:, None]  # at equal distance the lower, older row comes first
    fresh = np.where(beyond, np.inf, fresh)
    truth_rows, truth = _merge(
        np.concatenate([np.where(alive, old_rows, NOWHERE), np.where(beyond, NOWHERE, fresh_rows)], axis=1),
        np.concatenate([old, fresh], axis=1),
        kept,
    )
    need = np.minimum(k, len(rows) - own)
    short = np.flatnonzero((truth_rows != NOWHERE).sum(axis=1) < need)
    if len(short):
        truth_rows[short], truth[short] = _exact(
            eval_set.queries[short], eval_set.query_rows[short], rows, vectors, metric, kept
        )
    last_row = max(eval_set.last_row, int(rows[-1]) if len(rows) else NOWHERE)
    return replace(eval_set, truth_rows=truth_rows, truth_distances=truth, rows=len(rows), last_row=last_row)


def score(
    found_rows: NDArray[np.int64],  # (q, k + 1)
    found_distances: NDArray[np.float32],  # (q, k + 1) ascending
    eval_set: EvalSet,
    k: int = 10,
) -> Scores:
    """Recall@k of each query, its own row left out of what was found.

    recall       by ids: the share of the true k that was found. Where other rows are as far as
                 the k-th (duplicates), the true k aren't unique: any of them counts.
    recall_ties  as ann-benchmarks counts: found distances <= d_k + 1e-3, absolute.
    """
    k = min(k, eval_set.depth)
    own = found_rows == eval_set.query_rows[:, None]
    own[~own.any(axis=1), -1] = True  # not among them: drop the farthest
    rows = found_rows[~own].reshape(len(found_rows), -1)[:, :k]
    distances = found_distances[~own].reshape(len(found_rows), -1)[:, :k]
    kth = eval_set.truth_distances[:, k - 1 : k].astype(np.float64)  # (q, 1)
    named = (rows[:, :, None] == eval_set.truth_rows[:, None, :k]).any(axis=2)
    tied = distances <= kth + TIE * np.maximum(1.0, np.abs(kth))
    by_ties = (distances <= kth + ANN_BENCHMARKS_TIE).sum(axis=1)
    return Scores((named | tied).sum(axis=1) / k, by_ties / k)


def dump(eval_set: EvalSet) -> bytes:
    """As .npz."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        query_rows=eval_set.query_rows,
        queries=eval_set.queries,
        truth_rows=eval_set.truth_rows,
        truth_distances=eval_set.truth_distances,
        covers=np.array([eval_set.rows, eval_set.last_row]),
    )
    return buffer.getvalue()


def parse(data: bytes) -> EvalSet:
    """What `dump` wrote. Raises ValueError, KeyError for anything else."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        covers = arrays["covers"]
        return EvalSet(
            arrays["query_rows"],
            arrays["queries"],
            arrays["truth_rows"],
            arrays["truth_distances"],
            int(covers[0]),
            int(covers[1]),
        )


def _exact(
    queries: NDArray[np.float32],
    query_rows: NDArray[np.int64],
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    metric: Metric,
    kept: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(q, kept) rows and distances, padded, each query's own row left out."""
    positions, distances = hnsw.exact_topk(queries, vectors, kept + 1, metric)
    found = rows[positions] if len(rows) else positions
    own = found == query_rows[:, None]
    return _merge(np.where(own, NOWHERE, found), np.where(own, np.float32(np.inf), distances), kept)


def _merge(
    rows: NDArray[np.int64], distances: NDArray[np.float32], kept: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first `kept` by (distance, row), padded to that width."""
    order = np.lexsort((rows, distances), axis=1)[:, :kept]
    rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
    missing = ((0, 0), (0, kept - rows.shape[1]))
    return (
        np.pad(rows, missing, constant_values=NOWHERE),
        np.pad(distances, missing, constant_values=np.inf).astype(np.float32),
    )
