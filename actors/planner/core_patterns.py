"""The reasoning bank: kinds of queries, and the effort that served each best.

A bank is a value: arrays of one length, replaced as a whole, so that there is no second index that an evicted pattern
could stay in. A pattern is *upserted*: it joins the nearest one that is more alike than the threshold, or it is new.
`consolidated` joins all that are more alike than that, whatever order they came in: groups are the connected
components of "more alike", each merged at once by weight, until nothing is left to merge.

Notation: m patterns, h dimensions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MOST_WEIGHT = 10_000.0
"""A pattern weighs no more than so many queries, so that it can still learn."""


class Bank(NamedTuple):
    """Sorted by nothing; equal values have equal meaning."""

    centroids: F32  # (m, h) unit length
    effort: F32  # (m,) log2 of the effort that holds recall; means nothing before labels told (core_predictor)
    confidence: F32  # (m,)
    weight: F64  # (m,) queries that it was made from
    labels: F64  # (m,) of which so many told the effort they needed
    quality: F32  # (m,) mean
    latency_us: F32  # (m,) mean

    @classmethod
    def empty(cls, hidden: int) -> "Bank":
        none, wide = np.empty(0, np.float32), np.empty(0, np.float64)
        return cls(np.empty((0, hidden), np.float32), none, none, wide, wide, none, none)

    @property
    def size(self) -> int:
        return len(self.effort)

    def pick(self, places: NDArray[np.int64] | NDArray[np.bool_] | Sequence[int]) -> "Bank":
        return Bank._make(values[places] for values in self)

    def with_all(self, other: "Bank") -> "Bank":
        return Bank._make(np.concatenate([mine, its]) for mine, its in zip(self, other, strict=True))


def confidence_of(qualities: NDArray[np.float32]) -> float:
    """max(0, 1 - σ(quality)) x (1 - 1/(n + 1))."""
    n = len(qualities)
    return max(0.0, 1.0 - float(np.std(qualities))) * (1 - 1 / (n + 1)) if n else 0.0


def upserted(bank: Bank, new: Bank, threshold: float) -> Bank:
    """Each of `new` joins the nearest pattern of `bank` if their cosine is over `threshold`, and is added otherwise."""
    if not bank.size or not new.size:
        return bank.with_all(new)
    similar = new.centroids @ bank.centroids.T  # (new, m)
    nearest = similar.argmax(axis=1)
    joins = similar[np.arange(new.size), nearest] > threshold
    kept = []
    for place in range(bank.size):
        own = np.flatnonzero(joins & (nearest == place))
        kept.append(_merged(bank.pick([place]).with_all(new.pick(own))) if len(own) else bank.pick([place]))
    made = kept[0]
    for one in kept[1:]:
        made = made.with_all(one)
    return made.with_all(new.pick(~joins))


def consolidated(bank: Bank, threshold: float) -> Bank:
    """No two patterns are more alike than `threshold` afterwards. The same set in another order gives the same set."""
    bank = _sorted(bank)
    while True:
        groups = _components(bank.centroids @ bank.centroids.T > threshold)
        if groups.max(initial=-1) + 1 == bank.size:
            return bank
        merged = [_merged(bank.pick(groups == group)) for group in range(groups.max() + 1)]
        made = merged[0]
        for one in merged[1:]:
            made = made.with_all(one)
        bank = _sorted(made)


def evicted(bank: Bank, capacity: int) -> Bank:
    """The most confident; of equal ones those of more queries."""
    if bank.size <= capacity:
        return bank
    best = np.lexsort((-bank.weight, -bank.confidence))[:capacity]
    return bank.pick(np.sort(best))


def _merged(group: Bank) -> Bank:
    """One pattern of several: everything by weight of queries."""
    group = _sorted(group)
    part = group.weight / group.weight.sum()
    centroid = part @ group.centroids
    centroid = centroid / max(float(np.linalg.norm(centroid)), 1e-12)

    def mean(values: F32) -> F32:
        return np.array([part @ values], np.float32)

    return Bank(
        centroid[None].astype(np.float32),
        mean(group.effort),
        mean(group.confidence),
        np.minimum(group.weight.sum(keepdims=True), MOST_WEIGHT),
        np.minimum(group.labels.sum(keepdims=True), MOST_WEIGHT),
        mean(group.quality),
        mean(group.latency_us),
    )


def _sorted(bank: Bank) -> Bank:
    """In an order of their values, so that sums round the same way whatever order they came in."""
    if bank.size < 2:
        return bank
    columns = (bank.weight, bank.effort, *bank.centroids.T[::-1])
    return bank.pick(np.lexsort(columns))


def _components(alike: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(m,) number of each one's connected component, numbered by their first member."""
    m = len(alike)
    group = np.full(m, -1, np.int64)
    found = 0
    for first in range(m):
        if group[first] >= 0:
            continue
        pending = [first]
        group[first] = found
        while pending:
            near = np.flatnonzero(alike[pending.pop()] & (group < 0))
            group[near] = found
            pending += near.tolist()
        found += 1
    return group
