"""Error feedback by calibration activations (Frantar et al. 2022): columns of a layer's weights are rounded one after
the other, and what rounding one did to the layer's output is made up for by the columns still to come.

fit is given what comes into the layer, A (m, d), and encode its weights W (n, d), of a layer that puts out A W^T.
What is kept is the same as of the scalar family.

state  columns (1,) int64, encoder.feedback (d, d) float32, upper: Cholesky of the inverse Hessian, H^-1 = U^T U
"""

# ruff: noqa: ARG001 (all families have the same signatures)

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import ENCODER, Arrays, CodecError
from actors.codec.families import scalar
from actors.codec.kernels.books import checked
from actors.codec.kernels.grid import dequantise, fit_grid, quantise
from actors.codec.kernels.packing import bits_of
from schemas.codec import CodecParams

charge = scalar.charge
decode = scalar.decode

FEEDBACK = ENCODER + "feedback"

DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, added to all of it (sec. 3.3, step 3): columns that never see an activation
are rounded as they are."""

BLOCK = 128
"""Columns that are done before the columns behind them hear of it, so that they do in one product (step 2)."""


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    columns = rows.shape[-1]
    return {"columns": np.array([columns], np.int64), FEEDBACK: feedback(checked(rows)).astype(np.float32)}


def feedback(activations: NDArray[np.float32]) -> NDArray[np.float64]:
    """(d, d) upper U with H^-1 = U^T U for the damped Hessian H = 2 A^T A of |A W^T - A Q^T|^2."""
    wide = activations.astype(np.float64)
    hessian = 2 * wide.T @ wide
    mean = float(np.trace(hessian)) / len(hessian)
    if mean == 0:
        raise CodecError("gptq needs calibration activations that aren't all 0")
    hessian[np.diag_indices_from(hessian)] += DAMPING * mean
    lower = np.linalg.cholesky(hessian[::-1, ::-1])  # H = M M^T with M = lower[::-1, ::-1], upper
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))  # U = M^-1


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    upper, bits = state[FEEDBACK].astype(np.float32), bits_of(params)  # (d, d)
    weights = checked(rows).copy()  # (n, d), changed as errors come in
    n, columns = weights.shape
    if columns != len(upper):
        raise CodecError(f"weights are of {columns} columns, the calibration activations were of {len(upper)}")
    group = params.group or columns
    codes = np.empty((n, columns), np.uint8)
    scales, zeros = [], []
    for first in range(0, columns, group):
        scale, zero = fit_grid(weights[:, None, first : first + group], bits, params.clip, params.zero_point)
        scales.append(scale)
        zeros.append(zero)
        for start in range(first, first + group, BLOCK):
            block = slice(start, min(start + BLOCK, first + group))
            errors = np.empty((n, block.stop - start), np.float32)
            for i in range(start, block.stop):
                column = weights[:, None, i : i + 1]  # (n, 1, 1)
                code = quantise(column, scale, zero, bits)
                rounded = dequantise(code, scale, zero, bits)
                codes[:, i] = code[:, 0, 0]
                errors[:, i - start] = (column - rounded)[:, 0, 0] / upper[i, i]
                weights[:, i + 1 : block.stop] -= np.outer(errors[:, i - start], upper[i, i + 1 : block.stop])
            weights[:, block.stop :] -= errors @ upper[block, block.stop :]
    kept = [zero for zero in zeros if zero is not None]
    return scalar.to_codes(scalar.grouped(codes, params), np.hstack(scales), np.hstack(kept) if kept else None, bits)
