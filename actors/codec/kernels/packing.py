"""Codes of 1 to 8 bits packed into bytes and back.

A row of d codes is laid out as 8 runs of w = ceil(d / 8) neighbours; byte plane i of the row holds bits 8i..8i+7 of
the 8·bits-bit number that the codes at the same place of the 8 runs make together. So all shifting is done on
contiguous bytes, and a row takes bits · w bytes: exactly d · bits / 8 when 8 divides d.
"""

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from schemas.codec import CodecParams

RUNS = 8  # codes that share `bits` bytes


def bits_of(params: CodecParams) -> int:
    if params.bits is None:
        raise CodecError(f"{params.family} needs bits, 1 to 8")
    return params.bits


def packed_width(columns: int, bits: int) -> int:
    """Bytes that a row of codes takes."""
    return bits * -(-columns // RUNS)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """(n, d) codes below 2^bits -> (n, packed_width) bytes."""
    n, columns = codes.shape
    width = -(-columns // RUNS)
    padded = np.zeros((n, RUNS * width), np.uint8)
    padded[:, :columns] = codes
    runs = padded.reshape(n, RUNS, width)
    planes = np.zeros((n, bits, width), np.uint8)
    for run in range(RUNS):
        plane, shift = divmod(run * bits, 8)
        planes[:, plane] |= runs[:, run] << shift  # uint8 drops what passes bit 7 ...
        if shift + bits > 8:
            planes[:, plane + 1] |= runs[:, run] >> (8 - shift)  # ... which goes here
    return planes.reshape(n, bits * width)


def unpack(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """(n, packed_width) bytes -> (n, d) codes."""
    n, width = len(packed), -(-columns // RUNS)
    if bits == 8:
        return packed[:, :columns]
    planes = packed.reshape(n, bits, width)
    runs = np.empty((n, RUNS, width), np.uint8)
    mask = np.uint8(2**bits - 1)
    for run in range(RUNS):
        plane, shift = divmod(run * bits, 8)
        codes = runs[:, run]
        np.right_shift(planes[:, plane], shift, out=codes)
        if shift + bits > 8:
            codes |= planes[:, plane + 1] << (8 - shift)
        if shift + bits != 8:
            codes &= mask
    return runs.reshape(n, RUNS * width)[:, :columns]
