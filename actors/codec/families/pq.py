"""Product quantisation (Jegou, Douze & Schmid 2011): a row is cut into M runs of columns and each has
k centroids of its own. The baseline: for one weight tensor its codebooks weigh as much as 8-bit codes.

state  codebook (k, d) float16: columns of run m are its centroids; unit (1,) float32;
       rotation (d, d) bfloat16 bits as uint16, with OPQ only
codes  codes (n, M) uint8 | uint16
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.kernels import books, kmeans, lanes, rotation
from actors.codec.kernels.halves import to_halves, unit_of
from schemas.codec import CodecParams

charge = books.charge

ONE = np.ones(1, np.float32)
"""The unit of what has been divided by its own already."""

LOOKED_UP = 1 << 16
"""Centroids at a time."""


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    rows = books.checked(rows)
    rotation.check(params, *rows.shape)
    runs = books.subspaces(params, rows.shape[1])
    unit = unit_of(books.rms(rows))
    rows = rows / unit
    state: dict[str, NDArray[np.generic]] = {"unit": unit}
    if params.rotation == "opq":
        state["rotation"], _ = rotation.opq(rows, _refitted(runs, params.centroids, rng))
    codebook, _ = train(rotation.rotate(rows, state, lanes.training(params)), runs, params.centroids, rng)
    state["codebook"] = to_halves(codebook, ONE, "centroid")
    return state


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    turned = turn(state, books.checked(rows), params)
    return {"codes": assign(turned, state["codebook"].astype(np.float32), params)}


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    return turn_back(state, look_up(state["codebook"].astype(np.float32), codes["codes"], params), params)


def distances(state: Arrays, codes: Arrays, query: NDArray[np.float32], params: CodecParams) -> NDArray[np.float32]:
    """(n,) squared L2 of a query (d,) to every decoded row, by tables (asymmetric distance, eq. 13 of
    the paper): M * k distances, then M look-ups a row, in the arithmetic of `params.lane_width`."""
    codebook = state["codebook"].astype(np.float32)
    d = codebook.shape[1]
    if query.shape != (d,):
        raise CodecError(f"the query has shape {query.shape}, the codebook is of {d} columns")
    turned = turn(state, books.checked(query[None]), params)
    squares = np.square(codebook - turned)  # (k, d)
    runs = books.subspaces(params, d)
    tables = np.stack([squares[:, run].sum(axis=1) for run in runs])  # (M, k)
    sums = lanes.table_sums(tables, codes["codes"].astype(np.intp), params.lane_width, params.distance)
    return sums * _unit(state) ** 2


def turn(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> NDArray[np.float32]:
    """Rows as the codebook sees them: over the unit and rotated."""
    d = state["codebook"].shape[-1]
    if rows.shape[1] != d:
        raise CodecError(f"rows are of {rows.shape[1]} columns, the codebook is of {d}")
    over: NDArray[np.float32] = np.divide(rows, _unit(state), dtype=np.float32)
    return rotation.rotate(over, state, params)


def turn_back(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> NDArray[np.float32]:
    return rotation.rotate_back(rows, state, params) * _unit(state)


def train(
    rows: NDArray[np.float32],  # (n, d)
    runs: list[slice],
    k: int,
    rng: np.random.Generator,
    start: NDArray[np.float32] | None = None,  # (k, d)
    iterations: int = 25,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(k, d) codebook and the (n, d) rows as it decodes them."""
    codebook = np.empty((k, rows.shape[1]), dtype=np.float32)
    decoded = np.empty_like(rows)
    for run in runs:
        begin = None if start is None else start[:, run]
        clusters = kmeans.lloyd(rows[:, run], k, rng, iterations=iterations, start=begin)
        codebook[:, run] = clusters.centroids
        decoded[:, run] = clusters.centroids[clusters.codes]
    return codebook, decoded


def assign(
    rows: NDArray[np.float32], codebook: NDArray[np.float32], params: CodecParams
) -> NDArray[np.unsignedinteger]:
    """(n, M) codes of turned rows."""
    columns = [
        kmeans.nearest(*lanes.operands(rows[:, run], codebook[:, run], params.lane_width, params.distance))[0]
        for run in books.subspaces(params, rows.shape[1])
    ]
    return books.as_codes(np.stack(columns, axis=1), len(codebook))


def look_up(codebook: NDArray[np.float32], codes: NDArray[np.generic], params: CodecParams) -> NDArray[np.float32]:
    """(n, d) turned rows of codes (n, M)."""
    k, d = codebook.shape
    rows, runs = np.empty((len(codes), d), dtype=np.float32), books.subspaces(params, d)
    if d % len(runs):
        for run, code in zip(runs, codes.T, strict=True):
            rows[:, run] = codebook[code.astype(np.intp), run]
        return rows
    centroids = codebook.reshape(k, len(runs), -1).swapaxes(0, 1).reshape(len(runs) * k, -1)  # one look-up for all runs
    step = max(1, LOOKED_UP // len(runs))
    for start in range(0, len(codes), step):
        at = codes[start : start + step].astype(np.intp) + k * np.arange(len(runs))
        np.take(centroids, at, axis=0, out=rows[start : start + step].reshape(*at.shape, -1), mode="clip")
    return rows


def _refitted(
    runs: list[slice], k: int, rng: np.random.Generator
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """PQ that goes on from where it was, a few iterations a call, as OPQ wants it."""
    codebook: NDArray[np.float32] | None = None

    def quantise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal codebook
        codebook, decoded = train(rows, runs, k, rng, start=codebook, iterations=4 if codebook is not None else 10)
        return decoded

    return quantise


def _unit(state: Arrays) -> np.float32:
    return np.float32(state["unit"].item())
