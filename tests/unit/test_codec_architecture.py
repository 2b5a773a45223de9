"""config.json of real families, and what is said of broken ones."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec.base import CodecError
from actors.codec.checkpoints.architecture import Architecture, ConfigError, parse_architecture

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}


def parsed(config: object) -> Architecture:
    return parse_architecture(json.dumps(config).encode(), "m/config.json")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, Architecture("LlamaForCausalLM", "llama", 2048, 22, 32000, "BF16")),
        (  # GPT-2 writes no number type
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_ctx": 1024,
             "vocab_size": 50257},
            Architecture("GPT2LMHeadModel", "gpt2", 768, 12, 50257, None),
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 512, "d_ff": 2048,
             "num_layers": 6, "num_decoder_layers": 6, "vocab_size": 32128, "dtype": "float32"},
            Architecture("T5ForConditionalGeneration", "t5", 512, 6, 32128, "F32"),
        ),
        (  # transformers 5 writes dtype; some files carry both
            LLAMA | {"dtype": "torch.float16", "torch_dtype": "float16"},
            Architecture("LlamaForCausalLM", "llama", 2048, 22, 32000, "F16"),
        ),
        (  # several parts: the text part is one level down
            {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "dtype": "bfloat16",
             "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "vocab_size": 262208},
             "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}},
            Architecture("Gemma3ForConditionalGeneration", "gemma3", 2560, 34, 262208, "BF16"),
        ),
        (
            {"architectures": None, "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
             "vocab_size": 30522, "torch_dtype": None},
            Architecture("bert", "bert", 384, 6, 30522, None),
        ),
        (  # the same told twice is no contradiction
            LLAMA | {"n_embd": 2048, "torch_dtype": "auto"},
            Architecture("LlamaForCausalLM", "llama", 2048, 22, 32000, None),
        ),
    ],
)  # fmt: skip
def test_a_config_is_read(config: dict[str, Any], expected: Architecture) -> None:
    assert parsed(config) == expected


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"hidden_size": None}, "hidden_size", "missing; looked for hidden_size, n_embd, d_model"),
        ({"num_hidden_layers": None}, "num_hidden_layers", "missing"),
        ({"vocab_size": None}, "vocab_size", "missing"),
        ({"hidden_size": "2048"}, "hidden_size", "'2048'"),
        ({"hidden_size": 0}, "hidden_size", "got 0"),
        ({"hidden_size": True}, "hidden_size", "got True"),
        ({"hidden_size": 2048.0}, "hidden_size", "got 2048.0"),
        ({"hidden_size": None, "d_model": [512]}, "d_model", "[512]"),
        ({"n_embd": 1024}, "hidden_size", "'n_embd': 1024"),
        ({"architectures": "LlamaForCausalLM"}, "architectures", "list of class names"),
        ({"architectures": [3]}, "architectures", "list of class names"),
        ({"architectures": [], "model_type": None}, "architectures", "missing"),
        ({"model_type": 7}, "model_type", "got 7"),
        ({"torch_dtype": "bf17"}, "torch_dtype", "'bf17' is none of"),
        ({"dtype": 16}, "dtype", "got 16"),
        ({"dtype": "float16"}, "dtype", "twice"),
        ({"text_config": [1]}, "text_config", "a list"),
        ({"hidden_size": None, "text_config": {"hidden_size": -1}}, "text_config.hidden_size", "got -1"),
    ],
)
def test_an_error_names_file_and_field(change: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(LLAMA | change)
    assert (raised.value.file, raised.value.field) == ("m/config.json", field)
    assert str(raised.value).startswith(f"m/config.json: {field}: ")
    assert says in str(raised.value)
    assert isinstance(raised.value, CodecError)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'"x"', b"3"])
def test_what_is_no_object_is_refused_by_file(raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^m/config\.json: \(whole file\): "):
        parse_architecture(raw, "m/config.json")


WORDS = st.sampled_from(["", "float16", "hidden_size", "vocab_size", "dtype", "ü"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*LLAMA, "dtype", "n_embd", "text_config"]), ANY_JSON))
def test_whatever_a_field_holds_the_answer_is_an_architecture_or_a_config_error(change: dict[str, Any]) -> None:
    with suppress(ConfigError):
        found = parsed(LLAMA | change)
        assert min(found.hidden_size, found.layers, found.vocabulary) >= 1
