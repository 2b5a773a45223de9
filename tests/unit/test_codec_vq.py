"""Shared-codebook VQ and additive VQ, against closed forms, exhaustive search and least squares."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.families import additive, vq
from actors.codec.families.additive import least_squares, refined, search, summed
from schemas.codec import CodecParams, LaneWidth, Residual, Rotation


def weights(n: int = 800, d: int = 96, seed: int = 0) -> NDArray[np.float32]:
    """Heavy-tailed weights, rows of different norms, columns of outliers."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(5, (n, d)) * np.exp(0.5 * rng.standard_normal((n, 1)))
    rows[:, ::31] *= 3
    return (0.03 * rows).astype(np.float32)


def shared(**fields: object) -> CodecParams:
    return CodecParams(**({"family": "vq", "rotation": "hadamard", "dsub": 2} | fields))  # type: ignore[arg-type]


def summing(**fields: object) -> CodecParams:
    return shared(**({"family": "additive", "residual": Residual(depth=1, centroids=32), "centroids": 32} | fields))


def unseen_error(params: CodecParams, rows: NDArray[np.float32], unseen: NDArray[np.float32]) -> float:
    """Relative L2, root of what a share of the energy is lost."""
    family = additive if params.family == "additive" else vq
    state = family.fit(rows, params, np.random.default_rng(params.seed))
    back = family.decode(state, family.encode(state, unseen, params), params)
    return float(np.linalg.norm(unseen - back) / np.linalg.norm(unseen))


@pytest.mark.parametrize(("k", "left"), [(2, 0.3634), (4, 0.1175), (8, 0.03454)])
def test_groups_of_one_are_lloyd_max_levels(k: int, left: float) -> None:
    """Max 1960, table I, for a unit Gaussian: what Hadamard makes of any rows, outliers or not."""
    error = unseen_error(shared(dsub=1, centroids=k), weights(200, 768), weights(100, 768, seed=1))
    assert error**2 == pytest.approx(left, rel=0.03)


@pytest.mark.slow
def test_pairs_of_256_centroids_come_near_the_bound() -> None:
    """Zador's high-rate law in two dimensions: 5 / (36 sqrt 3) * 8 pi / 256 = 0.00787 a value."""
    error = unseen_error(shared(), weights(200, 768), weights(100, 768, seed=1))
    assert 0.00787 * 0.97 < error**2 < 0.00787 * 1.1


@pytest.mark.slow
def test_pairs_beat_single_values_at_the_same_bits() -> None:
    rows, unseen = weights(1500), weights(seed=1)
    assert unseen_error(shared(), rows, unseen) < 0.97 * unseen_error(shared(dsub=1, centroids=16), rows, unseen)


@pytest.mark.slow
def test_the_rotation_is_what_makes_one_codebook_fit() -> None:
    rows, unseen = weights(200, 768), weights(100, 768, seed=1)
    errors = {r: unseen_error(shared(rotation=r), rows, unseen) for r in ("identity", "hadamard")}
    assert errors["hadamard"] < 0.9 * errors["identity"]


@pytest.mark.parametrize("lane_width", ["f32x16", "f64x8", "bf16x32", "u8x64"])
@pytest.mark.parametrize("rotation", ["identity", "hadamard"])
def test_codes_are_the_nearest_of_one_codebook(lane_width: LaneWidth, rotation: Rotation) -> None:
    params = shared(dsub=3, centroids=40, lane_width=lane_width, rotation=rotation)
    rows = weights(100)
    state = vq.fit(rows, params, np.random.default_rng(0))
    codes = vq.encode(state, rows, params)
    assert codes["codes"].shape == (100, 32)
    groups, scales = vq.grouped(rows, state, params)
    book = state["codebook"].astype(np.float64)
    squares = np.square(groups[:, None] - book[None]).sum(axis=2)
    excess = squares[np.arange(len(groups)), codes["codes"].ravel()] - squares.min(axis=1)
    worst = {"f32x16": 1e-4, "f64x8": 1e-9, "bf16x32": 0.05, "u8x64": np.inf}[lane_width]
    assert excess.max() < worst
    assert excess.mean() < 0.01 * squares.min(axis=1).mean()
    # decoding is a look-up, turned back and scaled
    turned = book[codes["codes"]].reshape(100, 96)
    norms = np.linalg.norm(turned, axis=1) * scales.astype(np.float64) * float(state["unit"][0])
    back = vq.decode(state, codes, params)
    assert np.allclose(np.linalg.norm(back, axis=1), norms, rtol=0.01 if lane_width == "bf16x32" else 1e-5)


