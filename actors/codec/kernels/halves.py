"""Scales and norms kept as float16, over one float32 unit a tensor.

float16 holds 2^-14 .. 65504 to 11 bits. Weights of 1e-6 or vectors of norm 1e5 are outside of that, so what is kept
is value / unit, where the unit is the power of two nearest to what the calibration rows have.
"""

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError


def unit_of(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """(1,) float32: the power of two nearest to the median of what isn't 0."""
    sizes = np.abs(values[values != 0])
    exponent = np.round(np.log2(np.median(sizes))) if len(sizes) else 0.0
    return np.array([2.0 ** np.clip(exponent, -100, 100)], np.float32)


def to_halves(values: NDArray[np.floating], unit: NDArray[np.float32], what: str) -> NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    largest = float(np.max(np.abs(values), initial=0.0)) / float(unit[0])
    if not largest <= limit:  # NaN too
        raise CodecError(
            f"a {what} of {largest * float(unit[0]):.3g} is beyond {limit} × {float(unit[0]):.3g}, the most that"
            f" float16 keeps over the unit of the calibration rows: calibrate on rows like these"
        )
    halves: NDArray[np.float16] = (values / unit[0]).astype(np.float16)
    return halves


def from_halves(halves: NDArray[np.float16], unit: NDArray[np.float32]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = halves.astype(np.float32) * unit[0]
    return values
