"""Does the planner help? Measured on sampled queries run again: what the planner chose against what would have been
chosen without it, the same query on both sides, the planner's own time charged to it.

A choice was made before its query was a label, so nothing is measured on what it was learnt from.

It is looked at again and again, and a planner that gains nothing must not turn itself on for being looked at often: the
i-th look may err by α/(i (i + 1)), which sums to α over all looks (a union bound).

Notation: n pairs.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.planner import Estimate, PlannerGain, PlannerMode, Verdict

MOST = 1000
"""Pairs that are kept: the newest."""
LEAST = 100
"""Pairs that a verdict needs, and new ones that another look does."""
ALPHA = 0.025
DRAWS = 1000
SLACK = 0.005
"""Mean recall may be so much less than without the planner, with confidence."""


class Pair(NamedTuple):
    default_us: float
    planned_us: float  # the planner's own time in it
    default_recall: float
    planned_recall: float


def measured(pairs: NDArray[np.float64], target: float, look: int = 1, seed: int = 0) -> PlannerGain | None:
    """Of pairs (n, 4), looked at for the `look`-th time; None without any. Bootstrap, pairs drawn together. `helps`:
    faster with the confidence that this look asks for, and recall not worse by SLACK; `harms`: slower, or worse by
    more, with 95 %."""
    n = len(pairs)
    if n == 0:
        return None
    draws = np.random.default_rng(seed).integers(0, n, (DRAWS, n))
    default, planned = pairs[:, 0][draws].sum(axis=1), pairs[:, 1][draws].sum(axis=1)  # (draws,)
    ratios = default / planned
    speed = _estimate(pairs[:, 0].sum() / pairs[:, 1].sum(), ratios)
    difference = pairs[:, 3] - pairs[:, 2]
    recall = _estimate(difference.mean(), difference[draws].mean(axis=1))
    under = (pairs[:, 3] < target).astype(np.float64) - (pairs[:, 2] < target)
    missed = _estimate(under.mean(), under[draws].mean(axis=1))
    verdict: Verdict = "unclear"
    sure = speed.value - NormalDist().inv_cdf(1 - ALPHA / (look * (look + 1))) * float(ratios.std())
    if n >= LEAST and min(sure, speed.low) > 1 and recall.low >= -SLACK:
        verdict = "helps"
    elif n >= LEAST and (speed.high < 1 or recall.high < -SLACK):
        verdict = "harms"
    return PlannerGain(n, speed, recall, missed, verdict)


def _estimate(value: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def next_mode(mode: PlannerMode, gain: PlannerGain | None) -> PlannerMode:
    """What an index's mode becomes: on when its own measurement says that it helps; back when it harms, or has
    stopped helping: its mean is no faster, or its recall too much lower. Between the two it stays what it is."""
    if gain is None or mode == "off" or gain.pairs < LEAST:
        return mode
    if mode == "shadow":
        return "on" if gain.verdict == "helps" else "shadow"
    stopped = gain.verdict == "harms" or gain.speed.value <= 1 or gain.recall.value < -SLACK
    return "shadow" if stopped else "on"