def test_a_row_keeps_its_own_norm() -> None:
    """The codes don't see it: a row 2^6 times as long has the same codes and decodes to 2^6 times as much."""
    params, rows = shared(), weights(500)
    state = vq.fit(rows, params, np.random.default_rng(0))
    codes, long = vq.encode(state, rows, params), vq.encode(state, rows * 64, params)
    assert np.array_equal(codes["codes"], long["codes"])
    assert np.array_equal(vq.decode(state, codes, params) * 64, vq.decode(state, long, params))
    ratio = np.linalg.norm(vq.decode(state, codes, params), axis=1) / np.linalg.norm(rows, axis=1)
    assert np.abs(ratio - 1).max() < 0.05


def test_rows_of_zeros_stay_zeros() -> None:
    params, rows = shared(), weights(500)
    state = vq.fit(rows, params, np.random.default_rng(0))
    rows[3] = 0
    back = vq.decode(state, vq.encode(state, rows, params), params)
    assert not back[3].any()
    assert np.isfinite(back).all()
    state = vq.fit(np.zeros_like(rows), params, np.random.default_rng(0))
    assert not vq.decode(state, vq.encode(state, np.zeros_like(rows), params), params).any()


@pytest.mark.slow
@pytest.mark.parametrize(("centroids", "code_bytes"), [(16, 1), (256, 1), (300, 2)])
def test_everything_is_charged(centroids: int, code_bytes: int) -> None:
    rows = weights(300)
    params = shared(centroids=centroids)
    state = vq.fit(rows, params, np.random.default_rng(0))
    charge = vq.charge(state, vq.encode(state, rows, params), params)
    assert charge.codes == 300 * 48 * code_bytes
    assert charge.codebooks == centroids * 2 * 2
    assert charge.scales == 300 * 2 + 4
    assert charge.rotation == 0
    both = summing(centroids=centroids, dsub=4)
    state = additive.fit(rows, both, np.random.default_rng(0))
    charge = additive.charge(state, additive.encode(state, rows, both), both)
    assert charge.total == 300 * 24 * (code_bytes + 1) + 2 * 4 * (centroids + 32) + 300 * 2 + 4


def test_least_squares_is_numpy_s() -> None:
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((400, 3)).astype(np.float32)
    codes = [rng.integers(0, k, 400) for k in (5, 7, 4)]
    books = [rng.standard_normal((k, 3)).astype(np.float32) for k in (5, 7, 4)]
    design = np.hstack([np.eye(k)[code] for k, code in zip((5, 7, 4), codes, strict=True)])
    _, _, rank, _ = np.linalg.lstsq(design, groups.astype(np.float64))
    assert rank == 5 + 7 + 4 - 2  # stages trade constants, so normal equations alone are singular
    best = np.square(groups - design @ np.linalg.pinv(design) @ groups).sum()
    found = np.square(groups - summed(least_squares(groups, codes, books), codes)).sum()
    assert found == pytest.approx(best, rel=1e-4)
    assert found < 0.9 * np.square(groups - summed(books, codes)).sum()


