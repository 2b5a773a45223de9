"""Certificates without torch: how sure a share is, what a gate demands, streams that can't be compared, destroyed
targets, and a column's recall from the order to the certificate."""

from math import comb
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from actors.codec.certify import column, gates
from actors.codec.certify.compare import (
    StreamError,
    clopper_pearson,
    divergences,
    enough,
    estimate,
    first_difference,
    score,
)
from actors.codec.certify.controls import DAMAGES, NAMES
from actors.codec.certify.job import SelfTestFailed
from actors.codec.measures import icc, row_pairs
from actors.prompts import TextError, read_texts
from schemas.certificate import (
    Agreement,
    CausalLmFunction,
    CausalLmGate,
    ColumnFunction,
    ColumnGate,
    Divergence,
    Estimate,
)
from schemas.codec import CodecParams
from schemas.events.codec import (
    CalibrateCodec,
    CertifyCodec,
    CodecCertified,
    CodecGraduated,
    CodecJobFailed,
    CodecSelfTestFailed,
    GraduateCodec,
    RunCertification,
)
from tests.unit.codec_setting import COLUMN, ROWS
from tests.unit.test_codec_calibrator import House, of

RNG = np.random.default_rng(0)


# --- how sure --------------------------------------------------------------------------------------


def test_299_positions_without_a_miss_carry_99_per_cent_and_2995_carry_999_per_mille() -> None:
    assert (enough(0.99), enough(0.999)) == (299, 2995)
    assert clopper_pearson(298, 298) < 0.99 <= clopper_pearson(299, 299)
    assert clopper_pearson(2994, 2994) < 0.999 <= clopper_pearson(2995, 2995)


@pytest.mark.parametrize(("hits", "trials"), [(1, 3), (9, 10), (95, 100), (480, 500), (0, 7)])
def test_the_bound_is_where_so_many_hits_have_a_chance_of_one_in_twenty(hits: int, trials: int) -> None:
    p = clopper_pearson(hits, trials)
    tail = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits, trials + 1))
    assert tail == pytest.approx(1.0 if hits == 0 else 0.05, rel=1e-6)


def test_prompts_that_differ_make_a_share_less_sure_than_positions_do() -> None:
    totals = np.full(50, 100)
    alike = estimate(np.full(50, 90), totals, RNG)
    uneven = estimate(np.array([100] * 45 + [0] * 5), totals, RNG)
    assert alike.mean == uneven.mean == 0.9
    assert uneven.lower < alike.lower < 0.9
    assert alike.lower == pytest.approx(clopper_pearson(4500, 5000))
    assert uneven.low < uneven.lower < uneven.mean < uneven.high


def test_a_mean_of_values_is_as_sure_as_they_are_alike() -> None:
    cosines = np.random.default_rng(3).uniform(0.998, 1.0, 150)
    found = estimate(cosines, np.ones(150, int), RNG, trials=False)
    assert found.mean - 4 * cosines.std() / np.sqrt(150) < found.lower < found.mean
    assert estimate(cosines, np.ones(150, int), RNG).lower < 0.98, "as if one of 150 were a miss"


def test_of_nothing_there_is_no_share() -> None:
    with pytest.raises(StreamError):
        estimate(np.zeros(0), np.zeros(0, int), RNG)
    with pytest.raises(StreamError):
        estimate(np.zeros(3), np.zeros(3, int), RNG)


# --- streams ---------------------------------------------------------------------------------------


def test_streams_are_compared_prompt_by_prompt_and_positions_count_on() -> None:
    one = [np.array([1, 2, 3]), np.array([4, 5])]
    other = [np.array([1, 9, 3]), np.array([8, 5])]
    assert divergences(one, other) == [Divergence(0, 1, 2, 9), Divergence(1, 3, 4, 8)]
    assert divergences(one, other, at_most=1) == [Divergence(0, 1, 2, 9)]
    assert divergences(one, one) == []


def test_streams_that_can_t_be_compared_are_errors() -> None:
    for one, other, words in (
        ([], [], "no prompts"),
        ([np.arange(3)], [], "1 prompts of the reference, 0"),
        ([np.arange(3)], [np.arange(4)], "prompt 0: 3 tokens of the reference, 4"),
    ):
        with pytest.raises(StreamError, match=words):
            divergences(one, other)
    with pytest.raises(StreamError, match="aren't of one prompt"):
        score(np.zeros((3, 5), np.float32), np.zeros((3, 6), np.float32), np.zeros(3, np.int64))


def test_free_running_streams_differ_where_they_do() -> None:
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference([1, 2], [1, 2]) == 2


