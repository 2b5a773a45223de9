"""Orthonormal rotations of rows: none, a randomised Hadamard made anew from a seed, or OPQ's, learnt
and stored.

A Hadamard matrix of order d exists here for d = 2^k, 12*2^k and 20*2^k: the Kronecker product of
Sylvester's H_2 with Paley's H_12 and H_20. Other widths are refused: padding is the caller's choice,
since it costs bits, and dropping dimensions is no choice at all.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.kernels.lanes import bf16, bf16_bits, from_bf16_bits
from schemas.codec import CodecParams

RADIX = 32
"""Powers of two are multiplied this many at a time: d log d work, in BLAS."""


def orders(d: int) -> tuple[int, int]:
    """d = base * 2^k with base 1, 12 or 20 and a Hadamard matrix of that order. CodecError if none."""
    for base in (1, 12, 20):
        power, rest = divmod(d, base)
        if rest == 0 and power >= 1 and power & (power - 1) == 0:
            return base, power
    wider = padded(d) if d > 0 else 0
    raise CodecError(
        f"rotation = hadamard: no order {d} (2^k, 12*2^k, 20*2^k exist). Pad rows to {wider} values, "
        f"which costs {wider / d - 1:.1%} more codes, or take rotation = identity"
        if d > 0
        else f"rotation = hadamard needs d >= 1, got {d}"
    )


def padded(d: int) -> int:
    """The least order >= d that exists."""
    return min(base << max(0, (-(-d // base) - 1).bit_length()) for base in (1, 12, 20))


def check(params: CodecParams, n: int, d: int) -> None:
    """What can be said before any work about rotating n calibration rows of width d."""
    if params.rotation == "hadamard":
        orders(d)
    elif params.rotation == "opq":
        if params.lane_width != "bf16x32":
            raise CodecError(f"rotation = opq needs lane_width = bf16x32, got {params.lane_width}")
        if n < d:
            raise CodecError(f"rotation = opq needs at least as many calibration rows as columns, got {n} < {d}")


@lru_cache(maxsize=16)
def signs(d: int, seed: int) -> NDArray[np.float32]:
    """(d,) of -1 and 1, not to be written to. From the bit generator's raw stream, which numpy promises to keep as it
    is."""
    words = np.random.PCG64(seed).random_raw(-(-d // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:d]
    drawn = np.float32(1) - 2 * bits.astype(np.float32)
    drawn.flags.writeable = False
    return drawn


def hadamard(rows: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """rows D H / sqrt(d) for random signs D: (n, d) to (n, d), orthonormal. Halko et al. 2011, sec. 4.6."""
    return _transform(rows * signs(rows.shape[1], seed))


def hadamard_inverse(rows: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    out = _transform(rows, transposed=True)
    out *= signs(rows.shape[1], seed)
    return out


def rotate(rows: NDArray[np.float32], state: Arrays, params: CodecParams) -> NDArray[np.float32]:
    """As `params.rotation` says, in the arithmetic of `params.lane_width`. rows (n, d)."""
    if params.rotation == "hadamard":
        return _in_lanes(lambda x: hadamard(x, params.seed), rows, params)
    if params.rotation == "opq":
        matrix = from_bf16_bits(state["rotation"].astype(np.uint16))  # (d, d)
        return _in_lanes(lambda x: x @ matrix, rows, params)
    return rows


def rotate_back(rows: NDArray[np.float32], state: Arrays, params: CodecParams) -> NDArray[np.float32]:
    if params.rotation == "hadamard":
        return _in_lanes(lambda x: hadamard_inverse(x, params.seed), rows, params)
    if params.rotation == "opq":
        matrix = from_bf16_bits(state["rotation"].astype(np.uint16))
        return _in_lanes(lambda x: x @ matrix.T, rows, params)
    return rows


def opq(
    rows: NDArray[np.float32],  # (n, d)
    quantise: Callable[[NDArray[np.float32]], NDArray[np.float32]],  # rotated rows to their decoded selves
    rounds: int = 10,
) -> tuple[NDArray[np.uint16], list[float]]:
    """(d, d) bfloat16 bits of R such that rows R suits the quantiser, and the relative squared error
    of each round. Ge et al. 2013, algorithm 1: the quantiser is refitted for R fixed, then
    R = argmin |rows R - decoded| is orthogonal Procrustes (Schonemann 1966). R starts at identity."""
    n, d = rows.shape
    if n < d:
        raise CodecError(f"rotation = opq needs at least as many calibration rows as columns, got {n} < {d}")
    matrix = np.eye(d, dtype=np.float32)
    energy = float(np.sum(rows.astype(np.float64) ** 2)) or 1.0
    errors = []
    for _ in range(rounds):
        rotated = rows @ matrix
        decoded = quantise(rotated)
        errors.append(float(np.sum((rotated - decoded).astype(np.float64) ** 2)) / energy)
        left, _, right = np.linalg.svd(rows.T @ decoded)
        matrix = (left @ right).astype(np.float32)
    return bf16_bits(matrix), errors


def _transform(rows: NDArray[np.float32], transposed: bool = False) -> NDArray[np.float32]:
    """rows H / sqrt(d), H = H_base x H_2 x ... x H_2, one factor after the other along its own axis. A new array."""
    n, d = rows.shape
    base, power = orders(d)
    factors = [base] if base > 1 else []
    while power >= RADIX:
        factors.append(RADIX)
        power //= RADIX
    if power > 1:  # the small factor early: a long last axis is what BLAS is quick at
        factors.insert(1 if base > 1 else 0, power)
    out = np.ascontiguousarray(rows) if factors else rows.copy()
    right = d
    for order in factors:
        right //= order
        matrix = _matrix(order).astype(rows.dtype)  # (order, order), orthonormal; y = x H is y^T = H^T x^T
        if right == 1:
            out = out.reshape(-1, order) @ (matrix.T if transposed else matrix)
        else:
            out = (matrix if transposed else matrix.T) @ out.reshape(-1, order, right)
    return out.reshape(n, d)


@cache
def _matrix(order: int) -> NDArray[np.float64]:
    """H / sqrt(order): Sylvester for 2^k, else Paley's first construction over GF(order - 1)."""
    h = np.ones((1, 1))
    if order in (12, 20):
        q = order - 1  # a prime, 3 mod 4
        squares = {i * i % q for i in range(1, q)}
        character = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
        index = np.arange(q)
        h = np.eye(order)
        h[0, 1:], h[1:, 0] = 1, -1
        h[1:, 1:] += character[(index[:, None] - index[None, :]) % q]
    else:
        while len(h) < order:
            h = np.block([[h, h], [h, -h]])
    return np.asarray(h / np.sqrt(order), dtype=np.float64)


def _in_lanes(
    turn: Callable[[NDArray[np.float32]], NDArray[np.float32]], rows: NDArray[np.float32], params: CodecParams
) -> NDArray[np.float32]:
    if params.lane_width == "bf16x32":
        return bf16(turn(bf16(rows)))
    if params.lane_width == "f64x8":
        return turn(rows.astype(np.float64)).astype(np.float32)
    return turn(rows)
