"""How far decoded rows are from the originals.

ICC here is the agreement of the two on how alike row pairs are: targets are pairs of rows, and the two "judges" of
Shrout & Fleiss (1979) are the cosine of the pair in the original and in the decoded matrix. It therefore sees neither
a rescaling of rows nor a rotation of the whole, after which a model is destroyed: relative L2, the norm error and the
row cosine see them. A certificate needs more than any of these.
"""

from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from schemas.codec import Measured, Measures

PAIRS = 4096
PAIRED_ROWS = 92
"""The fewest rows with 4,096 pairs among them."""

MEMORISED = 0.05
"""A gap in ICC beyond this is what a codec knows of the rows it has seen and not of rows like them. Halves of one
tensor differ too: under codecs that learn nothing by 0.001 at 4 bits, by 0.03 at 1 bit."""


Selection = slice | NDArray[np.intp]
"""Which rows of a matrix: numbers, ascending, or all of them."""

EVERY = slice(None)

BLOCK_FLOATS = 1 << 20
"""Worked on at a time beside the original and the decoded matrix, which are there as a whole."""


def measure(
    original: NDArray[np.float32],  # (n, d)
    decoded: NDArray[np.float32],  # (n, d)
    rng: np.random.Generator,
    pairs: int = PAIRS,
    rows: Selection = EVERY,
) -> Measures:
    """Over all rows, or those given. Where there are fewer than `pairs` pairs of rows, all of them are taken."""
    if original.ndim != 2 or original.shape != decoded.shape or len(original) < 3:
        raise CodecError(f"measures need two (n, d) of one shape with n >= 3, got {original.shape}, {decoded.shape}")
    return _summed(original, decoded, _row_sums(original, decoded), rng, pairs, rows)


def measured(
    original: NDArray[np.float32],  # (n, d)
    decoded: NDArray[np.float32],  # (n, d)
    calibration: NDArray[np.intp],
    held_out: NDArray[np.intp],
    rng: np.random.Generator,
    pairs: int = PAIRS,
) -> Measured:
    """A codec on the rows that it was fitted on, on rows that it hasn't seen, and on all; every row is summed once."""
    sums = _row_sums(original, decoded)
    seen, unseen, everything = (
        _summed(original, decoded, sums, rng, pairs, rows) for rows in (calibration, held_out, EVERY)
    )
    return Measured(
        calibration=seen,
        held_out=unseen,
        all_rows=everything,
        memorisation=memorisation(seen, unseen),
        memorised=memorised(seen, unseen),
    )


class _RowSums(NamedTuple):
    """What is summed along each row, (n,) float64."""

    original: NDArray[np.float64]  # |x|^2
    decoded: NDArray[np.float64]  # |y|^2
    along: NDArray[np.float64]  # x.y
    apart: NDArray[np.float64]  # |x - y|^2


