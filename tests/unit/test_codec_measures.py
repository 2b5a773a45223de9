"""Measures against formulas written out long-hand, and what they are blind to."""

import msgspec
import numpy as np
import pytest

from actors.codec.base import CodecError
from actors.codec.families import rotated
from actors.codec.measures import MEMORISED, PAIRED_ROWS, icc, measure, measured, memorisation, memorised, row_pairs
from schemas.codec import CodecParams, Measures
from tests.unit.codec_matrices import weights


def anova(judged: np.ndarray) -> tuple[float, float]:
    """Two-way analysis of variance, sums of squares one by one, as in Shrout & Fleiss 1979, table 1."""
    targets, judges = judged.shape
    grand = sum(float(x) for row in judged for x in row) / (targets * judges)
    of_target = [sum(map(float, row)) / judges for row in judged]
    of_judge = [sum(map(float, column)) / targets for column in judged.T]
    between = sum(judges * (mean - grand) ** 2 for mean in of_target)
    judge = sum(targets * (mean - grand) ** 2 for mean in of_judge)
    within = sum((float(judged[i, j]) - of_target[i]) ** 2 for i in range(targets) for j in range(judges))
    left = sum(
        (float(judged[i, j]) - of_target[i] - of_judge[j] + grand) ** 2 for i in range(targets) for j in range(judges)
    )
    assert within == pytest.approx(judge + left)  # the table adds up
    bms, wms, ems = between / (targets - 1), within / (targets * (judges - 1)), left / ((targets - 1) * (judges - 1))
    return (bms - ems) / (bms + (judges - 1) * ems), (bms - wms) / (bms + (judges - 1) * wms)


@pytest.mark.parametrize("offset", [0.0, 0.7])
def test_icc_is_that_of_the_analysis_of_variance(offset: float) -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(60)
    judged = np.stack([truth, 0.8 * truth + 0.4 * rng.standard_normal(60) + offset], axis=1)
    assert icc(judged) == pytest.approx(anova(judged))


def test_an_offset_between_judges_counts_against_icc_1_1_alone() -> None:
    truth = np.random.default_rng(2).standard_normal(500)
    consistency, one_way = icc(np.stack([truth, truth + 1], axis=1))
    assert consistency == pytest.approx(1.0)
    assert one_way == pytest.approx((2 - 0.5) / (2 + 0.5), abs=0.05)  # MSR = 2 var = 2, MSW = offset^2 / 2


def test_icc_of_nothing_in_common_is_about_0() -> None:
    assert abs(icc(np.random.default_rng(3).standard_normal((20_000, 2)))[0]) < 0.03


@pytest.mark.parametrize("n", [2, 3, 40, 91, 92, 400, 60_000])
def test_pairs_are_distinct_and_of_two_rows(n: int) -> None:
    first, second = row_pairs(n, 4096, np.random.default_rng(4))
    assert len(first) == min(4096, n * (n - 1) // 2)
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == len(first)
    assert (second < first).all()
    assert second.min() >= 0
    assert first.max() < n


def test_rows_for_4096_pairs() -> None:
    assert PAIRED_ROWS * (PAIRED_ROWS - 1) // 2 >= 4096 > (PAIRED_ROWS - 1) * (PAIRED_ROWS - 2) // 2


def test_measures_long_hand() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((12, 7)).astype(np.float32)
    y = (x + 0.3 * rng.standard_normal((12, 7))).astype(np.float32)
    got = measure(x, y, rng)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.astype(float) @ b.astype(float) / (np.linalg.norm(a) * np.linalg.norm(b)))

    pairs = [(i, j) for i in range(12) for j in range(i)]
    judged = np.array([[cosine(x[i], x[j]), cosine(y[i], y[j])] for i, j in pairs])
    assert (got.icc_3_1, got.icc_1_1) == pytest.approx(anova(judged), rel=1e-5)
    assert got.relative_l2 == pytest.approx(float(np.sqrt(((x - y) ** 2).sum() / (x**2).sum())), rel=1e-5)
    assert got.row_cosine == pytest.approx(np.mean([cosine(a, b) for a, b in zip(x, y, strict=True)]), rel=1e-5)
    lengths = [float(np.linalg.norm(b) / np.linalg.norm(a)) for a, b in zip(x, y, strict=True)]
    assert got.norm_error == pytest.approx(np.mean([abs(length - 1) for length in lengths]), rel=1e-4)
    assert (got.rows, got.pairs) == (12, 66)


