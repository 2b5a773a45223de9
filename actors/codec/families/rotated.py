"""TurboQuant-MSE (Zandieh et al. 2025, algorithm 1): after a random rotation every coordinate of a row of norm 1 is
nearly Gaussian with variance 1/d, whatever the row was, so that one set of levels, the Lloyd-Max quantiser of the
standard normal, serves all of them. Kept: a code of `bits` for each value, a norm for each row, and a seed.

state  unit (1,) float32, columns (1,) int64
codes  codes (n, packed_width) uint8, scales (n,) float16: norms over the unit
"""

# ruff: noqa: ARG001 (all families have the same signatures)

from functools import cache
from math import erfc, inf, pi, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays
from actors.codec.families import scalar
from actors.codec.kernels import rotation
from actors.codec.kernels.books import checked
from actors.codec.kernels.halves import from_halves, to_halves, unit_of
from actors.codec.kernels.packing import bits_of, order, pack, spread, unpack
from schemas.codec import CodecParams

charge = scalar.charge

SETTLED = 1e-10
"""Levels are found when Newton moves none of them further than this."""


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    rows = checked(rows)
    rotation.check(params, *rows.shape)
    return {"unit": unit_of(norms(rows)), "columns": np.array([rows.shape[1]], np.int64)}


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    rows, bits = checked(rows), bits_of(params)
    length = norms(rows)
    turned = rotation.rotate(directions(rows, length), state, params) * np.float32(sqrt(rows.shape[1]))
    levels = gaussian_levels(bits)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, turned).astype(np.uint8)
    return {"codes": pack(codes, bits), "scales": to_halves(length, state["unit"].astype(np.float32), "row norm")}


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    columns, bits, packed = int(state["columns"][0]), bits_of(params), codes["codes"].astype(np.uint8, copy=False)
    levels = gaussian_levels(bits) / np.float32(sqrt(columns))
    length = _lengths(state, codes)
    out = np.empty((len(packed), columns), np.float32)
    step = max(1, scalar.BLOCK_VALUES // columns)
    for start in range(0, len(packed), step):
        block = slice(start, start + step)
        turned = np.take(levels, unpack(packed[block], bits, columns), mode="clip")
        np.multiply(rotation.rotate_back(turned, state, params), length[block, None], out=out[block])
    return out


def turn(state: Arrays, queries: NDArray[np.float32], params: CodecParams) -> NDArray[np.float32]:
    """(q, d) for `products`: rotating a query once saves rotating every row back."""
    return rotation.rotate(queries, state, params)[:, order(bits_of(params), queries.shape[1])]


def products(state: Arrays, codes: Arrays, params: CodecParams, turned: NDArray[np.float32]) -> NDArray[np.float32]:
    """(q, n) inner products of queries with decoded rows."""
    columns, bits = int(state["columns"][0]), bits_of(params)
    levels = gaussian_levels(bits) / np.float32(sqrt(columns))
    directions = spread(codes["codes"].astype(np.uint8, copy=False), levels, bits, columns)
    return (turned @ directions.T) * _lengths(state, codes)


def _lengths(state: Arrays, codes: Arrays) -> NDArray[np.float32]:
    return from_halves(codes["scales"].astype(np.float16), state["unit"].astype(np.float32))


def norms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,), in float64 on the way."""
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(squares).astype(np.float32)


def directions(rows: NDArray[np.float32], length: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of norm 1; rows of nothing stay so."""
    unit: NDArray[np.float32] = np.divide(rows, length[:, None], out=np.zeros_like(rows), where=length[:, None] > 0)
    return unit


@cache
def gaussian_levels(bits: int) -> NDArray[np.float32]:
    """(2^bits,) levels of least squared error for a standard normal (Lloyd 1957, Max 1960): each is the mean of what
    is nearest to it. They mirror about 0, so only the positive half is sought, by Newton's method on mean - level = 0
    from quantiles of N(0, 3), the best density when there are many of them (Panter & Dite 1951)."""
    half = 2 ** (bits - 1)
    wide = NormalDist(0, sqrt(3))
    levels = np.array([wide.inv_cdf((half + i + 0.5) / (2 * half)) for i in range(half)])
    moved = inf
    while moved > SETTLED:
        edges = np.array([0.0, *((levels[1:] + levels[:-1]) / 2), inf])
        density = np.exp(-edges * edges / 2) / sqrt(2 * pi)
        mass = -np.diff([erfc(edge / sqrt(2)) / 2 for edge in edges])
        means = -np.diff(density) / mass
        inner = edges[1:-1]
        by_left = density[1:-1] * (means[1:] - inner) / mass[1:] / 2  # of means[i] by levels[i - 1]
        by_right = density[1:-1] * (inner - means[:-1]) / mass[:-1] / 2  # of means[i] by levels[i + 1]
        slope = np.diag(by_left, -1) + np.diag(by_right, 1)
        slope += np.diag(np.append(0, by_left) + np.append(by_right, 0) - 1)  # of means[i] - levels[i] by levels[i]
        moves = np.linalg.solve(slope, means - levels)
        levels -= moves
        moved = float(np.abs(moves).max())
    return np.concatenate([-levels[::-1], levels]).astype(np.float32)
