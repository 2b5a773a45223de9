"""A query plan as a vector, so that plans can be compared by cosine.

    x = normalise( Σ_i e(operator_i)/(i+1) · a  +  P q · b  +  log2(k)/10 · u · c  +  log10(1/selectivity)/4 · v · c )

e, u and v are fixed unit vectors drawn from a seed. P folds a query of any dimension into h: each of its
components gets a sign and one of the h places, the same number (±1) of components to each place (count
sketch, Charikar, Chen & Farach-Colton 2002, balanced). It keeps inner products up to 1/sqrt(h) and
costs three vector operations; for d <= h it keeps them exactly.

The query weighs most: operators tell few plans apart, and a pattern is to be of queries.

Notation: d dimensions of a query, h of an embedding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

OPERATORS = ("embed", "filter", "graph", "filtered_graph", "exact", "exact_all", "lance", "codes", "rescore", "fetch")
OPERATOR_WEIGHT = 0.35
QUERY_WEIGHT = 1.0
NUMBER_WEIGHT = 0.25
MANY = 1024
"""Plans and figures that are remembered, so that one is added up once."""


class PlanEmbedding:
    """Embeds plans for queries of `dim` dimensions. The same seed gives the same vectors everywhere."""

    def __init__(self, dim: int, hidden: int, seed: int) -> None:
        if dim < 1 or hidden < 1:
            raise ValueError(f"{dim} dimensions into {hidden}: both must be positive")
        rng = np.random.default_rng(seed)
        self.dim, self.hidden = dim, hidden
        units = rng.standard_normal((len(OPERATORS) + 2, hidden))
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        self._units = units.astype(np.float32)  # (operators + 2, h)
        folds = -(-dim // hidden)
        self._signs = rng.choice(np.array([-1.0, 1.0], np.float32), folds * hidden)
        self._order = rng.permutation(dim)  # (d,)
        self._padded = np.zeros(folds * hidden, np.float32)
        self._lines = self._padded.reshape(folds, hidden)  # the same memory
        self._fixed: dict[tuple[tuple[str, ...], int, int], F32] = {}

    def embed(self, query: F32, operators: Sequence[str], k: int, selectivity: float) -> F32:
        """(h,) float32 of unit length. `query` (d,), `selectivity` in (0, 1]: the share of rows that a filter
        leaves. Unknown operators weigh nothing."""
        x = self.project(query)
        length = float(x.dot(x)) ** 0.5
        x *= np.float32(QUERY_WEIGHT / length if length > 0 else 0.0)
        x += self._plan(tuple(operators), k, selectivity)
        x *= np.float32(1.0 / max(float(x.dot(x)) ** 0.5, 1e-12))
        return x

    def project(self, query: F32) -> F32:
        """P q: (d,) -> (h,)."""
        padded = self._padded
        np.take(query, self._order, out=padded[: self.dim], mode="clip")
        padded *= self._signs
        folded: F32 = np.add.reduce(self._lines, axis=0)
        return folded

    def _plan(self, operators: tuple[str, ...], k: int, selectivity: float) -> F32:
        """The part that isn't the query's: (h,)."""
        decade = decade_of(selectivity)
        key = (operators, k, decade)
        known = self._fixed.get(key)
        if known is not None:
            return known
        x = np.zeros(self.hidden, np.float32)
        weights = 0.0
        for place, name in enumerate(operators):
            if name in OPERATORS:
                x += self._units[OPERATORS.index(name)] / (place + 1)
                weights += 1 / (place + 1)
        if weights:
            x *= np.float32(OPERATOR_WEIGHT / weights)
        x += self._units[-2] * np.float32(NUMBER_WEIGHT * np.log2(k) / 10)
        x += self._units[-1] * np.float32(NUMBER_WEIGHT * decade / 4)
        if len(self._fixed) >= MANY:
            self._fixed.clear()
        self._fixed[key] = x
        return x


def decade_of(selectivity: float) -> int:
    """0 for a tenth of the rows and more, 1 for a hundredth … 4 at most."""
    if selectivity >= 1.0:
        return 0
    return int(min(4, np.floor(-np.log10(max(selectivity, 1e-9)) + 1e-9)))
