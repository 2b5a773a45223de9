"""The planner's numeric cores against oracles: finite differences, brute force, other orders of the same input."""

import itertools

import numpy as np
import pytest

from actors.planner import core_ewc, core_lora
from actors.planner.core_boundary import shift, watched
from actors.planner.core_embedding import OPERATORS, PlanEmbedding, decade_of
from actors.planner.core_kmeans import kmeans, plus_plus
from actors.planner.core_lora import Lora, quantile_loss, quantile_slope
from actors.planner.core_patterns import Bank, confidence_of, consolidated, evicted, upserted
from actors.planner.core_ring import UNKNOWN, Ring, quality_of

H = 16


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [3, 256, 257, 384, 768])
def test_a_plan_is_a_unit_vector_and_the_same_under_a_seed(dim):
    query = np.random.default_rng(0).standard_normal(dim).astype(np.float32)
    one, other = (PlanEmbedding(dim, 256, 42).embed(query, ("graph", "fetch"), 10, 1.0) for _ in range(2))
    assert one.shape == (256,)
    assert one.dtype == np.float32
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(one, PlanEmbedding(dim, 256, 43).embed(query, ("graph", "fetch"), 10, 1.0))


def test_the_projection_is_linear_and_keeps_inner_products():
    rng = np.random.default_rng(1)
    small = PlanEmbedding(100, 256, 0)
    a, b = rng.standard_normal((2, 100)).astype(np.float32)
    np.testing.assert_allclose(small.project(a) @ small.project(b), a @ b, rtol=1e-4)  # exactly: d <= h
    np.testing.assert_allclose(small.project(a + 2 * b), small.project(a) + 2 * small.project(b), rtol=1e-4)
    wide = PlanEmbedding(768, 256, 0)
    pairs = unit(rng, 500, 2, 768)
    errors = [wide.project(x) @ wide.project(y) - x @ y for x, y in pairs]
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 1.5 / np.sqrt(256)


def test_operators_weigh_by_their_place_and_filters_by_their_decade():
    embedding = PlanEmbedding(32, 256, 0)
    nothing = np.zeros(32, np.float32)
    one = embedding.embed(nothing, ("graph",), 1, 1.0)
    first, second = embedding._units[OPERATORS.index("graph")], embedding._units[OPERATORS.index("fetch")]
    both = embedding.embed(nothing, ("graph", "fetch"), 1, 1.0)
    np.testing.assert_allclose(one, first, atol=1e-5)
    wanted = first + second / 2
    np.testing.assert_allclose(both, wanted / np.linalg.norm(wanted), atol=1e-5)
    assert not np.allclose(both, embedding.embed(nothing, ("graph", "fetch"), 100, 1.0))
    assert not np.allclose(both, embedding.embed(nothing, ("graph", "fetch"), 1, 0.001))
    assert [decade_of(s) for s in (1.0, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0001, 1e-9, 0.0)] == [0, 0, 1, 1, 2, 3, 4, 4, 4]


# --- the ring ------------------------------------------------------------------------------------


def test_the_ring_keeps_the_newest_and_counts_the_rest():
    ring = Ring(5, 2)
    us = np.zeros(len(OPERATORS), np.float32)
    for i in range(8):
        assert ring.add(np.full(2, i, np.float32), us, i, 100.0, 0.1, 1.0, UNKNOWN, 0.5) == i
    assert (ring.seen, ring.dropped, ring.size) == (8, 3, 5)
    assert ring.look().effort.tolist() == [3, 4, 5, 6, 7]
    assert ring.look(2).effort.tolist() == [6, 7]
    assert ring.look(20).effort.tolist() == [3, 4, 5, 6, 7]
    assert ring.grade(5, 0.8, 0.95)
    assert not ring.grade(2, 0.8, 0.95)
    assert not ring.grade(8, 1.0, 0.95)
    taken = ring.look()
    ring.forget(ring.seen)
    assert taken.quality.tolist()[2] == 0
    assert taken.recall[2] == np.float32(0.8)
    assert (ring.seen, ring.dropped, ring.size) == (8, 3, 0)
    ring.add(np.zeros(2, np.float32), us, 9, 100.0, 0.1, 1.0, UNKNOWN, 0.5)
    assert ring.look().effort.tolist() == [9]


