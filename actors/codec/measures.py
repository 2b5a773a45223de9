"""How far decoded rows are from the originals.

ICC here is the agreement of the two on how alike row pairs are: targets are pairs of rows, and the two "judges" of
Shrout & Fleiss (1979) are the cosine of the pair in the original and in the decoded matrix. It therefore sees neither
a rescaling of rows nor a rotation of the whole, after which a model is destroyed: relative L2, the norm error and the
row cosine see them. A certificate needs more than any of these.
"""

from collections.abc import Iterator, Sequence
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

BLOCK_FLOATS = 1 << 16
"""Made float64 at a time, beside the original and the decoded matrix, which are there as a whole."""


def measure(
    original: NDArray[np.float32],  # (n, d)
    decoded: NDArray[np.float32],  # (n, d)
    rng: np.random.Generator,
    pairs: int = PAIRS,
    rows: Selection = EVERY,
) -> Measures:
    """Over all rows, or those given. Where there are fewer than `pairs` pairs of rows, all of them are taken."""
    (measures,) = Original(original, [rows], rng, pairs).against(decoded)
    return measures


def measured(
    original: NDArray[np.float32],  # (n, d)
    decoded: NDArray[np.float32],  # (n, d)
    calibration: NDArray[np.intp],
    held_out: NDArray[np.intp],
    rng: np.random.Generator,
    pairs: int = PAIRS,
) -> Measured:
    """A codec on the rows that it was fitted on, on rows that it hasn't seen, and on all."""
    return compared(Original(original, [calibration, held_out, EVERY], rng, pairs), decoded)


def compared(original: "Original", decoded: NDArray[np.float32]) -> Measured:
    """The same for an original whose parts are the calibration rows, the held-out ones, and all."""
    seen, unseen, everything = original.against(decoded)
    return Measured(
        calibration=seen,
        held_out=unseen,
        all_rows=everything,
        memorisation=memorisation(seen, unseen),
        memorised=memorised(seen, unseen),
    )


class _Part(NamedTuple):
    """Some rows of the original, m of them, and p pairs among them."""

    rows: NDArray[np.intp]  # (m,) numbers
    first: NDArray[np.intp]  # (p,) places in rows
    second: NDArray[np.intp]
    truth: NDArray[np.float64]  # (p,) cosines


class Original:
    """The original's side, made once for all that is compared with it: what its rows sum to, pairs of rows in each of
    its parts, and how alike they are."""

    def __init__(
        self, matrix: NDArray[np.float32], parts: Sequence[Selection], rng: np.random.Generator, pairs: int = PAIRS
    ) -> None:
        if matrix.ndim != 2 or len(matrix) < 3:
            raise CodecError(f"measures need (n, d) with n >= 3, got {matrix.shape}")
        self._matrix = matrix
        every = np.arange(len(matrix))
        self._norms = np.sqrt(_dots(matrix, every, every))  # (n,)
        _check_finite(self._norms)
        self._parts = [self._part(every[rows], rng, pairs) for rows in parts]

    def against(self, decoded: NDArray[np.float32]) -> list[Measures]:
        """Of each part. decoded: (n, d)."""
        if decoded.shape != self._matrix.shape:
            raise CodecError(f"measures need two (n, d) of one shape, got {self._matrix.shape}, {decoded.shape}")
        squares, along, apart = _row_sums(self._matrix, decoded)
        _check_finite(squares)
        norms = np.sqrt(squares)
        return [self._measures(part, decoded, norms, along, apart) for part in self._parts]

    def _part(self, rows: NDArray[np.intp], rng: np.random.Generator, pairs: int) -> _Part:
        if len(rows) < 3:
            raise CodecError(f"measures need 3 rows or more, got {len(rows)}")
        first, second = row_pairs(len(rows), pairs, rng)
        return _Part(rows, first, second, _cosines(self._matrix, rows[first], rows[second], self._norms))

    def _measures(
        self,
        part: _Part,
        decoded: NDArray[np.float32],
        norms: NDArray[np.float64],  # (n,) |y|
        along: NDArray[np.float64],  # (n,) x.y
        apart: NDArray[np.float64],  # (n,) |x - y|^2
    ) -> Measures:
        rows = part.rows
        original_norm, decoded_norm = self._norms[rows], norms[rows]  # (m,)
        alive = original_norm > 0
        seen = _cosines(decoded, rows[part.first], rows[part.second], norms)
        icc_3_1, icc_1_1 = icc(np.stack([part.truth, seen], axis=1))
        cosines = _ratio(along[rows], original_norm * decoded_norm)
        return Measures(
            rows=len(rows),
            relative_l2=_relative(float(np.sqrt(apart[rows].sum())), float(np.linalg.norm(original_norm))),
            row_cosine=float(np.mean(cosines[alive])) if alive.any() else 1.0,
            norm_error=float(np.mean(np.abs(decoded_norm[alive] / original_norm[alive] - 1))) if alive.any() else 0.0,
            icc_3_1=icc_3_1,
            icc_1_1=icc_1_1,
            pairs=len(seen),
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


def _row_sums(
    original: NDArray[np.float32], decoded: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(n,) |y|^2, x.y and |x - y|^2 of each row."""
    squares, along, apart = (np.empty(len(original)) for _ in range(3))
    for block in _blocks(*original.shape):
        x, y = original[block].astype(np.float64), decoded[block].astype(np.float64)
        squares[block], along[block] = np.vecdot(y, y), np.vecdot(x, y)
        x -= y
        apart[block] = np.vecdot(x, x)
    return squares, along, apart


def _dots(rows: NDArray[np.float32], first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float64]:
    """(p,) in float64, of rows by their numbers."""
    dots = np.empty(len(first))
    for block in _blocks(len(first), rows.shape[1]):
        dots[block] = np.vecdot(rows[first[block]].astype(np.float64), rows[second[block]].astype(np.float64))
    return dots


def _blocks(n: int, d: int) -> Iterator[slice]:
    step = max(1, BLOCK_FLOATS // max(d, 1))
    return (slice(start, start + step) for start in range(0, n, step))


def _cosines(
    rows: NDArray[np.float32], first: NDArray[np.intp], second: NDArray[np.intp], norms: NDArray[np.float64]
) -> NDArray[np.float64]:
    return _ratio(_dots(rows, first, second), norms[first] * norms[second])


def _check_finite(sums: NDArray[np.float64]) -> None:
    if not np.isfinite(sums).all():
        raise CodecError("measures need finite values in the original and in what was decoded")


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where a row has no direction."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _relative(error: float, size: float) -> float:
    if size > 0:
        return error / size
    return inf if error > 0 else 0.0
