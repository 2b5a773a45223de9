"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on a plan's embedding, and the loss that trains them.

    h = x + s up^T (down x),  s = 1/sqrt(r)          y = v · h + b, log2 of the effort

With g = dL/dh = dL/dy v the gradients of both factors are

    dL/d up_r = s (down_r · x) g          dL/d down_r = s (up_r · g) x

MicroLoRA (rank 2) takes one step per label; both of its factors start at random and small, so that both have a
gradient from the first label on. BaseLoRA (rank 8) learns in the background; A is drawn, B is zero, so an untrained
one changes nothing.

Notation: h dimensions of an embedding, r rank, n labels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Lora(NamedTuple):
    """Two factors; a value, replaced as a whole."""

    down: F32  # (r, h)
    up: F32  # (r, h)

    @property
    def scale(self) -> float:
        return float(1.0 / np.sqrt(len(self.down)))

    def delta(self, x: F32) -> F32:
        """s up^T (down x): (h,) or (n, h) -> the same shape."""
        return np.asarray((x @ self.down.T) @ self.up * np.float32(self.scale))

    def gradients(self, x: F32, g: F32) -> "Lora":
        """Of a loss whose gradient at the output is g, both (h,)."""
        down_x, up_g = self.down @ x, self.up @ g  # (r,), (r,)
        s = np.float32(self.scale)
        return Lora(s * up_g[:, None] * x, s * down_x[:, None] * g)

    def batch_gradients(self, x: F32, slopes: F64, v: F32) -> "Lora":
        """The mean over n labels with g_n = slope_n v: x (n, h), slopes (n,), v (h,)."""
        s = self.scale / max(1, len(x))
        mean: F32 = (slopes @ x).astype(np.float32)  # Σ slope_n x_n, (h,)
        return Lora(np.float32(s) * (self.up @ v)[:, None] * mean, np.float32(s) * (self.down @ mean)[:, None] * v)

    def stepped(self, gradients: "Lora", rate: float) -> "Lora":
        step = np.float32(rate)
        return Lora(self.down - step * gradients.down, self.up - step * gradients.up)

    def flat(self) -> F32:
        """(2 r h,): down, then up."""
        return np.concatenate([self.down.ravel(), self.up.ravel()])


def micro(hidden: int, rank: int, rng: np.random.Generator) -> Lora:
    """Both factors small and random."""
    spread = 1 / np.sqrt(hidden)
    down = rng.standard_normal((rank, hidden)) * spread
    up = rng.standard_normal((rank, hidden)) * spread * 1e-2
    return Lora(down.astype(np.float32), up.astype(np.float32))


def base(hidden: int, rank: int, rng: np.random.Generator) -> Lora:
    """A random, B zero."""
    down = rng.standard_normal((rank, hidden)) / np.sqrt(hidden)
    return Lora(down.astype(np.float32), np.zeros((rank, hidden), np.float32))


def of_flat(flat: F32, rank: int) -> Lora:
    """The inverse of `flat`."""
    down, up = flat.reshape(2, rank, -1)
    return Lora(down.copy(), up.copy())


def quantile_loss(predicted: F64, wanted: F64, tau: float) -> float:
    """Mean pinball loss (Koenker & Bassett 1978): an undershoot costs tau, an overshoot 1 - tau. Its minimum is the
    tau-quantile, so tau > 1/2 rather overshoots."""
    error = np.asarray(wanted) - np.asarray(predicted)
    return float(np.mean(np.maximum(tau * error, (tau - 1) * error)))


def quantile_slope(predicted: F64, wanted: F64, tau: float) -> F64:
    """(n,) dL_n / d predicted_n: -tau below what is wanted, 1 - tau above, 0 at it."""
    error = np.asarray(wanted, np.float64) - np.asarray(predicted, np.float64)
    return np.where(error > 0, -tau, np.where(error < 0, 1 - tau, 0.0))