def test_quality():
    assert quality_of(0, 0, 1, 1.0, 0.95) == 1.0
    assert quality_of(1000, 1, 0, float("nan"), 0.95) == pytest.approx(0.25 + 0.15)
    assert quality_of(0, 0, 1, 0.9, 0.95) == 0.0


# --- adapters ------------------------------------------------------------------------------------


def test_gradients_of_both_factors_are_those_of_finite_differences():
    rng = np.random.default_rng(2)
    r = 3
    lora = Lora(rng.standard_normal((r, H)), rng.standard_normal((r, H)))  # float64: differences are of 1e-6
    x, v, wanted = rng.standard_normal(H), rng.standard_normal(H), 30.0

    def loss(flat: np.ndarray) -> float:
        down, up = flat.reshape(2, r, H)
        y = v @ (x + (x @ down.T) @ up / np.sqrt(r))
        return quantile_loss(np.array([y]), np.array([wanted]), 0.75)

    flat = np.concatenate([lora.down.ravel(), lora.up.ravel()])
    numeric = [(loss(flat + e) - loss(flat - e)) / 2e-6 for e in np.eye(2 * r * H) * 1e-6]
    y = v @ (x + (x @ lora.down.T) @ lora.up / np.sqrt(r))
    slope = quantile_slope(np.array([y]), np.array([wanted]), 0.75)[0]
    made = lora.gradients(x, slope * v)
    np.testing.assert_allclose(np.concatenate([made.down.ravel(), made.up.ravel()]), numeric, rtol=1e-3, atol=1e-5)


def test_gradients_of_a_batch_are_the_mean_of_single_ones():
    rng = np.random.default_rng(3)
    lora = core_lora.micro(H, 2, rng)
    x, v, slopes = unit(rng, 7, H), rng.standard_normal(H).astype(np.float32), rng.standard_normal(7)
    single = [lora.gradients(row, np.float32(slope) * v) for row, slope in zip(x, slopes, strict=True)]
    batch = lora.batch_gradients(x, slopes, v)
    np.testing.assert_allclose(batch.down, np.mean([one.down for one in single], axis=0), atol=1e-6)
    np.testing.assert_allclose(batch.up, np.mean([one.up for one in single], axis=0), atol=1e-6)
    np.testing.assert_allclose(core_lora.of_flat(lora.flat(), 2).up, lora.up)


def test_an_untrained_base_changes_nothing_and_both_factors_of_micro_learn():
    rng = np.random.default_rng(4)
    x = unit(rng, H)
    assert not core_lora.base(H, 8, rng).delta(x).any()
    made = core_lora.micro(H, 2, rng).gradients(x, np.ones(H, np.float32))
    assert np.abs(made.down).max() > 0
    assert np.abs(made.up).max() > 0


def test_the_quantile_loss_has_its_minimum_at_the_quantile_and_rather_overshoots():
    values = np.random.default_rng(5).exponential(size=2001)
    candidates = np.linspace(0, 5, 501)
    best = candidates[np.argmin([quantile_loss(np.full(2001, c), values, 0.75) for c in candidates])]
    assert best == pytest.approx(np.quantile(values, 0.75), abs=0.02)
    assert quantile_loss(np.array([1.0]), np.array([2.0]), 0.75) > quantile_loss(np.array([2.0]), np.array([1.0]), 0.75)
    np.testing.assert_allclose(quantile_slope(np.array([1, 2, 3]), np.array([2, 2, 2]), 0.75), [-0.75, 0, 0.25])


# --- what isn't forgotten ------------------------------------------------------------------------


def test_the_fisher_diagonal_is_the_moving_mean_of_squared_per_sample_gradients():
    rng = np.random.default_rng(6)
    gradients = rng.standard_normal((50, 4)).astype(np.float32)
    wanted = np.zeros(4)
    for g in gradients:
        wanted = 0.999 * wanted + 0.001 * g.astype(np.float64) ** 2
    memory = core_ewc.Memory.empty(4, 2000).observed(gradients[:20]).observed(gradients[20:])
    np.testing.assert_allclose(memory.fisher, wanted, rtol=1e-5)
    assert memory.fisher.max() > 10 * ((0.001 * gradients.mean(axis=0) ** 2) * 50).max()  # of a batch's mean: far less


