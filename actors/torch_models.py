"""torch and transformers, which are imported here alone, and when a job asks: language models and encoders loaded.

Models run on the CPU, whatever GPU there is: that one is the slot's to give. Nothing is fetched from a network, and no
code that lies beside a model is run.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.errors import Unfit

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class CertUnavailable(Unfit):
    """torch or transformers isn't installed where the work is done; the job ends with this sentence."""


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
            f"what runs a model needs torch and transformers ({error.name} is missing): "
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
    """In float32, for inference. Raises Unfit in a loader's own words, and for weights that it didn't find."""
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
        raise Unfit(f"{folder}: transformers can't load it: {_first_line(error)}") from error
    missing = sorted(name for name in told["missing_keys"] if not _unused(name))
    if missing:
        raise Unfit(f"{folder}: the checkpoint lacks {len(missing)} weights: {', '.join(missing[:3])}")
    return model.eval()


def _unused(name: str) -> bool:
    """Of a weight, whether logits and hidden states are without it: a pooler comes after them."""
    return "position_ids" in name or "pooler" in name.split(".")


def load_tokenizer(folder: Path) -> Any:
    """Raises Unfit, also for one without a vocabulary, which a loader makes up where the files are missing: every
    text would be the same unknown words to it."""
    _, transformers = libraries()
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        what = "no tokenizer that transformers can load, such as tokenizer.json beside config.json"
        raise Unfit(f"{folder}: {what}: {_first_line(error)}") from error
    if len(found) <= len(found.all_special_ids):
        raise Unfit(f"{folder}: the tokenizer's files are missing: put tokenizer.json beside config.json")
    return found


def context(model: Any, tokenizer: Any, asked: int) -> int:
    """Tokens of a text: as many as asked for, and as the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or asked
    return int(min(asked, positions, tokenizer.model_max_length))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(" :")
