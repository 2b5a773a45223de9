"""Have the queries shifted? A permutation test on the distance of two samples' means (Good 2005, §3): exact whatever
the distribution, and in as many dimensions as there are, where Hotelling's T² has no covariance to invert.

    statistic = ‖mean(a) - mean(b)‖²;  z = (statistic - mean over permutations) / their standard deviation

A boundary needs both z > threshold and a p-value under that of the threshold: the statistic is skewed, and z alone
would cry too often. With queries that haven't shifted it does so in about 1 of 44 tests at z = 2.

Who watches all the time tests often: `watched` asks two windows in a row, of different queries, for the most that the
permutations can tell (p <= 2/501 each).

Notation: a, b samples, h dimensions.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

MIN_SAMPLES = 50
PERMUTATIONS = 500
MOST = 1000
"""Samples of each side that are looked at: the newest."""


class Shift(NamedTuple):
    z: float
    p: float
    shifted: bool


def shift(a: F32, b: F32, threshold: float, rng: np.random.Generator) -> Shift | None:
    """Whether b, (m, h), comes from elsewhere than a, (n, h); None with fewer than MIN_SAMPLES of either."""
    a, b = a[-MOST:], b[-MOST:]
    n, m = len(a), len(b)
    if n < MIN_SAMPLES or m < MIN_SAMPLES:
        return None
    both = np.concatenate([a, b])  # (n + m, h)
    both = both - both.mean(axis=0)
    total = both.sum(axis=0)  # zero but for rounding
    sides = np.zeros((PERMUTATIONS + 1, n + m), np.float32)
    sides[0, :n] = 1
    for row in sides[1:]:
        row[rng.permutation(n + m)[:n]] = 1
    first = sides @ both  # (permutations + 1, h) sums of the first side
    difference = first / n - (total - first) / m
    statistic = np.einsum("ph,ph->p", difference, difference, dtype=np.float64)
    seen, under = statistic[0], statistic[1:]
    z = float((seen - under.mean()) / max(under.std(), 1e-30))
    p = float((1 + np.count_nonzero(under >= seen)) / (PERMUTATIONS + 1))
    return Shift(z, p, z > threshold and p <= _tail(threshold))


def watched(a: F32, b: F32, c: F32, threshold: float, rng: np.random.Generator) -> bool:
    """Whether both of two windows of queries in a row, b and then c, come from elsewhere than a."""
    least = max(threshold, NormalDist().inv_cdf(1 - 2 / (PERMUTATIONS + 1)))
    found = (shift(a, window, least, rng) for window in (c, b))
    return all(one is not None and one.shifted for one in found)


def _tail(z: float) -> float:
    """P(N > z), but no less than the permutations can tell."""
    return max(0.5 * math.erfc(z / math.sqrt(2)), 2 / (PERMUTATIONS + 1))
