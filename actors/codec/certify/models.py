"""What certificates of models need of torch and transformers, which are imported here alone, and when a job asks.

Models run on the CPU, whatever GPU there is: that one is the slot's to give. Nothing is fetched from a network, and no
code that lies beside a model is run.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.codec.architecture import Architecture
from actors.codec.base import CodecError

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
            "pip install 'lakehouse[cert]', or `deploy/venv.sh cert` in a checkout"
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
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise CodecError(f"{folder}: transformers can't load it: {_first_line(error)}") from error
    missing = sorted(name for name in told["missing_keys"] if "position_ids" not in name)
    if missing:
        raise CodecError(f"{folder}: the checkpoint lacks {len(missing)} weights: {', '.join(missing[:3])}")
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    _, transformers = libraries()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CodecError(f"{folder}: no tokenizer that transformers can load: {_first_line(error)}") from error


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
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
