"""Bounds have to bound: coverage by simulation, and the cases with a closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from actors.autotune.bounds import mean_lower_bound, median_ratio, sign_test_rank

Draw = Callable[[np.random.Generator, int], np.ndarray]

# Recalls as indexes have them: a share of perfect queries and a bad tail. Mean, sampler.
SHAPES: dict[str, tuple[float, Draw]] = {
    "few queries that find nothing": (0.98, lambda rng, n: (rng.random(n) >= 0.02).astype(float)),
    "a hit in ten missed here and there": (0.95, lambda rng, n: rng.binomial(10, 0.95, n) / 10),
    "bimodal": (
        0.9 * 0.99 + 0.1 * 0.5,
        lambda rng, n: np.where(rng.random(n) < 0.9, rng.binomial(10, 0.99, n), rng.binomial(10, 0.5, n)) / 10,
    ),
    "nearly perfect": (0.997, lambda rng, n: np.where(rng.random(n) < 0.01, 0.7, 1.0)),
    "even": (0.5, lambda rng, n: rng.integers(0, 11, n) / 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("n", [20, 100, 500])
def test_lower_bound_covers(name: str, n: int) -> None:
    mean, draw = SHAPES[name]
    rng = np.random.default_rng(n)
    runs = 200
    covered = sum(mean_lower_bound(draw(rng, n)) <= mean for _ in range(runs))
    # 95 % asked; a standard error of 200 runs is 0.015
    assert covered / runs >= 0.94


def test_lower_bound_is_tight_enough_to_be_useful() -> None:
    """Within two fifths of the normal approximation's width where that one is right."""
    values = np.random.default_rng(5).binomial(10, 0.9, 500) / 10
    normal = 1.645 * values.std(ddof=1) / math.sqrt(500)
    assert values.mean() - mean_lower_bound(values) < 1.4 * normal


@pytest.mark.parametrize("n", [10, 100, 500])
def test_all_perfect_is_clopper_pearson(n: int) -> None:
    """0/1 values without a failure: the bound is 0.05 ** (1/n)."""
    assert mean_lower_bound(np.ones(n)) == pytest.approx(0.05 ** (1 / n), abs=0.003)


def test_all_zero_bounds_nothing() -> None:
    assert mean_lower_bound(np.zeros(50)) == 0.0


def test_bound_is_a_function_of_the_values() -> None:
    values = np.random.default_rng(2).integers(0, 11, 200) / 10
    assert mean_lower_bound(values) == mean_lower_bound(values[::-1].copy())


def test_bound_refuses_what_is_no_recall() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        mean_lower_bound(np.array([0.5, 1.2]))
    with pytest.raises(ValueError, match="at least one"):
        mean_lower_bound(np.array([]))


def test_sign_test_rank_against_the_binomial_itself() -> None:
    for n in (5, 6, 20, 101):
        rank = sign_test_rank(n, 0.025)
        below = [sum(math.comb(n, i) for i in range(r)) / 2**n for r in range(n)]
        assert rank == max(r for r in range(n) if below[r] <= 0.025)


def test_ratio_interval_covers_under_heavy_tails() -> None:
    rng = np.random.default_rng(9)
    runs, covered = 500, 0
    for _ in range(runs):
        base = rng.lognormal(4, 1, 101)  # µs of the query, the same for both
        ratio = median_ratio(base * 0.9 * np.exp(rng.standard_t(2, 101) * 0.05), base)
        covered += ratio.low <= 0.9 <= ratio.high
    assert covered / runs >= 0.94


def test_too_few_pairs_say_nothing() -> None:
    ratio = median_ratio(np.array([1.0, 2.0, 3.0]), np.ones(3))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 0.0, math.inf)
