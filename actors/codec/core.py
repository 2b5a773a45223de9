"""What becomes of each tensor of a checkpoint, told from its name and shape alone: copied, quantised or skipped, by
which rule and why.

The rules are the table RULES, tried in its order on the lower-cased name; the first that holds decides. A name is read
as a path of modules (`model.layers.0.mlp.gate.weight` is the parameter `weight` of the module `gate` in `mlp`), so
`mlp.gate` is no `mlp.gate_proj` and GGUF's `output.weight` no `blk.0.attn_output.weight`.

Shapes are C order, outermost first, as in safetensors (GGUF writes them the other way round).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from math import prod

import msgspec

from actors.codec.base import CodecError
from schemas.codec import Override, RouteKind

SMALLEST_ELEMENTS = 4096
"""Below it a codebook or a scale costs more than the tensor."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor's row. Passthrough: a part that works by exact values, copied as it is. Skip: nothing to quantise in
    it, copied as well. Quantise: `matrices` of `rows` x `columns` each, a row being one output unit."""

    name: str
    shape: tuple[int, ...]
    kind: RouteKind
    rule: str  # of the table, or the override's pattern
    reason: str
    matrices: int = 0  # 1, or one an expert; 0 if it isn't quantised
    rows: int = 0
    columns: int = 0
    transposed: bool = False  # stored as (inputs, outputs): rows are the stored columns


class Facts(msgspec.Struct, frozen=True):
    """What a rule may look at."""

    name: str  # lower-cased
    module: str  # name without a last `weight` or `bias`
    parameter: str  # `weight`, `bias` or ""
    shape: tuple[int, ...]
    integers: bool  # stored as integers: codes, ids, masks

    @property
    def axes(self) -> int:
        """Axes longer than 1: (1, 1, 768) is a vector."""
        return sum(length != 1 for length in self.shape)


class Rule(msgspec.Struct, frozen=True):
    name: str
    kind: RouteKind
    reason: str
    holds: Callable[[Facts], bool]


def _pattern(*alternatives: str) -> Callable[[str], bool]:
    """Whether one of the alternatives stands at the end of a module's path, after a dot or at its start."""
    compiled = re.compile(rf"(?:^|\.)(?:{'|'.join(alternatives)})$")
    return lambda module: compiled.search(module) is not None


looked_up = _pattern(
    r"(?:\w+_)?token_embd", r"position_embd", r"token_types",  # GGUF
    r"embed_tokens\w*", r"embed_positions", r"embed_in", r"embed_out", r"w[tp]e", r"shared",
    r"(?:\w+_)?embeddings?", r"word_embeddings_for_head", r"in_out_embed", r"relative_attention_bias", r"attn_rel_b",
    r"lm_head(?:\..+)?", r"score", r"predictions\.decoder",
)  # fmt: skip
at_the_top = re.compile(r"^(?:(?:transformer\.)?output_layer|output|decoder|head)$")
"""Heads by these names are heads only at the top: GGUF's and Meta's `output`, ModernBERT's `decoder`, RWKV's `head`."""

is_norm = _pattern(r"\w*norm\w*", r"(?:\w+_)?ln(?:_\w+|\d*)")

is_router = _pattern(
    r"(?:mlp|block_sparse_moe|moe|ffn|feed_forward|mixer)\.gate", r"\w*shared_expert_gate",
    r"router(?:\.\w+)*", r"ffn_gate_inp\w*",
)  # fmt: skip

is_projection = _pattern(
    r"\w+_proj", r"proj", r"query_key_value", r"query", r"key", r"value", r"c_(?:attn|proj|fc)", r"q_attn",
    r"(?:enc|dec)?(?:self|encdec)?attention\.[qkvo]", r"w(?:i|o|qkv|[qkv]|i_[01]|[123]|13)", r"fc[12]",
    r"(?:attention|output|intermediate|mlp)\.dense", r"dense_h_to_4h", r"dense_4h_to_h",
    r"(?:cross_)?attn_(?:q|k|v|o|qkv|output|kv?_[ab]\w*|q_[ab])", r"ffn_(?:gate|up|down|gate_up)(?:_\w+)?",
    r"experts(?:\.\w+)+", r"(?:block_sparse_)?moe\.(?:\w+_)?linear\w*",
    r"(?:self_attn|attn|attention|self_attention|mlp|ffn|feed_forward)\.(?!conv)\w+",
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule(
        "index",
        "passthrough",
        "rows are looked up by id, or are the head over the vocabulary",
        lambda t: looked_up(t.module) or at_the_top.search(t.module) is not None,
    ),
    Rule("norm", "skip", "a norm's gain or shift", lambda t: is_norm(t.module)),
    Rule("vector", "skip", "one-dimensional: no rows to share a codec", lambda t: t.axes <= 1),
    Rule("bias", "skip", "a bias or a mask, one vector an expert or a head", lambda t: _is_bias(t)),
    Rule("convolution", "skip", "four or more axes: a convolution", lambda t: len(t.shape) >= 4),
    Rule(
        "small",
        "skip",
        f"under {SMALLEST_ELEMENTS} elements: a codec costs more than it saves",
        lambda t: prod(t.shape) < SMALLEST_ELEMENTS,
    ),
    Rule("router", "passthrough", "picks experts: a small error picks others", lambda t: is_router(t.module)),
    Rule("integers", "skip", "stored as integers: codes or ids, no weights", lambda t: t.integers),
    Rule(
        "projection",
        "quantise",
        "an attention or MLP projection",
        lambda t: is_projection(t.module) and len(t.shape) in (2, 3),
    ),
    Rule("matrix", "quantise", "any other matrix", lambda t: len(t.shape) == 2),
    Rule("rest", "skip", "three axes and not known as a stack of experts", lambda _: True),
)


