"""The arithmetic that a kernel really runs in (`CodecParams.lane_width`), emulated exactly on BLAS.

    f32x16   float32, as it is
    f64x8    float64; what is stored stays float32 or float16
    bf16x32  every operand rounded to bfloat16 (nearest, ties to even), sums in float32, as
             AVX512-BF16 and AMX do. A rotation's result is rounded to bfloat16 as well
    u8x64    8-bit integers on one grid spanned by the codebook, sums exact. `distance` names the
             integers: adc_u8 is 0..255 from the lowest value, adc_i8 is -127..127 about 0. Only
             distances (encoding and search) run in it; 8 bits can't rotate, so rotations stay float32

Training runs in float32 for all of them: it happens once, and no kernel serves from it. So codebooks are the same
whatever the lanes.
"""

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from schemas.codec import CodecParams, Distance, LaneWidth

Floats = NDArray[np.float32] | NDArray[np.float64]

EXACT_IN_FLOAT32 = 2**24
"""Integers up to here are exact in float32, so BLAS may sum them in any order."""


def training(params: CodecParams) -> CodecParams:
    """The same codec in the arithmetic that it is trained in."""
    return replace(params, lane_width="f32x16")


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of float32, rounded to nearest, ties to even. Finite values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bf16_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16 of each value, as float32."""
    return from_bf16_bits(bf16_bits(values))


def operands(
    points: NDArray[np.float32], centroids: NDArray[np.float32], lane_width: LaneWidth, distance: Distance
) -> tuple[Floats, Floats]:
    """Both sides of a nearest-centroid search as the lanes hold them; distances between the results
    order as the kernel's do."""
    if lane_width == "f64x8":
        return points.astype(np.float64), centroids.astype(np.float64)
    if lane_width == "bf16x32":
        return bf16(points), bf16(centroids)
    if lane_width == "u8x64":
        return _on_grid(points, centroids, distance)
    return points, centroids


def _on_grid(points: NDArray[np.float32], centroids: NDArray[np.float32], distance: Distance) -> tuple[Floats, Floats]:
    """Integers, in a float type wide enough that |c|^2 - 2 x.c has no rounding."""
    if distance == "adc_u8":
        lowest, highest, origin = 0, 255, float(centroids.min())
        step = (float(centroids.max()) - origin) / 255
    else:
        lowest, highest, origin = -127, 127, 0.0
        step = float(np.abs(centroids).max()) / 127
    step = step or 1.0  # all centroids are one value
    exact = 3 * highest**2 * points.shape[1] < EXACT_IN_FLOAT32
    dtype = np.float32 if exact else np.float64
    grid = [np.clip(np.rint((side - origin) / step), lowest, highest).astype(dtype) for side in (points, centroids)]
    return grid[0], grid[1]


def table_sums(
    tables: NDArray[np.float32], codes: NDArray[np.unsignedinteger], lane_width: LaneWidth, distance: Distance
) -> NDArray[np.float32]:
    """Sum over m of tables[m, codes[:, m]] in the lanes' arithmetic. tables (M, k), codes (n, M).

    In u8x64 each table is shifted by its own offset and all share one step (Andre et al. 2015, Quick
    ADC), so that integer sums order as distances do; each entry is off by half a step at most.
    """
    offset, step = 0.0, 1.0
    held: NDArray[np.generic] = tables
    total: NDArray[np.generic] = np.zeros(len(codes), np.float32)
    if lane_width == "f64x8":
        held, total = tables.astype(np.float64), np.zeros(len(codes), np.float64)
    elif lane_width == "bf16x32":
        held = bf16(tables)
    elif lane_width == "u8x64":
        lowest, highest = tables.min(axis=1, keepdims=True), tables.max(axis=1, keepdims=True)  # (M, 1)
        unsigned = distance == "adc_u8"
        origin = lowest if unsigned else (lowest + highest) / 2
        step = float((highest - lowest).max()) / (255 if unsigned else 254) or 1.0
        offset = float(origin.sum(dtype=np.float64))
        held = np.rint((tables - origin) / step).astype(np.uint8 if unsigned else np.int8)
        total = np.zeros(len(codes), np.int32)
    for table, code in zip(held, codes.T, strict=True):
        total = total + table[code]
    return (offset + step * total.astype(np.float64)).astype(np.float32)
