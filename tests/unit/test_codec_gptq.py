"""GPTQ against optimal brain quantisation done column by column with the inverse Hessian written out."""

import numpy as np
import pytest

from actors.codec.base import ENCODER, CodecError
from actors.codec.families import gptq, scalar
from actors.codec.kernels.grid import dequantise, fit_grid, quantise
from schemas.codec import CodecParams
from tests.unit.codec_matrices import weights

RNG = np.random.default_rng(0)


def params(bits: int = 3, **fields: object) -> CodecParams:
    return CodecParams(family="gptq", bits=bits, **fields)  # type: ignore[arg-type]


def activations(m: int, d: int, seed: int = 5) -> np.ndarray:
    """Correlated, as those of a trained network are."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * (1 + np.arange(d)) ** -0.7
    return (rng.standard_normal((m, d)) @ mix.T).astype(np.float32)


def through(w: np.ndarray, a: np.ndarray, codec: CodecParams) -> np.ndarray:
    state = gptq.fit(a, codec, RNG)
    return gptq.decode(state, gptq.encode(state, w, codec), codec)


def rounded(w: np.ndarray, codec: CodecParams) -> np.ndarray:
    state = scalar.fit(w, codec, RNG)
    return scalar.decode(state, scalar.encode(state, w, codec), codec)


def output_error(a: np.ndarray, w: np.ndarray, q: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(float) @ (w - q).T.astype(float)) / np.linalg.norm(a.astype(float) @ w.T))


def test_feedback_is_the_cholesky_factor_of_the_inverse_hessian() -> None:
    a = activations(100, 24)
    upper = gptq.feedback(a)
    hessian = 2 * a.T.astype(float) @ a.astype(float)
    hessian += gptq.DAMPING * np.trace(hessian) / 24 * np.eye(24)
    assert np.array_equal(upper, np.triu(upper))
    assert (np.diag(upper) > 0).all()
    assert upper.T @ upper == pytest.approx(np.linalg.inv(hessian), rel=1e-8, abs=1e-12)


def test_it_is_optimal_brain_quantisation_in_column_order() -> None:
    """Frantar & Alistarh 2022, eq. 3: round column j, move all later columns by -(w_j - q_j) / [H^-1]_jj [H^-1]_j,
    then take j out of H^-1 by a step of Gaussian elimination."""
    n, d = 20, 40
    w, a = weights(n, d), activations(200, d)
    scale, _ = fit_grid(w[:, None, :], 3, "absmax", False)
    hessian = 2 * a.T.astype(float) @ a.astype(float)
    inverse = np.linalg.inv(hessian + gptq.DAMPING * np.trace(hessian) / d * np.eye(d))
    left, expected = w.astype(float), np.zeros((n, d))
    for j in range(d):
        column = left[:, None, j : j + 1].astype(np.float32)
        expected[:, j] = dequantise(quantise(column, scale, None, 3), scale, None, 3)[:, 0, 0]
        left -= np.outer((left[:, j] - expected[:, j]) / inverse[j, j], inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1  # taken out
    got = through(w, a, params(3))
    assert np.isclose(got, expected, rtol=1e-3, atol=1e-6).mean() > 0.99  # a tie may fall otherwise in float32
    assert not np.allclose(got, rounded(w, params(3)))


@pytest.mark.parametrize("group", [None, 32, 16])
def test_blocks_change_when_columns_hear_of_errors_and_not_what(
    group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, a = weights(30, 96), activations(300, 96)
    one = through(w, a, params(3, group=group))
    for block in (1, 7, 96):
        monkeypatch.setattr(gptq, "BLOCK", block)
        assert np.isclose(through(w, a, params(3, group=group)), one, rtol=1e-3, atol=1e-6).mean() > 0.98


def test_without_correlation_it_is_plain_rounding() -> None:
    w = weights(30, 64)
    a = np.eye(64, dtype=np.float32) * 3
    assert np.array_equal(through(w, a, params(4, group=16)), rounded(w, params(4, group=16)))


@pytest.mark.parametrize(("bits", "group", "zero_point"), [(2, 32, True), (3, None, False), (4, 32, False)])
def test_the_layer_puts_out_less_error_and_the_weights_hold_more(bits: int, group: int, zero_point: bool) -> None:
    """On activations that it wasn't calibrated on, from the same network."""
    w = weights(80, 128)
    seen, unseen = np.split(activations(2000, 128), 2)
    codec = params(bits, group=group, zero_point=zero_point)
    fed_back, plain = through(w, seen, codec), rounded(w, codec)
    assert output_error(unseen, w, fed_back) < 0.75 * output_error(unseen, w, plain)
    assert np.linalg.norm(w - fed_back) > np.linalg.norm(w - plain)


def test_columns_that_see_nothing_are_rounded_as_they_are() -> None:
    w, a = weights(20, 32), activations(100, 32)
    a[:, 5] = 0
    codec = params(4)
    assert np.array_equal(through(w, a, codec)[:, 5], rounded(w, codec)[:, 5])


def test_fewer_activations_than_columns_do() -> None:
    w, a = weights(20, 64), activations(8, 64)
    assert output_error(a, w, through(w, a, params(3))) < output_error(a, w, rounded(w, params(3)))


def test_what_is_kept_costs_what_scalar_costs() -> None:
    w, a, codec = weights(128, 64), activations(100, 64), params(2, group=32, zero_point=True)
    state = gptq.fit(a, codec, RNG)
    codes = gptq.encode(state, w, codec)
    assert gptq.charge(state, codes, codec) == scalar.charge(
        scalar.fit(w, codec, RNG), scalar.encode(scalar.fit(w, codec, RNG), w, codec), codec
    )
    kept = {name: array for name, array in state.items() if not name.startswith(ENCODER)}
    assert np.array_equal(gptq.decode(kept, codes, codec), gptq.decode(state, codes, codec))


def test_rows_in_chunks_are_rows_at_once() -> None:
    w, a = weights(30, 64), activations(100, 64)
    state = gptq.fit(a, params(3, group=16), RNG)
    whole = gptq.encode(state, w, params(3, group=16))
    parts = [gptq.encode(state, part, params(3, group=16)) for part in (w[:11], w[11:])]
    assert (whole["codes"] == np.concatenate([part["codes"] for part in parts])).mean() > 0.98


def test_the_weights_given_are_left_alone() -> None:
    w, a = weights(10, 32), activations(100, 32)
    before = w.copy()
    through(w, a, params(3))
    assert np.array_equal(w, before)


def test_errors() -> None:
    with pytest.raises(CodecError, match="all 0"):
        gptq.fit(np.zeros((5, 8), np.float32), params(), RNG)
    state = gptq.fit(activations(50, 8), params(), RNG)
    with pytest.raises(CodecError, match=r"16 columns.*8"):
        gptq.encode(state, weights(4, 16), params())
