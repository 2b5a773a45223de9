"""What each tensor of real checkpoints becomes. The lists are those of published models, written as patterns over
their layers; what is expected is counted by hand from the architecture, not from the rules."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from gguf.constants import TENSOR_NAMES
from gguf.tensor_mapping import TensorNameMap

from actors.codec.base import CodecError
from actors.codec.core import RULES, Route, route_checkpoint, route_tensor
from schemas.codec import Override, RouteKind

Tensors = dict[str, tuple[int, ...]]


def family(fixed: Tensors, layers: int, per_layer: Tensors) -> Tensors:
    """per_layer names hold `{}` for the layer."""
    return fixed | {name.format(i): shape for i in range(layers) for name, shape in per_layer.items()}


def with_bias(weights: Tensors, outputs: int = 0) -> Tensors:
    """Each `.weight` and its `.bias`; outputs: the axis that the bias is as long as."""
    biases = {name.removesuffix("weight") + "bias": (shape[outputs],) for name, shape in weights.items()}
    return weights | biases


D, F, V = 2048, 5632, 32000  # width, MLP width, vocabulary, of no model in particular

LLAMA_LAYER: Tensors = {
    "model.layers.{}.self_attn.q_proj.weight": (D, D),
    "model.layers.{}.self_attn.k_proj.weight": (256, D),
    "model.layers.{}.self_attn.v_proj.weight": (256, D),
    "model.layers.{}.self_attn.o_proj.weight": (D, D),
    "model.layers.{}.mlp.gate_proj.weight": (F, D),
    "model.layers.{}.mlp.up_proj.weight": (F, D),
    "model.layers.{}.mlp.down_proj.weight": (D, F),
    "model.layers.{}.input_layernorm.weight": (D,),
    "model.layers.{}.post_attention_layernorm.weight": (D,),
}
LLAMA_FIXED: Tensors = {
    "model.embed_tokens.weight": (V, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (V, D),
}
QWEN2_BIASES: Tensors = {f"model.layers.{{}}.self_attn.{p}_proj.bias": (D if p == "q" else 256,) for p in "qkv"}
QWEN3_NORMS: Tensors = {f"model.layers.{{}}.self_attn.{p}_norm.weight": (128,) for p in "qk"}

ATTENTION_AND_NORMS = {name: shape for name, shape in LLAMA_LAYER.items() if ".mlp." not in name}
EXPERT_WEIGHTS: Tensors = {"w1": (F, D), "w2": (D, F), "w3": (F, D)}
MIXTRAL_LAYER = ATTENTION_AND_NORMS | {
    "model.layers.{}.block_sparse_moe.gate.weight": (8, D),
    **{
        f"model.layers.{{}}.block_sparse_moe.experts.{e}.{w}.weight": shape
        for e in range(8)
        for w, shape in EXPERT_WEIGHTS.items()
    },
}
QWEN3_MOE_LAYER = (
    ATTENTION_AND_NORMS
    | QWEN3_NORMS
    | {
        "model.layers.{}.mlp.gate.weight": (128, D),
        **{
            f"model.layers.{{}}.mlp.experts.{e}.{p}_proj.weight": (D, 768) if p == "down" else (768, D)
            for e in range(128)
            for p in ("gate", "up", "down")
        },
    }
)
QWEN2_MOE_EXTRA: Tensors = {
    "model.layers.{}.mlp.shared_expert_gate.weight": (1, 4096),
    "model.layers.{}.mlp.shared_expert.gate_proj.weight": (F, D),
    "model.layers.{}.mlp.shared_expert.up_proj.weight": (F, D),
    "model.layers.{}.mlp.shared_expert.down_proj.weight": (D, F),
}

GPT2 = family(
    {"wte.weight": (50257, 768), "wpe.weight": (1024, 768)} | with_bias({"ln_f.weight": (768,)}),
    12,
    {"h.{}.attn.bias": (1, 1, 1024, 1024)}
    | with_bias(
        {
            "h.{}.ln_1.weight": (768,),
            "h.{}.attn.c_attn.weight": (768, 2304),
            "h.{}.attn.c_proj.weight": (768, 768),
            "h.{}.ln_2.weight": (768,),
            "h.{}.mlp.c_fc.weight": (768, 3072),
            "h.{}.mlp.c_proj.weight": (3072, 768),
        },
        outputs=-1,
    ),
)
NEOX = family(  # pythia-70m
    {"gpt_neox.embed_in.weight": (50304, 512), "embed_out.weight": (50304, 512)}
    | with_bias({"gpt_neox.final_layer_norm.weight": (512,)}),
    6,
    {
        "gpt_neox.layers.{}.attention.bias": (1, 1, 2048, 2048),
        "gpt_neox.layers.{}.attention.masked_bias": (),
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": (8,),
    }
    | with_bias(
        {
            "gpt_neox.layers.{}.input_layernorm.weight": (512,),
            "gpt_neox.layers.{}.post_attention_layernorm.weight": (512,),
            "gpt_neox.layers.{}.attention.query_key_value.weight": (1536, 512),
            "gpt_neox.layers.{}.attention.dense.weight": (512, 512),
            "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight": (2048, 512),
            "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight": (512, 2048),
        }
    ),
)
OPT = family(  # opt-125m
    {"model.decoder.embed_tokens.weight": (50272, 768), "model.decoder.embed_positions.weight": (2050, 768)}
    | with_bias({"model.decoder.final_layer_norm.weight": (768,)}),
    12,
    with_bias(
        {
            **{f"model.decoder.layers.{{}}.self_attn.{p}_proj.weight": (768, 768) for p in ("k", "v", "q", "out")},
            "model.decoder.layers.{}.self_attn_layer_norm.weight": (768,),
            "model.decoder.layers.{}.fc1.weight": (3072, 768),
            "model.decoder.layers.{}.fc2.weight": (768, 3072),
            "model.decoder.layers.{}.final_layer_norm.weight": (768,),
        }
    ),
)
T5 = (  # t5-small: 131 tensors
    family(
        {
            "shared.weight": (32128, 512),
            "encoder.final_layer_norm.weight": (512,),
            "decoder.final_layer_norm.weight": (512,),
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8),
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8),
        },
        6,
        {
            **{f"encoder.block.{{}}.layer.0.SelfAttention.{p}.weight": (512, 512) for p in "qkvo"},
            **{f"encoder.block.{{}}.layer.{n}.layer_norm.weight": (512,) for n in range(2)},
            "encoder.block.{}.layer.1.DenseReluDense.wi.weight": (2048, 512),
            "encoder.block.{}.layer.1.DenseReluDense.wo.weight": (512, 2048),
            **{f"decoder.block.{{}}.layer.0.SelfAttention.{p}.weight": (512, 512) for p in "qkvo"},
            **{f"decoder.block.{{}}.layer.1.EncDecAttention.{p}.weight": (512, 512) for p in "qkvo"},
            **{f"decoder.block.{{}}.layer.{n}.layer_norm.weight": (512,) for n in range(3)},
            "decoder.block.{}.layer.2.DenseReluDense.wi.weight": (2048, 512),
            "decoder.block.{}.layer.2.DenseReluDense.wo.weight": (512, 2048),
        },
    )
)


def bert_layers(prefix: str, width: int, layers: int) -> Tensors:
    weights: Tensors = {
        **{f"{prefix}.encoder.layer.{{}}.attention.self.{p}.weight": (width, width) for p in ("query", "key", "value")},
        f"{prefix}.encoder.layer.{{}}.attention.output.dense.weight": (width, width),
        f"{prefix}.encoder.layer.{{}}.attention.output.LayerNorm.weight": (width,),
        f"{prefix}.encoder.layer.{{}}.intermediate.dense.weight": (4 * width, width),
        f"{prefix}.encoder.layer.{{}}.output.dense.weight": (width, 4 * width),
        f"{prefix}.encoder.layer.{{}}.output.LayerNorm.weight": (width,),
    }
    return family({}, layers, with_bias(weights))


BERT = (
    bert_layers("bert", 768, 12)
    | {
        "bert.embeddings.word_embeddings.weight": (30522, 768),
        "bert.embeddings.position_embeddings.weight": (512, 768),
        "bert.embeddings.token_type_embeddings.weight": (2, 768),
        "bert.embeddings.position_ids": (1, 512),
        "bert.embeddings.LayerNorm.gamma": (768,),
        "bert.embeddings.LayerNorm.beta": (768,),
        "cls.predictions.bias": (30522,),
        "cls.predictions.decoder.weight": (30522, 768),
    }
    | with_bias(
        {
            "bert.pooler.dense.weight": (768, 768),
            "cls.predictions.transform.dense.weight": (768, 768),
            "cls.predictions.transform.LayerNorm.weight": (768,),
            "cls.seq_relationship.weight": (2, 768),
        }
    )
)
MODERNBERT = family(  # ModernBERT-base: no attn_norm in layer 0
    {
        "model.embeddings.tok_embeddings.weight": (50368, 768),
        "model.embeddings.norm.weight": (768,),
        "model.final_norm.weight": (768,),
        "head.dense.weight": (768, 768),
        "head.norm.weight": (768,),
        "decoder.weight": (50368, 768),
        "decoder.bias": (50368,),
    },
    22,
    {
        "model.layers.{}.attn_norm.weight": (768,),
        "model.layers.{}.attn.Wqkv.weight": (2304, 768),
        "model.layers.{}.attn.Wo.weight": (768, 768),
        "model.layers.{}.mlp_norm.weight": (768,),
        "model.layers.{}.mlp.Wi.weight": (2304, 768),
        "model.layers.{}.mlp.Wo.weight": (768, 1152),
    },
)
del MODERNBERT["model.layers.0.attn_norm.weight"]
XLM_R = (
    bert_layers("roberta", 768, 12)
    | {
        "roberta.embeddings.word_embeddings.weight": (250002, 768),
        "roberta.embeddings.position_embeddings.weight": (514, 768),
        "roberta.embeddings.token_type_embeddings.weight": (1, 768),
        "roberta.embeddings.position_ids": (1, 514),
        "lm_head.decoder.weight": (250002, 768),
        "lm_head.bias": (250002,),
    }
    | with_bias(
        {
            "roberta.embeddings.LayerNorm.weight": (768,),
            "lm_head.dense.weight": (768, 768),
            "lm_head.layer_norm.weight": (768,),
        }
    )
)
GGUF_FIXED: Tensors = {
    "token_embd.weight": (V, D),
    "output_norm.weight": (D,),
    "output.weight": (V, D),
    "rope_freqs.weight": (64,),
}
GGUF_ATTENTION: Tensors = {
    "blk.{}.attn_q.weight": (D, D),
    "blk.{}.attn_k.weight": (256, D),
    "blk.{}.attn_v.weight": (256, D),
    "blk.{}.attn_output.weight": (D, D),
    "blk.{}.attn_norm.weight": (D,),
    "blk.{}.ffn_norm.weight": (D,),
}
GGUF_LLAMA = family(
    GGUF_FIXED,
    22,
    GGUF_ATTENTION
    | {"blk.{}.ffn_gate.weight": (F, D), "blk.{}.ffn_up.weight": (F, D), "blk.{}.ffn_down.weight": (D, F)},
)
GGUF_MOE = family(
    GGUF_FIXED,
    32,
    GGUF_ATTENTION
    | {
        "blk.{}.ffn_gate_inp.weight": (8, D),
        "blk.{}.ffn_gate_exps.weight": (8, F, D),
        "blk.{}.ffn_up_exps.weight": (8, F, D),
        "blk.{}.ffn_down_exps.weight": (8, D, F),
    },
)
GGUF_BERT = family(
    {
        "token_embd.weight": (30522, 384),
        "position_embd.weight": (512, 384),
        "token_types.weight": (2, 384),
        **with_bias({"token_embd_norm.weight": (384,)}),
    },
    6,
    with_bias(
        {
            **{f"blk.{{}}.attn_{p}.weight": (384, 384) for p in ("q", "k", "v", "output")},
            "blk.{}.attn_output_norm.weight": (384,),
            "blk.{}.ffn_up.weight": (1536, 384),
            "blk.{}.ffn_down.weight": (384, 1536),
            "blk.{}.layer_output_norm.weight": (384,),
        }
    ),
)

FAMILIES: dict[str, tuple[Tensors, dict[str, int]]] = {  # expected: passthrough, quantise, skip
    "llama": (family(LLAMA_FIXED, 22, LLAMA_LAYER), {"passthrough": 2, "quantise": 22 * 7, "skip": 22 * 2 + 1}),
    "mistral": (family(LLAMA_FIXED, 32, LLAMA_LAYER), {"passthrough": 2, "quantise": 32 * 7, "skip": 32 * 2 + 1}),
    "qwen2": (
        family(LLAMA_FIXED, 24, LLAMA_LAYER | QWEN2_BIASES),
        {"passthrough": 2, "quantise": 24 * 7, "skip": 24 * 5 + 1},
    ),
    "qwen3": (
        family(LLAMA_FIXED, 28, LLAMA_LAYER | QWEN3_NORMS),
        {"passthrough": 2, "quantise": 28 * 7, "skip": 28 * 4 + 1},
    ),
    "qwen2-moe": (
        family(LLAMA_FIXED, 2, QWEN3_MOE_LAYER | QWEN2_MOE_EXTRA),
        {"passthrough": 2 + 2, "quantise": 2 * (4 + 128 * 3 + 3), "skip": 2 * 5 + 1},
    ),
    "qwen3-moe": (
        family(LLAMA_FIXED, 3, QWEN3_MOE_LAYER),
        {"passthrough": 2 + 3, "quantise": 3 * (4 + 128 * 3), "skip": 3 * 4 + 1},
    ),
    "mixtral": (
        family(LLAMA_FIXED, 32, MIXTRAL_LAYER),
        {"passthrough": 2 + 32, "quantise": 32 * (4 + 8 * 3), "skip": 32 * 2 + 1},
    ),
    "gpt2": (GPT2, {"passthrough": 2, "quantise": 12 * 4, "skip": 12 * 9 + 2}),
    "neox": (NEOX, {"passthrough": 2, "quantise": 6 * 4, "skip": 6 * (3 + 2 + 6) + 2}),
    "opt": (OPT, {"passthrough": 2, "quantise": 12 * 6, "skip": 12 * 10 + 2}),
    "t5": (T5, {"passthrough": 3, "quantise": 6 * (4 + 2 + 8 + 2), "skip": 6 * 5 + 2}),
    "bert": (BERT, {"passthrough": 4, "quantise": 12 * 6 + 2, "skip": 12 * 10 + 3 + 1 + 2 + 2 + 2}),
    "modernbert": (MODERNBERT, {"passthrough": 3, "quantise": 22 * 4 + 1, "skip": 21 + 22 + 3}),
    "xlm-r": (XLM_R, {"passthrough": 3 + 6, "quantise": 12 * 6, "skip": 12 * 10 + 1 + 2}),
    "gguf llama": (GGUF_LLAMA, {"passthrough": 2, "quantise": 22 * 7, "skip": 22 * 2 + 2}),
    "gguf moe": (GGUF_MOE, {"passthrough": 2 + 32, "quantise": 32 * 7, "skip": 32 * 2 + 2}),
    "gguf bert": (GGUF_BERT, {"passthrough": 3, "quantise": 6 * 6, "skip": 6 * (6 + 4) + 2}),
}


def routed(tensors: Tensors, *overrides: Override, model_type: str | None = None) -> dict[str, Route]:
    listed = [(name, shape, "F32") for name, shape in tensors.items()]
    return {route.name: route for route in route_checkpoint(listed, overrides, model_type)}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_of_a_family_has_its_route(name: str) -> None:
    tensors, expected = FAMILIES[name]
    routes = routed(tensors)
    assert list(routes) == list(tensors)
    assert Counter(route.kind for route in routes.values()) == expected
    for route in routes.values():
        assert route.reason
        assert route.rule in {rule.name for rule in RULES}
        if route.kind == "quantise":
            assert route.matrices * route.rows * route.columns == weights(route.shape)
        else:
            assert route.matrices == 0


def weights(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def test_the_lists_are_as_long_as_the_published_models() -> None:
    """gpt2, t5-small, pythia-70m and TinyLlama as their repositories list them."""
    assert len(GPT2) == 160
    assert len(T5) == 131
    assert len(NEOX) == 6 * 15 + 4
    assert len(family(LLAMA_FIXED, 22, LLAMA_LAYER)) == 201


@pytest.mark.parametrize(
    ("name", "shape", "kind", "rule"),
    [
        # what a substring rule gets wrong
        ("blk.0.attn_output.weight", (D, D), "quantise", "projection"),  # ends in output.weight
        ("output.weight", (V, D), "passthrough", "index"),
        ("bert.encoder.layer.0.output.dense.weight", (768, 3072), "quantise", "projection"),
        ("model.layers.0.mlp.gate_proj.weight", (F, D), "quantise", "projection"),  # begins with mlp.gate
        ("model.layers.0.mlp.gate.weight", (64, D), "passthrough", "router"),
        ("model.layers.0.mlp.shared_experts.gate_proj.weight", (F, D), "quantise", "projection"),  # `shared`
        ("albert.encoder.embedding_hidden_mapping_in.weight", (768, 128), "quantise", "matrix"),
        ("model.embeddings.LayerNorm.weight", (768,), "skip", "norm"),
        # index tensors before any other rule: before size, rank and norms
        ("talker.model.codec_embedding.weight", (3, 5), "passthrough", "index"),
        ("MODEL.EMBED_TOKENS.WEIGHT", (7,), "passthrough", "index"),
        ("score.weight", (2, 768), "passthrough", "index"),
        ("model.language_model.embed_tokens.weight", (V, D), "passthrough", "index"),
        ("tok_embeddings.weight", (V, D), "passthrough", "index"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 128), "passthrough", "index"),
        # order of the rest
        ("model.layers.0.self_attn.q_norm.weight", (64, 128), "skip", "norm"),  # a gain a head
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (32, 5760), "skip", "bias"),
        ("h.0.attn.bias", (1, 1, 1024, 1024), "skip", "bias"),
        ("vision.patch_embed.proj.weight", (1280, 3, 14, 14), "skip", "convolution"),
        ("visual.patch_embed.proj.weight", (1280, 3, 2, 14, 14), "skip", "convolution"),
        ("x.q_proj.weight", (63, 65), "skip", "small"),  # 4,095
        ("x.q_proj.weight", (64, 64), "quantise", "projection"),  # 4,096
        ("model.layers.0.mlp.gate.weight", (8, 64), "skip", "small"),  # before routers
        ("vit.embeddings.cls_token", (1, 1, 5000), "skip", "vector"),
        ("layers.0.linear_attn.conv1d.weight", (8192, 4, 4), "skip", "rest"),
        ("model.layers.0.mlp.router.classifier.weight", (8, 768), "passthrough", "router"),
        ("model.layers.0.feed_forward.router.weight", (16, 5120), "passthrough", "router"),
        ("classifier.out_proj.weight", (768, 768), "quantise", "projection"),
        ("some.other.weight", (100, 100), "quantise", "matrix"),
        ("empty.weight", (0, 4096), "skip", "small"),
    ],
)
def test_a_name_is_routed(name: str, shape: tuple[int, ...], kind: RouteKind, rule: str) -> None:
    route = route_tensor(name, shape)
    assert (route.kind, route.rule) == (kind, rule)


def test_integers_are_never_quantised() -> None:
    """GPTQ's packed codes look like a projection by name and shape."""
    name, shape = "model.layers.0.self_attn.q_proj.qweight", (512, 4096)
    assert route_tensor(name, shape, dtype="I32").rule == "integers"
    assert route_tensor(name, shape, dtype="BF16").kind == "quantise"


