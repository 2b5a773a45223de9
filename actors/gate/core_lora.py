"""The arithmetic of LoRA (Hu et al. 2021) as PEFT stores it, and what of an adapter's configuration it covers.

Notation, of one module
    A (r, in), B (out, r)     factors, as stored
    s                         alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023)
    ΔW = s B A  (out, in)     what the adapter adds to the weight

A mix of adapters with weights w is ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ, which concatenation gives exactly: B' = [w₁s₁B₁ | w₂s₂B₂ | …],
A' = [A₁; A₂; …], of rank Σ rᵢ. PEFT's `linear` merge adds factors instead and has cross terms: it isn't the sum.

What isn't of this form is refused with its reason: to merge it all the same would be another model. A configuration's
field that this module doesn't know has to be at rest, so that what PEFT learns later isn't overlooked.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

NEUTRAL = frozenset({
    "task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
    "runtime_config", "qalora_group_size", "eva_config", "loftq_config", "ensure_weight_tying",
})  # fmt: skip
"""Fields that say nothing about ΔW, or are read here. eva_config and loftq_config belong to an initialisation."""

REASONS = {
    "use_dora": "DoRA rescales every row by what base and adapter are together, so it is no sum: train it without",
    "modules_to_save": "whole modules were trained beside the LoRA factors, and they can't be weighted with them",
    "trainable_token_indices": "rows of the embedding were trained beside the LoRA factors",
    "layer_replication": "its layers are replicated: the base has fewer",
    "alora_invocation_tokens": "an activated LoRA counts from its invocation tokens on alone",
    "lora_bias": "its factors have biases",
    "target_parameters": "it adapts bare parameters, not modules",
    "use_qalora": "QALoRA pools its inputs before A",
}
INITIALISED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base weights: ΔW is to a base that isn't there."""

MOST_REPEATS, MOST_GROUPS, LONGEST_PATTERN = 2, 3, 500
"""Of a pattern for modules' names; `.*\\.layers\\.(1|2)\\..*` repeats twice and has a group."""
LONGEST = 300
"""Characters of a module's name."""

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.(?:[^.]+\.)?weight")


class Unmergeable(ValueError):
    """An adapter, or adapters together, that can't be merged exactly. The export is refused with this sentence."""


class Lora(msgspec.Struct, frozen=True):
    """What adapter_config.json says that counts."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]  # by pattern
    alphas: Mapping[str, float]
    fan_in_fan_out: bool
    base: str
    revision: str
    task_type: str | None


class Module(msgspec.Struct, frozen=True):
    name: str
    rank: int
    alpha: float
    scale: float  # s
    inputs: int
    outputs: int
    a: str  # names of its tensors
    b: str


def read_config(raw: bytes, who: str) -> Lora:
    """adapter_config.json. Raises Unmergeable; `who` begins its sentence."""
    try:
        config = msgspec.json.decode(raw, type=dict[str, Any])
        if config.get("peft_type", "LORA") != "LORA":
            raise Unmergeable(f"{who} is no LoRA adapter: its peft_type is {config['peft_type']!r}")
        _refuse_unknown(config, who)
        lora = msgspec.convert(
            {
                "rank": config.get("r", 8),
                "alpha": config.get("lora_alpha", 8),
                "rslora": config.get("use_rslora") or False,
                "ranks": config.get("rank_pattern") or {},
                "alphas": config.get("alpha_pattern") or {},
                "fan_in_fan_out": config.get("fan_in_fan_out") or False,
                "base": config.get("base_model_name_or_path") or "",
                "revision": config.get("revision") or "",
                "task_type": config.get("task_type"),
            },
            Lora,
        )
        for pattern in (*lora.ranks, *lora.alphas):
            _compiled(pattern)
            _refuse_slow(pattern, who)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, re.error) as error:
        raise Unmergeable(f"{who}: adapter_config.json can't be read: {error}") from None
    return lora


def _refuse_slow(pattern: str, who: str) -> None:
    """An expression that backtracks could be at it for years, and the worker process with it."""
    bare = re.sub(r"\\.", "x", pattern).replace("(?", "(")
    repeats, groups = len(re.findall(r"[*+?{]", bare)), bare.count("(")
    nested = re.search(r"\)[*+{]", bare)
    if nested or repeats > MOST_REPEATS or groups > MOST_GROUPS or len(pattern) > LONGEST_PATTERN:
        raise Unmergeable(
            f"{who}: the pattern {pattern[:60]!r} has a repeated group, more than {MOST_REPEATS} repeats or "
            f"{MOST_GROUPS} groups, or {LONGEST_PATTERN} characters, and could be looked for without end: name the "
            "modules in rank_pattern and alpha_pattern"
        )


def _refuse_unknown(config: Mapping[str, Any], who: str) -> None:
    if config.get("bias", "none") != "none":
        raise Unmergeable(f"{who} trained biases (bias: {config['bias']!r}), which no weighted sum of factors has")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(INITIALISED):
        raise Unmergeable(
            f"{who} was initialised by {start!r}, which changes the base's weights: convert it first "
            "(PEFT: save_pretrained(path_initial_model_for_weight_conversion=…))"
        )
    for field, value in config.items():
        if not value or field in NEUTRAL:
            continue
        reason = REASONS.get(field, "which is not known here, so that what it adds to the weights isn't either")
        raise Unmergeable(f"{who} has {field} ({str(value)[:60]}): {reason}")


def modules_of(shapes: Mapping[str, tuple[int, ...]], lora: Lora, who: str) -> dict[str, Module]:
    """The adapted modules by name, from the shapes of an adapter's tensors. Raises Unmergeable."""
    factors: dict[str, dict[str, str]] = {}
    for tensor in shapes:
        found = _KEY.fullmatch(tensor)
        if found is None:
            raise Unmergeable(f"{who} has the tensor {tensor}, {_what(tensor)}")
        if len(found["module"]) > LONGEST:
            raise Unmergeable(f"{who} has a module whose name has {len(found['module'])} characters: {tensor[:60]}…")
        pair = factors.setdefault(found["module"], {})
        if other := pair.get(found["factor"]):
            raise Unmergeable(f"{who} has {other} and {tensor}, two of one factor: which one counts nobody says")
        pair[found["factor"]] = tensor
    if not factors:
        raise Unmergeable(f"{who} has no LoRA factors")
    return {name: _module(name, pair, shapes, lora, who) for name, pair in sorted(factors.items())}


