"""LoRA adapters by PEFT on a small language model: random ones for arithmetic, and ones that were really trained on
texts of their own. Needs the `cert` extra and peft.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ["c_attn", "c_proj", "c_fc"]
"""GPT-2's linear layers."""


def save_random(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter whose factors are random, saved as PEFT saves one."""
    import peft
    import torch

    model = load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return folder


def train_adapter(
    base: Path, folder: Path, texts: Sequence[str], *, steps: int, rate: float = 2e-3, rank: int = 8, seed: int = 42
) -> Path:
    """An adapter trained to go on from such texts."""
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(base))
    model = load(base)
    context = model.config.n_positions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        wrapped = peft.get_peft_model(model, config).train()
    ids = np.concatenate([np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for text in texts])
    optimiser = torch.optim.AdamW([each for each in wrapped.parameters() if each.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        starts = rng.integers(0, len(ids) - context, size=16)
        given = torch.from_numpy(np.stack([ids[start : start + context] for start in starts]))
        loss = wrapped(input_ids=given, labels=given).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    wrapped.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def peft_mix(base: Path, adapters: Mapping[str, Path], weights: Sequence[float]) -> Any:
    """PEFT's own `cat` merge of adapters, active on the base."""
    import peft

    first, *others = adapters.items()
    model = peft.PeftModel.from_pretrained(load(base), str(first[1]), adapter_name=first[0])
    for name, folder in others:
        model.load_adapter(str(folder), adapter_name=name)
    model.add_weighted_adapter(list(adapters), list(weights), "mix", combination_type="cat")
    model.set_adapter("mix")
    return model.eval()


def tiny_llama(folder: Path) -> Path:
    """Random, two layers, with names like those of the large ones."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    return folder
