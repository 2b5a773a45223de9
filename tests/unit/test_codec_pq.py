"""Product quantisation and its residual form, against brute force over their codebooks."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.families import pq, rpq
from actors.codec.kernels.lanes import bf16
from actors.codec.kernels.rotation import hadamard
from schemas.codec import CodecParams, Distance, LaneWidth, Residual, Rotation

N, D = 600, 24
DISTANCES: list[Distance] = ["adc_u8", "adc_i8"]


def weights(n: int = N, d: int = D, seed: int = 0) -> NDArray[np.float32]:
    """Rows as those of a real layer: a decaying spectrum along hidden axes, a few columns of outliers."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(99).standard_normal((d, d)))[0]
    rows = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.7 @ axes
    rows[:, ::11] *= 4
    return (0.04 * rows).astype(np.float32)


def fitted(params: CodecParams, rows: NDArray[np.float32]) -> Arrays:
    return (rpq if params.family == "rpq" else pq).fit(rows, params, np.random.default_rng(params.seed))


def decoded(params: CodecParams, state: Arrays, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    family = rpq if params.family == "rpq" else pq
    return family.decode(state, family.encode(state, rows, params), params)


def relative_l2(rows: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(rows - other) / np.linalg.norm(rows))


def runs(d: int, count: int) -> list[slice]:
    """As numpy splits."""
    edges = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(d), count)])
    return [slice(a, b) for a, b in pairwise(edges.tolist())]


