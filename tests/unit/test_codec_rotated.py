"""TurboQuant-MSE: levels against numerical integration and Max's table, distortion against theory."""

from statistics import NormalDist

import numpy as np
import pytest

from actors.codec.base import CodecError
from actors.codec.families import rotated
from actors.codec.families.rotated import gaussian_levels
from actors.codec.measures import measure
from schemas.codec import CodecParams
from tests.unit.codec_matrices import weights

GRID = np.linspace(-9, 9, 900_001)
MASS = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def params(bits: int, **fields: object) -> CodecParams:
    return CodecParams(family="rotated", bits=bits, rotation="hadamard", **fields)  # type: ignore[arg-type]


def through(x: np.ndarray, codec: CodecParams) -> np.ndarray:
    state = rotated.fit(x, codec, np.random.default_rng(0))
    return rotated.decode(state, rotated.encode(state, x, codec), codec)


def distortion(levels: np.ndarray) -> float:
    """E (z - nearest level)^2 of a standard normal, by a sum over a fine grid."""
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, GRID)]
    return float((MASS * (GRID - nearest) ** 2).sum())


@pytest.mark.parametrize("bits", range(1, 9))
def test_each_level_is_the_mean_of_what_is_nearest_to_it(bits: int) -> None:
    levels = gaussian_levels(bits).astype(np.float64)
    assert len(levels) == 2**bits
    assert (np.diff(levels) > 0).all()
    assert levels == pytest.approx(-levels[::-1])
    cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, GRID)
    mass = np.bincount(cell, MASS)
    assert levels == pytest.approx(np.bincount(cell, MASS * GRID) / mass, abs=2e-4)


def test_one_bit_has_a_closed_form() -> None:
    assert gaussian_levels(1) == pytest.approx([-((2 / np.pi) ** 0.5), (2 / np.pi) ** 0.5])


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
def test_distortion_is_that_of_max_1960_table_1(bits: int, published: float) -> None:
    assert distortion(gaussian_levels(bits)) == pytest.approx(published, rel=3e-3)


def test_distortion_of_many_levels_is_that_of_panter_and_dite() -> None:
    assert distortion(gaussian_levels(8)) == pytest.approx(np.pi * 3**0.5 / 2 / 4**8, rel=0.03)


def test_no_other_levels_do_better() -> None:
    levels = gaussian_levels(3).astype(np.float64)
    best = distortion(levels)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert distortion(np.sort(levels + 0.05 * rng.standard_normal(8))) > best
    assert distortion(np.array([NormalDist().inv_cdf((i + 0.5) / 8) for i in range(8)])) > best


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_the_error_is_that_of_a_gaussian(bits: int) -> None:
    """To a few parts in d: coordinates on a sphere have lighter tails, which shows where there are many levels."""
    x = np.random.default_rng(1).standard_normal((600, 384)).astype(np.float32)
    got = measure(x, through(x, params(bits)), np.random.default_rng(0))
    assert got.relative_l2**2 == pytest.approx(distortion(gaussian_levels(bits)), rel=0.025)


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_outlying_columns_make_the_error_no_worse(bits: int) -> None:
    """Three columns that outweigh the rest become a few sums of signs: flatter than a Gaussian, so a little better."""
    x = weights(600, 384)
    got = measure(x, through(x, params(bits)), np.random.default_rng(0))
    assert 0.85 < got.relative_l2**2 / distortion(gaussian_levels(bits)) < 1.01


def test_levels_without_the_rotation_do_far_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    x = weights(300, 384)
    with_it = measure(x, through(x, params(4)), np.random.default_rng(0)).relative_l2
    monkeypatch.setattr(rotated.rotation, "rotate", lambda rows, _state, _params: rows)
    monkeypatch.setattr(rotated.rotation, "rotate_back", lambda rows, _state, _params: rows)
    assert measure(x, through(x, params(4)), np.random.default_rng(0)).relative_l2 > 2 * with_it


def test_norms_are_kept_and_a_row_of_nothing_decodes_to_nothing() -> None:
    x = weights(50, 96)
    x[7] = 0
    x[8] *= 1000
    y = through(x, params(6))
    assert (y[7] == 0).all()
    alive = np.arange(50) != 7
    assert np.linalg.norm(y[alive], axis=1) == pytest.approx(np.linalg.norm(x[alive], axis=1), rel=0.02)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e18])
def test_norms_beyond_float16_are_kept_over_a_unit(scale: float) -> None:
    x = weights(100, 64)
    assert through(x * np.float32(scale), params(5)) / np.float32(scale) == pytest.approx(
        through(x, params(5)), rel=2e-3, abs=2e-4
    )


def test_a_row_far_from_the_calibration_rows_is_refused_and_not_made_infinite() -> None:
    x = weights(100, 64)
    state = rotated.fit(x, params(4), np.random.default_rng(0))
    with pytest.raises(CodecError, match="row norm"):
        rotated.encode(state, x * np.float32(1e9), params(4))


@pytest.mark.parametrize(("n", "bits", "says"), [(384, 4, 4 + 16 / 384), (384, 5, 5 + 16 / 384)])
def test_bits_a_weight(n: int, bits: int, says: float) -> None:
    x = weights(n, 384)
    state = rotated.fit(x, params(bits), np.random.default_rng(0))
    charge = rotated.charge(state, rotated.encode(state, x, params(bits)), params(bits))
    assert charge.bits_per_weight(x.size) == pytest.approx(says, abs=0.001)
    assert charge.rotation == charge.codebooks == 0


def test_the_seed_is_the_rotation() -> None:
    x = weights(40, 48)
    assert np.array_equal(through(x, params(3, seed=1)), through(x, params(3, seed=1)))
    assert not np.array_equal(through(x, params(3, seed=1)), through(x, params(3, seed=2)))


def test_rows_in_chunks_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = weights(40, 48)
    state = rotated.fit(x, params(3), np.random.default_rng(0))
    whole = rotated.encode(state, x, params(3))
    parts = [rotated.encode(state, part, params(3)) for part in (x[:13], x[13:])]
    for name, codes in whole.items():
        assert np.array_equal(codes, np.concatenate([part[name] for part in parts]))
    at_once = rotated.decode(state, whole, params(3))
    monkeypatch.setattr(rotated.scalar, "BLOCK_VALUES", 500)
    assert rotated.decode(state, whole, params(3)) == pytest.approx(at_once, rel=1e-5, abs=1e-7)