def test_stacks_of_experts_are_quantised_expert_by_expert() -> None:
    route = route_tensor("blk.0.ffn_down_exps.weight", (8, 2048, 5632))
    assert (route.matrices, route.rows, route.columns, route.transposed) == (8, 2048, 5632, False)
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "layers.0.moe.experts.w13_weight"):
        assert route_tensor(name, (8, 128, 64)).matrices == 8
    route = route_tensor("model.layers.0.mlp.experts.gate_up_proj", (32, 2880, 5760), model_type="gpt_oss")
    assert (route.matrices, route.rows, route.columns, route.transposed) == (32, 5760, 2880, True)


def test_conv1d_of_gpt2_is_transposed_and_a_linear_of_the_same_name_is_not() -> None:
    routes = routed(GPT2)
    assert sum(route.transposed for route in routes.values()) == 48
    route = routes["h.3.attn.c_attn.weight"]
    assert (route.rows, route.columns) == (2304, 768)
    # GPT-2 fine-tunes keep the names below `transformer.`
    assert route_tensor("transformer.h.0.mlp.c_proj.weight", (3072, 768)).rows == 768
    # StarCoder, Qwen 1: Linear, (outputs, inputs)
    starcoder = {"c_attn": (2304, 2048), "c_fc": (8192, 2048)}
    assert not route_tensor("transformer.h.0.attn.c_attn.weight", starcoder["c_attn"]).transposed
    assert not route_tensor("transformer.h.0.mlp.c_fc.weight", starcoder["c_fc"]).transposed
    square = ("transformer.h.0.attn.c_proj.weight", (2048, 2048))
    assert not route_tensor(*square, model_type="gpt_bigcode").transposed
    assert route_tensor(*square, model_type="gpt2").transposed
    assert route_tensor(*square).transposed


