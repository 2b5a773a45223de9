"""Which strategy answers: UCB1 (Auer, Cesa-Bianchi & Fischer 2002) over those that hold recall.

    choose the arm with the greatest  x̄ + sqrt(2 ln t / n),  every arm once first

x̄ is t_best / t, in (0, 1] and falling with time: t is the geometric mean of the arm's times, t_best the least of the
context's, so it tells arms apart at 50 µs as at 50 ms. Recall is a constraint, not part of the reward: an arm whose
lower bound on sampled recall is under target can't be chosen; one that is exact needs no sample, and what answers
without a planner may run until its *upper* bound is under target. After a drift
all that was seen counts less (as in discounted UCB, Garivier & Moulines 2011), so that it is tried anew.

A context is a decade of selectivity, of one index; queries without a filter have one of their own.
"""

import math
from collections.abc import Sequence

import msgspec

from schemas.names import Share

Z_95 = 1.6449


class Arm(msgspec.Struct):
    """Weights, not counts, once they are discounted."""

    n: float = 0.0
    log_us: float = 0.0  # sum of log time
    samples: float = 0.0  # of recall
    recall: float = 0.0  # sum
    squares: float = 0.0

    @property
    def us(self) -> float:
        """Geometric mean of its times: single slow queries don't decide."""
        return math.exp(self.log_us / self.n) if self.n else math.inf

    def recall_lower(self) -> Share:
        """One-sided 95 % bound on mean recall, with one more sample of 0 (as actors/index/core.py has it)."""
        return self._recall_bound(0.0) if self.samples else 0.0

    def recall_upper(self) -> Share:
        """The other one, with one more sample of 1."""
        return self._recall_bound(1.0) if self.samples else 1.0

    def _recall_bound(self, one_more: Share) -> Share:
        n = self.samples + 1
        mean = (self.recall + one_more) / n
        spread = Z_95 * math.sqrt(max(0.0, (self.squares + one_more) / n - mean**2) / n)
        return min(1.0, mean + spread) if one_more else max(0.0, mean - spread)


class Bandit(msgspec.Struct):
    """Arms by name within each context. Deterministic: of equal arms the first asked for is chosen."""

    contexts: dict[int, dict[str, Arm]] = {}

    def arm(self, context: int, name: str) -> Arm:
        return self.contexts.setdefault(context, {}).setdefault(name, Arm())

    def timed(self, context: int, name: str, us: float) -> None:
        arm = self.arm(context, name)
        arm.n += 1
        arm.log_us += math.log(max(us, 0.1))

    def sampled(self, context: int, name: str, recall: Share) -> None:
        arm = self.arm(context, name)
        arm.samples += 1
        arm.recall += recall
        arm.squares += recall * recall

    def choose(self, context: int, names: Sequence[str], exact: frozenset[str], default: str, target: Share) -> str:
        """Of `names`, `default` among them; that where no arm may run."""
        known = self.contexts.get(context, {})
        arms = [(name, known.get(name)) for name in names if self._may(known.get(name), name, exact, default, target)]
        if not arms:
            return default
        fresh = next((name for name, arm in arms if arm is None or arm.n < 1), None)
        if fresh is not None:
            return fresh
        tried = [(name, arm) for name, arm in arms if arm is not None]
        total = math.log(max(math.e, sum(arm.n for _, arm in tried)))
        best = min(arm.us for _, arm in tried)
        return max(tried, key=lambda one: best / one[1].us + math.sqrt(2 * total / one[1].n))[0]

    def discount(self, factor: float) -> None:
        """The world has changed."""
        for arms in self.contexts.values():
            for arm in arms.values():
                for field in arm.__struct_fields__:
                    setattr(arm, field, getattr(arm, field) * factor)

    def _may(self, arm: Arm | None, name: str, exact: frozenset[str], default: str, target: Share) -> bool:
        if name in exact:
            return True
        if arm is None:
            return name == default
        return (arm.recall_upper() if name == default else arm.recall_lower()) >= target
