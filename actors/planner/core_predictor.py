"""The base prediction: log2 of the smallest effort that gives a query full recall, from what is known *before* the
search. hnswlib can't resume a search, so a probe that is thrown away costs more than it tells.

    y = w · f + b,   f = (the smoothed effort of the nearest patterns, how far their efforts differ,
                          where the query lies among the rows: six static features, core_terrain.py)

A pattern's effort is a quantile of what its labels needed, shrunk towards that of all by PRIOR labels: the smallest
quantile, one for all patterns, at which their efforts hold the recall of the queries that they answer. The smoothed
effort is a kernel mean over the 5 nearest patterns, exp(β(cosine - 1)) times the labels of each. Both, and w by ridge
regression, are learnt from labels whose own part is taken out of their pattern (leave one out): else patterns of few
labels would look as good as they are bad.
Similarity to the patterns themselves is no feature: a query that a pattern was made from is nearer to it than a fresh
one is, and would look easier.

Notation: n labels, m patterns, h dimensions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner.core_labels import Labels, enough
from actors.planner.core_patterns import Bank
from actors.planner.core_terrain import FEATURES as STATIC

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NEAREST = 5
SURE = 0.8
ALIKE = 0.7
"""Of the nearest patterns, the first that is surer than the one and as like as the other supplies the effort itself."""
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


def applied(places: list[int], similar: list[float], confidences: Sequence[float]) -> int:
    """Which of the nearest patterns (descending) supplies the effort; -1: none."""
    for place, alike in zip(places, similar, strict=True):
        if alike < ALIKE:
            break
        if confidences[place] > SURE:
            return place
    return -1


def efforts(own: NDArray[np.int64], wanted: F64, m: int, quantile: float) -> tuple[F64, F64]:
    """Of the patterns that the labels belong to: (m,) shrunk quantile of what they wanted, and (n,) that of each
    label's pattern without that label."""
    overall = float(np.quantile(wanted, quantile))
    effort, without = np.full(m, overall), np.full(len(wanted), overall)
    for pattern in np.unique(own):
        mine = np.flatnonzero(own == pattern)
        mine = mine[np.argsort(wanted[mine], kind="stable")]
        sorted_, n = wanted[mine], len(mine)
        effort[pattern] = (n * np.quantile(sorted_, quantile) + PRIOR * overall) / (n + PRIOR)
        if n > 1:
            without[mine] = ((n - 1) * _without_each(sorted_, quantile) + PRIOR * overall) / (n - 1 + PRIOR)
    return effort, without


def _without_each(values: F64, quantile: float) -> F64:
    """(n,) the quantile of sorted values (n,) less each one of them."""
    n = len(values)
    at = quantile * (n - 2)
    low = int(at)
    high, part, left_out = min(low + 1, n - 2), at - low, np.arange(n)
    one, other = (np.where(place < left_out, values[place], values[place + 1]) for place in (low, high))
    made: F64 = one * (1 - part) + other * part
    return made


def holding(
    labels: Labels, own: NDArray[np.int64], wanted: F64, m: int, recall: float, judged: NDArray[np.bool_]
) -> float:
    """The smallest quantile at which the patterns' efforts hold a mean recall over the labels that are `judged`, (n,);
    1 where none does."""
    some = labels.where(judged)
    low, high = 0.0, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        if some.at(efforts(own, wanted, m, middle)[1][judged])[0].mean() >= recall:
            high = middle
        else:
            low = middle
    return high


class Fitted(NamedTuple):
    bank: Bank  # with the efforts that the labels tell
    weights: Weights
    predicted: F64  # (n,) for each label, its own pattern's effort being without it
    by_pattern: NDArray[np.bool_]  # (n,) which of them a pattern answers


def fitted(labels: Labels, bank: Bank, recall: float) -> Fitted:
    """`recall`: the mean that is to be held. Labels and bank must not be empty."""
    wanted, m = labels.sufficient(), bank.size
    similar = labels.plans @ bank.centroids.T  # (n, m)
    own = similar.argmax(axis=1)
    by_pattern = _by_pattern(similar, bank)
    effort, without = efforts(own, wanted, m, holding(labels, own, wanted, m, recall, enough(by_pattern)))
    counts = np.bincount(own, minlength=m).astype(np.float64)
    told = bank._replace(effort=effort.astype(np.float32), labels=counts)
    seen = _features(labels, told, similar, without)
    centre, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    z = (seen - centre) / spread
    # shrunk towards the smoothed effort as it is, not towards nothing
    start = np.eye(FEATURES)[0] * spread[0]
    residual = wanted - wanted.mean() - z @ start
    w = start + np.linalg.solve(z.T @ z + RIDGE * np.eye(FEATURES), z.T @ residual)
    b = float(wanted.mean() - (w / spread) @ centre)
    return Fitted(told, Weights(w / spread, b), z @ w + wanted.mean(), by_pattern)


def predicted(labels: Labels, bank: Bank, weights: Weights) -> F64:
    """(n,) for labels that neither was learnt from, without the adapters."""
    made: F64 = _features(labels, bank, labels.plans @ bank.centroids.T, None) @ weights.w + weights.b
    return made


def _by_pattern(similar: F32, bank: Bank) -> NDArray[np.bool_]:
    """(n,) whether a pattern answers queries that are so similar (n, m) to the patterns."""
    sure = bank.confidence.tolist()
    answered = np.empty(len(similar), np.bool_)
    for i, row in enumerate(similar):
        places = nearest(row)
        answered[i] = applied(places, row[places].tolist(), sure) >= 0
    return answered


def _features(labels: Labels, bank: Bank, similar: F32, without: F64 | None) -> F64:
    """(n, f) features of each label. `without` (n,): the effort of its own pattern as it would be without it."""
    seen = np.empty((labels.size, FEATURES))
    efforts_, counts = bank.effort.tolist(), bank.labels.tolist()
    for i, row in enumerate(similar):
        places = nearest(row)
        alike = row[places].tolist()
        effort, told = [efforts_[place] for place in places], [counts[place] for place in places]
        if without is not None:
            effort[0], told[0] = float(without[i]), max(0.0, told[0] - 1)
        seen[i, :2] = smoothed(alike, effort, told)
    seen[:, 2:] = labels.static
    return seen
