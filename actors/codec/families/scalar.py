"""Integers of 1 to 8 bits with a scale, and with `zero_point` a zero point, for each row or each `group` of its
values. Nothing is learnt from calibration rows."""

# ruff: noqa: ARG001 (all families have the same signatures)

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import ENCODER, Arrays
from actors.codec.kernels.books import checked
from actors.codec.kernels.grid import Zero, dequantise, fit_grid, quantise
from actors.codec.kernels.lanes import bf16_bits, from_bf16_bits
from actors.codec.kernels.packing import bits_of, pack, unpack
from schemas.codec import Charge, CodecParams

T = TypeVar("T", bound=np.generic)

BLOCK_VALUES = 1 << 17  # decoded at a time: 512 KiB of float32, which stays in a core's cache


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    return {"columns": np.array([rows.shape[1]], np.int64)}


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    bits, groups = bits_of(params), grouped(checked(rows), params)
    scale, zero = fit_grid(groups, bits, params.clip, params.zero_point)
    return to_codes(quantise(groups, scale, zero, bits), scale, zero, bits)


def to_codes(
    codes: NDArray[np.uint8], scale: NDArray[np.float32], zero: Zero, bits: int
) -> dict[str, NDArray[np.generic]]:
    """What is kept of (n, g, k) codes and their grid."""
    kept: dict[str, NDArray[np.generic]] = {"codes": pack(codes.reshape(len(codes), -1), bits)}
    kept["scales"] = bf16_bits(scale)  # (n, g)
    if zero is not None:
        kept["zeros"] = zero  # (n, g)
    return kept


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    bits, columns = bits_of(params), int(state["columns"][0])
    packed, scale = codes["codes"].astype(np.uint8, copy=False), from_bf16_bits(codes["scales"].astype(np.uint16))
    zero = codes["zeros"].astype(np.uint8, copy=False) if "zeros" in codes else None
    out = np.empty((len(packed), columns), np.float32)
    step = max(1, BLOCK_VALUES // columns)
    for start in range(0, len(packed), step):
        block = slice(start, start + step)
        groups = grouped(unpack(packed[block], bits, columns), params)
        zeros = None if zero is None else zero[block]
        dequantise(groups, scale[block], zeros, bits, out=grouped(out[block], params))
    return out


def charge(state: Arrays, codes: Arrays, params: CodecParams) -> Charge:
    """All that is kept beside codes are scales of some kind."""
    kept = {name: array.nbytes for name, array in {**state, **codes}.items() if not name.startswith(ENCODER)}
    return Charge(codes=kept.pop("codes"), scales=sum(kept.values()))


def grouped(rows: NDArray[T], params: CodecParams) -> NDArray[T]:
    """(n, d) as (n, g, k)."""
    n, columns = rows.shape
    return rows.reshape(n, -1, params.group or columns)