def test_overrides_come_before_the_rules_and_the_first_that_matches_decides() -> None:
    routes = routed(
        family(LLAMA_FIXED, 2, LLAMA_LAYER),
        Override("*.layers.0.MLP.down_proj.weight", "passthrough"),
        Override("*.layers.*.mlp.*", "skip"),
        Override("lm_head.weight", "quantise"),
    )
    assert routes["model.layers.0.mlp.down_proj.weight"].kind == "passthrough"
    assert routes["model.layers.1.mlp.down_proj.weight"].kind == "skip"
    assert routes["model.layers.1.mlp.down_proj.weight"].rule == "override *.layers.*.mlp.*"
    assert routes["lm_head.weight"].rows == V
    assert routes["model.embed_tokens.weight"].rule == "index"


def impossible() -> Iterator[tuple[str, tuple[int, ...], str | None]]:
    yield "model.norm.weight", (2048,), "F32"
    yield "conv.weight", (64, 64, 3, 3), "F32"
    yield "x.weight", (0, 64), "F32"
    yield "x.qweight", (512, 4096), "I32"


@pytest.mark.parametrize(("name", "shape", "dtype"), list(impossible()))
def test_an_override_that_cannot_be_done_is_refused_by_name(
    name: str, shape: tuple[int, ...], dtype: str | None
) -> None:
    with pytest.raises(CodecError, match=name):
        route_tensor(name, shape, [Override("*", "quantise")], dtype=dtype)