def test_the_penalty_pulls_towards_what_was_learnt_and_ten_tasks_are_remembered():
    rng = np.random.default_rng(7)
    memory = core_ewc.Memory.empty(5, 300)
    for _ in range(12):
        memory = memory.observed(rng.standard_normal((30, 5)).astype(np.float32))
        memory = memory.consolidated(rng.standard_normal(5).astype(np.float32))
    assert len(memory.tasks) == core_ewc.MAX_TASKS
    assert not memory.fisher.any()
    at = rng.standard_normal(5)

    def penalty(parameters: np.ndarray) -> float:
        return 0.5 * memory.strength * sum(float(t.fisher @ (parameters - t.optimum) ** 2) for t in memory.tasks)

    numeric = [(penalty(at + e) - penalty(at - e)) / 2e-5 for e in np.eye(5) * 1e-5]
    np.testing.assert_allclose(memory.gradient(at.astype(np.float32)), numeric, rtol=1e-3)
    step, before = memory.limit(1.0), penalty(at)
    assert penalty(at - step * memory.gradient(at.astype(np.float32))) < before  # no step diverges


def test_the_strength_follows_forgetting_within_its_bounds():
    memory = core_ewc.Memory.empty(1, 2000)
    assert memory.adapted(1.0, 2.0, 15_000).strength == 4000
    assert memory.adapted(1.0, 1.0, 15_000).strength == 1800
    for _ in range(50):
        memory = memory.adapted(1.0, 2.0, 15_000)
    assert memory.strength == 15_000
    for _ in range(100):
        memory = memory.adapted(1.0, 1.0, 15_000)
    assert memory.strength == 100


# --- clusters ------------------------------------------------------------------------------------


def test_clusters_of_tiny_data_are_those_of_brute_force():
    rng = np.random.default_rng(8)
    for _ in range(10):
        points = rng.standard_normal((8, 2)).astype(np.float32)
        best = min(
            sum(
                ((points[np.array(labels) == c] - points[np.array(labels) == c].mean(axis=0)) ** 2).sum()
                for c in set(labels)
            )
            for labels in itertools.product(range(2), repeat=8)
        )
        found = min(kmeans(points, 2, np.random.default_rng(seed)).inertia for seed in range(20))
        assert found == pytest.approx(best, rel=1e-4)


def test_no_cluster_is_empty_and_a_seed_gives_the_same_ones():
    rng = np.random.default_rng(9)
    points = np.concatenate([np.zeros((50, 3)), rng.standard_normal((6, 3)) * 5]).astype(np.float32)
    for seed in range(20):
        found = kmeans(points, 7, np.random.default_rng(seed))
        assert set(found.labels.tolist()) == set(range(7))
    again = kmeans(points, 7, np.random.default_rng(19))
    np.testing.assert_array_equal(found.centroids, again.centroids)
    assert len(kmeans(points[:2], 5, rng).centroids) == 2  # no more than points
    assert len(plus_plus(np.zeros((4, 2), np.float32), 3, rng)) == 3
    cloud = rng.standard_normal((300, 3)).astype(np.float32)
    steps = [kmeans(cloud, 7, np.random.default_rng(19), 100, tolerance).iterations for tolerance in (1e9, 0.1, 0.0)]
    assert steps[0] == 1 < steps[1] < steps[2] < 100
    with pytest.raises(ValueError, match="clusters"):
        kmeans(points[:0], 1, rng)


# --- patterns ------------------------------------------------------------------------------------


def bank_of(rng: np.random.Generator, m: int, near: float = 0.1, kinds: int = 3) -> Bank:
    """m patterns around some kinds."""
    centres = unit(rng, kinds, H)
    centroids = centres[rng.integers(0, kinds, m)] + near * rng.standard_normal((m, H)).astype(np.float32) / np.sqrt(H)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    numbers = rng.uniform(0.1, 1, (6, m))
    return Bank(
        centroids, *(row.astype(np.float32) for row in numbers[:2] * [[9], [1]]), numbers[2] * 100, numbers[3] * 9,
        *(row.astype(np.float32) for row in numbers[4:]),
    )  # fmt: skip


