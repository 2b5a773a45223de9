"""How sure a measurement is: bounds on mean recall and on a ratio of latencies.

Per-query recalls lie in [0, 1], crowd at 1 and have a tail of bad queries: the normal
approximation is wrong there and empirical Bernstein needs thousands of queries. Used instead:

mean_lower_bound  Gaffke's bound. Weight the sorted values and one phantom 0 by a flat Dirichlet
    draw; the 5 % quantile of the weighted mean is the bound. On 0/1 values it is Clopper and
    Pearson's, so it holds at n = 10 as at n = 10,000.
    (Gaffke 2005; Learned-Miller & Thomas 2019, arXiv:1905.06208; Phan, Thomas & Learned-Miller,
    ICML 2021, arXiv:2106.03163. Coverage by simulation: tests/unit/test_autotune_bounds.py.)
median_ratio      Median of paired ratios; its interval from order statistics, which is exact
    for any distribution (Conover 1999, §3.2).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
DRAWS = 10_000
"""Of the Dirichlet weights. The bound's own error is then about 2 % of its distance to the mean."""


def mean_lower_bound(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> float:
    """One-sided lower bound on the mean of what `values`, (n,) in [0, 1], are a sample of.

    The same values give the same bound. Raises ValueError outside [0, 1] or for no values.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0 or values.min() < 0 or values.max() > 1:
        raise ValueError("a bound on a mean needs values in [0, 1], and at least one")
    levels, counts = np.unique(values, return_counts=True)  # (v,): few, recall@k is a multiple of 1/k
    shapes = np.append(counts, 1.0)  # the phantom 0 is last
    weights = np.random.default_rng(0).standard_gamma(shapes, size=(DRAWS, len(shapes)))  # Dirichlet, unnormalised
    means = weights[:, :-1] @ levels / weights.sum(axis=1)  # (DRAWS,)
    return float(np.quantile(means, 1 - confidence))


class Ratio(NamedTuple):
    """A median ratio and its two-sided confidence interval."""

    median: float
    low: float
    high: float


def median_ratio(
    numerators: NDArray[np.float64],  # (n,) > 0
    denominators: NDArray[np.float64],  # (n,) > 0, paired
    confidence: float = CONFIDENCE,
) -> Ratio:
    """Median of numerators / denominators. With fewer than six pairs no interval of 95 % exists:
    it is (0, inf) then."""
    ratios = np.sort(np.asarray(numerators, np.float64) / np.asarray(denominators, np.float64))
    n = len(ratios)
    rank = sign_test_rank(n, (1 - confidence) / 2)
    low, high = (float(ratios[rank - 1]), float(ratios[n - rank])) if rank else (0.0, math.inf)
    return Ratio(float(np.median(ratios)), low, high)


def sign_test_rank(n: int, tail: float) -> int:
    """The largest r with P(Binomial(n, 1/2) < r) <= tail: the r-th smallest and r-th largest of n
    values bound the median, each side missing it with probability `tail` at most."""
    cumulative, rank = 0.0, 0
    log_half = n * math.log(0.5)
    for successes in range(n // 2 + 1):
        log_choose = math.lgamma(n + 1) - math.lgamma(successes + 1) - math.lgamma(n - successes + 1)
        cumulative += math.exp(log_choose + log_half)
        if cumulative > tail:
            break
        rank = successes + 1
    return rank