def test_search_ends_where_no_single_stage_can_do_better() -> None:
    """And near the best of all 6^3 sums, which is never beaten."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((300, 2)).astype(np.float32)
    books = [(rng.standard_normal((6, 2)) / 2**i).astype(np.float32) for i in range(3)]
    codes = search(groups, books, sweeps=50)
    found = np.square(groups - summed(books, codes)).sum(axis=1)
    sums = np.array([books[0][a] + books[1][b] + books[2][c] for a, b, c in itertools.product(range(6), repeat=3)])
    best = np.square(groups[:, None] - sums[None]).sum(axis=2).min(axis=1)
    assert (found >= best - 1e-5).all()
    greedy = np.square(groups - summed(books, search(groups, books, starts=1, sweeps=0))).sum(axis=1)
    assert (found <= greedy + 1e-5).all()
    assert found.mean() < 0.8 * greedy.mean() + 0.2 * best.mean()
    for i in range(3):
        for code in range(6):
            other = [np.full(300, code) if j == i else codes[j] for j in range(3)]
            assert (found <= np.square(groups - summed(books, other)).sum(axis=1) + 1e-5).all()


def test_refinement_never_raises_the_error() -> None:
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((3000, 4)).astype(np.float32)
    books = [groups[:32].copy(), 0.3 * groups[32:64], 0.1 * groups[64:96]]
    _, errors = refined(groups, books)
    assert (np.diff(errors) <= 1e-6).all()
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.slow
def test_more_stages_keep_more_on_unseen_rows() -> None:
    rows, unseen = weights(1000), weights(seed=1)
    errors = [
        unseen_error(summing(dsub=4, residual=Residual(depth=depth, centroids=32)), rows, unseen) for depth in (1, 2, 3)
    ]
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2]


def test_additive_decodes_the_sum_of_its_stages() -> None:
    params = summing(dsub=4, rotation="identity")
    rows = weights(50)
    state = additive.fit(rows, params, np.random.default_rng(0))
    codes = additive.encode(state, rows, params)
    back = additive.decode(state, codes, params)
    for i in (0, 17, 49):
        groups = [
            state["codebook_0"][a].astype(np.float32) + state["codebook_1"][b].astype(np.float32)
            for a, b in zip(codes["codes_0"][i], codes["codes_1"][i], strict=True)
        ]
        length = float(codes["scales"][i]) * float(state["unit"][0])
        assert np.allclose(back[i], np.concatenate(groups) * length, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("params", [shared(), summing()])
def test_the_generator_decides_and_the_unit_does_not_matter(params: CodecParams) -> None:
    rows, family = weights(200), additive if params.family == "additive" else vq
    one = family.fit(rows, params, np.random.default_rng(0))
    tiny = rows * np.float32(2.0**-50)
    same = family.fit(tiny, params, np.random.default_rng(0))
    other = family.fit(rows, params, np.random.default_rng(1))
    name = next(name for name in one if name.startswith("codebook"))
    assert np.array_equal(one[name], same[name])
    assert not np.array_equal(one[name], other[name])
    back = family.decode(one, family.encode(one, rows, params), params)
    assert np.array_equal(family.decode(same, family.encode(same, tiny, params), params), back * np.float32(2.0**-50))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (shared(dsub=5), "dsub may be 1, 2, 3, 4, 6, 8"),
        (shared(dsub=None), "one of subspaces and dsub"),
        (shared(rotation="opq", lane_width="bf16x32"), "opq fits PQ only"),
        (summing(residual=None), "additive needs residual"),
        (summing(centroids=4096), "at most 4096 centroids together, got 4128"),
    ],
)
def test_parameters_without_sense_are_refused(params: CodecParams, says: str) -> None:
    family = additive if params.family == "additive" else vq
    with pytest.raises(CodecError, match=says):
        family.fit(weights(100), params, np.random.default_rng(0))


def test_widths_without_a_hadamard_matrix_and_endless_rows_are_refused() -> None:
    with pytest.raises(CodecError, match=r"Pad rows to 96 values, which costs 6\.7% more"):
        vq.fit(weights(d=90), shared(), np.random.default_rng(0))
    state = vq.fit(weights(), shared(), np.random.default_rng(0))
    rows = weights(3)
    rows[1] *= 1e8
    with pytest.raises(CodecError, match="row scale"):
        vq.encode(state, rows, shared())
    rows[1] = np.inf
    with pytest.raises(CodecError, match="96 of 288 values are not finite"):
        vq.encode(state, rows, shared())
