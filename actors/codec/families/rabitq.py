"""RaBitQ (Gao & Long 2024): a row less the calibration rows' mean, o = (x - c) / |x - c|, is rotated, and one sign bit
of each coordinate kept: o_bar, the nearest vertex of a cube inscribed in the sphere. <o_bar, q> / <o_bar, o> estimates
<o, q> without bias (eq. 12, theorem 3.2), so o_bar / <o_bar, o> is what decode puts for o: right on average over
rotations for any query, at the price of rows that are longer than they were (by 1 / 0.8).

state  unit (1,) float32, centre (d,) float16, columns (1,) int64
codes  codes (n, packed_width) uint8; scales (n, 2) float16: |x - c| over the unit, <o_bar, o>
"""

# ruff: noqa: ARG001 (all families have the same signatures)

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays
from actors.codec.families import scalar
from actors.codec.families.rotated import directions, norms
from actors.codec.kernels import rotation
from actors.codec.kernels.books import checked
from actors.codec.kernels.halves import from_halves, to_halves, unit_of
from actors.codec.kernels.packing import order, pack, spread, unpack
from schemas.codec import CodecParams

charge = scalar.charge


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    rows = checked(rows)
    rotation.check(params, *rows.shape)
    unit = unit_of(norms(rows))
    centre = to_halves(rows.mean(axis=0, dtype=np.float64), unit, "mean")
    return {"unit": unit, "centre": centre, "columns": np.array([rows.shape[1]], np.int64)}


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    left = checked(rows) - _centre(state)
    length = norms(left)
    turned = rotation.rotate(directions(left, length), state, params)  # (n, d), norm 1
    cosine = np.abs(turned).sum(axis=1, dtype=np.float64) / sqrt(rows.shape[1])  # <o_bar, o>, sqrt(2 / pi) or so
    scales = np.stack([to_halves(length, _unit(state), "row norm"), cosine.astype(np.float16)], axis=1)
    return {"codes": pack((turned > 0).astype(np.uint8), 1), "scales": scales}


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    columns = int(state["columns"][0])
    signs = unpack(codes["codes"].astype(np.uint8, copy=False), 1, columns)
    turned = (signs * np.float32(2) - 1) / np.float32(sqrt(columns))  # o_bar
    return rotation.rotate_back(turned, state, params) * _factors(state, codes)[:, None] + _centre(state)


def turn(state: Arrays, queries: NDArray[np.float32], params: CodecParams) -> NDArray[np.float32]:
    """(q, d + 1) for `products`: rotated, and what the centre adds to each."""
    turned = rotation.rotate(queries, state, params)[:, order(1, queries.shape[1])]
    return np.concatenate([turned, (queries @ _centre(state))[:, None]], axis=1)


def products(state: Arrays, codes: Arrays, params: CodecParams, turned: NDArray[np.float32]) -> NDArray[np.float32]:
    """(q, n) inner products of queries with decoded rows."""
    columns = int(state["columns"][0])
    corners = np.array([-1, 1], np.float32) / np.float32(sqrt(columns))
    vertices = spread(codes["codes"].astype(np.uint8, copy=False), corners, 1, columns)  # o_bar
    return (turned[:, :columns] @ vertices.T) * _factors(state, codes) + turned[:, columns:]


def _factors(state: Arrays, codes: Arrays) -> NDArray[np.float32]:
    """(n,) |x - c| / <o_bar, o>."""
    halves = codes["scales"].astype(np.float16)
    length, cosine = from_halves(halves[:, 0], _unit(state)), halves[:, 1].astype(np.float32)
    return np.divide(length, cosine, out=np.zeros_like(length), where=cosine > 0)


def _unit(state: Arrays) -> NDArray[np.float32]:
    return state["unit"].astype(np.float32)


def _centre(state: Arrays) -> NDArray[np.float32]:
    return from_halves(state["centre"].astype(np.float16), _unit(state))
