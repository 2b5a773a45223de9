"""static_loss's search: weights that make a function small, without gradients.

A compass search (Kolda, Lewis & Torczon 2003): from the best point so far it tries every direction at a step, moves to
the best of them, and halves the step where none is better. On the simplex a direction takes mass from one adapter and
gives it to another, so that the weights go on summing to 1; free, it changes one weight, from 0 on. A few tens of
evaluations for two to four adapters, each of which is a pass of the model over the text.
"""

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

STEP = 0.25
SMALLEST = 0.02
"""A finer step changes losses by less than a text of a few hundred prompts can tell."""
MOST = 400
"""Evaluations."""


def compass(
    loss: Callable[[F64], float],
    starts: Sequence[F64],
    *,
    free: bool,
    step: float = STEP,
    smallest: float = SMALLEST,
    most: int = MOST,
) -> Generator[int, None, tuple[F64, float, int]]:
    """The best weights found (N,), their loss, and how many were evaluated, which it yields after each. starts: (N,)
    each, of which the best is gone on from; on the simplex each sums to 1."""
    seen: dict[tuple[float, ...], float] = {}

    def best_of(candidates: Sequence[F64]) -> Generator[int, None, F64]:
        for weights in candidates:
            if _key(weights) not in seen:
                value = loss(weights)
                seen[_key(weights)] = value if np.isfinite(value) else float("inf")
                yield len(seen)
        return min(candidates, key=lambda weights: seen[_key(weights)])

    best = yield from best_of([start.astype(np.float64) for start in starts])
    while step >= smallest and len(seen) < most:
        around = list(_free(best, step) if free else _simplex(best, step))
        found = yield from best_of([best, *around])  # the first of equals, so it moves only where that helps
        if found is best:
            step /= 2
        best = found
    return best, seen[_key(best)], len(seen)


def _key(weights: F64) -> tuple[float, ...]:
    return tuple(np.round(weights, 9).tolist())


def _simplex(weights: F64, step: float) -> Iterator[F64]:
    for giver in range(len(weights)):
        moved = min(step, float(weights[giver]))
        if moved <= 0:
            continue
        for taker in range(len(weights)):
            if taker != giver:
                other = weights.copy()
                other[giver] -= moved
                other[taker] += moved
                yield other


def _free(weights: F64, step: float) -> Iterator[F64]:
    for place in range(len(weights)):
        for change in (step, -min(step, float(weights[place]))):
            if change:
                other = weights.copy()
                other[place] += change
                yield other
