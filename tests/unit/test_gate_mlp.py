"""The gate's network: gradients against finite differences, training that learns, and training that doesn't."""

import numpy as np
import pytest

from actors.gate import core_mlp as mlp
from actors.gate.core_mlp import Mlp, Recipe
from schemas.events.gate import TrainGate
from schemas.http_gate import TrainGateBody


def clouds(n: int, per: int, d: int, seed: int = 0, spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around n directions, and which."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n, d)) / np.sqrt(d)
    y = np.repeat(np.arange(n), per)
    x = centres[y] + spread * rng.standard_normal((n * per, d)) / np.sqrt(d)
    return x / np.linalg.norm(x, axis=1, keepdims=True), y


@pytest.mark.parametrize("entropy", [0.0, 0.01, 0.7])
def test_the_gradient_is_that_of_finite_differences(entropy: float) -> None:
    rng = np.random.default_rng(1)
    x, y = clouds(3, 4, 7)
    start = mlp.initial(7, 3, 5, rng)
    net = Mlp(*(part + 0.3 * rng.standard_normal(part.shape) for part in start))
    _, gradient = mlp.loss_and_gradient(net, x, y, entropy)
    for name in Mlp._fields:
        part, found = getattr(net, name), getattr(gradient, name)
        for place in np.ndindex(part.shape):
            step = np.zeros_like(part)
            step[place] = 1e-5
            up, down = (
                mlp.loss_and_gradient(net._replace(**{name: part + sign * step}), x, y, entropy)[0] for sign in (1, -1)
            )
            assert found[place] == pytest.approx((up - down) / 2e-5, abs=1e-8, rel=1e-5)


def test_outputs_are_distributions() -> None:
    x, _ = clouds(3, 10, 16)
    p = mlp.probabilities(mlp.initial(16, 3, 64, np.random.default_rng(0)), x)
    assert p.shape == (30, 3)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-15)


@pytest.mark.parametrize(("n", "d"), [(2, 384), (3, 64), (4, 768)])
def test_it_learns_what_can_be_told_apart(n: int, d: int) -> None:
    x, y = clouds(n, 40, d)
    found = mlp.fit(x, y, n, seed=42)
    assert not found.diverged
    assert found.held_out_loss < 0.7 * np.log(n)
    unseen, truth = clouds(n, 40, d)
    assert (mlp.probabilities(found.mlp, unseen).argmax(axis=1) == truth).mean() > 0.95


def test_the_recipe_is_as_it_is_told() -> None:
    """deploy/gate.md has these numbers."""
    recipe = Recipe()
    assert (recipe.rate, recipe.steps, recipe.batch, recipe.entropy, recipe.hidden) == (3e-4, 200, 16, 0.01, 64)
    assert (mlp.HIDDEN, mlp.FEWEST) == (64, 4)
    assert TrainGate("p").seed == TrainGateBody().seed == 42
    x, y = clouds(3, 4, 384)
    net = mlp.fit(x, y, 3, 42).mlp
    assert [part.shape for part in net] == [(384, 64), (64,), (64, 3), (3,)]


def test_a_step_is_adamw_s() -> None:
    """Of one weight and one bias, as algorithm 2 of Loshchilov & Hutter has it, in plain numbers."""
    recipe = Recipe()
    zeros = Mlp(*(np.zeros((1, 1)) if name.startswith("w") else np.zeros(1) for name in Mlp._fields))
    net = Mlp(*(np.full_like(part, 0.5) for part in zeros))
    first = second = zeros
    w = b = 0.5
    m = v = 0.0
    for step, g in enumerate((0.3, -0.7, 0.01), 1):
        net, first, second = mlp._adamw(net, Mlp(*(np.full_like(p, g) for p in net)), first, second, step, recipe)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        moved = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
        w, b = w - 3e-4 * (moved + 0.01 * w), b - 3e-4 * moved
    assert net.w1[0, 0] == net.w2[0, 0] == pytest.approx(w, rel=1e-14)
    assert net.b1[0] == net.b2[0] == pytest.approx(b, rel=1e-14)
    assert w != pytest.approx(b, abs=1e-6)


def test_the_same_seed_gives_the_same_gate() -> None:
    x, y = clouds(2, 10, 32)
    one, same, other = (mlp.fit(x, y, 2, seed=seed) for seed in (42, 42, 43))
    assert all((a == b).all() for a, b in zip(one.mlp, same.mlp, strict=True))
    assert not (one.mlp.w1 == other.mlp.w1).all()


def test_the_entropy_term_keeps_it_less_sure() -> None:
    x, y = clouds(2, 40, 64, spread=0.1)
    sure, less = (mlp.fit(x, y, 2, 42, Recipe(entropy=entropy)) for entropy in (0.0, 0.5))
    assert mlp.probabilities(less.mlp, x).max(axis=1).mean() < mlp.probabilities(sure.mlp, x).max(axis=1).mean()


def test_noise_diverges() -> None:
    """Labels that have nothing to do with the prompts: it learns its prompts by heart, and the others worse than
    chance."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.tile([0, 1], 20)
    found = mlp.fit(x, y, 2, 42, Recipe(rate=0.05, steps=600))
    assert found.train_loss < np.log(2) < found.held_out_loss
    assert found.diverged


@pytest.mark.parametrize("n", [2, 3, 7])
def test_what_knows_less_than_nothing_diverged(n: int) -> None:
    """The bound is ln N, of every N."""
    assert not mlp.no_better(0.95 * np.log(n), n)
    assert not mlp.no_better(float(np.log(n)), n)
    assert mlp.no_better(1.05 * np.log(n), n)


def test_a_fit_just_above_the_bound_diverged() -> None:
    """Labels without reason, learnt by heart for a while: the held-out loss is little over ln 2."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.tile([0, 1], 20)
    fits = [mlp.fit(x, y, 2, 42, Recipe(rate=0.005, steps=steps)) for steps in (1, 20, 40, 80, 160)]
    assert [fit.diverged for fit in fits] == [fit.held_out_loss > np.log(2) for fit in fits]
    assert any(1 < fit.held_out_loss / np.log(2) < 1.2 for fit in fits)


def test_what_isn_t_finite_diverges() -> None:
    x, y = clouds(2, 10, 8)
    x[3, 2] = np.inf
    assert mlp.fit(x, y, 2, 42).diverged
    x, y = clouds(2, 10, 8)
    assert mlp.fit(x, y, 2, 42, Recipe(rate=1e300)).diverged


def test_every_adapter_is_held_out_and_trained_on() -> None:
    y = np.array([0] * 4 + [1] * 23)
    train, held = mlp.split(y, 2, np.random.default_rng(0))
    assert sorted([*train, *held]) == list(range(27))
    assert np.bincount(y[held]).tolist() == [1, 4]


def test_another_width_is_told_with_both_numbers() -> None:
    net = mlp.initial(384, 2, 64, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"768 dimensions.*384"):
        mlp.probabilities(net, np.zeros((1, 768)))
