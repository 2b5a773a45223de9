"""What certificates of models need of torch and transformers, which are imported here alone, and when a job asks.

Models run on the CPU, whatever GPU there is: that one is the slot's to give. Nothing is fetched from a network, and no
code that lies beside a model is run.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.codec.base import CodecError
from actors.codec.checkpoints.architecture import Architecture
from actors.codec.checkpoints.source import Source
from actors.codec.restore import INDEX, SINGLE

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class CertUnavailable(CodecError):
    """torch or transformers isn't installed where the work is done; the certification ends with this sentence."""


def libraries() -> tuple[Any, Any]:
    """torch and transformers. Raises CertUnavailable."""
    os.environ.update(OFFLINE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            import transformers
    except ImportError as error:
        raise CertUnavailable(
            f"certificates of models need torch and transformers ({error.name} is missing): "
            "run `deploy/venv.sh cert` where the daemon was installed from"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of others' libraries, and without gradients."""
    torch, _ = libraries()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield


def load_model(folder: Path, *, causal_lm: bool) -> Any:
    """In float32, for inference. Raises CodecError in a loader's own words, and for weights that it didn't find."""
    torch, transformers = libraries()
    kind = transformers.AutoModelForCausalLM if causal_lm else transformers.AutoModel
    try:
        model, told = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise CodecError(f"{folder}: transformers can't load it: {_first_line(error)}") from error
    missing = sorted(name for name in told["missing_keys"] if not _unused(name))
    if missing:
        raise CodecError(f"{folder}: the checkpoint lacks {len(missing)} weights: {', '.join(missing[:3])}")
    return model.eval()


def _unused(name: str) -> bool:
    """Of a weight, whether logits and hidden states are without it: a pooler comes after them."""
    return "position_ids" in name or "pooler" in name.split(".")


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


def load_tokenizer(folder: Path) -> Any:
    """Raises CodecError, also for one without a vocabulary, which a loader makes up where the files are missing: every
    text would be the same unknown words to it."""
    _, transformers = libraries()
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        what = "no tokenizer that transformers can load, such as tokenizer.json beside config.json"
        raise CodecError(f"{folder}: {what}: {_first_line(error)}") from error
    if len(found) <= len(found.all_special_ids):
        raise CodecError(f"{folder}: the tokenizer's files are missing: put tokenizer.json beside config.json")
    return found


def context(model: Any, tokenizer: Any, asked: int) -> int:
    """Tokens of a text: as many as asked for, and as the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or asked
    return int(min(asked, positions, tokenizer.model_max_length))


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(" :")
