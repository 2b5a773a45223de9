"""What a certificate must not be fooled by: answers that aren't numbers, ties, files that a loader would pick instead
of the target's, pooling that isn't measured; and an install without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actors.codec.artifact import MANIFEST
from actors.codec.base import CodecError
from actors.codec.certify import column, compare, encoder
from actors.codec.certify.compare import NotFinite, estimate, score
from actors.codec.certify.controls import write_damaged
from actors.codec.certify.models import check_loaded_is
from actors.codec.checkpoints.source import open_source
from actors.codec.restore import INDEX, decode_checkpoint
from actors.prompts import read_texts
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.stored import read_matrix
from actors.torch_models import CertUnavailable, libraries
from benchmarks.codec_artifact import make_artifact
from schemas.codec import CodecParams
from tests.unit.codec_setting import write_checkpoint

TOKENS = np.arange(4, dtype=np.int64)


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 30)).astype(np.float32)


# --- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_no_numbers_agree_with_nothing(value: float) -> None:
    broken = logits()
    broken[2, 7] = value
    with pytest.raises(NotFinite, match="candidate"):
        score(logits(), broken, TOKENS)
    with pytest.raises(NotFinite, match="reference"):
        score(broken, logits(), TOKENS)


def test_a_candidate_that_has_no_opinion_isn_t_among_the_first_five() -> None:
    reference = np.zeros((4, 30), np.float32)
    reference[np.arange(4), [3, 4, 5, 29]] = 1
    found = score(reference, np.zeros_like(reference), TOKENS)
    assert found.in_top.tolist() == [True, True, False, False]  # as if the first of equals came first
    assert (found.candidate == 0).all()
    tied = np.zeros((4, 30), np.float32)
    assert score(tied, tied, TOKENS).in_top.all()


def test_many_queries_don_t_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors, own = rng.normal(size=(200, 8)).astype(np.float32), np.arange(0, 200, 4)
    found = column.candidates([(0, vectors)], vectors[own], own, 9, "l2")
    widest = []

    def seen(blocks: column.Blocks, rows: int) -> column.Blocks:
        for first, block in cut(blocks, rows):
            widest.append(len(block))
            yield first, block

    cut = column._cut
    monkeypatch.setattr(column, "_cut", seen)
    monkeypatch.setattr(column, "CHUNK_FLOATS", 600)
    np.testing.assert_array_equal(column.candidates([(0, vectors)], vectors[own], own, 9, "l2"), found)
    assert sum(widest) == 200
    assert max(widest) * len(own) <= 600


def test_a_bootstrap_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, totals = np.random.default_rng(1).integers(0, 9, 60), np.full(60, 9)
    whole = estimate(hits, totals, np.random.default_rng(2))
    monkeypatch.setattr(compare, "DRAWN", 60 * 700)
    assert estimate(hits, totals, np.random.default_rng(2)) == whole


def test_neighbours_are_counted_text_by_text() -> None:
    rng = np.random.default_rng(6)
    one = rng.normal(size=(80, 12)).astype(np.float32)
    other = one + rng.normal(scale=0.4, size=one.shape).astype(np.float32)
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
    near = [[set(np.argsort(-(m @ m[t]), kind="stable")[:11]) - {t} for t in range(80)] for m in (one, other)]
    found = encoder.shares(one, other, np.random.default_rng(0))
    assert found["neighbours"].mean == pytest.approx(np.mean([len(a & b) / 10 for a, b in zip(*near, strict=True)]))
    assert found["cosine"].mean == pytest.approx((one * other).sum(1).mean(), rel=1e-6)
    same = encoder.shares(one, one, np.random.default_rng(0))
    assert (same["neighbours"].mean, same["top1"].mean) == (1.0, 1.0)


def test_lines_may_end_as_windows_ends_them(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\r\n\r\n".join(b"prompt %d\r\nof two lines" % n for n in range(9)))
    assert len(read_texts(file, 20)[0]) == 9


# --- files -----------------------------------------------------------------------------------------


def test_a_loader_s_files_have_to_be_the_target_s(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    check_loaded_is(open_source(folder))
    shutil.copyfile(folder / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(CodecError, match=r"would load model\.safetensors, the target is other\.safetensors"):
        check_loaded_is(open_source(folder / "other.safetensors"))
    weight_map = dict.fromkeys(open_checkpoint(folder).tensors, "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(CodecError, match="not both"):
        check_loaded_is(open_source(folder))  # by its index, where a loader takes the single file
    (folder / "model.safetensors").unlink()
    check_loaded_is(open_source(folder))


@pytest.mark.parametrize("shard", ["model-00001-of-00001.safetensors", "weights.safetensors"])
def test_one_shard_of_another_name_is_found_by_its_index(tmp_path: Path, shard: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / shard)
    artifact = tmp_path / "artifact"
    make_artifact(folder, CodecParams(family="f32"), artifact)
    assert (artifact / MANIFEST).exists()
    list(decode_checkpoint(artifact, tmp_path / "decoded"))
    write_damaged(open_source(folder), tmp_path / "noise", "noise", 1)
    original = open_checkpoint(folder / shard)
    for made in ("decoded", "noise"):
        index = json.loads((tmp_path / made / INDEX).read_bytes())
        assert set(index["weight_map"].values()) == {shard}
        assert set(index["weight_map"]) == set(original.tensors)
    for name, tensor in open_checkpoint(tmp_path / "decoded").tensors.items():
        np.testing.assert_array_equal(read_matrix(tensor), read_matrix(original.tensor(name)))


@pytest.mark.parametrize(
    ("told", "first"),
    [
        (None, False),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, False),
        ({"pooling_mode_cls_token": True}, True),
        ({"pooling_mode": "cls"}, True),
    ],
)
def test_pooling_is_the_model_s_own(tmp_path: Path, told: dict[str, object] | None, first: bool) -> None:
    if told is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(told))
    assert encoder.by_first_token(tmp_path) is first


@pytest.mark.parametrize("told", [{"pooling_mode_lasttoken": 1}, {"pooling_mode_cls_token": 1, "pooling_mode_max": 1}])
def test_pooling_that_isn_t_measured_is_an_error(tmp_path: Path, told: dict[str, object]) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(told))
    with pytest.raises(CodecError, match="isn't measured"):
        encoder.by_first_token(tmp_path)


# --- without torch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_torch_the_error_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None if missing == "torch" else sys)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CertUnavailable, match=rf"{missing} is missing.*deploy/venv.sh cert"):
        libraries()


@pytest.mark.slow
def test_torch_is_imported_by_nobody_who_doesn_t_measure_a_model() -> None:
    code = (
        "import sys, actors.codec.certify.job, actors.codec.certify.activations, daemon.wiring;"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "set()"