def test_icc_does_not_see_rescaled_rows_but_others_do() -> None:
    x = weights(300, 96)
    factors = np.random.default_rng(6).uniform(0.1, 10, (300, 1)).astype(np.float32)
    got = measure(x, x * factors, np.random.default_rng(6))
    assert got.icc_3_1 == pytest.approx(1.0, abs=1e-6)
    assert got.icc_1_1 == pytest.approx(1.0, abs=1e-6)
    assert got.row_cosine == pytest.approx(1.0, abs=1e-6)
    assert got.relative_l2 > 1
    assert got.norm_error > 1


def test_icc_does_not_see_a_global_rotation_but_others_do() -> None:
    x = weights(300, 96)
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((96, 96)))[0].astype(np.float32)
    got = measure(x, x @ turn, np.random.default_rng(7))
    assert got.icc_3_1 == pytest.approx(1.0, abs=1e-5)
    assert got.norm_error < 1e-5
    assert got.relative_l2 == pytest.approx(2**0.5, rel=0.1)
    assert abs(got.row_cosine) < 0.1


def test_icc_of_near_orthogonal_rows_is_1_less_relative_l2_squared() -> None:
    x = np.random.default_rng(8).standard_normal((3000, 512)).astype(np.float32)
    params = CodecParams(family="rotated", bits=2, rotation="hadamard")
    state = rotated.fit(x, params, np.random.default_rng(8))
    got = measure(x, rotated.decode(state, rotated.encode(state, x, params), params), np.random.default_rng(8))
    assert got.icc_3_1 == pytest.approx(1 - got.relative_l2**2, abs=0.01)
    assert got.relative_l2 > 0.3


def test_an_overfit_is_memorised_and_an_honest_codec_is_not() -> None:
    """Pure noise: 128 rows kept as they are, others given the nearest of them. So does a codebook of 256."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((512, 64)).astype(np.float32)
    seen, unseen = x[:128], x[128:]
    nearest = seen[np.argmin(((unseen[:, None] - seen[None]) ** 2).sum(axis=2), axis=1)]
    on_seen, on_unseen = measure(seen, seen, rng), measure(unseen, nearest, rng)
    assert on_seen.icc_3_1 == 1.0
    assert on_unseen.icc_3_1 < 0.5
    assert memorised(on_seen, on_unseen)
    noisy = x + np.float32(0.1) * rng.standard_normal(x.shape).astype(np.float32)
    honest = [measure(part, decoded, rng) for part, decoded in ((seen, noisy[:128]), (unseen, noisy[128:]))]
    assert not memorised(*honest)
    assert abs(memorisation(*honest)) < MEMORISED / 5


def test_rows_of_nothing_have_no_norm_error() -> None:
    x = weights(20, 8)
    x[3] = 0
    assert measure(x, x, np.random.default_rng(0)) == Measures(
        rows=20, relative_l2=0.0, row_cosine=pytest.approx(1.0), norm_error=0.0, icc_3_1=1.0, icc_1_1=1.0, pairs=190
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_not_measured(broken: float) -> None:
    x = weights(20, 8)
    y = x.copy()
    y[1, 1] = broken
    with pytest.raises(CodecError, match="finite"):
        measure(x, y, np.random.default_rng(0))


def test_shapes_are_checked() -> None:
    with pytest.raises(CodecError, match=r"\(20, 8\), \(20, 7\)"):
        measure(weights(20, 8), weights(20, 7), np.random.default_rng(0))


def test_the_same_seed_gives_the_same_measures() -> None:
    x, y = weights(400, 16), weights(400, 16) + weights(400, 16, seed=1)
    first, again, other = (measure(x, y, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.icc_3_1 != other.icc_3_1


@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_rows_are_measured_in_blocks_as_they_are_by_themselves(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.codec.measures.BLOCK_FLOATS", block)
    rng = np.random.default_rng(1)
    original = rng.normal(size=(300, 24)).astype(np.float32)
    decoded = original + rng.normal(scale=0.1, size=original.shape).astype(np.float32)
    calibration, held_out = np.arange(0, 300, 3), np.setdiff1d(np.arange(300), np.arange(0, 300, 3))
    found = measured(original, decoded, calibration, held_out, np.random.default_rng(7), pairs=500)
    alone = np.random.default_rng(7)
    for measures, rows in (
        (found.calibration, calibration),
        (found.held_out, held_out),
        (found.all_rows, np.arange(300)),
    ):
        one = measure(original[rows], decoded[rows], alone, pairs=500)
        assert msgspec.structs.astuple(measures) == pytest.approx(msgspec.structs.astuple(one), rel=1e-12)
    assert found.memorisation == found.calibration.icc_3_1 - found.held_out.icc_3_1
    assert not found.memorised
