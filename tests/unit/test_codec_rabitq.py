"""RaBitQ: the estimator's bias and spread over rotations, against the paper's theorems."""

import numpy as np
import pytest

from actors.codec.families import rabitq
from actors.codec.measures import measure
from schemas.codec import CodecParams
from tests.unit.codec_matrices import weights


def params(seed: int = 42) -> CodecParams:
    return CodecParams(family="rabitq", rotation="hadamard", seed=seed)


def through(x: np.ndarray, seed: int = 42) -> np.ndarray:
    state = rabitq.fit(x, params(seed), np.random.default_rng(0))
    return rabitq.decode(state, rabitq.encode(state, x, params(seed)), params(seed))


def test_inner_products_are_right_on_average_over_rotations() -> None:
    """Theorem 3.2: E <decoded, q> = <x, q>. The naive estimator, without the factor, is 20 % short."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((24, 192)).astype(np.float32)
    x -= x.mean(axis=0)
    queries = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
    truth = np.einsum("nd,nd->n", x, queries)
    seen = np.array([np.einsum("nd,nd->n", through(x, seed), queries) for seed in range(200)])  # (200, n)
    assert seen.mean() == pytest.approx(truth.mean(), rel=0.01)
    standard_error = seen.std(axis=0, ddof=1) / np.sqrt(len(seen))
    assert (np.abs(seen.mean(axis=0) - truth) < 4.5 * standard_error + 2e-3 * np.abs(truth)).all()
    assert standard_error.max() < 0.05 * truth.mean()  # or the line above would say nothing


def test_the_spread_is_that_of_the_paper() -> None:
    """Eq. 13 ff.: the error along a unit q orthogonal to o has variance (1 / <o_bar, o>^2 - 1) / (d - 1)."""
    d = 192
    rng = np.random.default_rng(2)
    o, q = np.linalg.qr(rng.standard_normal((d, 2)))[0].T.astype(np.float32)
    x = np.stack([o, -o])  # mean 0
    seen = np.array([float(through(x, seed)[0] @ q) for seed in range(400)])
    assert abs(seen.mean()) < 4 * seen.std() / 20
    assert seen.var() == pytest.approx((np.pi / 2 - 1) / (d - 1), rel=0.25)


def test_the_squared_error_is_pi_halves_less_one() -> None:
    x = np.random.default_rng(3).standard_normal((2000, 384)).astype(np.float32)
    got = measure(x, through(x), np.random.default_rng(3))
    assert got.relative_l2**2 == pytest.approx(np.pi / 2 - 1, rel=0.02)
    assert got.row_cosine == pytest.approx((2 / np.pi) ** 0.5, rel=0.01)
    assert got.norm_error == pytest.approx((np.pi / 2) ** 0.5 - 1, rel=0.02)


def test_what_rows_have_in_common_costs_nothing() -> None:
    x = weights(400, 96)
    far = x + np.float32(3)
    assert np.linalg.norm(through(far) - far) < 1.02 * np.linalg.norm(through(x) - x)


def test_signs_are_those_of_the_rotated_row() -> None:
    """Decoded rows, rotated again, are on the vertices of a cube."""
    x = weights(50, 48)
    x -= x.mean(axis=0)
    state = rabitq.fit(x, params(), np.random.default_rng(0))
    centre = state["centre"].astype(np.float32) * state["unit"].astype(np.float32)
    turned = rabitq.rotation.rotate(through(x) - centre, state, params())
    assert np.abs(turned) == pytest.approx(np.abs(turned).mean(axis=1, keepdims=True).repeat(48, axis=1), rel=1e-3)
    original = rabitq.rotation.rotate(x - centre, state, params())
    sure = np.abs(original) > 1e-4 * np.abs(original).max()
    assert (np.sign(turned) == np.sign(original))[sure].all()


def test_a_row_that_is_the_mean_decodes_to_it() -> None:
    x = np.tile(weights(1, 48), (5, 1))
    assert through(x) == pytest.approx(x, rel=2e-3, abs=1e-3 * float(np.abs(x).max()))


@pytest.mark.slow
def test_bits_a_weight() -> None:
    x = weights(3000, 384)
    state = rabitq.fit(x, params(), np.random.default_rng(0))
    charge = rabitq.charge(state, rabitq.encode(state, x, params()), params())
    assert charge.codes == 3000 * 48
    assert charge.bits_per_weight(x.size) == pytest.approx(1 + 32 / 384 + 16 / 3000, abs=0.001)


def test_rows_in_chunks_are_rows_at_once() -> None:
    x = weights(40, 48)
    state = rabitq.fit(x, params(), np.random.default_rng(0))
    whole = rabitq.encode(state, x, params())
    parts = [rabitq.encode(state, part, params()) for part in (x[:13], x[13:])]
    assert np.array_equal(whole["codes"], np.concatenate([part["codes"] for part in parts]))
    assert whole["scales"].astype(float) == pytest.approx(
        np.concatenate([part["scales"] for part in parts]).astype(float), rel=2e-3
    )
