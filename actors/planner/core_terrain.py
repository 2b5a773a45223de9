"""Static features of a query: where it lies among an index's rows. Known before the search for the price of one
matrix product; learnt from a sample of rows, never from queries, so that a labelled query looks no different from a
fresh one.

    energy_p = Σ_{i<=p} ((q - mean) · e_i)²     over the first p principal axes of the rows, p = 8 and 32
    nearest, gap, mean, spread                  of the query's products with the centroids of the rows

Notation: d dimensions, p axes, c centroids, n rows of the sample.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner.core_kmeans import kmeans

F32 = NDArray[np.float32]

AXES = (8, 32)
CENTROIDS = 32
SAMPLE = 4000
FEATURES = 6
ITERATIONS = 20


class Terrain(NamedTuple):
    matrix: F32  # (p + c + 1, d): axes, centroids, the centroids' mean
    offset: F32  # (p,) the mean's products with the axes

    @classmethod
    def unknown(cls, dim: int) -> "Terrain":
        return cls(np.zeros((0, dim), np.float32), np.zeros(0, np.float32))

    @classmethod
    def of(cls, rows: F32, rng: np.random.Generator) -> "Terrain":
        """Of (n, d) rows, at least one."""
        n, d = rows.shape
        some = rows if n <= SAMPLE else rows[np.sort(rng.choice(n, SAMPLE, replace=False))]
        some = np.asarray(some, np.float32)
        mean = some.mean(axis=0)
        centred = some - mean
        values, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
        first = axes[:, np.argsort(-values)[: min(AXES[-1], d)]].T.astype(np.float32)  # (p, d)
        centroids = kmeans(some, CENTROIDS, rng, ITERATIONS).centroids
        centroids = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        return cls(np.concatenate([first, centroids, centroids.mean(axis=0, keepdims=True)]), first @ mean)

    def features(self, query: F32) -> tuple[float, ...]:
        """(6,) floats of a query (d,); zeros while there is no terrain."""
        p = len(self.offset)
        if p == 0:
            return NOWHERE
        product = self.matrix.dot(query)
        axes, near, mean = product[:p], product[p:-1], product.item(-1)
        axes -= self.offset
        few = axes[: AXES[0]]
        spread = math.sqrt(max(0.0, float(near.dot(near)) / len(near) - mean * mean))
        first = near.argmax()
        best = near.item(first)
        near[first] = -math.inf
        second = near.item(near.argmax())
        gap = best - second if second > -math.inf else 0.0
        return float(few.dot(few)), float(axes.dot(axes)), best, gap, mean, spread


NOWHERE = (0.0,) * FEATURES
