"""Rotations: orthonormal, undone, equal to the dense matrices that they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.kernels import rotation
from actors.codec.kernels.lanes import bf16, bf16_bits, from_bf16_bits
from schemas.codec import CodecParams, LaneWidth

ORDERS = [1, 2, 4, 12, 20, 24, 40, 64, 96, 160, 384, 768, 1024, 1280, 1536]
NO_ORDERS = [3, 6, 10, 28, 36, 100, 144, 400, 896, 11008]


def exists(d: int) -> bool:
    return any(d == base << k for base in (1, 12, 20) for k in range(40))


@pytest.mark.parametrize("d", ORDERS)
def test_hadamard_is_orthonormal_and_undone(d: int) -> None:
    dense = rotation.hadamard(np.eye(d, dtype=np.float32), seed=7)
    assert np.abs(dense.astype(np.float64) @ dense.T - np.eye(d)).max() < 1e-6
    rows = np.random.default_rng(d).standard_normal((5, d)).astype(np.float32)
    turned = rotation.hadamard(rows, seed=7)
    assert np.allclose(turned, rows @ dense, atol=1e-5)
    before = turned.copy()
    assert np.allclose(rotation.hadamard_inverse(turned, seed=7), rows, atol=1e-5)
    assert np.array_equal(turned, before)  # what is turned back isn't written to
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)


@pytest.mark.parametrize("d", ORDERS)
def test_every_entry_is_one_over_the_root_of_d(d: int) -> None:
    """That and orthogonality are what makes a Hadamard matrix; rows of it spread over all columns."""
    dense = rotation.hadamard(np.eye(d, dtype=np.float32), seed=0)
    assert np.allclose(np.abs(dense), d**-0.5, rtol=1e-5)


@pytest.mark.parametrize("k", range(1, 12))
def test_powers_of_two_are_sylvester_s(k: int) -> None:
    """Closed form: H[i, j] = (-1)^popcount(i & j)."""
    d = 2**k
    i = np.arange(d)
    expected = np.array([[(-1) ** (int(a) & int(b)).bit_count() for b in i[:64]] for a in i[:64]])
    dense = rotation.hadamard(np.eye(d, dtype=np.float32) * rotation.signs(d, 3), seed=3)  # signs cancel
    assert np.allclose(dense[:64, :64] * d**0.5, expected, atol=1e-4)


def test_signs_come_from_the_seed_alone_and_are_fair() -> None:
    assert np.array_equal(rotation.signs(1000, 5), rotation.signs(1000, 5))
    assert np.array_equal(rotation.signs(1000, 5)[:70], rotation.signs(70, 5))
    assert not np.array_equal(rotation.signs(1000, 5), rotation.signs(1000, 6))
    assert set(np.unique(rotation.signs(1000, 5))) == {-1, 1}
    assert abs(rotation.signs(100_000, 1).mean()) < 0.02


def test_an_outlier_column_is_spread_over_all() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 384)).astype(np.float32)
    rows[:, 17] *= 50
    turned = rotation.hadamard(rows, seed=1)
    variance = np.square(turned).mean(axis=0)
    assert np.square(rows).mean(axis=0).max() / np.square(rows).mean(axis=0).min() > 1000
    assert variance.max() / variance.min() < 3


@given(st.integers(1, 5000))
def test_an_order_exists_or_the_error_offers_the_next_and_its_price(d: int) -> None:
    if exists(d):
        base, power = rotation.orders(d)
        assert base * power == d
        assert rotation.padded(d) == d
    else:
        wider = next(w for w in range(d, 2 * d + 1) if exists(w))
        assert rotation.padded(d) == wider
        with pytest.raises(CodecError) as error:
            rotation.orders(d)
        assert f"no order {d}" in str(error.value)
        assert f"to {wider} values" in str(error.value)
        assert f"{wider / d - 1:.1%}" in str(error.value)


@pytest.mark.parametrize("d", NO_ORDERS)
def test_hadamard_without_an_order_is_refused_before_work(d: int) -> None:
    with pytest.raises(CodecError, match="Pad rows"):
        rotation.check(CodecParams(family="vq", dsub=1, rotation="hadamard"), 10, d)
    with pytest.raises(CodecError, match="Pad rows"):
        rotation.hadamard(np.zeros((1, d), np.float32), 0)


def test_opq_needs_rows_and_bf16() -> None:
    params = CodecParams(family="pq", subspaces=2, rotation="opq", lane_width="bf16x32")
    rotation.check(params, 8, 8)
    with pytest.raises(CodecError, match="7 < 8"):
        rotation.check(params, 7, 8)
    with pytest.raises(CodecError, match="bf16x32"):
        rotation.check(CodecParams(family="pq", subspaces=2, rotation="opq"), 100, 8)
    with pytest.raises(CodecError, match="7 < 8"):
        rotation.opq(np.zeros((7, 8), np.float32), lambda rows: rows)


def hidden_axes(n: int, d: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Rows whose values are -1 or 1 along axes that a rotation hides."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (rng.choice([-1.0, 1.0], (n, d)) @ axes.T).astype(np.float32), axes


def test_procrustes_finds_the_rotation_that_was_hidden() -> None:
    """With the true axes' values as what the quantiser decodes to, one round is the closed form."""
    rows, axes = hidden_axes(300, 8)
    bits, _ = rotation.opq(rows, lambda _: (rows.astype(np.float64) @ axes).astype(np.float32), rounds=1)
    assert np.abs(from_bf16_bits(bits) - axes).max() < 2**-8