def _module(name: str, pair: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], lora: Lora, who: str) -> Module:
    if len(pair) != 2:
        raise Unmergeable(f"{who}: {name} has lora_{next(iter(pair))} without the other factor")
    a, b = shapes[pair["A"]], shapes[pair["B"]]
    if len(a) != 2 or len(b) != 2:
        raise Unmergeable(f"{who}: {name} is no linear layer: lora_A is {list(a)}, lora_B {list(b)}")
    if a[0] != b[1]:
        raise Unmergeable(f"{who}: {name}: lora_A {list(a)} and lora_B {list(b)} are of different ranks")
    if not (a[0] and a[1] and b[0]):
        raise Unmergeable(f"{who}: {name}: lora_A {list(a)} and lora_B {list(b)} are empty: nothing was saved of it")
    rank = int(pattern_value(lora.ranks, name, lora.rank))
    if rank != a[0]:
        raise Unmergeable(f"{who}: {name} has rank {a[0]}, its configuration says {rank}")
    alpha = float(pattern_value(lora.alphas, name, lora.alpha))
    scale = alpha / math.sqrt(rank) if lora.rslora else alpha / rank
    return Module(name, rank, alpha, scale, a[1], b[0], pair["A"], pair["B"])


def pattern_value(patterns: Mapping[str, float], module: str, default: float) -> float:
    """As PEFT looks one up: the first pattern that the module's name ends with, at a dot."""
    for pattern, value in patterns.items():
        if _compiled(pattern).match(module):
            return value
    return default


@lru_cache(4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Some converters write a pattern for every module: re's own cache is too small for that."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _what(tensor: str) -> str:
    if "lora_magnitude_vector" in tensor:
        return f"which is DoRA's: {REASONS['use_dora']}"
    if "lora_embedding_" in tensor or ".base_layer." in tensor:
        return (
            "of an embedding or the output layer, which may be tied to each other: it isn't merged (PEFT saves such a "
            "layer whole where an adapter has it; save_embedding_layers=False leaves it out)"
        )
    if "lora_" in tensor:
        return "which is no weight of a linear LoRA layer"
    return f"a whole module's: {REASONS['modules_to_save']}"


def check_together(adapters: Mapping[str, tuple[Lora, Mapping[str, Module]]]) -> None:
    """Whether adapters are of one base and one shape. Raises Unmergeable with both sides."""
    (first, (lora, modules)), *others = adapters.items()
    for name, (other, theirs) in others:
        for field in ("base", "revision", "fan_in_fan_out"):
            mine, yours = getattr(lora, field), getattr(other, field)
            if mine != yours:
                setting = "base_model_name_or_path" if field == "base" else field
                raise Unmergeable(
                    f"adapters {first} and {name} have different {field}: {mine!r} and {yours!r}; where both mean the "
                    f"same, write it alike, as {setting} in adapter_config.json"
                )
        for module in modules.keys() & theirs.keys():
            a, b = modules[module], theirs[module]
            if (a.outputs, a.inputs) != (b.outputs, b.inputs):
                raise Unmergeable(
                    f"{module} is {a.outputs} × {a.inputs} in adapter {first}, {b.outputs} × {b.inputs} in {name}"
                )
        # Of a later pair the first may lack the module.
        modules = {**theirs, **modules}


def merged_config(lora: Lora, rank: int, modules: Sequence[str]) -> dict[str, Any]:
    """adapter_config.json of a merged adapter: one rank, alpha equal to it, so that the scale is 1 for every reader,
    those that know no patterns too."""
    return {
        "peft_type": "LORA",
        "task_type": lora.task_type,
        "base_model_name_or_path": lora.base or None,
        "revision": lora.revision or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "fan_in_fan_out": lora.fan_in_fan_out,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
    }


def cut(b: F32, a: F32, rank: int) -> tuple[F32, F32, float]:
    """The nearest factors of a rank (Eckart & Young 1936) to B A, and ‖BA − B'A'‖ / ‖BA‖ (Frobenius), without the
    product: QR of both factors leaves an R × R matrix to take the SVD of. b: (out, R), a: (R, in)."""
    qb, rb = np.linalg.qr(b.astype(np.float64))  # (out, k), (k, R)
    qa, ra = np.linalg.qr(a.T.astype(np.float64))  # (in, l), (l, R)
    u, sigma, vt = np.linalg.svd(rb @ ra.T)  # (k, k), (min(k, l),), (l, l)
    kept = min(rank, len(sigma))
    total = float(np.sqrt((sigma**2).sum()))
    error = float(np.sqrt((sigma[kept:] ** 2).sum())) / total if total else 0.0
    root = np.sqrt(sigma[:kept])
    left = (qb @ (u[:, :kept] * root)).astype(np.float32)
    right = ((root[:, None] * vt[:kept]) @ qa.T).astype(np.float32)
    return left, right, error