def test_consolidation_does_not_depend_on_the_order():
    rng = np.random.default_rng(10)
    for near in (0.1, 0.4, 0.8):
        bank = bank_of(rng, 5, near)
        made = consolidated(bank, 0.95)
        for order in itertools.permutations(range(5)):
            other = consolidated(bank.pick(list(order)), 0.95)
            for one, two in zip(made, other, strict=True):
                np.testing.assert_array_equal(one, two)
        similar = made.centroids @ made.centroids.T - 2 * np.eye(made.size)
        assert similar.max() <= 0.95
        assert made.weight.sum() == pytest.approx(bank.weight.sum())


def test_what_is_merged_is_merged_by_weight():
    rng = np.random.default_rng(11)
    bank = bank_of(rng, 2, 0.01, kinds=1)
    (effort,) = consolidated(bank, 0.95).effort
    assert effort == pytest.approx(np.average(bank.effort, weights=bank.weight), rel=1e-5)
    (confidence,) = consolidated(bank, 0.95).confidence
    assert confidence == pytest.approx(np.average(bank.confidence, weights=bank.weight), rel=1e-5)


def test_a_new_pattern_joins_the_nearest_or_is_added():
    rng = np.random.default_rng(12)
    bank = bank_of(rng, 1, kinds=1)
    same, other = bank._replace(weight=bank.weight * 3), bank_of(rng, 1, kinds=1)
    after = upserted(bank, same.with_all(other), 0.95)
    assert after.size == 2
    assert after.weight[0] == pytest.approx(4 * bank.weight[0])
    assert upserted(Bank.empty(H), other, 0.95).size == 1
    assert upserted(bank, Bank.empty(H), 0.95).size == 1


def test_what_is_evicted_is_the_least_confident_and_is_found_no_more():
    rng = np.random.default_rng(13)
    bank = bank_of(rng, 10, 2.0)
    kept = evicted(bank, 6)
    gone = np.argsort(bank.confidence)[:4]
    assert kept.size == 6
    assert set(kept.confidence) == set(np.sort(bank.confidence)[4:])
    for place in gone:  # nothing as near as itself is left
        assert (kept.centroids @ bank.centroids[place]).max() < 0.999
    assert evicted(bank, 10) is bank


def test_confidence():
    assert confidence_of(np.full(9, 0.7, np.float32)) == pytest.approx(0.9)
    assert confidence_of(np.array([0, 1], np.float32)) == pytest.approx(0.5 * 2 / 3)
    assert confidence_of(np.empty(0, np.float32)) == 0


# --- shifts --------------------------------------------------------------------------------------


def test_the_same_queries_seldom_shift_and_others_do():
    rng = np.random.default_rng(14)
    heavy = rng.standard_t(3, (40, 2, 120, 4)).astype(np.float32)  # no normal distribution
    false = [shift(a, b, 2.0, np.random.default_rng(i)).shifted for i, (a, b) in enumerate(heavy)]
    assert np.mean(false) <= 0.1
    moved = [shift(a, b + 0.7, 2.0, np.random.default_rng(i)).shifted for i, (a, b) in enumerate(heavy)]
    assert np.mean(moved) >= 0.9
    assert shift(heavy[0, 0][:49], heavy[0, 1], 2.0, rng) is None


@pytest.mark.slow
def test_who_watches_all_the_time_seldom_cries_wolf():
    """Three hours of sixty queries a minute that don't change, and some that do."""
    rng = np.random.default_rng(15)
    queries = unit(rng, 180 * 60, H)
    reference, minutes = queries[:1000], queries.reshape(180, 60, H)
    cries = [
        minute
        for minute in range(17, 180)
        if watched(reference, minutes[minute - 1], minutes[minute], 2.0, np.random.default_rng(minute))
    ]
    assert cries == []
    moved = minutes[5:7] + np.float32(0.5) * unit(rng, H)
    assert watched(reference, *moved, 2.0, rng)
    assert not watched(reference, minutes[20], moved[1], 2.0, rng)  # one window alone tells nothing
