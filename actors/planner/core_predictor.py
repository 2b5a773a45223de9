"""The base prediction: log2 of the smallest effort that gives a query full recall, from what is known *before* the
search. hnswlib can't resume a search, so a probe that is thrown away costs more than it tells.

    y = w · f + b,   f = (the smoothed effort of the nearest patterns, how far their efforts differ,
                          where the query lies among the rows: six static features, core_terrain.py)

The smoothed effort is a kernel mean over the 5 nearest patterns, exp(β(cosine - 1)) times the labels of each; a
pattern's own effort is shrunk towards the mean of all by PRIOR labels. w is learnt by ridge regression from labels
whose own part is taken out of their pattern (leave one out): else patterns of few labels would look as
good as they are bad.
Similarity to the patterns themselves is no feature: a query that a pattern was made from is nearer to it than a fresh
one is, and would look easier.

Notation: n labels, m patterns, h dimensions.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner.core_labels import RUNGS, Labels
from actors.planner.core_patterns import Bank
from actors.planner.core_terrain import FEATURES as STATIC

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NEAREST = 5
BETA = 10.0
PRIOR = 5.0
RIDGE = 20.0
FEATURES = 2 + STATIC


class Weights(NamedTuple):
    """w and b; untrained: the smoothed effort as it is."""

    w: F64  # (FEATURES,)
    b: float

    @classmethod
    def untrained(cls) -> "Weights":
        return cls(np.eye(FEATURES)[0], 0.0)


def nearest(similar: F32) -> list[int]:
    """The places of the NEAREST largest of (m,), descending."""
    places: list[int] = similar.argsort()[: -NEAREST - 1 : -1].tolist()
    return places


def smoothed(similar: list[float], effort: list[float], labels: list[float]) -> tuple[float, float]:
    """The first two features, from the nearest patterns."""
    total = mean = square = 0.0
    exp = math.exp
    for s, e, told in zip(similar, effort, labels, strict=True):
        weight = exp(BETA * (s - 1)) * (told + 0.5)
        total += weight
        mean += weight * e
        square += weight * e * e
    mean /= total
    return mean, math.sqrt(max(0.0, square / total - mean * mean))


def efforts(own: NDArray[np.int64], wanted: F64, m: int) -> tuple[F64, F64, F64]:
    """Of the patterns that the labels belong to: (m,) shrunk mean effort, (m,) number of labels, and (n,) the effort
    of each label's pattern without that label."""
    counts = np.bincount(own, minlength=m).astype(np.float64)
    sums = np.bincount(own, wanted, minlength=m)
    mean = wanted.mean() if len(wanted) else float(RUNGS.mean())
    effort = (sums + PRIOR * mean) / (counts + PRIOR)
    without = (sums[own] - wanted + PRIOR * mean) / (counts[own] - 1 + PRIOR)
    return effort, counts, without


def fitted(labels: Labels, bank: Bank) -> tuple[Bank, Weights, F64]:
    """The bank with the efforts that the labels tell, the weights, and (n,) what they predict for each label, its own
    pattern's effort being without it. Labels and bank must not be empty."""
    wanted = labels.sufficient()
    similar = labels.plans @ bank.centroids.T  # (n, m)
    effort, counts, without = efforts(similar.argmax(axis=1), wanted, bank.size)
    told = bank._replace(effort=effort.astype(np.float32), labels=counts)
    seen = np.empty((labels.size, FEATURES))
    known, many = effort.tolist(), counts.tolist()
    for i, row in enumerate(similar):
        places = nearest(row)
        first = [float(without[i])] + [known[place] for place in places[1:]]
        less = [max(0.0, many[places[0]] - 1)] + [many[place] for place in places[1:]]
        seen[i, :2] = smoothed(row[places].tolist(), first, less)
    seen[:, 2:] = labels.static
    centre, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    z = (seen - centre) / spread
    # shrunk towards the smoothed effort as it is, not towards nothing
    start = np.eye(FEATURES)[0] * spread[0]
    residual = wanted - wanted.mean() - z @ start
    w = start + np.linalg.solve(z.T @ z + RIDGE * np.eye(FEATURES), z.T @ residual)
    b = float(wanted.mean() - (w / spread) @ centre)
    return told, Weights(w / spread, b), z @ w + wanted.mean()