def test_an_override_that_decides_nothing_is_refused() -> None:
    with pytest.raises(CodecError, match=r"'\*\.mpl\.\*'"):
        routed(LLAMA_FIXED, Override("*.mpl.*", "skip"))


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(CodecError, match="negative"):
        route_tensor("x", (-1, 4))


def names_that_llamacpp_knows() -> list[tuple[str, str]]:
    """(canonical tensor, name) for every name of every architecture that llama.cpp's converter knows."""
    written = [(tensor, name) for tensor, name in TENSOR_NAMES.items()]
    mapped = {**TensorNameMap.mappings_cfg, **TensorNameMap.block_mappings_cfg}
    known = written + [(tensor, name) for tensor, names in mapped.items() for name in names]
    return [(tensor.name, name.format(bid=3, xid=2)) for tensor, name in known]


DIFFERENTLY = {
    "encoder": "a table of one model, under a name that is a whole stack in others",
    "head.out": "a head by a name that is a projection in others",
    "lm_head.ln": "part of the head: copied, as all of it",
}


@pytest.mark.parametrize(
    ("canonical", "rule", "shape"),
    [
        (r"TOKEN_EMBD|POS_EMBD|TOKEN_TYPES|OUTPUT", "index", (256, 256)),
        (r"(ATTN|FFN|OUTPUT|LAYER_OUT|TOKEN_EMBD|CROSS_ATTN|ENC|DEC)_(\w+_)?NORM(_2|_EXPS)?|\w+_NORM", "norm", (256,)),
        (r"FFN_GATE_INP", "router", (64, 256)),
        (r"FFN_(UP|DOWN|GATE)_EXP", "projection", (8, 256, 128)),
    ],
)
def test_the_names_that_llamacpp_converts_are_routed_by_what_they_become(
    canonical: str, rule: str, shape: tuple[int, ...]
) -> None:
    names = [name for tensor, name in names_that_llamacpp_knows() if re.fullmatch(canonical, tensor)]
    assert len(names) >= 9
    routes = {name: route_tensor(name + ".weight", shape).rule for name in names if name not in DIFFERENTLY}
    assert {name: got for name, got in routes.items() if got != rule} == {}