def test_a_prompt_s_scores_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(4)
    reference, candidate = rng.normal(size=(2, 6, 40)).astype(np.float32)
    tokens = rng.integers(40, size=6)
    found = score(reference, candidate, tokens)
    p = np.exp(reference.astype(float)) / np.exp(reference.astype(float)).sum(1, keepdims=True)
    q = np.exp(candidate.astype(float)) / np.exp(candidate.astype(float)).sum(1, keepdims=True)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(1), rtol=1e-9)
    np.testing.assert_allclose(found.candidate_nll, [-np.log(q[t, tokens[t + 1]]) for t in range(5)])
    best = p.argmax(1)
    np.testing.assert_array_equal(found.in_top, [best[t] in np.argsort(-q[t])[:5] for t in range(6)])
    same = score(reference, reference, tokens)
    assert same.kl.max() < 1e-12
    assert same.in_top.all()


# --- gates -----------------------------------------------------------------------------------------


def share(mean: float, lower: float, count: int) -> Estimate:
    return Estimate(mean, lower, mean, lower, count)


def lm(top1: Estimate, top5: Estimate, kl: float = 0.01) -> CausalLmFunction:
    agreement = Agreement(
        positions=top1.count, mean_kl=kl, kl_p999=1.0, top1=top1, top5=top5, perplexity=9.0, delta_perplexity=0.1
    )
    return CausalLmFunction(
        prompts=10, agreement=agreement, noise_floor=agreement, reference_perplexity=8.9, layers=[], divergences=[],
        diverged=0, first_divergence=[], reference_ms=[], candidate_ms=[],
    )  # fmt: skip


def test_a_gate_looks_at_lower_bounds_and_at_positions_enough_for_its_claim() -> None:
    gate = CausalLmGate()
    assert gates.failures(gate, lm(share(1, 0.9991, 3000), share(1, 0.9991, 3000))) == []
    (low,) = gates.failures(gate, lm(share(0.995, 0.985, 3000), share(1, 0.9991, 3000)))
    assert "top-1 0.9950, at least 0.9850 < 0.99" in low
    found = gates.failures(gate, lm(share(1, 1, 200), share(1, 1, 200)))
    assert ["299 positions" in found[0], "2,995 positions" in found[1]] == [True, True]
    (kl,) = gates.failures(replace(gate, mean_kl=0.005), lm(share(1, 0.9991, 3000), share(1, 0.9991, 3000)))
    assert "0.01" in kl


def test_a_control_fails_by_its_upper_bound() -> None:
    gate = ColumnGate()
    assert gates.surely_below(gate, {"recall": Estimate(0.5, 0.4, 0.6, 0.45, 100)})[0]
    failed, figure = gates.surely_below(gate, {"recall": Estimate(0.94, 0.92, 0.96, 0.93, 100)})
    assert (failed, "0.960" in figure) == (False, True)


# --- controls --------------------------------------------------------------------------------------


def matrix() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(700, 48)).astype(np.float32)


@pytest.mark.parametrize("name", ["row_rescaling", "global_rotation"])
def test_icc_is_blind_to_what_destroys_a_model(name: str) -> None:
    original = matrix()
    destroyed = DAMAGES[name](original, 5)  # type: ignore[index]
    first, second = row_pairs(len(original), 4096, np.random.default_rng(1))

    def cosines(rows: np.ndarray) -> np.ndarray:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.einsum("nd,nd->n", unit[first], unit[second], dtype=np.float64)

    assert icc(np.stack([cosines(original), cosines(destroyed)], axis=1))[0] > 0.9999
    assert np.linalg.norm(destroyed - original) / np.linalg.norm(original) > 0.5


@pytest.mark.parametrize("columns", [48, 50])  # a Hadamard order, and none
def test_a_global_rotation_is_one(columns: int) -> None:
    turned = DAMAGES["global_rotation"](np.eye(columns, dtype=np.float32), 3)
    np.testing.assert_allclose(turned @ turned.T, np.eye(columns), atol=1e-5)
    assert np.abs(np.trace(turned)) < columns / 2


@pytest.mark.slow
def test_a_destroyed_column_s_search_fails() -> None:
    vectors = matrix()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own = np.arange(0, 700, 5)
    gate = ColumnGate(oversample=3)
    for name in NAMES:
        blocks = [(0, DAMAGES[name](vectors, 1))]
        shares = column.measure(vectors, blocks, own, gate, "cosine", np.random.default_rng(0))
        assert gates.surely_below(gate, {"recall": shares["recall"]})[0], name


