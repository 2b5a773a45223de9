"""Adapter directories and base checkpoints for tests, written in numpy, and what they add up to as dense matrices."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.dtypes import from_float32
from actors.tensors.header import Planned
from actors.tensors.shard_writer import write_arrays, write_shard
from actors.tensors.stored import read_matrix

SHAPES = {"model.layers.0.q": (24, 16), "model.layers.0.up": (40, 16), "model.layers.1.q": (24, 16)}
"""(out, in) by module."""


def write_adapter_folder(
    folder: Path,
    seed: int,
    *,
    ranks: Mapping[str, int] | int = 4,
    modules: Sequence[str] = tuple(SHAPES),
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    dtype: str = "F32",
    config: Mapping[str, Any] = {},
    extra: Mapping[str, NDArray[np.generic]] = {},
) -> Path:
    """A random adapter, alpha 8."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    arrays: dict[str, NDArray[np.float32]] = {}
    for module in modules:
        out, into = shapes[module]
        rank = ranks if isinstance(ranks, int) else ranks[module]
        for factor, shape in (("A", (rank, into)), ("B", (out, rank))):
            name = f"base_model.model.{module}.lora_{factor}.weight"
            arrays[name] = rng.standard_normal(shape).astype(np.float32)
    if dtype == "F32":
        write_arrays(folder / "adapter_model.safetensors", {**arrays, **extra}, {"format": "pt"})
    else:
        planned = [Planned(name, dtype, array.shape) for name, array in arrays.items()]
        write_shard(
            folder / "adapter_model.safetensors", planned, lambda one: [from_float32(arrays[one.name], one.dtype)]
        )
    told: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base", "revision": None,
        "r": 4, "lora_alpha": 8, "target_modules": ["q", "up"], "bias": "none", "use_rslora": False, "use_dora": False,
        "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
        "init_lora_weights": True, "lora_dropout": 0.1, "layer_replication": None,
        "runtime_config": {"ephemeral_gpu_offload": False},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**told, **config}), encoding="utf-8")
    return folder


def factors(folder: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(B, A) by module, as they are stored."""
    tensors = open_checkpoint(folder / "adapter_model.safetensors").tensors
    found = {}
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = read_matrix(tensors[name.replace("lora_A", "lora_B")])
            found[module] = b.astype(np.float64), read_matrix(tensor).astype(np.float64)
    return found


def dense(folder: Path, scale: float = 2.0) -> dict[str, NDArray[np.float64]]:
    """ΔW by module; scale: alpha / r."""
    return {module: scale * b @ a for module, (b, a) in factors(folder).items()}


def write_base_folder(
    folder: Path, *, dtype: str = "F32", shards: int = 1, transposed: bool = False, config: Mapping[str, Any] = {}
) -> dict[str, NDArray[np.float32]]:
    """A base checkpoint with the modules of SHAPES and what no adapter touches; its weights, as they are stored."""
    rng = np.random.default_rng(9)
    folder.mkdir(parents=True)
    arrays = {}
    for module, (out, into) in SHAPES.items():
        shape = (into, out) if transposed else (out, into)
        arrays[f"{module}.weight"] = rng.standard_normal(shape).astype(np.float32)
        arrays[f"{module}.bias"] = rng.standard_normal(out).astype(np.float32)
    arrays["model.embed.weight"] = rng.standard_normal((50, 16)).astype(np.float32)
    names = sorted(arrays)
    files = ["model.safetensors"] if shards == 1 else [f"model-{n + 1}-of-{shards}.safetensors" for n in range(shards)]
    for number, file in enumerate(files):
        planned = [Planned(name, dtype, arrays[name].shape) for name in names[number::shards]]
        write_shard(folder / file, planned, lambda one: [from_float32(arrays[one.name], one.dtype)], {"format": "pt"})
    if shards > 1:
        where = {name: files[place % shards] for place, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", **config}))
    (folder / "tokenizer.json").write_text("{}")
    return read_all(folder)


def read_all(folder: Path) -> dict[str, NDArray[np.float32]]:
    """A checkpoint's tensors as float32."""
    tensors = open_checkpoint(folder).tensors
    return {name: read_matrix(tensor).reshape(tensor.shape) for name, tensor in tensors.items()}
