"""Does the planner help? Measured on sampled queries run again: what the planner chose against what would have been
chosen without it, the same query on both sides, the planner's own time charged to it.

A choice was made before its query was a label, so nothing is measured on what it was learnt from.

Notation: n pairs.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 1000
"""Pairs that are kept: the newest."""
LEAST = 100
"""Pairs that a verdict needs."""
DRAWS = 1000
SLACK = 0.005
"""Mean recall may be so much less than without the planner, with confidence."""

Verdict = Literal["helps", "harms", "unclear"]


class Pair(NamedTuple):
    default_us: float
    planned_us: float  # the planner's own time in it
    default_recall: float
    planned_recall: float


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap interval, pairs drawn together."""

    value: float
    low: float
    high: float


class Gain(NamedTuple):
    pairs: int
    speed: Interval  # mean time without the planner / with it
    recall: Interval  # mean recall with it - without
    missed: Interval  # share of queries under target with it - without
    verdict: Verdict


def measured(pairs: NDArray[np.float64], target: float, seed: int = 0) -> Gain | None:
    """Of pairs (n, 4); None without any. `helps`: faster with confidence, and recall not worse by SLACK; `harms`:
    slower, or worse by more, with confidence."""
    n = len(pairs)
    if n == 0:
        return None
    draws = np.random.default_rng(seed).integers(0, n, (DRAWS, n))
    default, planned = pairs[:, 0][draws].sum(axis=1), pairs[:, 1][draws].sum(axis=1)  # (draws,)
    speed = _interval(pairs[:, 0].sum() / pairs[:, 1].sum(), default / planned)
    difference = pairs[:, 3] - pairs[:, 2]
    recall = _interval(difference.mean(), difference[draws].mean(axis=1))
    under = (pairs[:, 3] < target).astype(np.float64) - (pairs[:, 2] < target)
    missed = _interval(under.mean(), under[draws].mean(axis=1))
    verdict: Verdict = "unclear"
    if n >= LEAST and speed.low > 1 and recall.low >= -SLACK:
        verdict = "helps"
    elif n >= LEAST and (speed.high < 1 or recall.high < -SLACK):
        verdict = "harms"
    return Gain(n, speed, recall, missed, verdict)


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


Mode = Literal["off", "shadow", "on"]


def next_mode(mode: Mode, gain: Gain | None) -> Mode:
    """What an index's mode becomes: on when its own measurement says that it helps; back when it harms, or has
    stopped helping: its mean is no faster, or its recall too much lower. Between the two it stays what it is."""
    if gain is None or mode == "off" or gain.pairs < LEAST:
        return mode
    if mode == "shadow":
        return "on" if gain.verdict == "helps" else "shadow"
    stopped = gain.verdict == "harms" or gain.speed.value <= 1 or gain.recall.value < -SLACK
    return "shadow" if stopped else "on"
