"""How certificates of models load them: never with code or pickles that lie beside, never with a vocabulary or weights
that a loader made up, and no longer texts than a model has positions for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.codec.base import CodecError, Phase
from actors.codec.certify.activations import ActivationsOrder, collect_activations
from actors.codec.certify.causal_lm import Runs, in_bfloat16
from actors.codec.certify.job import ModelOrder, Verdict, certify_model
from actors.prompts import TextError
from actors.tensors.shard_writer import Written
from actors.torch_models import context, load_model, load_tokenizer
from benchmarks.codec_artifact import artifact
from schemas.certificate import CausalLmFunction, CausalLmGate, EncoderGate
from schemas.codec import CodecParams

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def made(kind: str, folder: Path) -> Path:
    """A model with weights from a seed."""
    import torch
    import transformers

    torch.manual_seed(1)
    if kind == "llama":
        config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=512)
        model = transformers.LlamaForCausalLM(config)
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    model.save_pretrained(folder)
    return folder


def copied(source: Path, folder: Path, *without: str) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*without))
    return folder


# --- tokenizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_vocabulary_that_a_loader_makes_up_is_none(encoder: Path, tmp_path: Path, left: tuple[str, ...]) -> None:
    without = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"} - set(left)
    folder = copied(encoder, tmp_path / "model", *without)
    with pytest.raises(CodecError, match="tokenizer"):
        load_tokenizer(folder)
    assert len(load_tokenizer(encoder)) > 30_000


def test_texts_are_cut_where_a_model_s_positions_end(lm: Path, encoder: Path) -> None:
    model, tokenizer = load_model(lm, causal_lm=True), load_tokenizer(lm)
    positions = model.config.max_position_embeddings
    assert context(model, tokenizer, 10 * positions) == positions
    assert context(model, tokenizer, 8) == 8
    assert context(load_model(encoder, causal_lm=False), load_tokenizer(encoder), 8192) <= 512


@pytest.mark.slow
def test_more_tokens_than_positions_are_no_trouble(lm: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with artifact(lm, CodecParams(family="bf16")) as (folder, _):
        order = ModelOrder(
            reference=lm, artifact=folder, text=lm / "held-out.txt", gate=None, causal_lm=CausalLmGate(),
            encoder=EncoderGate(), prompts=8, tokens=4096, seed=1, work=work,
        )  # fmt: skip
        (said,) = [one for one in certify_model(order) if not isinstance(one, Phase)]
    assert isinstance(said, Verdict)
    function = said.function
    assert isinstance(function, CausalLmFunction)
    # weights alone rounded to bfloat16 are nearer than weights and arithmetic
    assert 0 < function.agreement.mean_kl < function.noise_floor.mean_kl < 0.01
    asked = ActivationsOrder(lm, lm / "held-out.txt", 4096, 1, tmp_path / "activations.safetensors")
    assert isinstance(list(collect_activations(asked))[-1], Written)


# --- weights ---------------------------------------------------------------------------------------


def test_code_beside_a_model_isn_t_run(tmp_path: Path) -> None:
    folder, ran = made("llama", tmp_path / "model"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(CodecError, match="can't load it"):
        load_model(folder, causal_lm=True)
    assert not ran.exists()


def test_pickles_aren_t_read(tmp_path: Path) -> None:
    import torch

    folder = made("llama", tmp_path / "model")
    state = load_model(folder, causal_lm=True).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CodecError, match="can't load it"):
        load_model(folder, causal_lm=True)


def test_weights_that_aren_t_there_are_named_unless_nothing_measured_needs_them(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = made("bert", tmp_path / "model")  # without a pooler, which comes after the hidden states
    load_model(folder, causal_lm=False)
    tensors = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CodecError, match=r"lacks 1 weights: encoder\.layer\.1\.output\.dense\.weight"):
        load_model(folder, causal_lm=False)


def test_the_floor_is_what_a_loader_s_bfloat16_is(tmp_path: Path) -> None:
    """Weights and arithmetic, but not the frequencies of rotary positions."""
    import torch
    import transformers

    folder = made("llama", tmp_path / "model")
    ours = in_bfloat16(load_model(folder, causal_lm=True))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).eval()
    assert {each.dtype for each in ours.parameters()} == {torch.bfloat16}
    assert {n: b.dtype for n, b in ours.named_buffers()} == {n: b.dtype for n, b in theirs.named_buffers()}
    tokens = np.arange(1, 250, dtype=np.int64)
    np.testing.assert_array_equal(Runs(ours).logits(tokens), Runs(theirs).logits(tokens))


def test_too_few_texts_have_no_neighbours(encoder: Path, sentences: Path, tmp_path: Path) -> None:
    with artifact(encoder, CodecParams(family="f32")) as (folder, _):
        order = ModelOrder(
            reference=encoder, artifact=folder, text=sentences, gate=None, causal_lm=CausalLmGate(),
            encoder=EncoderGate(), prompts=20, tokens=32, seed=1, work=tmp_path,
        )  # fmt: skip
        with pytest.raises(TextError, match="20 texts: which are near which takes 50"):
            list(certify_model(order))
