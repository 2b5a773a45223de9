"""Even grids of 2^bits integers with a scale (and maybe a zero point) for each group of a row's values: what the
scalar and gptq families share.

value = (code - zero) scale; without zero points, zero is 2^(bits-1) everywhere. Scales are bfloat16: the codes are
chosen for the scale as it is kept, so its 8 digits cost nothing, and it has float32's range, unlike float16.

    V      (n, g, k) float32: n rows of g groups of k values
    scale  (n, g) float32 that bfloat16 holds, zero (n, g) uint8 or None
"""

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.kernels.lanes import bf16
from schemas.codec import Clip

SHRINKS = np.linspace(1.0, 0.3, 36, dtype=np.float32)  # parts of the range, tried for the least squared error

Scale = NDArray[np.float32]
Zero = NDArray[np.uint8] | None


def fit_grid(values: NDArray[np.float32], bits: int, clip: Clip, zero_point: bool) -> tuple[Scale, Zero]:
    """The scale and zero point of each group of V. absmax spans all of its values; mse takes the part of that range
    whose squared error is least."""
    low, high = values.min(axis=2), values.max(axis=2)  # (n, g)
    best_scale, zero = _span(low, high, bits, zero_point)
    if not np.isfinite(best_scale).all():
        raise CodecError("rows hold values that aren't finite, or whose range float32 can't hold")
    if clip == "absmax":
        return best_scale, zero
    least = np.full(low.shape, np.inf, np.float32)
    for shrink in SHRINKS:
        scale, _ = _span(shrink * low, shrink * high, bits, zero_point)  # zero stays where it is
        left = dequantise(quantise(values, scale, zero, bits), scale, zero, bits) - values
        error = np.einsum("ngk,ngk->ng", left, left)
        better = error < least
        least[better], best_scale[better] = error[better], scale[better]
    return best_scale, zero


def quantise(values: NDArray[np.float32], scale: Scale, zero: Zero, bits: int) -> NDArray[np.uint8]:
    """(n, g, k) codes: the nearest points of the grid."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.rint(values * inverse[:, :, None])
    codes += np.float32(2 ** (bits - 1)) if zero is None else zero[:, :, None]
    return np.clip(codes, 0, 2**bits - 1, out=codes).astype(np.uint8)


def dequantise(
    codes: NDArray[np.uint8], scale: Scale, zero: Zero, bits: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(n, g, k) float32."""
    if zero is None:  # wraps below 0, where int8 reads it right: one pass over bytes in place of one over floats
        signed = (codes - np.uint8(2 ** (bits - 1))).view(np.int8)
        return np.multiply(signed, scale[:, :, None], out=out, dtype=np.float32)
    out = np.subtract(codes, zero[:, :, None], out=out, dtype=np.float32)
    out *= scale[:, :, None]
    return out


def _span(low: NDArray[np.float32], high: NDArray[np.float32], bits: int, zero_point: bool) -> tuple[Scale, Zero]:
    """The grid from low to high. A symmetric one leaves its lowest code to values that are clipped."""
    with np.errstate(over="ignore"):  # fit_grid looks at what comes out
        if not zero_point:
            return _kept(np.maximum(-low, high) / np.float32(2 ** (bits - 1) - 1)), None
        low, high = np.minimum(low, 0), np.maximum(high, 0)  # 0 stays on the grid, so its place is a code
        scale = _kept((high - low) / np.float32(2**bits - 1))
    zero = np.rint(np.divide(-low, scale, out=np.zeros_like(low), where=scale > 0))
    return scale, np.clip(zero, 0, 2**bits - 1).astype(np.uint8)


def _kept(scale: NDArray[np.floating]) -> Scale:
    """As bfloat16; 0 for one so small that its inverse isn't finite."""
    kept = bf16(scale.astype(np.float32, copy=False))
    kept[scale < np.finfo(np.float32).tiny] = 0
    return kept