def _row_sums(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> _RowSums:
    n, d = original.shape
    sums = _RowSums(*(np.empty(n) for _ in range(4)))
    step = max(1, BLOCK_FLOATS // max(d, 1))
    for start in range(0, n, step):
        block = slice(start, start + step)
        x, y = original[block], decoded[block]
        sums.original[block] = np.einsum("nd,nd->n", x, x, dtype=np.float64)
        sums.decoded[block] = np.einsum("nd,nd->n", y, y, dtype=np.float64)
        sums.along[block] = np.einsum("nd,nd->n", x, y, dtype=np.float64)
        left = x - y
        sums.apart[block] = np.einsum("nd,nd->n", left, left, dtype=np.float64)
    if not (np.isfinite(sums.original).all() and np.isfinite(sums.decoded).all()):
        raise CodecError("measures need finite values in the original and in what was decoded")
    return sums


def _summed(
    original: NDArray[np.float32],
    decoded: NDArray[np.float32],
    sums: _RowSums,
    rng: np.random.Generator,
    pairs: int,
    rows: Selection,
) -> Measures:
    chosen = np.arange(len(original))[rows]
    if len(chosen) < 3:
        raise CodecError(f"measures need 3 rows or more, got {len(chosen)}")
    original_norm, decoded_norm = np.sqrt(sums.original[chosen]), np.sqrt(sums.decoded[chosen])  # (m,)
    alive = original_norm > 0
    first, second = row_pairs(len(chosen), pairs, rng)
    truth = _cosines(original, chosen[first], chosen[second], original_norm[first] * original_norm[second])
    seen = _cosines(decoded, chosen[first], chosen[second], decoded_norm[first] * decoded_norm[second])
    icc_3_1, icc_1_1 = icc(np.stack([truth, seen], axis=1))
    cosines = _ratio(sums.along[chosen], original_norm * decoded_norm)
    return Measures(
        rows=len(chosen),
        relative_l2=_relative(float(np.sqrt(sums.apart[chosen].sum())), float(np.sqrt(sums.original[chosen].sum()))),
        row_cosine=float(np.mean(cosines[alive])) if alive.any() else 1.0,
        norm_error=float(np.mean(np.abs(decoded_norm[alive] / original_norm[alive] - 1))) if alive.any() else 0.0,
        icc_3_1=icc_3_1,
        icc_1_1=icc_1_1,
        pairs=len(first),
    )


def icc(judged: NDArray[np.float64]) -> tuple[float, float]:
    """ICC(3,1) and ICC(1,1) of (targets, 2) judgements; Shrout & Fleiss 1979, table 1 and p. 423, for k = 2 judges:

    MSR  of targets, from the means of both judges
    MSE  of what is left when targets and judges are taken out
    MSW  within targets: judges aren't taken out, so that an offset between them counts against them
    """
    targets = len(judged)
    means, apart = judged.mean(axis=1), judged[:, 0] - judged[:, 1]
    msr = 2 * float(np.var(means, ddof=1))
    mse = float(np.var(apart, ddof=1)) / 2
    msw = float(np.sum(apart * apart)) / (2 * targets)
    return _agreement(msr, mse), _agreement(msr, msw)


def row_pairs(n: int, pairs: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """`pairs` distinct pairs i > j of n rows, or all of them if there are no more."""
    there_are = n * (n - 1) // 2
    place = np.arange(there_are) if there_are <= pairs else rng.choice(there_are, pairs, replace=False, shuffle=False)
    # Pair i, j is at i (i - 1) / 2 + j. float64 tells the root for the last j from that for the next i up to n = 10^7.
    first = ((1 + np.sqrt(1 + 8 * place.astype(np.float64))) / 2).astype(np.intp)
    return first, place - first * (first - 1) // 2


def memorisation(calibration: Measures, held_out: Measures) -> float:
    """What a codec loses in ICC from the rows that it was fitted on to rows that it hasn't seen."""
    return calibration.icc_3_1 - held_out.icc_3_1


def memorised(calibration: Measures, held_out: Measures) -> bool:
    return memorisation(calibration, held_out) > MEMORISED


def _agreement(between: float, within: float) -> float:
    """1 where no pair differs from another, and the judges agree on that."""
    return (between - within) / (between + within) if between + within > 0 else 1.0


def _cosines(
    rows: NDArray[np.float32],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    norms: NDArray[np.float64],  # of both, multiplied
) -> NDArray[np.float64]:
    products = np.empty(len(first))
    step = max(1, BLOCK_FLOATS // max(rows.shape[1], 1))
    for start in range(0, len(first), step):
        block = slice(start, start + step)
        products[block] = np.einsum("pd,pd->p", rows[first[block]], rows[second[block]], dtype=np.float64)
    return _ratio(products, norms)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where a row has no direction."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _relative(error: float, size: float) -> float:
    if size > 0:
        return error / size
    return inf if error > 0 else 0.0