# --- a column --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_candidates_are_those_of_brute_force_and_rescoring_is_exact(metric: str) -> None:
    rng = np.random.default_rng(8)
    vectors = rng.normal(size=(300, 16)).astype(np.float32)
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    decoded = vectors + rng.normal(scale=0.2, size=vectors.shape).astype(np.float32)
    own = np.array([3, 77, 200])
    queries = vectors[own]
    blocks = [(start, decoded[start : start + 64]) for start in range(0, 300, 64)]
    found = column.candidates(blocks, queries, own, 20, metric)  # type: ignore[arg-type]
    for line, (query, row) in enumerate(zip(queries, own, strict=True)):
        apart = ((decoded - query) ** 2).sum(1) if metric == "l2" else -(decoded @ query)
        near = [n for n in np.argsort(apart, kind="stable") if n != row]
        np.testing.assert_array_equal(found[line], near[:20])
        exact = ((vectors - query) ** 2).sum(1) if metric == "l2" else -(vectors @ query)
        best = found[line][np.argsort(exact[found[line]], kind="stable")][:5]
        np.testing.assert_array_equal(column.rescored(vectors, query[None], found[line : line + 1], 5, metric)[0], best)  # type: ignore[arg-type]
        truth = [n for n in np.argsort(exact, kind="stable") if n != row][:5]
        np.testing.assert_array_equal(column.truth(vectors, own, 5, metric)[line], truth)  # type: ignore[arg-type]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


ROTATED = CodecParams(family="rotated", bits=4, rotation="hadamard", calibration_rows=300)


async def certified(house: House, params: CodecParams, gate: ColumnGate) -> list:  # type: ignore[type-arg]
    await house.with_index()
    await house.run(CalibrateCodec(COLUMN, params, "vectors"))
    return await house.run(CertifyCodec("vectors", gate=gate, prompts=150), "m2")


@pytest.mark.slow
async def test_a_column_is_certified_kept_and_graduates(house: House) -> None:
    (fact,) = of(CodecCertified, await certified(house, ROTATED, ColumnGate(oversample=3)))
    certificate = fact.certificate
    assert certificate.passed
    assert certificate.failures == []
    assert [control.failed for control in certificate.self_test] == [True] * 4
    function = certificate.function
    assert isinstance(function, ColumnFunction)
    assert (function.rows, function.queries) == (ROWS, 150)
    assert function.recall.lower >= 0.95
    assert function.recall_codes.mean < function.recall.mean
    assert function.code_bytes_share == pytest.approx((4 + 16 / 32) / 32, abs=0.01)
    assert (await house.document("vectors")).certificate == certificate
    (graduated,) = await house.ask(GraduateCodec("vectors", index="docs"))
    assert isinstance(graduated, CodecGraduated)


@pytest.mark.slow
async def test_a_codec_that_loses_too_much_isn_t_passed(house: House) -> None:
    one_bit = CodecParams(family="rotated", bits=1, rotation="hadamard", calibration_rows=300)
    (fact,) = of(CodecCertified, await certified(house, one_bit, ColumnGate(oversample=1)))
    assert not fact.certificate.passed
    assert "recall@10" in fact.certificate.failures[0]


@pytest.mark.slow
async def test_a_gate_that_lets_everything_pass_certifies_nothing(house: House) -> None:
    (fact,) = of(CodecSelfTestFailed, await certified(house, ROTATED, ColumnGate(recall=0.0)))
    assert "passed the gate" in fact.reason
    assert len(fact.controls) == 4
    assert (await house.document("vectors")).certificate is None


async def test_a_reference_that_changed_isn_t_what_was_certified(house: House) -> None:
    await house.with_index()
    await house.run(CalibrateCodec(COLUMN, ROTATED, "vectors"))
    np.save(house.snapshots.snapshot.vectors_path, house.vectors[::-1].copy())
    (failed,) = of(CodecJobFailed, await house.run(CertifyCodec("vectors"), "m2"))
    assert "has changed since" in failed.reason


@pytest.mark.slow
async def test_a_certification_that_comes_again_is_the_same(house: House) -> None:
    await house.with_index()
    await house.run(CalibrateCodec(COLUMN, ROTATED, "vectors"))
    _, run = await house.ask(CertifyCodec("vectors", gate=ColumnGate(oversample=3), prompts=150), "m2")
    assert isinstance(run, RunCertification)
    once = await house.work(run, "s1")
    assert await house.work(run, "s1", delivery=2) == once
    stale = replace(run, manifest_sha256="0" * 64)
    (failed,) = await house.work(stale, "s2")
    assert isinstance(failed, CodecJobFailed)


def test_a_failed_self_test_travels_between_processes() -> None:
    import pickle

    from schemas.certificate import Control

    error = pickle.loads(pickle.dumps(SelfTestFailed([Control("noise", False, "recall 1.0")])))
    assert "noise: recall 1.0" in str(error)
    assert error.controls[0].name == "noise"


# --- text ------------------------------------------------------------------------------------------


def test_prompts_are_apart_by_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "held-out.txt"
    file.write_text("\n\n".join(f"prompt {n}\nof two lines" for n in range(20)) + "\n \n\n")
    texts, sha256 = read_texts(file, 12)
    assert len(texts) == 12
    assert texts[3] == "prompt 3\nof two lines"
    assert len(sha256) == 64
    file.write_text("one\n\ntwo")
    with pytest.raises(TextError, match="2 prompts, a measurement takes 8"):
        read_texts(file, 12)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(TextError, match="no UTF-8"):
        read_texts(file, 12)
