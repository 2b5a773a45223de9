"""Matrices like those of trained models, from a seed: a spectrum that falls off, some columns ten times as large as
the rest, and rows of different norms."""

import numpy as np
from numpy.typing import NDArray


def weights(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    rank = min(n, d)
    left = np.linalg.qr(rng.standard_normal((n, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((d, rank)))[0]
    spectrum = (1 + np.arange(rank)) ** -0.4
    matrix = left * spectrum @ right.T
    matrix[:, rng.choice(d, max(1, d // 100), replace=False)] *= 10
    matrix *= np.exp(0.4 * rng.standard_normal((n, 1)))
    return (matrix / matrix.std() * 0.05).astype(np.float32)
