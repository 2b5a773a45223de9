"""Certificates of a language model that is trained here: what keeps its function passes, what looks alike doesn't."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from actors.codec.base import CodecError, Phase
from actors.codec.certify.activations import ActivationsOrder, collect_activations
from actors.codec.certify.controls import DAMAGES, write_damaged
from actors.codec.certify.job import ModelOrder, SelfTestFailed, Verdict, certify_model
from actors.codec.checkpoints.source import open_source
from actors.codec.measures import measure
from actors.codec.restore import decode_checkpoint
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.stored import read_matrix
from benchmarks.codec_artifact import artifact, make_artifact
from schemas.certificate import CausalLmFunction, CausalLmGate, EncoderGate
from schemas.codec import CodecParams, Manifest

INT8 = CodecParams(family="scalar", bits=8)
ROTATED4 = CodecParams(family="rotated", bits=4, rotation="hadamard")
PQ = CodecParams(family="pq", subspaces=6, centroids=64)
F32 = CodecParams(family="f32")


def order(model: Path, folder: Path, text: Path, work: Path, **more: Any) -> ModelOrder:
    given: dict[str, Any] = {
        "reference": model, "artifact": folder, "text": text, "gate": None, "causal_lm": CausalLmGate(),
        "encoder": EncoderGate(), "prompts": 80, "tokens": 64, "seed": 42, "work": work,
    }  # fmt: skip
    work.mkdir(exist_ok=True)
    return ModelOrder(**{**given, **more})


def verdict(asked: ModelOrder) -> Verdict:
    (found,) = [said for said in certify_model(asked) if not isinstance(said, Phase)]
    assert [control.failed for control in found.controls] == [True] * 4
    return found


@contextmanager
def certified(
    model: Path, params: CodecParams, text: Path, work: Path, **more: Any
) -> Iterator[tuple[Verdict, Manifest]]:
    with artifact(model, params) as (folder, manifest):
        yield verdict(order(model, folder, text, work, **more)), manifest


@pytest.mark.slow
def test_a_language_model_s_certificates_are_in_the_order_of_what_is_kept(lm: Path, tmp_path: Path) -> None:
    text = lm / "held-out.txt"
    found: dict[str, CausalLmFunction] = {}
    passed: dict[str, bool] = {}
    for name, params in (("f32", F32), ("int8", INT8), ("rotated4", ROTATED4), ("pq", PQ)):
        with certified(lm, params, text, tmp_path / name) as (said, _):
            assert isinstance(said.function, CausalLmFunction)
            found[name], passed[name] = said.function, not said.failures
    top1 = {name: function.agreement.top1 for name, function in found.items()}
    assert found["f32"].agreement.positions >= 2995
    assert (top1["f32"].mean, found["f32"].diverged) == (1.0, 0)
    assert found["f32"].agreement.mean_kl < 1e-9
    assert passed["f32"]
    assert top1["int8"].mean > top1["rotated4"].high
    assert top1["rotated4"].lower > top1["pq"].high
    assert not passed["pq"]
    kl = {name: function.agreement.mean_kl for name, function in found.items()}
    assert kl["int8"] < kl["rotated4"] < kl["pq"]
    layers = {name: np.mean([layer.relative for layer in function.layers]) for name, function in found.items()}
    assert layers["f32"] < layers["int8"] < layers["rotated4"] < layers["pq"]
    assert len(found["int8"].layers) == 12
    assert found["pq"].diverged == len(found["pq"].divergences) or found["pq"].diverged > 1000
    assert found["int8"].noise_floor.top1.mean == found["pq"].noise_floor.top1.mean < 1
    assert found["pq"].agreement.delta_perplexity > 10 * abs(found["int8"].agreement.delta_perplexity)
    assert len(found["int8"].reference_ms) == found["int8"].prompts
    assert set(found["f32"].first_divergence) == {32}


@pytest.mark.slow
def test_too_little_text_claims_nothing(lm: Path, tmp_path: Path) -> None:
    with certified(lm, F32, lm / "held-out.txt", tmp_path / "w", prompts=10) as (said, _):
        assert said.function.agreement.top1.mean == 1.0  # type: ignore[union-attr]
        assert any("2,995 positions" in failure for failure in said.failures)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["row_rescaling", "global_rotation"])
def test_a_destroyed_model_that_icc_calls_perfect_is_found_out(lm: Path, tmp_path: Path, name: Any) -> None:
    """The artifact is the destroyed model itself, with its figures."""
    for item in open_source(lm).items:
        if item.route is not None and item.route.kind == "quantise":
            seen = measure(item.matrix(), DAMAGES[name](item.matrix(), 5), np.random.default_rng(1))
            assert seen.icc_3_1 > 0.9999, item.name
    broken = tmp_path / "broken"
    write_damaged(open_source(lm), broken, name, 5)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(lm / file, broken / file)
    folder = tmp_path / "artifact"
    manifest = make_artifact(broken, F32, folder)
    original = make_artifact(lm, F32, tmp_path / "original")
    # as if it had been made of the reference: hashes of the one, files of the other
    rows = [replace(row, sha256=true.sha256) for row, true in zip(manifest.tensors, original.tensors, strict=True)]
    import msgspec

    from actors.codec.artifact import MANIFEST, manifest_of

    forged = manifest_of(
        artifact="forged", target=original.target, params=F32, overrides=[], rows=rows, extra=manifest.extra
    )
    (folder / MANIFEST).write_bytes(msgspec.json.encode(forged))
    said = verdict(order(lm, folder, lm / "held-out.txt", tmp_path / "w", prompts=20))
    assert said.function.agreement.top1.high < 0.7  # type: ignore[union-attr]
    assert said.failures


@pytest.mark.slow
def test_a_gate_that_lets_everything_pass_is_no_gate(lm: Path, tmp_path: Path) -> None:
    gate = CausalLmGate(top1=0.0, top5=0.0)
    with (
        artifact(lm, INT8) as (folder, _),
        pytest.raises(SelfTestFailed, match="passed the gate"),
    ):
        list(certify_model(order(lm, folder, lm / "held-out.txt", tmp_path / "w", gate=gate, prompts=10)))


@pytest.mark.slow
def test_a_reference_that_changed_is_no_reference(lm: Path, tmp_path: Path) -> None:
    changed = tmp_path / "model"
    shutil.copytree(lm, changed)
    with artifact(lm, INT8) as (folder, _):
        raw = bytearray((changed / "model.safetensors").read_bytes())
        raw[-1] ^= 1
        (changed / "model.safetensors").write_bytes(raw)
        with pytest.raises(CodecError, match="has changed since"):
            list(certify_model(order(changed, folder, lm / "held-out.txt", tmp_path / "w")))
        with pytest.raises(CodecError, match="language model"):
            list(certify_model(order(lm, folder, lm / "held-out.txt", tmp_path / "w", gate=EncoderGate())))


@pytest.mark.slow
def test_what_decode_writes_is_loaded_by_transformers(lm: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with artifact(lm, CodecParams(family="vq", dsub=2, rotation="hadamard")) as (folder, manifest):
        list(decode_checkpoint(folder, tmp_path / "decoded"))
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "decoded"), local_files_only=True, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(str(tmp_path / "decoded"), local_files_only=True).eos_token == "<|endoftext|>"
    original, decoded = open_checkpoint(lm), open_checkpoint(tmp_path / "decoded")
    assert len(manifest.tensors) == len(original.tensors) == len(decoded.tensors)
    named = dict(model.named_parameters())
    for row in manifest.tensors:
        there, here = read_matrix(original.tensor(row.name)), read_matrix(decoded.tensor(row.name))
        np.testing.assert_array_equal(named[row.name].detach().numpy().reshape(here.shape), here)
        if row.params is None:
            np.testing.assert_array_equal(there, here)
        else:  # transposed: GPT-2's Conv1D keeps (inputs, outputs)
            assert row.transposed
            error = np.linalg.norm(there - here) / np.linalg.norm(there)
            assert error == pytest.approx(row.measured[0].all_rows.relative_l2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3])
def test_error_feedback_keeps_layers_outputs_better_than_rounding(lm: Path, tmp_path: Path, bits: int) -> None:
    """Though its weights are farther from the original's."""
    activations = tmp_path / "activations.safetensors"
    training = tmp_path / "training.txt"
    from benchmarks.small_lm import split

    training.write_text("\n\n".join(split()[0][:120]), encoding="utf-8")
    written = list(collect_activations(ActivationsOrder(lm, training, 64, 1, activations)))[-1]
    assert not isinstance(written, Phase)
    assert len(open_checkpoint(activations).tensors) == 12
    layers, weights = {}, {}
    for family in ("gptq", "scalar"):
        params = CodecParams(family=family, bits=bits, group=64)  # type: ignore[arg-type]
        with artifact(lm, params, activations if family == "gptq" else None) as (folder, manifest):
            said = verdict(order(lm, folder, lm / "held-out.txt", tmp_path / family, prompts=16))
        assert isinstance(said.function, CausalLmFunction)
        layers[family] = np.mean([layer.relative for layer in said.function.layers])
        weights[family] = np.mean([row.measured[0].all_rows.relative_l2 for row in manifest.tensors if row.measured])
    assert layers["gptq"] < 0.8 * layers["scalar"]
    assert weights["gptq"] > weights["scalar"]
