"""No codec: float32 as it is, or bfloat16 by rounding to the nearest, ties to even. The yardsticks of the others.

codes  codes (n, d): float32, or the bits of bfloat16 as uint16
"""

# ruff: noqa: ARG001 (all families have the same signatures)

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.kernels.books import checked
from actors.codec.kernels.lanes import bf16_bits, from_bf16_bits
from schemas.codec import Charge, CodecParams

LARGEST = from_bf16_bits(np.array([0x7F7F], np.uint16))[0]


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    return {}


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    rows = checked(rows)
    if params.family == "f32":
        return {"codes": rows}
    bits = bf16_bits(rows)
    if ((bits & 0x7FFF) == 0x7F80).any():
        raise CodecError(f"a value of {np.abs(rows).max():.5g} rounds to infinity: bfloat16 ends at {LARGEST:.5g}")
    return {"codes": bits}


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    if params.family == "f32":
        return codes["codes"].astype(np.float32)
    return from_bf16_bits(codes["codes"].astype(np.uint16, copy=False))


def charge(state: Arrays, codes: Arrays, params: CodecParams) -> Charge:
    return Charge(codes=codes["codes"].nbytes)
