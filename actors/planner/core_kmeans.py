"""k-means with seeded k-means++ starts (Arthur & Vassilvitskii 2007), squared Euclidean distance.

A cluster that is left empty is given the point that is furthest from its own centroid.

Notation: n points, h dimensions, k clusters.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Clustering(NamedTuple):
    centroids: F32  # (k, h)
    labels: NDArray[np.int64]  # (n,)
    inertia: float  # sum of squared distances to the own centroid
    iterations: int


def kmeans(
    points: F32,  # (n, h)
    k: int,
    rng: np.random.Generator,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
) -> Clustering:
    """At most k clusters: no more than there are points. Ends when no centroid moves further than
    `tolerance`. Raises ValueError without points."""
    if points.ndim != 2 or not len(points) or k < 1:
        raise ValueError(f"{k} clusters of points {points.shape}")
    k = min(k, len(points))
    centroids = plus_plus(points, k, rng)
    squares = np.einsum("nh,nh->n", points, points, dtype=np.float64)  # (n,)
    labels, near = _assign(points, squares, centroids)
    shift, iterations = np.inf, 0
    while shift > tolerance and iterations < max_iterations:
        iterations += 1
        labels = _refill(labels, near, k)
        moved = _means(points, labels, k)
        shift = float(np.sqrt(((moved - centroids) ** 2).sum(axis=1)).max())
        centroids = moved
        labels, near = _assign(points, squares, centroids)
    return Clustering(centroids, labels, float(near.sum()), iterations)


def plus_plus(points: F32, k: int, rng: np.random.Generator) -> F32:
    """(k, h): each next start drawn in proportion to its squared distance to the nearest so far."""
    chosen = np.empty(k, np.int64)
    chosen[0] = rng.integers(len(points))
    near = ((points - points[chosen[0]]) ** 2).sum(axis=1, dtype=np.float64)  # (n,)
    for i in range(1, k):
        total = near.sum()
        if total > 0:
            chosen[i] = min(int(np.searchsorted(np.cumsum(near), rng.random() * total, side="right")), len(points) - 1)
        else:  # fewer distinct points than clusters
            chosen[i] = rng.integers(len(points))
        near = np.minimum(near, ((points - points[chosen[i]]) ** 2).sum(axis=1, dtype=np.float64))
    return points[chosen].copy()


def _assign(
    points: F32, squares: NDArray[np.float64], centroids: F32
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # (n,), (n,)
    distances = np.einsum("kh,kh->k", centroids, centroids)[None] - 2 * (points @ centroids.T)  # (n, k)
    labels = distances.argmin(axis=1)
    near = distances[np.arange(len(points)), labels] + squares
    return labels, np.maximum(near, 0.0)


def _refill(labels: NDArray[np.int64], near: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Labels in which no cluster is empty, as far as there are points to give: the furthest ones of
    clusters that have more than one."""
    counts = np.bincount(labels, minlength=k)
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return labels
    labels = labels.copy()
    furthest = iter(np.argsort(-near, kind="stable"))
    for cluster in empty:
        for point in furthest:
            if counts[labels[point]] > 1:
                counts[labels[point]] -= 1
                labels[point] = cluster
                counts[cluster] = 1
                break
    return labels


def _means(points: F32, labels: NDArray[np.int64], k: int) -> F32:
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=k)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(points[order], starts, axis=0, dtype=np.float64)  # every cluster has a point
    return (sums / counts[:, None]).astype(np.float32)