def _is_bias(tensor: Facts) -> bool:
    return tensor.parameter == "bias" or re.search(r"_bias$", tensor.name) is not None


def facts(name: str, shape: Sequence[int], dtype: str | None = None) -> Facts:
    lowered = name.lower()
    module, _, last = lowered.rpartition(".")
    parameter = last if last in ("weight", "bias") else ""
    integers = dtype is not None and re.match(r"(BOOL|[UI]\d)", dtype) is not None
    return Facts(lowered, module if parameter else lowered, parameter, tuple(shape), integers)


def route_tensor(
    name: str,
    shape: Sequence[int],
    overrides: Sequence[Override] = (),
    *,
    dtype: str | None = None,
    model_type: str | None = None,
) -> Route:
    """`dtype` as safetensors names it and `model_type` as config.json does: each tells what a name can't (see RULES
    `integers` and `is_transposed`). Raises CodecError for a shape that is none and an override that can't be done."""
    if any(length < 0 for length in shape):
        raise CodecError(f"{name}: shape {tuple(shape)} has a negative length")
    tensor = facts(name, shape, dtype)
    override = next((o for o in overrides if fnmatchcase(tensor.name, o.pattern.lower())), None)
    if override is None:
        rule = next(rule for rule in RULES if rule.holds(tensor))
        kind, rule_name, reason = rule.kind, rule.name, rule.reason
    else:
        kind, rule_name, reason = override.kind, f"override {override.pattern}", "asked for by the request"
    if kind != "quantise":
        return Route(name=name, shape=tensor.shape, kind=kind, rule=rule_name, reason=reason)
    if len(shape) not in (2, 3) or 0 in shape or tensor.integers:
        raise CodecError(
            f"{name}: override {rule_name.removeprefix('override ')!r} quantises {dtype or 'a tensor'} of shape "
            f"{tensor.shape}; only floats of two axes, or three with one matrix an expert, can be"
        )
    matrices = shape[0] if len(shape) == 3 else 1
    transposed = is_transposed(tensor, model_type)
    columns, rows = shape[-2:] if transposed else (shape[-1], shape[-2])
    return Route(
        name=name, shape=tensor.shape, kind=kind, rule=rule_name, reason=reason,
        matrices=matrices, rows=rows, columns=columns, transposed=transposed,
    )  # fmt: skip


CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
STACKS_TRANSPOSED = {"llama4", "llama4_text", "gpt_oss"}
"""Model types whose experts lie as (expert, inputs, outputs)."""

_in_conv1d = re.compile(r"(?:^|\.)h\.\d+\.(?:attn|crossattention|mlp)\.(?:c_attn|q_attn|c_fc|c_proj)$")


def is_transposed(tensor: Facts, model_type: str | None = None) -> bool:
    """Whether outputs are the last axis. GPT-2 keeps its projections in `Conv1D`, (inputs, outputs), where Qwen 1 and
    StarCoder keep a Linear under the same names: the model type tells, else the shape does (queries, keys and values
    are more outputs than inputs, an MLP widens, then narrows). A square one without a model type counts as GPT-2's."""
    if len(tensor.shape) == 3:
        return model_type in STACKS_TRANSPOSED and ".experts." in tensor.name
    if _in_conv1d.search(tensor.module) is None:
        return False
    if model_type is not None:
        return model_type in CONV1D_MODELS
    first, last = tensor.shape
    return first >= last if tensor.module.endswith("c_proj") else first <= last


def route_checkpoint(
    tensors: Iterable[tuple[str, Sequence[int], str]], overrides: Sequence[Override] = (), model_type: str | None = None
) -> tuple[Route, ...]:
    """A row for every (name, shape, dtype), in their order. Raises CodecError for an override that no tensor matches
    or that comes after one that takes all it would: a typing mistake would else go unseen."""
    routes = tuple(
        route_tensor(name, shape, overrides, dtype=dtype, model_type=model_type) for name, shape, dtype in tensors
    )
    used = {route.rule for route in routes}
    idle = [override.pattern for override in overrides if f"override {override.pattern}" not in used]
    if idle:
        raise CodecError(f"overrides that decide no tensor: {', '.join(map(repr, idle))}; of {len(routes)} tensors")
    return routes