def test_opq_lowers_the_error_and_never_raises_it() -> None:
    """A one-bit quantiser of each value, exact along the hidden axes."""
    rows, _ = hidden_axes(600, 4)
    bits, errors = rotation.opq(rows, lambda x: np.where(x > 0, 1.0, -1.0).astype(np.float32), rounds=40)
    assert (np.diff(errors) <= 1e-6).all()
    assert errors[-1] < 0.5 * errors[0]
    matrix = from_bf16_bits(bits).astype(np.float64)
    assert np.abs(matrix @ matrix.T - np.eye(4)).max() < 2**-6  # orthonormal up to bfloat16


@pytest.mark.parametrize("lane_width", ["f32x16", "f64x8", "u8x64", "bf16x32"])
def test_rotations_run_in_their_lanes(lane_width: LaneWidth) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 96)).astype(np.float32)
    params = CodecParams(family="vq", dsub=2, rotation="hadamard", lane_width=lane_width, seed=9)
    turned = rotation.rotate(rows, {}, params)
    exact = rows.astype(np.float64) @ rotation.hadamard(np.eye(96, dtype=np.float32), seed=9)
    assert turned.dtype == np.float32
    if lane_width == "bf16x32":
        assert np.array_equal(turned, bf16(turned))
        assert 1e-4 < np.abs(turned - exact).max() < 0.05
    else:
        assert np.abs(turned - exact).max() < 1e-5
    back = rotation.rotate_back(turned, {}, params)
    assert np.abs(back - rows).max() < (0.06 if lane_width == "bf16x32" else 1e-5)


def test_identity_leaves_rows_as_they_are() -> None:
    rows = np.ones((2, 3), np.float32)
    params = CodecParams(family="pq", subspaces=1)
    assert rotation.rotate(rows, {}, params) is rows
    assert rotation.rotate_back(rows, {}, params) is rows


@given(st.integers(0, 0x7F00), st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), st.booleans())
def test_bf16_is_the_nearest_with_ties_to_even(high: int, low: int, negative: bool) -> None:
    """Oracle: the neighbours that cutting off 16 bits leaves, and exact distances to them."""
    bits = (negative << 31) | (high << 16) | low
    value = np.array([bits], np.uint32).view(np.float32)
    below, above = (np.array([b << 16], np.uint32).view(np.float32)[0] for b in (bits >> 16, (bits >> 16) + 1))
    down, up = abs(float(value[0]) - float(below)), abs(float(above) - float(value[0]))
    expected = below if down < up or (down == up and high % 2 == 0) else above
    assert bf16(value)[0] == expected
    assert from_bf16_bits(bf16_bits(value))[0] == expected
    assert np.array_equal(bf16(bf16(value)), bf16(value))
