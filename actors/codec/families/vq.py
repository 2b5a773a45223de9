"""One codebook for all groups of `dsub` values, after a rotation. Rows are divided by their own root
mean square, which is kept; a randomised Hadamard (`rotation = hadamard`) then makes all groups look
alike and nearly Gaussian, which is what lets one codebook serve them (QuIP#, Tseng et al. 2024).
So the codebook weighs next to nothing, and is learnt from all rows' groups at once.

state  codebook (k, dsub) float16; unit (1,) float32, that of the row scales
codes  codes (n, d / dsub) uint8 | uint16; scales (n,) float16
"""

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.families.pq import ONE
from actors.codec.kernels import books, kmeans, lanes, rotation
from actors.codec.kernels.halves import from_halves, to_halves, unit_of
from schemas.codec import CodecParams

charge = books.charge

POINTS_PER_CENTROID = 256
"""Groups that a codebook is trained on at most, for each centroid (as if there were 256 at least): more
move it less than noise does."""


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    unit, groups = training_groups(rows, params, rng, params.centroids)
    clusters = kmeans.lloyd(groups, params.centroids, rng, seeding="plusplus")
    return {"unit": unit, "codebook": to_halves(clusters.centroids, ONE, "centroid")}


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    groups, scales = grouped(rows, state, params)
    codebook = state["codebook"].astype(np.float32)
    codes, _ = kmeans.nearest(*lanes.operands(groups, codebook, params.lane_width, params.distance))
    return {"codes": books.as_codes(codes.reshape(len(rows), -1), len(codebook)), "scales": scales}


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    groups = np.take(state["codebook"].astype(np.float32), codes["codes"].astype(np.intp), axis=0)  # (n, groups, dsub)
    return ungrouped(groups, codes["scales"], state, params)


def training_groups(
    rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator, centroids: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The unit of row scales (1,), and groups (some, dsub) to learn codebooks from."""
    rows = books.checked(rows)
    if params.rotation == "opq":
        raise CodecError(f"{params.family} shares one codebook: rotation is hadamard or identity, opq fits PQ only")
    rotation.check(params, *rows.shape)
    unit = unit_of(books.rms(rows))
    groups, _ = grouped(rows, {"unit": unit}, lanes.training(params))
    most = POINTS_PER_CENTROID * max(centroids, 256)
    if len(groups) > most:
        groups = groups[np.sort(rng.choice(len(groups), most, replace=False))]
    return unit, groups


def grouped(
    rows: NDArray[np.float32], state: Arrays, params: CodecParams
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """(n * d / dsub, dsub) groups of unit mean square, and the (n,) float16 row scales that were
    divided out: those that are stored, so that their rounding is made up for by the codes."""
    rows = books.checked(rows)
    width = books.group_width(params, rows.shape[1])
    unit = state["unit"].astype(np.float32)
    scales = to_halves(books.rms(rows), unit, "row scale")
    divisor = from_halves(scales, unit)
    divisor[divisor == 0] = np.inf  # rows of nothing, which decode to zeros
    return rotation.rotate(rows / divisor[:, None], state, params).reshape(-1, width), scales


def ungrouped(
    groups: NDArray[np.float32], scales: NDArray[np.generic], state: Arrays, params: CodecParams
) -> NDArray[np.float32]:
    rows = rotation.rotate_back(groups.reshape(len(scales), -1), state, params)
    return rows * from_halves(scales.astype(np.float16), state["unit"].astype(np.float32))[:, None]
