"""A query plan as a vector, so that plans can be compared by cosine.

    x = normalise( a Σ_i e(operator_i)/(i+1) / Σ_i 1/(i+1)  +  b P q/|P q|  +  c u log2(k)/10  +  c v decade/4 )

i counts operators from 0, decade is -log10 of the filter's selectivity, rounded down. e, u and v are fixed unit vectors
drawn from a seed. P folds a query of any dimension into h: component i gets a random sign and place i mod h (count
sketch, Charikar, Chen & Farach-Colton 2002, balanced). It keeps inner products up to 1/sqrt(h); for d <= h it keeps
them exactly.

The query weighs most: operators tell few plans apart, and a pattern is to be of queries.

Sums and multiples of vectors are written as small matrix products over rows of one buffer: BLAS takes half the time of
numpy's element by element operations at these sizes, and this runs for every query.

Notation: d dimensions of a query, h of an embedding.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

OPERATORS = ("embed", "read", "filter", "plan", "graph", "exact", "exact_all", "lance", "fetch")
OPERATOR_WEIGHT = 0.35
QUERY_WEIGHT = 1.0
NUMBER_WEIGHT = 0.25
VERSION = 2
"""Of this and of the static features (core_terrain.py): raised when the same query gets other numbers."""
MANY = 1024
"""Plans and figures that are remembered, so that one is added up once."""


class PlanEmbedding:
    """Embeds plans for queries of `dim` dimensions. The same seed gives the same vectors everywhere. For one thread:
    its buffers are used again."""

    def __init__(self, dim: int, hidden: int, seed: int) -> None:
        if dim < 1 or hidden < 1:
            raise ValueError(f"{dim} dimensions into {hidden}: both must be positive")
        rng = np.random.default_rng(seed)
        self.dim, self.hidden = dim, hidden
        units = rng.standard_normal((len(OPERATORS) + 2, hidden))
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        self._units = units.astype(np.float32)  # (operators + 2, h)
        folds = -(-dim // hidden)
        self._signs = rng.choice(np.array([-1.0, 1.0], np.float32), dim)
        padded = np.zeros(folds * hidden, np.float32)
        self._signed = padded[:dim]  # these two are the same memory
        self._lines = padded.reshape(folds, hidden)
        self._ones = np.ones(folds, np.float32)
        self._parts = np.zeros((2, hidden), np.float32)  # the query's, the plan's
        self._shares = np.zeros(2, np.float32)
        self._fixed: dict[tuple[tuple[str, ...], int, int], tuple[F32, float]] = {}

    def embed(self, query: F32, operators: Sequence[str], k: int, selectivity: float) -> F32:
        """(h,) float32 of unit length. `query` (d,), `selectivity` in (0, 1]: the share of rows that a filter
        leaves. Unknown operators weigh nothing."""
        parts, shares = self._parts, self._shares
        parts[0] = q = self.project(query)
        parts[1], square = self._plan(tuple(operators), k, selectivity)
        q_square, q_plan = parts.dot(q).tolist()
        share = QUERY_WEIGHT / math.sqrt(q_square) if q_square > 0 else 0.0
        length = math.sqrt(max(share * share * q_square + 2 * share * q_plan + square, 1e-24))
        shares[0], shares[1] = share / length, 1 / length
        x: F32 = shares.dot(parts)
        return x

    def project(self, query: F32) -> F32:
        """P q: (d,) -> (h,)."""
        np.multiply(query, self._signs, self._signed)
        folded: F32 = self._ones.dot(self._lines)
        return folded

    def _plan(self, operators: tuple[str, ...], k: int, selectivity: float) -> tuple[F32, float]:
        """The part that isn't the query's, (h,), and its square."""
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
        self._fixed[key] = x, float(x.dot(x))
        return self._fixed[key]


def decade_of(selectivity: float) -> int:
    """0 for a tenth of the rows and more, 1 for a hundredth … 4 at most."""
    if selectivity >= 1.0:
        return 0
    return min(4, math.floor(-math.log10(max(selectivity, 1e-9)) + 1e-9))
