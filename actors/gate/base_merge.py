"""The base checkpoint with a mix of adapters added to its weights: shard by shard, some rows at a time, every tensor in
its own type, ready for a converter to GGUF. Tensors that no adapter touches are copied byte by byte."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actors.errors import Unfit
from actors.gate.adapters import read_small
from actors.gate.core_lora import Module, Unmergeable
from actors.gate.merging import METADATA, Merge
from actors.tensors.checkpoint import INDEX_SUFFIX, Checkpoint, open_checkpoint
from actors.tensors.dtypes import from_float32
from actors.tensors.header import Planned
from actors.tensors.shard_writer import Chunks, write_shard
from actors.tensors.stored import StoredTensor, byte_chunks, row_chunks
from schemas.gate import MergeReport

FLOATS = ("F16", "BF16", "F32", "F64")
BESIDE = (".json", ".model", ".txt", ".jinja", ".tiktoken")
"""What of the base's folder a converter or a loader needs beside the shards."""
CHUNK_BYTES = 4 << 20  # of a weight's rows in memory at once
TIED = ("lm_head", "embed_out")


CONV1D = {"gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
"""By type of model its layers that are stored (in, out). PEFT tells one fan_in_fan_out for all modules of an adapter,
that of the last, which is wrong for these where a linear layer comes after."""


class _Config(msgspec.Struct):
    model_type: str | None = None
    quantization_config: dict[str, object] | None = None
    tie_word_embeddings: bool = False


def write_base(
    merge: Merge, base: Path, folder: Path, *, allow_quantised: bool = False, max_error: float = 1.0
) -> Iterator[tuple[int, int] | MergeReport]:
    """(shards done, shards), the report at last. Raises Unmergeable."""
    checkpoint = open_checkpoint(base)
    targets = find_targets(merge, checkpoint, base, allow_quantised=allow_quantised)
    shards: dict[Path, list[StoredTensor]] = {}
    for tensor in checkpoint.tensors.values():
        shards.setdefault(tensor.file, []).append(tensor)
    for number, (file, tensors) in enumerate(shards.items()):
        yield number, len(shards)
        stored = {tensor.name: tensor for tensor in tensors}

        def chunks(planned: Planned, stored: Mapping[str, StoredTensor] = stored) -> Chunks:
            tensor, module = stored[planned.name], targets.get(planned.name)
            return byte_chunks(tensor) if module is None else _merged(merge, module, tensor)

        plan = [Planned(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
        write_shard(folder / file.name, plan, chunks, METADATA)
    report = merge.report(max_error)
    for file in sorted(base.iterdir()):
        shown = file.name.endswith(INDEX_SUFFIX) or file.suffix in BESIDE
        if shown and file.is_file() and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    yield report


def find_targets(merge: Merge, checkpoint: Checkpoint, base: Path, *, allow_quantised: bool) -> dict[str, Module]:
    """The adapted module of each tensor that a merge changes. Raises Unmergeable for what isn't the adapters' base."""
    config = base / "config.json"
    try:
        told = msgspec.json.decode(read_small(config), type=_Config) if config.is_file() else _Config()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unmergeable(f"{config} can't be read: {error}") from None
    if told.quantization_config and not allow_quantised:
        method = told.quantization_config.get("quant_method", "unnamed")
        raise Unmergeable(
            f"the base {base.name} is quantised ({method}): merge into the checkpoint that it was made of, or allow "
            "quantised sources, where what adapters touch is stored as floats"
        )
    for problem in checkpoint.problems:
        if problem.tensor is not None:
            raise Unmergeable(f"the base's {problem.tensor} can't be used: {problem.message}")
    found: dict[str, Module] = {}
    for name, module in merge.modules.items():
        tensor = _tensor(checkpoint, name)
        if told.tie_word_embeddings and name.split(".")[-1] in TIED:
            raise Unmergeable(f"{name} is tied to the embedding, which a merge would change too")
        if tensor.dtype not in FLOATS:
            raise Unmergeable(f"the base's {tensor.name} is quantised ({tensor.dtype}): nothing can be added to it")
        if not merge.lora.fan_in_fan_out and name.split(".")[-1] in CONV1D.get(told.model_type or "", ()):
            raise Unmergeable(
                f"{name} of a {told.model_type} is stored (in, out), and the adapters' fan_in_fan_out says it isn't: "
                "train adapters of it and of linear layers, such as lm_head, apart"
            )
        other = found.get(tensor.name)
        if other is not None:
            raise Unmergeable(f"the adapters' {other.name} and {name} are both the base's {tensor.name}")
        if tensor.shape != _stored_shape(merge, module, tensor):
            raise Unmergeable(
                f"the base's {tensor.name} is {list(tensor.shape)}, the adapters' {name} is "
                f"{[module.outputs, module.inputs]}: they are of another base"
            )
        found[tensor.name] = module
    return found


def _tensor(checkpoint: Checkpoint, module: str) -> StoredTensor:
    """A module's weight. A checkpoint may have been saved without what stands before its names in a language model."""
    wanted = f"{module}.weight"
    if wanted in checkpoint.tensors:
        return checkpoint.tensors[wanted]
    near = [name for name in checkpoint.tensors if wanted.endswith(f".{name}")]
    if not near:
        raise Unmergeable(
            f"the base has no tensor {wanted}: the adapters are of another base; name the checkpoint that they were "
            "trained on"
        )
    return checkpoint.tensors[max(near, key=len)]


def _stored_shape(merge: Merge, module: Module, tensor: StoredTensor) -> tuple[int, int]:
    """(out, in), or (in, out) for layers that store it so (GPT-2's Conv1D), which the adapters' configuration tells."""
    transposed = (module.inputs, module.outputs)
    if merge.lora.fan_in_fan_out and tensor.shape == transposed:
        return transposed
    return module.outputs, module.inputs


def _merged(merge: Merge, module: Module, tensor: StoredTensor) -> Iterator[bytes]:
    """W + B' A' in float32, rounded once to the tensor's type; B' A' in float32 to a W in float64, as that."""
    factors = merge.factors(module.name)
    a = factors.a()  # (R, in)
    transposed = merge.lora.fan_in_fan_out and tensor.shape == (module.inputs, module.outputs)
    b = factors.b_rows(0, module.outputs) if transposed else None
    for row, values in _rows(tensor):
        stop = row + len(values)
        with np.errstate(over="ignore", invalid="ignore"):
            if b is not None:
                values += a[:, row:stop].T @ b.T
            else:
                values += factors.b_rows(row, stop) @ a
        if not np.isfinite(values).all():
            raise Unmergeable(f"the base's {tensor.name} with the mix added is beyond what float32 holds")
        if values.dtype == np.float64:
            yield values.tobytes()
            continue
        try:
            yield from_float32(values, tensor.dtype)
        except Unfit as error:
            raise Unmergeable(f"the base's {tensor.name} with the mix added: {error}") from None


def _rows(tensor: StoredTensor) -> Iterator[tuple[int, Any]]:
    """(row, (k, columns) float32, or float64 where it is stored so), some rows at a time."""
    if tensor.dtype != "F64":
        yield from row_chunks(tensor, chunk_bytes=CHUNK_BYTES)
        return
    row, row_bytes = 0, 8 * tensor.columns
    for raw in byte_chunks(tensor, max(1, CHUNK_BYTES // row_bytes) * row_bytes):
        values = np.frombuffer(raw, "<f8").reshape(-1, tensor.columns)
        yield row, values
        row += len(values)
