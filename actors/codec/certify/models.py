"""Which of a model's files are loaded, what kind of model it is, and which module a tensor is of."""

import json
from typing import Any

from actors.codec.base import CodecError
from actors.codec.checkpoints.architecture import Architecture
from actors.codec.checkpoints.source import Source
from actors.codec.restore import INDEX, SINGLE


def check_loaded_is(source: Source) -> None:
    """A loader picks files by their names. Raises CodecError where those aren't the source's."""
    single, index = source.folder / SINGLE, source.folder / INDEX
    if single.exists():
        loaded = {SINGLE}
    else:
        loaded = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else set()
    given = {item.shard for item in source.items}
    if loaded != given:
        raise CodecError(
            f"{source.folder}: transformers would load {', '.join(sorted(loaded)) or 'nothing'}, the target is "
            f"{', '.join(sorted(given))}: a loadable folder has {SINGLE}, or {INDEX} and its shards, not both"
        )


def is_causal_lm(architecture: Architecture) -> bool:
    """Else an encoder. Raises CodecError for what is neither."""
    name = architecture.architecture
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return True
    if name.endswith(("Model", "ForMaskedLM")):
        return False
    raise CodecError(f"{name} is no causal language model and no encoder")


def module_of(model: Any, tensor: str) -> tuple[str, Any] | None:
    """The module whose weight a checkpoint's tensor is: names of the two may differ by what stands before."""
    module = tensor.removesuffix(".weight")
    found = [
        (name, each)
        for name, each in model.named_modules()
        if name == module or name.endswith(f".{module}") or (module.endswith(f".{name}") and name)
    ]
    with_weight = [(name, each) for name, each in found if getattr(each, "weight", None) is not None]
    return max(with_weight, key=lambda one: len(one[0])) if with_weight else None
