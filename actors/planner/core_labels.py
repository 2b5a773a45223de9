"""Labels: queries that were run again up a ladder of efforts and exactly, so that it is known what each needed.

Notation: n labels, h dimensions of a plan's embedding, e rungs of the ladder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner.core_terrain import FEATURES as STATIC

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LADDER = tuple(round(10 * 2 ** (i / 2)) for i in range(14))
"""ef_search from 10 to 905, half an octave apart; nprobes are counted in it by tenths."""
RUNGS = np.log2(np.array(LADDER, np.float64))  # (e,)
FULL = 1 - 1e-6
MOST = 2000
"""Labels that are kept: the newest."""
LEAST_LABELS = 100
"""Fewer say too little about effort (their mean recall is known to ±0.01): the planner then chooses what would be
chosen without it."""


class Label(NamedTuple):
    """Of one query, field by field as in Labels."""

    plan: F32
    recall: F32
    us: F32
    default: float
    static: Sequence[float]


class Labels(NamedTuple):
    """Oldest first."""

    plans: F32  # (n, h)
    recall: F32  # (n, e) at each rung
    us: F32  # (n, e) time at each rung
    default: F32  # (n,) log2 of the effort that it would have had without a planner
    static: F32  # (n, s) static features, see core_terrain

    @classmethod
    def empty(cls, hidden: int) -> "Labels":
        rungs = (0, len(LADDER))
        none = np.empty(rungs, np.float32)
        return cls(
            np.empty((0, hidden), np.float32), none, none, np.empty(0, np.float32), np.empty((0, STATIC), np.float32)
        )

    @classmethod
    def of(cls, many: Sequence["Label"]) -> "Labels":
        """At least one."""
        return cls._make(np.array(values, np.float32) for values in zip(*many, strict=True))

    @property
    def size(self) -> int:
        return len(self.plans)

    def where(self, keep: NDArray[np.bool_]) -> "Labels":
        return Labels._make(values[keep] for values in self)

    def after(self, before: float, now: float) -> "Labels":
        """With another effort without a planner (log2); that of queries for more than ten hits stays what it was."""
        return self._replace(default=np.where(np.isclose(self.default, before, atol=1e-3), now, self.default))

    def newest(self, n: int) -> "Labels":
        return Labels._make(values[max(0, len(values) - n) :] for values in self)

    def with_all(self, other: "Labels") -> "Labels":
        """These, then the other ones; the newest MOST of them."""
        return Labels._make(np.concatenate([mine, its])[-MOST:] for mine, its in zip(self, other, strict=True))

    def sufficient(self) -> F64:
        """(n,) log2 of the smallest effort of full recall; of the last rung where none is."""
        full = self.recall > FULL
        return RUNGS[np.where(full.any(axis=1), full.argmax(axis=1), len(LADDER) - 1)]

    def at(self, efforts: F64) -> tuple[F64, F64]:
        """(n,) recall and time, each at its own log2 effort; between rungs by interpolation."""
        return between(self.recall, efforts), between(self.us, efforts)


def between(values: F32, efforts: F64) -> F64:
    """(n,) of (n, e), linear in log2 effort between rungs, constant beyond the ends."""
    place = np.clip((np.asarray(efforts) - RUNGS[0]) * 2, 0, len(LADDER) - 1)
    low = np.minimum(place.astype(np.int64), len(LADDER) - 2)
    part = place - low
    rows = np.arange(len(values))
    made: F64 = values[rows, low] * (1 - part) + values[rows, low + 1] * part
    return made


def enough(some: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those of the labels; all, where they are too few for a mean recall."""
    return some if np.count_nonzero(some) >= LEAST_LABELS else np.ones_like(some)


class Calibration(NamedTuple):
    """effort = shift + slope x prediction, log2. Slope 0: a fixed effort, as good as no planner."""

    shift: float
    slope: float


SLOPES = np.arange(0, 2.01, 0.25)
WORTH = 0.99
"""A slope must save a hundredth over a fixed effort on the labels, or it is taken for chance."""


def calibrated(labels: Labels, predicted: F64, target: float) -> Calibration:
    """The cheapest (shift, slope) whose mean recall over the labels is `target`. Where none reaches it, the last
    rung for all."""
    best, least = Calibration(float(RUNGS[-1]), 0.0), np.inf
    for slope in SLOPES:
        low, high = -12.0 - slope * 10, 12.0 + slope * 10
        for _ in range(40):
            middle = (low + high) / 2
            if labels.at(middle + slope * predicted)[0].mean() < target:
                low = middle
            else:
                high = middle
        recall, us = labels.at(high + slope * predicted)
        if recall.mean() >= target - 1e-9 and us.mean() < least * (WORTH if best.slope == 0 and slope else 1):
            best, least = Calibration(float(high), float(slope)), us.mean()
    return best