def oracle_codes(
    rows: NDArray[np.floating], codebook: NDArray[np.floating], count: int
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Least squared distance (n, M), and all of them, by broadcasting."""
    every = [
        np.square(rows[:, None, run].astype(np.float64) - codebook[None, :, run].astype(np.float64)).sum(axis=2)
        for run in runs(rows.shape[1], count)
    ]
    return np.stack([table.min(axis=1) for table in every], axis=1), every


@pytest.mark.parametrize("count", [1, 3, 5, 24])
@pytest.mark.parametrize("lane_width", ["f32x16", "f64x8", "bf16x32"])
@pytest.mark.parametrize("rotation", ["identity", "hadamard"])
def test_codes_are_the_nearest_centroids_of_each_run(count: int, lane_width: LaneWidth, rotation: Rotation) -> None:
    params = CodecParams(family="pq", subspaces=count, centroids=17, lane_width=lane_width, rotation=rotation)
    rows = weights()
    state = fitted(params, rows)
    codes = pq.encode(state, rows, params)["codes"]
    assert codes.shape == (N, count)
    turned, codebook = pq.turn(state, rows, params), state["codebook"].astype(np.float32)
    if lane_width == "bf16x32":
        turned, codebook = bf16(turned), bf16(codebook)
    least, every = oracle_codes(turned, codebook, count)
    chosen = np.stack([table[np.arange(N), code] for table, code in zip(every, codes.T, strict=True)], axis=1)
    assert np.allclose(chosen, least, atol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("count", [1, 4])
def test_eight_bit_lanes_choose_as_integers_do(distance: Distance, count: int) -> None:
    params = CodecParams(family="pq", subspaces=count, centroids=32, lane_width="u8x64", distance=distance)
    rows = weights()
    state = fitted(params, rows)
    codes = pq.encode(state, rows, params)["codes"]
    turned, codebook = pq.turn(state, rows, params), state["codebook"].astype(np.float32)
    for run, code in zip(runs(D, count), codes.T, strict=True):
        book = codebook[:, run].astype(np.float64)
        if distance == "adc_u8":
            low, high, origin, step = 0, 255, book.min(), np.ptp(book) / 255
        else:
            low, high, origin, step = -127, 127, 0.0, np.abs(book).max() / 127
        grid = [
            np.clip(np.rint((side - np.float32(origin)) / np.float32(step)), low, high).astype(np.int64)
            for side in (turned[:, run], codebook[:, run])
        ]
        squares = np.square(grid[0][:, None] - grid[1][None]).sum(axis=2)
        assert np.array_equal(squares[np.arange(N), code], squares.min(axis=1))


def test_decoding_looks_up_every_run() -> None:
    params = CodecParams(family="pq", subspaces=5, centroids=16)
    rows = weights()
    state = fitted(params, rows)
    codes = pq.encode(state, rows, params)
    rebuilt = np.zeros_like(rows)
    for i in range(N):
        for run, code in zip(runs(D, 5), codes["codes"][i], strict=True):
            rebuilt[i, run] = state["codebook"][int(code), run].astype(np.float32) * np.float32(state["unit"][0])
    assert np.array_equal(pq.decode(state, codes, params), rebuilt)


def test_a_rotated_codec_is_the_codec_of_rotated_rows() -> None:
    plain = CodecParams(family="pq", subspaces=4, centroids=16)
    turned = CodecParams(family="pq", subspaces=4, centroids=16, rotation="hadamard")
    rows = weights()
    state = fitted(turned, rows)
    assert "rotation" not in state  # made anew from the seed
    error = relative_l2(rows, decoded(turned, state, rows))
    other = hadamard(rows, turned.seed)
    assert error == pytest.approx(relative_l2(other, decoded(plain, fitted(plain, other), other)), rel=0.05)


def test_few_rows_are_learnt_by_heart_and_nothing_else_is() -> None:
    """The origin's mistake: 256 centroids, 128 training rows."""
    rows = np.random.default_rng(0).standard_normal((384, 384)).astype(np.float32)
    params = CodecParams(family="pq", subspaces=6)
    state = fitted(params, rows[:128])
    assert relative_l2(rows[:128], decoded(params, state, rows[:128])) < 1e-3  # float16
    assert relative_l2(rows[128:], decoded(params, state, rows[128:])) > 0.95


@pytest.mark.parametrize(("centroids", "code_bytes"), [(2, 1), (256, 1), (257, 2)])
def test_everything_is_charged(centroids: int, code_bytes: int) -> None:
    rows = weights()
    params = CodecParams(family="pq", subspaces=6, centroids=centroids)
    state = fitted(params, rows)
    charge = pq.charge(state, pq.encode(state, rows, params), params)
    assert charge.codes == N * 6 * code_bytes
    assert charge.codebooks == 2 * centroids * D
    assert (charge.scales, charge.rotation) == (4, 0)
    opq = CodecParams(family="pq", subspaces=6, centroids=16, rotation="opq", lane_width="bf16x32")
    state = fitted(opq, rows)
    charge = pq.charge(state, pq.encode(state, rows, opq), opq)
    assert charge.rotation == 2 * D * D
    assert charge.total == N * 6 + 2 * 16 * D + 4 + 2 * D * D


@pytest.mark.slow
def test_opq_beats_pq_on_unseen_rows_whose_columns_are_entangled() -> None:
    rows, unseen = weights(3000), weights(1000, seed=1)
    plain = CodecParams(family="pq", subspaces=6, centroids=32, lane_width="bf16x32")
    turned = CodecParams(family="pq", subspaces=6, centroids=32, lane_width="bf16x32", rotation="opq")
    errors = [relative_l2(unseen, decoded(p, fitted(p, rows), unseen)) for p in (plain, turned)]
    assert errors[1] < 0.95 * errors[0]
    with pytest.raises(CodecError, match="23 < 24"):
        fitted(turned, rows[:23])


@pytest.mark.parametrize(
    ("rotation", "lane_width"), [("identity", "f32x16"), ("hadamard", "f64x8"), ("opq", "bf16x32")]
)
def test_table_distances_are_those_to_decoded_rows(rotation: Rotation, lane_width: LaneWidth) -> None:
    params = CodecParams(family="pq", subspaces=5, centroids=32, rotation=rotation, lane_width=lane_width)
    rows, queries = weights(), weights(20, seed=5)
    state = fitted(params, rows)
    codes = pq.encode(state, rows, params)
    back = pq.decode(state, codes, params)
    for query in queries:
        exact = np.square(back.astype(np.float64) - query).sum(axis=1)
        found = pq.distances(state, codes, query, params)
        assert np.allclose(found, exact, rtol=0.03 if lane_width == "bf16x32" else 1e-4, atol=2e-2 * exact.mean() * (
            lane_width == "bf16x32") + 1e-7)  # fmt: skip


@pytest.mark.parametrize("distance", DISTANCES)
def test_eight_bit_tables_are_off_by_half_a_step_a_run_at_most(distance: Distance) -> None:
    exact_params = CodecParams(family="pq", subspaces=6, centroids=64)
    params = CodecParams(family="pq", subspaces=6, centroids=64, lane_width="u8x64", distance=distance)
    rows, queries = weights(), weights(20, seed=5)
    state = fitted(exact_params, rows)
    codes = pq.encode(state, rows, exact_params)
    book, unit = state["codebook"].astype(np.float64), float(state["unit"][0])
    overlap = []
    for query in queries:
        exact = pq.distances(state, codes, query, exact_params)
        found = pq.distances(state, codes, query, params)
        spans = [np.ptp(np.square(book[:, run] * unit - query[run]).sum(axis=1)) for run in runs(D, 6)]
        step = max(spans) / (255 if distance == "adc_u8" else 254)
        assert np.abs(found - exact).max() <= 6 * step / 2 * 1.001
        assert np.abs(found - exact).max() > 0  # it really runs in 8 bits
        overlap.append(len(set(np.argsort(found)[:10]) & set(np.argsort(exact)[:10])) / 10)
    assert np.mean(overlap) > 0.8


@pytest.mark.parametrize("rotation", ["identity", "hadamard"])
def test_a_residual_stage_quantises_what_is_left(rotation: Rotation) -> None:
    rows = weights(1500)
    errors = []
    for depth in (1, 2, 3):
        params = CodecParams(
            family="rpq", subspaces=4, centroids=32, residual=Residual(depth=depth, centroids=16), rotation=rotation
        )
        state = fitted(params, rows)
        codes = rpq.encode(state, rows, params)
        left = pq.turn({"unit": state["unit"], "codebook": state["codebook_0"]}, rows, params)
        for stage in range(depth + 1):
            book = state[f"codebook_{stage}"].astype(np.float32)
            assert len(book) == (16 if stage else 32)
            least, _ = oracle_codes(left, book, 4)
            before = left
            left = left - pq.look_up(book, codes[f"codes_{stage}"], params)
            assert np.square(left).sum() == pytest.approx(least.sum(), rel=1e-4)
            assert np.square(left).sum() < np.square(before).sum()
        back = rpq.decode(state, codes, params)
        assert np.linalg.norm(rows - back) == pytest.approx(np.linalg.norm(left) * state["unit"][0], rel=1e-4)
        charge = rpq.charge(state, codes, params)
        assert charge.total == 1500 * 4 * (1 + depth) + 2 * D * (32 + 16 * depth) + 4
        errors.append(relative_l2(rows, back))
    assert errors[0] > errors[1] > errors[2]
    plain = CodecParams(family="pq", subspaces=4, centroids=32, rotation=rotation)
    assert relative_l2(rows, decoded(plain, fitted(plain, rows), rows)) > errors[0]


@pytest.mark.parametrize("family", ["pq", "rpq"])
def test_the_unit_of_the_data_does_not_matter(family: str) -> None:
    """Powers of two pass through float16 codebooks untouched, tiny and huge ones as well."""
    residual = Residual(depth=1, centroids=16) if family == "rpq" else None
    params = CodecParams(family=family, subspaces=4, centroids=32, residual=residual)  # type: ignore[arg-type]
    rows = weights()
    plain = decoded(params, fitted(params, rows), rows)
    for factor in (np.float32(2.0**-60), np.float32(2.0**60)):
        assert np.array_equal(decoded(params, fitted(params, rows * factor), rows * factor), plain * factor)


def test_the_generator_decides_and_rows_stay_as_they_were() -> None:
    params = CodecParams(family="pq", subspaces=4, centroids=32)
    rows = weights()
    kept = rows.copy()
    one, same = fitted(params, rows), fitted(params, rows)
    other = pq.fit(rows, params, np.random.default_rng(1))
    assert np.array_equal(one["codebook"], same["codebook"])
    assert not np.array_equal(one["codebook"], other["codebook"])
    decoded(params, one, rows)
    assert np.array_equal(rows, kept)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (CodecParams(family="pq"), "one of subspaces and dsub"),
        (CodecParams(family="pq", subspaces=4, dsub=6), "one of subspaces and dsub"),
        (CodecParams(family="pq", dsub=5), "dsub may be 1, 2, 3, 4, 6, 8, 12, 24"),
        (CodecParams(family="pq", subspaces=25), "more than the 24 columns"),
        (CodecParams(family="rpq", subspaces=4), "rpq needs residual"),
        (CodecParams(family="pq", subspaces=4, rotation="opq"), "bf16x32"),
    ],
)
def test_parameters_without_sense_are_refused(params: CodecParams, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        fitted(params, weights())


def test_rows_and_queries_of_the_wrong_shape_are_refused() -> None:
    params = CodecParams(family="pq", subspaces=4, centroids=8)
    state = fitted(params, weights())
    codes = pq.encode(state, weights(), params)
    with pytest.raises(CodecError, match="23 columns"):
        pq.encode(state, weights()[:, :23], params)
    with pytest.raises(CodecError, match=r"shape \(23,\)"):
        pq.distances(state, codes, weights()[0, :23], params)
    bad = weights()
    bad[3, 4] = np.nan
    with pytest.raises(CodecError, match="1 of 14400 values are not finite"):
        fitted(params, bad)
    with pytest.raises(CodecError, match="n, d >= 1"):
        fitted(params, weights()[:0])


@pytest.mark.parametrize("rotation", ["identity", "hadamard"])
@pytest.mark.parametrize("family", ["pq", "rpq"])
def test_codebooks_are_trained_in_float32_whatever_the_lanes(family: str, rotation: Rotation) -> None:
    residual = Residual(depth=2, centroids=16) if family == "rpq" else None
    rows = weights()
    widths: list[LaneWidth] = ["f32x16", "u8x64", "f64x8", "bf16x32"]
    states = [
        fitted(CodecParams(family=family, subspaces=4, centroids=32, residual=residual, rotation=rotation,
                           lane_width=width), rows)  # type: ignore[arg-type]
        for width in widths
    ]  # fmt: skip
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(np.array_equal(state[name], states[0][name]) for name in state)


def test_stages_of_a_shallower_codec_are_the_first_ones_of_a_deeper_one() -> None:
    rows = weights()
    made = []
    for depth in (1, 3):
        params = CodecParams(family="rpq", subspaces=4, centroids=32, residual=Residual(depth=depth, centroids=16))
        state = fitted(params, rows)
        made.append({**state, **rpq.encode(state, rows, params)})
    assert made[0].keys() < made[1].keys()
    assert all(np.array_equal(made[1][name], made[0][name]) for name in made[0])
