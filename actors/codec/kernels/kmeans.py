"""k-means (Lloyd 1982) on BLAS: nearest centroids in blocks that stay in cache, sums by sorted runs,
empty clusters re-seeded. The objective never rises; the Generator decides everything that is drawn.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.kernels.lanes import Floats

Seeding = Literal["sample", "plusplus"]

BLOCK_FLOATS = 1 << 18
"""Distances worked on at a time: 1 MiB of float32, so that argmin reads what BLAS left in cache."""


class Clusters(NamedTuple):
    centroids: NDArray[np.float32]  # (k, d)
    codes: NDArray[np.intp]  # (n,) nearest centroid of each point
    objective: list[float]  # mean squared distance to the nearest centroid, after each assignment


def lloyd(
    points: NDArray[np.float32],  # (n, d)
    k: int,
    rng: np.random.Generator,
    *,
    iterations: int = 25,
    seeding: Seeding = "sample",
    start: NDArray[np.float32] | None = None,  # (k, d) centroids to go on from, instead of seeding
) -> Clusters:
    """Stops early when no point changes its cluster. Fewer points than k leave the rest of the
    centroids as copies: a codebook that memorises, which is for the caller to notice."""
    if points.ndim != 2 or 0 in points.shape or k < 1:
        raise CodecError(f"k-means needs points (n, d) and k >= 1, got {points.shape} and k = {k}")
    if not np.isfinite(points).all():
        raise CodecError("k-means needs finite points")
    points = np.ascontiguousarray(points, dtype=np.float32)
    if start is None:
        start = sample(points, k, rng) if seeding == "sample" else plusplus(points, k, rng)
    centroids = start.astype(np.float32)  # a copy
    norms = np.einsum("nd,nd->n", points, points)  # (n,)
    codes, scores = nearest(points, centroids)
    objective = [_objective(norms, scores)]
    for _ in range(iterations):
        _update(points, codes, norms + scores, centroids)
        before = codes
        codes, scores = nearest(points, centroids)
        objective.append(_objective(norms, scores))
        if np.array_equal(codes, before):
            break
    return Clusters(centroids, codes, objective)


def nearest(points: Floats, centroids: Floats) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """For each point the nearest centroid and |c|^2 - 2 x.c, its squared distance less |x|^2.
    Runs in the type of the points."""
    codes, scores = nearest_few(points, centroids, 1)
    return codes[0], scores[0]


def nearest_few(points: Floats, centroids: Floats, count: int) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """The same for the `count` nearest of each point, (count, n), the nearest first."""
    n, k = len(points), len(centroids)
    weights = np.ascontiguousarray(-2 * centroids.T)  # (d, k)
    squares = np.einsum("kd,kd->k", centroids, centroids)
    codes = np.empty((count, n), dtype=np.intp)
    scores = np.empty((count, n), dtype=points.dtype)
    rows = max(1, BLOCK_FLOATS // k)
    buffer = np.empty((min(rows, n), k), dtype=points.dtype)
    places = np.arange(min(rows, n)) * k
    for first in range(0, n, rows):
        block = slice(first, min(first + rows, n))
        distances = buffer[: block.stop - first]
        np.matmul(points[block], weights, out=distances)
        distances += squares
        for rank in range(count):
            distances.argmin(axis=1, out=codes[rank, block])
            place = places[: len(distances)] + codes[rank, block]
            scores[rank, block] = distances.ravel()[place]
            if rank + 1 < count:
                distances.ravel()[place] = np.inf
    return codes, scores


def sample(points: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """k of the points; all of them and some again where there are fewer."""
    n = len(points)
    chosen = rng.permutation(n)[:k]
    return points[np.resize(chosen, k)]


def plusplus(points: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """k-means++ (Arthur & Vassilvitskii 2007): each centroid is drawn by its squared distance to
    those drawn before it."""
    n = len(points)
    norms = np.einsum("nd,nd->n", points, points)
    centroids = np.empty((k, points.shape[1]), dtype=np.float32)
    away = np.full(n, np.inf, dtype=np.float32)  # squared distance to the nearest so far
    chosen = int(rng.integers(n))
    for i in range(k):
        centroids[i] = points[chosen]
        distances = norms + (norms[chosen] - 2 * (points @ centroids[i]))
        distances[chosen] = 0
        np.minimum(away, np.maximum(distances, 0), out=away)
        mass = np.cumsum(away, dtype=np.float64)
        if mass[-1] > 0:
            chosen = min(int(np.searchsorted(mass, rng.random() * mass[-1], side="right")), n - 1)
        else:  # every point is a centroid already
            chosen = int(rng.integers(n))
    return centroids


def _update(
    points: NDArray[np.float32],  # (n, d)
    codes: NDArray[np.intp],  # (n,)
    distances: NDArray[np.floating],  # (n,) squared, to the point's centroid
    centroids: NDArray[np.float32],  # (k, d), changed in place
) -> None:
    """Each centroid becomes the mean of its points. One without points moves to a point that is
    farthest from its own centroid, which leaves the objective no higher."""
    counts = np.bincount(codes, minlength=len(centroids))  # (k,)
    taken = np.flatnonzero(counts)
    order = np.argsort(codes.astype(np.uint16) if len(centroids) <= 65536 else codes, kind="stable")  # radix sort
    starts = np.concatenate(([0], np.cumsum(counts[taken])[:-1]))
    sums = np.add.reduceat(points[order], starts, axis=0)  # (taken, d)
    centroids[taken] = sums / counts[taken, None]
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        farthest = np.argsort(-distances, kind="stable")[: len(empty)]
        centroids[empty[: len(farthest)]] = points[farthest]


def _objective(norms: NDArray[np.float32], scores: NDArray[np.floating]) -> float:
    return max(float(np.mean(norms + scores, dtype=np.float64)), 0.0)
