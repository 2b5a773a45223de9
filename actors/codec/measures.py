"""How far decoded rows are from the originals.

ICC here is the agreement of the two on how alike row pairs are: targets are pairs of rows, and the two "judges" of
Shrout & Fleiss (1979) are the cosine of the pair in the original and in the decoded matrix. It therefore sees neither
a rescaling of rows nor a rotation of the whole, after which a model is destroyed: relative L2, the norm error and the
row cosine see them. A certificate needs more than any of these.
"""

from math import inf

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from schemas.codec import Measures

PAIRS = 4096
PAIRED_ROWS = 92
"""The fewest rows with 4,096 pairs among them."""

MEMORISED = 0.05
"""A gap in ICC beyond this is what a codec knows of the rows it has seen and not of rows like them. Halves of one
tensor differ too: under codecs that learn nothing by 0.001 at 4 bits, by 0.03 at 1 bit."""


def measure(
    original: NDArray[np.float32],  # (n, d)
    decoded: NDArray[np.float32],  # (n, d)
    rng: np.random.Generator,
    pairs: int = PAIRS,
) -> Measures:
    """Over all rows given. Where there are fewer than `pairs` pairs of rows, all of them are taken."""
    if original.ndim != 2 or original.shape != decoded.shape or len(original) < 3:
        raise CodecError(f"measures need two (n, d) of one shape with n >= 3, got {original.shape}, {decoded.shape}")
    if not (np.isfinite(original).all() and np.isfinite(decoded).all()):
        raise CodecError("measures need finite values in the original and in what was decoded")
    original_norm, decoded_norm = _norms(original), _norms(decoded)  # (n,) float64
    alive = original_norm > 0
    first, second = row_pairs(len(original), pairs, rng)
    truth = _cosines(original, first, second, original_norm)
    seen = _cosines(decoded, first, second, decoded_norm)
    icc_3_1, icc_1_1 = icc(np.stack([truth, seen], axis=1))
    along = np.einsum("nd,nd->n", original, decoded, dtype=np.float64)
    cosines = _ratio(along, original_norm * decoded_norm)
    return Measures(
        rows=len(original),
        relative_l2=_relative(float(np.linalg.norm(_norms(original - decoded))), float(np.linalg.norm(original_norm))),
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


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(squares)


def _cosines(
    rows: NDArray[np.float32], first: NDArray[np.intp], second: NDArray[np.intp], norms: NDArray[np.float64]
) -> NDArray[np.float64]:
    products = np.einsum("pd,pd->p", rows[first], rows[second], dtype=np.float64)
    return _ratio(products, norms[first] * norms[second])


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where a row has no direction."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _relative(error: float, size: float) -> float:
    if size > 0:
        return error / size
    return inf if error > 0 else 0.0
