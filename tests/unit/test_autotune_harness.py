"""Ground truth that is merged must be ground truth that was recomputed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import hnsw
from actors.autotune import harness
from actors.autotune.harness import NOWHERE, EvalSet

METRICS = ("l2", "ip", "cosine")


def vectors_of(seed: int, n: int, d: int, metric: str, levels: int = 4) -> np.ndarray:
    """Few distinct values: plenty of duplicates and ties. Of unit length where the metric says so."""
    vectors = np.random.default_rng(seed).integers(-levels, levels + 1, (n, d)).astype(np.float32)
    return hnsw.normalise(vectors) if metric == "cosine" else vectors


def assert_prefix(merged: EvalSet, fresh: EvalSet, at_least: int) -> None:
    """Every query's kept truth is the beginning of the recomputed one, and long enough."""
    for q in range(len(merged.queries)):
        length = int((merged.truth_rows[q] != NOWHERE).sum())
        others = int((fresh.truth_rows[q] != NOWHERE).sum())
        assert length >= min(at_least, others)
        np.testing.assert_array_equal(merged.truth_rows[q, :length], fresh.truth_rows[q, :length])
        np.testing.assert_array_equal(merged.truth_distances[q, :length], fresh.truth_distances[q, :length])
        assert (merged.truth_rows[q, length:] == NOWHERE).all()
        assert np.isinf(merged.truth_distances[q, length:]).all()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(METRICS),
    start=st.integers(2, 60),
    kept=st.integers(4, 24),
    steps=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.9)), min_size=1, max_size=5),
)
def test_merging_equals_recomputing(
    seed: int, metric: str, start: int, kept: int, steps: list[tuple[int, float]]
) -> None:
    rng = np.random.default_rng(seed)
    k, d = 3, 3
    total = start + sum(added for added, _ in steps)
    everything = vectors_of(seed, total, d, metric)
    numbers = np.cumsum(rng.integers(1, 4, total))  # rows have gaps, as after deletes
    live = np.arange(start)
    picked = harness.sample(numbers[live], 5, seed)
    queries, own = everything[picked].copy(), numbers[picked].copy()
    own[0] = NOWHERE  # one query that is no stored row
    merged = harness.create(queries, own, numbers[live], everything[live], metric, kept)
    end = start
    for added, share_deleted in steps:
        live = np.concatenate([live[rng.random(len(live)) >= share_deleted], np.arange(end, end + added)])
        end += added
        if len(live) == 0:
            return
        merged = harness.bring_up(merged, numbers[live], everything[live], metric, k)
        fresh = harness.create(queries, own, numbers[live], everything[live], metric, kept)
        assert merged.rows == len(live)
        assert_prefix(merged, fresh, k)


def test_an_append_alone_keeps_the_whole_depth_near_the_queries() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    rows = np.arange(500)
    start = harness.create(vectors[:10], rows[:10], rows[:400], vectors[:400], "l2")
    merged = harness.bring_up(start, rows, vectors, "l2")
    assert merged.depth == harness.KEPT
    assert_prefix(merged, harness.create(vectors[:10], rows[:10], rows, vectors, "l2"), harness.KEPT)


def test_only_queries_that_lost_their_neighbours_are_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    vectors, rows = rng.normal(size=(400, 4)).astype(np.float32), np.arange(400)
    queries = np.stack([vectors[0], vectors[0] + 100])
    eval_set = harness.create(queries, np.array([0, NOWHERE]), rows, vectors, "l2", kept=12)
    gone = eval_set.truth_rows[1]  # all that is known of the second query
    alive = np.setdiff1d(rows, gone[~np.isin(gone, eval_set.truth_rows[0])])
    asked: list[int] = []
    exact = hnsw.exact_topk
    monkeypatch.setattr(hnsw, "exact_topk", lambda q, v, k, m: asked.append(len(q) * len(v)) or exact(q, v, k, m))
    merged = harness.bring_up(eval_set, alive, vectors[alive], "l2")
    assert asked == [0, len(alive)]  # no new rows for two queries; then one query over all rows
    assert_prefix(merged, harness.create(queries, eval_set.query_rows, alive, vectors[alive], "l2", 12), 10)


def test_a_query_is_no_neighbour_of_itself_but_its_duplicate_is() -> None:
    vectors = np.array([[0, 0], [0, 0], [1, 0], [5, 5]], np.float32)
    eval_set = harness.create(vectors[:1], np.array([10]), np.array([10, 11, 12, 13]), vectors, "l2", kept=3)
    assert eval_set.truth_rows.tolist() == [[11, 12, 13]]


def test_recall_counts_any_row_as_far_as_the_kth() -> None:
    # truth at k = 2: row 1 at 0, then rows 2, 3, 4 all at 1.
    vectors = np.array([[0], [0], [1], [1], [1], [2]], np.float32)
    rows = np.arange(6)
    eval_set = harness.create(vectors[:1], np.array([0]), rows, vectors, "l2", kept=5)
    found = np.array([[0, 1, 4]])  # itself, the duplicate, another of the tied
    assert harness.score(found, np.array([[0, 0, 1]], np.float32), eval_set, 2).recall.tolist() == [1.0]
    worse = harness.score(np.array([[0, 1, 5]]), np.array([[0, 0, 4]], np.float32), eval_set, 2)
    assert worse.recall.tolist() == [0.5]


def test_recall_by_ties_is_ann_benchmarks() -> None:
    vectors = np.array([[0.0], [1.0], [1.0004], [1.1]], np.float32)
    eval_set = harness.create(vectors[:1], np.array([0]), np.arange(4), vectors, "l2", kept=3)
    found = harness.score(np.array([[0, 2]]), np.array([[0, 1.0004**2]], np.float32), eval_set, 1)
    assert (found.recall[0], found.recall_ties[0]) == (0.0, 1.0)  # d_k + 1e-3 is passed, an id is not


def test_a_query_whose_own_row_the_graph_missed_loses_its_farthest() -> None:
    vectors = np.arange(6, dtype=np.float32)[:, None]
    eval_set = harness.create(vectors[:1], np.array([0]), np.arange(6), vectors, "l2")
    found = harness.score(np.array([[1, 2, 3]]), np.array([[1, 4, 9]], np.float32), eval_set, 2)
    assert found.recall.tolist() == [1.0]


def test_dump_and_parse() -> None:
    vectors = vectors_of(3, 50, 4, "l2")
    eval_set = harness.create(vectors[:7], np.arange(7), np.arange(50), vectors, "l2")
    again = harness.parse(harness.dump(eval_set))
    assert (again.rows, again.last_row) == (50, 49)
    for name in ("query_rows", "queries", "truth_rows", "truth_distances"):
        np.testing.assert_array_equal(getattr(again, name), getattr(eval_set, name))


def test_no_eval_set_without_rows_or_queries() -> None:
    with pytest.raises(ValueError, match="0 queries"):
        harness.create(np.empty((0, 2), np.float32), np.empty(0, int), np.arange(3), np.zeros((3, 2), np.float32), "l2")
