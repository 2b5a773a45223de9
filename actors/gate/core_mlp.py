"""The gate's network: a softmax over adapters from a prompt's embedding, and its training.

Notation
    X      (n, d) float64   embeddings, unit length
    y      (n,) int64       number of the adapter that helps
    W1, b1 (d, h), (h,)     W2, b2 (h, N), (N,)
    P      (n, N)           softmax(gelu(√d X W1 + b1) W2 + b2), rows sum to 1

    loss = mean_i [ -log P[i, y_i] - λ H(P_i) ],  H(p) = -Σ_a p_a log p_a

√d makes components of about 1 of those of a unit vector: 200 steps of 3e-4 move a weight by 0.06 at most, which would
otherwise be too little to learn by.

λ > 0 keeps the gate from being surer than its few prompts allow. gelu is the tanh form of
Hendrycks & Gimpel 2016 (eq. 2); AdamW is algorithm 2 of Loshchilov & Hutter 2019.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

HIDDEN = 64
FEWEST = 4
"""Prompts of an adapter, under which a gate would learn their accidents."""
HELD_OUT = 5
"""One prompt in so many of an adapter's tells whether anything was learnt."""

_SQRT_2_PI = np.sqrt(2 / np.pi)
_CUBIC = 0.044715


class Mlp(NamedTuple):
    w1: F64  # (d, h)
    b1: F64  # (h,)
    w2: F64  # (h, N)
    b2: F64  # (N,)


class Recipe(NamedTuple):
    hidden: int = HIDDEN
    rate: float = 3e-4
    steps: int = 200
    batch: int = 16
    entropy: float = 0.01
    decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


class Fit(NamedTuple):
    mlp: Mlp
    train_loss: float  # cross-entropy, nats, without the entropy term
    held_out_loss: float
    diverged: bool


def initial(d: int, n: int, hidden: int, rng: np.random.Generator) -> Mlp:
    """Hidden units of variance 0.1, so that what is learnt soon outweighs chance; the output starts near uniform."""
    w1 = rng.standard_normal((d, hidden)) * (0.3 / np.sqrt(d))
    w2 = rng.standard_normal((hidden, n)) * (0.1 / np.sqrt(hidden))
    return Mlp(w1, np.zeros(hidden), w2, np.zeros(n))


def probabilities(mlp: Mlp, x: F64) -> F64:
    """(n, N). Raises ValueError for another width than the gate's."""
    if x.ndim != 2 or x.shape[1] != mlp.w1.shape[0]:
        raise ValueError(f"the embeddings have {x.shape[-1]} dimensions, the gate was trained on {mlp.w1.shape[0]}")
    hidden = _gelu(_scaled(x) @ mlp.w1 + mlp.b1)[0]
    return np.asarray(np.exp(_log_softmax(hidden @ mlp.w2 + mlp.b2)))


def loss_and_gradient(mlp: Mlp, x: F64, y: NDArray[np.int64], entropy: float) -> tuple[float, Mlp]:
    """See the head of this module. The gradient has the network's own shape."""
    n, x = len(x), _scaled(x)
    hidden, slope = _gelu(x @ mlp.w1 + mlp.b1)  # (n, h) each
    log_p = _log_softmax(hidden @ mlp.w2 + mlp.b2)  # (n, N)
    p = np.exp(log_p)
    h = -(p * log_p).sum(axis=1, keepdims=True)  # (n, 1) entropies
    loss = -log_p[np.arange(n), y].mean() - entropy * h.mean()
    onehot = np.zeros_like(p)
    onehot[np.arange(n), y] = 1.0
    # dH/dz = -p (log p + H)
    dz = ((p - onehot) + entropy * p * (log_p + h)) / n  # (n, N)
    dh = (dz @ mlp.w2.T) * slope  # (n, h)
    return float(loss), Mlp(x.T @ dh, dh.sum(axis=0), hidden.T @ dz, dz.sum(axis=0))


def cross_entropy(mlp: Mlp, x: F64, y: NDArray[np.int64]) -> float:
    """Mean of -log P[i, y_i], in nats."""
    with np.errstate(divide="ignore"):
        return float(-np.log(probabilities(mlp, x)[np.arange(len(x)), y]).mean())


def split(y: NDArray[np.int64], n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the prompts to train on and of those held out: of every adapter one in HELD_OUT, at least one."""
    held: list[int] = []
    for adapter in range(n):
        own = rng.permutation(np.flatnonzero(y == adapter))
        held += own[: max(1, len(own) // HELD_OUT)].tolist()
    out = np.sort(np.array(held, np.int64))
    return np.setdiff1d(np.arange(len(y)), out), out


def fit(x: F64, y: NDArray[np.int64], n: int, seed: int, recipe: Recipe = Recipe()) -> Fit:
    """Trains on `split`'s first part. Diverged: something isn't finite, or the held-out loss is `no_better`. Every
    adapter needs FEWEST prompts."""
    rng = np.random.default_rng(seed)
    train, held = split(y, n, rng)
    mlp = initial(x.shape[1], n, recipe.hidden, rng)
    first, second = (Mlp(*(np.zeros_like(part) for part in mlp)) for _ in range(2))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, recipe.steps + 1):
            batch = rng.choice(train, size=min(recipe.batch, len(train)), replace=False)
            _, gradient = loss_and_gradient(mlp, x[batch], y[batch], recipe.entropy)
            mlp, first, second = _adamw(mlp, gradient, first, second, step, recipe)
        losses = [cross_entropy(mlp, x[part], y[part]) for part in (train, held)]
    finite = all(np.isfinite(part).all() for part in mlp) and bool(np.isfinite(losses).all())
    return Fit(mlp, losses[0], losses[1], not finite or no_better(losses[1], n))


def no_better(held_out_loss: float, n: int) -> bool:
    """Than a gate of n outputs that knows nothing, which loses ln n."""
    return held_out_loss > float(np.log(n))


def _adamw(mlp: Mlp, gradient: Mlp, first: Mlp, second: Mlp, step: int, recipe: Recipe) -> tuple[Mlp, Mlp, Mlp]:
    """The network and the two moments after a step. Weights decay, biases don't."""
    parts = []
    for name, p, g, m, v in zip(Mlp._fields, mlp, gradient, first, second, strict=True):
        m = recipe.beta1 * m + (1 - recipe.beta1) * g
        v = recipe.beta2 * v + (1 - recipe.beta2) * g * g
        m_hat, v_hat = m / (1 - recipe.beta1**step), v / (1 - recipe.beta2**step)
        decay = recipe.decay * p if name.startswith("w") else 0.0
        parts.append((p - recipe.rate * (m_hat / (np.sqrt(v_hat) + recipe.epsilon) + decay), m, v))
    return Mlp(*(p for p, _, _ in parts)), Mlp(*(m for _, m, _ in parts)), Mlp(*(v for _, _, v in parts))


def _scaled(x: F64) -> F64:
    return np.asarray(x * np.sqrt(x.shape[1]))


def _gelu(z: F64) -> tuple[F64, F64]:
    """gelu(z) and its derivative."""
    t = np.tanh(_SQRT_2_PI * (z + _CUBIC * z**3))
    slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _SQRT_2_PI * (1 + 3 * _CUBIC * z * z)
    return 0.5 * z * (1 + t), slope


def _log_softmax(z: F64) -> F64:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
