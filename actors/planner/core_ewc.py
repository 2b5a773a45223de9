"""Elastic weight consolidation: what an adapter learnt from earlier kinds of queries is held on to, the harder the
more their loss depends on it (Kirkpatrick et al. 2017, arXiv:1612.00796; online, Schwarz et al. 2018,
arXiv:1805.06370).

    penalty = λ/2 Σ_tasks Σ_i F_i (θ_i - θ*_i)²        its gradient λ Σ_tasks F (θ - θ*)

F, the diagonal of the Fisher matrix, is a moving mean (0.999) of *squared per-sample* gradients: the square of a
batch's mean gradient would vanish where samples disagree, and that is where a weight matters.

Notation: p parameters, t tasks, n samples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

DECAY = 0.999
MAX_TASKS = 10
LEAST_LAMBDA = 100.0


class Task(NamedTuple):
    """What is remembered of one kind of queries."""

    optimum: F32  # (p,) θ*
    fisher: F32  # (p,)


class Memory(NamedTuple):
    """A value, replaced as a whole."""

    tasks: tuple[Task, ...]  # oldest first, at most MAX_TASKS
    fisher: F32  # (p,) of the task at hand
    strength: float  # λ

    @classmethod
    def empty(cls, parameters: int, strength: float) -> "Memory":
        return cls((), np.zeros(parameters, np.float32), strength)

    def observed(self, gradients: F32) -> "Memory":
        """With per-sample gradients (n, p) of the task at hand taken into its Fisher diagonal, in order: the same as
        n updates F <- 0.999 F + 0.001 g²."""
        n = len(gradients)
        weights = (1 - DECAY) * DECAY ** np.arange(n - 1, -1, -1)
        squares = weights @ (gradients.astype(np.float64) ** 2)  # (p,)
        return self._replace(fisher=(DECAY**n * self.fisher + squares).astype(np.float32))

    def gradient(self, parameters: F32) -> F32:
        """(p,)"""
        total = np.zeros_like(parameters)
        for task in self.tasks:
            total += task.fisher * (parameters - task.optimum)
        return total * np.float32(self.strength)

    def consolidated(self, parameters: F32) -> "Memory":
        """The task at hand is over: it is remembered, and the oldest forgotten where there are too many."""
        tasks = (*self.tasks, Task(parameters.copy(), self.fisher.copy()))[-MAX_TASKS:]
        return self._replace(tasks=tasks, fisher=np.zeros_like(self.fisher))

    def adapted(self, before: float, after: float, most: float) -> "Memory":
        """λ after a cycle, `before` and `after` which the loss on labels of earlier tasks was so much: doubled where it
        rose by a tenth (they were being forgotten), else a tenth less; within [100, `most`]."""
        strength = self.strength * (2.0 if after > 1.1 * before else 0.9)
        return self._replace(strength=float(np.clip(strength, min(LEAST_LAMBDA, most), most)))

    def limit(self, rate: float) -> float:
        """The greatest step that the penalty's curvature lets be taken: beyond 1/curvature it diverges."""
        if not self.tasks:
            return rate
        curvature = self.strength * float(np.max(np.sum([task.fisher for task in self.tasks], axis=0)))
        return min(rate, 1.0 / curvature) if curvature > 0 else rate
