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
SPREAD_VALUES = 1 << 18  # looked up at a time: 1 MiB of float32


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


def spread(packed: NDArray[np.uint8], values: NDArray[np.float32], bits: int, columns: int) -> NDArray[np.float32]:
    """(n, d) values[code] of each code, columns in `order`. Bytes that hold whole codes are looked up as they are, in a
    third of the time of unpacking them first."""
    out = np.empty((len(packed), columns), np.float32)
    whole, step = _whole(bits, columns), max(1, SPREAD_VALUES // columns)
    if whole:
        per = np.arange(8 // bits)
        values = values[np.arange(256)[:, None] >> (bits * per) & (2**bits - 1)]  # (256, codes a byte)
    for start in range(0, len(packed), step):
        some = packed[start : start + step]
        if whole:
            part = out[start : start + step].reshape(len(some), -1, 8 // bits)
            np.take(values, some, axis=0, out=part, mode="clip")
        else:
            np.take(values, unpack(some, bits, columns), out=out[start : start + step], mode="clip")
    return out


def order(bits: int, columns: int) -> NDArray[np.intp]:
    """(d,) the column of each value that `spread` gives."""
    if not _whole(bits, columns):
        return np.arange(columns)
    return np.arange(columns).reshape(bits, 8 // bits, columns // RUNS).transpose(0, 2, 1).ravel()


def _whole(bits: int, columns: int) -> bool:
    """Whether each byte is of whole codes, all of them columns."""
    return 8 % bits == 0 and columns % RUNS == 0
