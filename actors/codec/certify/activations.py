"""What comes into a model's layers on text, for codecs that round with feedback (gptq): run once, kept as safetensors
under the tensors' names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError, Phase
from actors.codec.certify.models import check_loaded_is, is_causal_lm, module_of
from actors.codec.checkpoints.source import open_source
from actors.prompts import read_texts, tokenised
from actors.tensors.shard_writer import Written, write_arrays
from actors.torch_models import context, libraries, load_model, load_tokenizer, quiet

ROWS = 1024
"""Kept of each layer: a Hessian of some thousand columns needs no more to round well by."""

PROMPTS = 256


@dataclass(frozen=True)
class ActivationsOrder:
    model: Path  # for open_source
    text: Path
    tokens: int
    seed: int
    out: Path


def collect_activations(order: ActivationsOrder) -> Iterator[Phase | Written]:
    """(m, columns) float32 for every tensor that would be quantised and is a layer's weight. Raises CertUnavailable,
    CodecError."""
    torch, _ = libraries()
    source = open_source(order.model)
    if source.architecture is None:
        raise CodecError(
            f"{source.folder}: no config.json, so activations can't be collected: give them as safetensors"
        )
    texts, _ = read_texts(order.text, PROMPTS)
    check_loaded_is(source)
    tokenizer = load_tokenizer(source.folder)
    model = load_model(source.folder, causal_lm=is_causal_lm(source.architecture))
    prompts = tokenised(texts, tokenizer, context(model, tokenizer, order.tokens))
    rng = np.random.default_rng(order.seed)
    share = max(1, -(-ROWS // len(prompts)))  # rows of a prompt
    heard: dict[str, list[NDArray[np.float32]]] = {}
    hooks = []
    for item in source.items:
        found = module_of(model, item.name) if item.route and item.route.kind == "quantise" else None
        if found is None:
            continue

        def hear(_: Any, given: Any, name: str = item.name) -> None:
            rows = given[0].detach().float().reshape(-1, given[0].shape[-1]).numpy()
            some = rng.choice(len(rows), min(share, len(rows)), replace=False)
            heard.setdefault(name, []).append(rows[some])

        hooks.append(found[1].register_forward_pre_hook(hear))
    try:
        with quiet():
            for number, tokens in enumerate(prompts):
                yield Phase("activations", number, len(prompts), "prompts")
                model(torch.from_numpy(tokens)[None])
    finally:
        for hook in hooks:
            hook.remove()
    if not heard:
        raise CodecError(f"{source.folder}: no layer whose weights would be quantised was found in the loaded model")
    yield write_arrays(order.out, {name: np.concatenate(rows)[:ROWS] for name, rows in heard.items()})
