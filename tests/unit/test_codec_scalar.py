"""Integer grids: errors within what a grid allows, the best clip against brute force, and bytes as said. The
passthroughs with them."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec.base import CodecError
from actors.codec.families import passthrough, scalar
from actors.codec.kernels.grid import dequantise, fit_grid, quantise
from actors.codec.measures import measure
from schemas.codec import CodecParams
from tests.unit.codec_matrices import weights

RNG = np.random.default_rng(0)


def through(x: np.ndarray, params: CodecParams) -> tuple[np.ndarray, float]:
    """Decoded, and bits a value."""
    family = passthrough if params.family in ("bf16", "f32") else scalar
    state = family.fit(x, params, RNG)
    codes = family.encode(state, x, params)
    return family.decode(state, codes, params), family.charge(state, codes, params).bits_per_weight(x.size)


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_value_is_further_than_half_a_step_off(bits: int, zero_point: bool) -> None:
    """bfloat16 may round a scale down by 1 in 512, and then clips the far end of a range by as much."""
    x = weights(50, 128) + np.float32(0.02)
    y, _ = through(x, CodecParams(family="scalar", bits=bits, group=32, zero_point=zero_point))
    groups = x.reshape(50, 4, 32)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    span = high - low if zero_point else 2 * np.abs(groups).max(axis=2)
    step = span / (2**bits - 1 if zero_point else 2**bits - 2)
    error = np.abs(groups - y.reshape(50, 4, 32)).max(axis=2)
    assert (error <= 0.5 * step * (1 + 1 / 256) + 0.5 * step * zero_point + span / 512).all()
    assert (error >= step / 100).any()


@pytest.mark.parametrize("zero_point", [False, True])
def test_quantise_takes_the_nearest_point_of_the_grid(zero_point: bool) -> None:
    """Against all 2^bits points."""
    values = weights(8, 64).reshape(8, 4, 16)
    scale, zero = fit_grid(values, 3, "mse", zero_point)
    codes = quantise(values, scale, zero, 3)
    every = np.broadcast_to(np.arange(8, dtype=np.uint8), (8, 4, 8))
    points = dequantise(np.ascontiguousarray(every), scale, zero, 3)  # (8, 4, 8)
    nearest = np.abs(values[..., None] - points[:, :, None, :]).min(axis=3)
    chosen = np.abs(values - dequantise(codes, scale, zero, 3))
    assert chosen == pytest.approx(nearest, rel=1e-4, abs=1e-7)


def test_values_are_code_less_zero_times_scale() -> None:
    codes = RNG.integers(0, 16, (3, 2, 8), dtype=np.uint8)
    scale = RNG.uniform(0.1, 1, (3, 2)).astype(np.float32)
    zero = RNG.integers(0, 16, (3, 2), dtype=np.uint8)
    plain, offset = dequantise(codes, scale, None, 4), dequantise(codes, scale, zero, 4)
    for (i, j, k), code in np.ndenumerate(codes):
        assert plain[i, j, k] == pytest.approx((int(code) - 8) * float(scale[i, j]))
        assert offset[i, j, k] == pytest.approx((int(code) - int(zero[i, j])) * float(scale[i, j]))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_best_clip_is_near_that_of_brute_force(bits: int) -> None:
    """Against 2,000 scales for each group, by squared error."""
    values = weights(6, 256, seed=3).reshape(6, 4, 64)
    least = np.full((6, 4), np.inf)
    top = np.abs(values).max(axis=2)
    for part in np.linspace(0.01, 1.2, 2000, dtype=np.float32):
        scale = part * top / np.float32(2 ** (bits - 1) - 1)
        left = values - dequantise(quantise(values, scale, None, bits), scale, None, bits)
        least = np.minimum(least, (left**2).sum(axis=2))
    found = {}
    for clip in ("absmax", "mse"):
        scale, _ = fit_grid(values, bits, clip, False)  # type: ignore[arg-type]
        left = values - dequantise(quantise(values, scale, None, bits), scale, None, bits)
        found[clip] = (left**2).sum(axis=2)
    assert (found["mse"] <= found["absmax"] + 1e-9).all()
    assert found["mse"].sum() < 0.9 * found["absmax"].sum()
    assert found["mse"].sum() < 1.05 * least.sum()


def test_one_bit_with_a_zero_point_keeps_both_ends() -> None:
    x = np.tile(np.array([[0.0, 3.0]], np.float32), (4, 8))
    y, _ = through(x, CodecParams(family="scalar", bits=1, zero_point=True))
    assert y == pytest.approx(x, rel=1 / 256)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_zero_point_where_no_value_is_near_0(sign: int) -> None:
    x = sign * np.random.default_rng(2).uniform(1, 2, (10, 64)).astype(np.float32)
    y, _ = through(x, CodecParams(family="scalar", bits=4, zero_point=True))
    assert np.abs(x - y).max() <= 0.5 * 2 / 15 + 2 / 256
    plain, _ = through(x, CodecParams(family="scalar", bits=4))
    assert np.linalg.norm(x - y) < 0.6 * np.linalg.norm(x - plain)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_best_clip_does_better_with_zero_points_too(bits: int) -> None:
    x = np.random.default_rng(4).standard_normal((50, 256)).astype(np.float32) + 1
    error = {
        clip: np.linalg.norm(x - through(x, CodecParams(family="scalar", bits=bits, clip=clip, zero_point=True))[0])
        for clip in ("absmax", "mse")
    }
    assert error["mse"] < 0.95 * error["absmax"]


@pytest.mark.parametrize(
    ("bits", "group", "zero_point", "says"),
    [(4, 64, False, 4 + 16 / 64), (4, 64, True, 4 + 24 / 64), (8, None, False, 8 + 16 / 384), (3, 128, False, 3.125)],
)
def test_bits_a_weight(bits: int, group: int | None, zero_point: bool, says: float) -> None:
    x = weights(768, 384)
    _, got = through(x, CodecParams(family="scalar", bits=bits, group=group, zero_point=zero_point))
    assert got == pytest.approx(says, abs=0.001)
    assert got >= says


def test_int8_is_nearly_lossless_and_fewer_bits_lose_more() -> None:
    x = weights(400, 128)
    errors = []
    for bits in range(2, 9):
        y, _ = through(x, CodecParams(family="scalar", bits=bits, group=32))
        errors.append(measure(x, y, np.random.default_rng(0)).relative_l2)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert errors[-2] / errors[-1] == pytest.approx(2, rel=0.1)  # 6 dB a bit


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("scale", [1e-45, 1e-37, 1e-30, 1.0, 1e30, 3e37])
def test_any_magnitude_of_float32(scale: float, zero_point: bool) -> None:
    x = weights(20, 64) * np.float32(scale)
    x[0] = 0
    y, _ = through(x, CodecParams(family="scalar", bits=8, zero_point=zero_point))
    assert np.isfinite(y).all()
    assert (y[0] == 0).all()
    assert np.linalg.norm((x - y) / x.max()) <= np.linalg.norm(x / x.max())
    if scale > 1e-36:
        assert np.linalg.norm((x - y) / scale) < 0.1 * np.linalg.norm(x / scale)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 9), st.booleans(), st.integers(0, 999))
def test_rows_in_chunks_are_rows_at_once(bits: int, columns: int, cut: int, zero_point: bool, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((10, columns)).astype(np.float32)
    params = CodecParams(family="scalar", bits=max(bits, 1 if zero_point else 2), zero_point=zero_point)
    state = scalar.fit(x, params, RNG)
    whole = scalar.encode(state, x, params)
    parts = [scalar.encode(state, part, params) for part in (x[:cut], x[cut:]) if len(part)]
    for name, codes in whole.items():
        assert np.array_equal(codes, np.concatenate([part[name] for part in parts]))
        assert len(codes) == 10
    decoded = np.concatenate([scalar.decode(state, part, params) for part in parts])
    assert np.array_equal(decoded, scalar.decode(state, whole, params))
    assert decoded.dtype == np.float32


@pytest.mark.parametrize("zero_point", [False, True])
def test_decoding_in_blocks_misses_no_row(zero_point: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, params = weights(101, 24), CodecParams(family="scalar", bits=5, group=8, zero_point=zero_point)
    at_once, _ = through(x, params)
    monkeypatch.setattr(scalar, "BLOCK_VALUES", 100)
    assert np.array_equal(through(x, params)[0], at_once)


@pytest.mark.parametrize("family", ["scalar", "bf16", "f32"])
def test_values_that_are_not_finite_are_refused(family: str) -> None:
    x = weights(10, 8)
    x[3, 3] = np.nan
    with pytest.raises(CodecError, match="1 of 80 values are not finite"):
        through(x, CodecParams(family=family, bits=4 if family == "scalar" else None))  # type: ignore[arg-type]


def test_float32_passes_through_as_it_is() -> None:
    x = weights(30, 17)
    y, bits = through(x, CodecParams(family="f32"))
    assert np.array_equal(x, y)
    assert bits == 32


def test_bfloat16_is_the_nearest_and_ties_go_to_even() -> None:
    """Against the two bfloat16 beside each value, in exact fractions."""
    rng = np.random.default_rng(1)
    spread = (rng.standard_normal(2000) * 10.0 ** rng.integers(-30, 30, 2000)).astype(np.float32)
    ties = ((rng.integers(0x0080, 0x7F00, 500).astype(np.uint32) << 16) | 0x8000).view(np.float32)
    x = np.concatenate([spread, ties, -ties, np.zeros(1, np.float32)])[None]
    y, bits = through(x, CodecParams(family="bf16"))
    assert bits == 16
    for value, got in zip(x[0], y[0], strict=True):
        below = int(value.view(np.uint32)) >> 16  # towards 0
        near = [np.array([half << 16], np.uint32).view(np.float32)[0] for half in (below, below + 1)]
        gaps = [abs(Fraction(float(value)) - Fraction(float(point))) for point in near]
        even = near[below % 2]
        assert got == (even if gaps[0] == gaps[1] else near[gaps.index(min(gaps))])


def test_bfloat16_refuses_what_it_would_make_infinite() -> None:
    x = np.full((2, 2), np.finfo(np.float32).max, np.float32)
    with pytest.raises(CodecError, match=r"3\.4028e\+38 rounds to infinity"):
        through(x, CodecParams(family="bf16"))
