"""What the planner remembers of queries: a bounded ring, of arrays, so that a query costs no object.

Notation: h dimensions of a plan's embedding, m trajectories, o operators.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner.core_embedding import OPERATORS

UNKNOWN = float("nan")
"""A recall that nobody measured."""


class Trajectories(NamedTuple):
    """In the order seen."""

    plans: NDArray[np.float32]  # (m, h)
    us: NDArray[np.float32]  # (m, o) time of each operator, 0 where it took no part
    effort: NDArray[np.float32]  # (m,) log2 of the ef, or nprobes, that it took; 0: exact
    latency_us: NDArray[np.float32]  # (m,)
    megabytes: NDArray[np.float32]  # (m,)
    cache_hits: NDArray[np.float32]  # (m,) share of what was found in memory
    recall: NDArray[np.float32]  # (m,) UNKNOWN where it wasn't sampled
    quality: NDArray[np.float32]  # (m,)

    @property
    def size(self) -> int:
        return len(self.quality)

    def where(self, keep: NDArray[np.bool_]) -> "Trajectories":
        return Trajectories(*(values[keep] for values in self))


def quality_of(latency_us: float, megabytes: float, cache_hits: float, recall: float, target: float) -> float:
    """0.5/(1+ms) + 0.3/(1+MB) + 0.2 x cache hits; 0 when the sampled recall misses the target. In [0, 1]."""
    if recall < target:  # false for an unknown one
        return 0.0
    return 0.5 / (1 + latency_us / 1e3) + 0.3 / (1 + megabytes) + 0.2 * cache_hits


class Ring:
    """The newest `capacity` trajectories."""

    def __init__(self, capacity: int, hidden: int) -> None:
        self.capacity = capacity
        self.seen = 0
        self.dropped = 0  # overwritten before a background cycle took them
        self._start = 0  # number of the oldest that is kept
        self._plans = np.zeros((capacity, hidden), np.float32)
        self._us = np.zeros((capacity, len(OPERATORS)), np.float32)
        self._rest = np.zeros((capacity, 6), np.float32)  # effort, latency, MB, cache hits, recall, quality

    @property
    def size(self) -> int:
        return self.seen - self._start

    def add(
        self,
        plan: NDArray[np.float32],
        us: NDArray[np.float32],
        effort: float,
        latency_us: float,
        megabytes: float,
        cache_hits: float,
        recall: float,
        quality: float,
    ) -> int:
        """Its number, by which `grade` finds it."""
        number = self.seen
        place = number % self.capacity
        self._plans[place] = plan
        self._us[place] = us
        self._rest[place] = (effort, latency_us, megabytes, cache_hits, recall, quality)
        self.seen = number + 1
        if self.size > self.capacity:
            self._start += 1
            self.dropped += 1
        return number

    def grade(self, number: int, recall: float, target: float) -> bool:
        """Its recall is known now; False when it is forgotten already."""
        if not self._start <= number < self.seen:
            return False
        row = self._rest[number % self.capacity]
        row[4] = recall
        row[5] = quality_of(float(row[1]), float(row[2]), float(row[3]), recall, target)
        return True

    def look(self, newest: int | None = None) -> Trajectories:
        """A copy of all that are kept, or of the newest of them, oldest first."""
        first = self._start if newest is None else max(self._start, self.seen - newest)
        places = np.arange(first, self.seen) % self.capacity
        rest = self._rest[places]
        return Trajectories(self._plans[places], self._us[places], *rest.T.copy())

    def forget(self, before: int) -> None:
        """Those with a lower number are kept no longer: a cycle has taken them."""
        self._start = max(self._start, min(before, self.seen))

    def refill(self, seen: Trajectories) -> None:
        """With what was kept of an earlier ring."""
        for plan, us, *rest in zip(*seen, strict=True):
            self.add(plan, us, *(float(value) for value in rest))
