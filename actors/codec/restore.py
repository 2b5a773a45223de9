"""The checkpoint that an artifact stands for, as loaders take it: the shards of the original with their index, every
tensor in its own type and layout, config.json and tokenizer beside them. All of it or nothing is there."""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from actors.codec.artifact import EXTRA, decoded_rows, read_manifest, tensor_file
from actors.codec.base import CodecError, Phase
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.dtypes import from_float32
from actors.tensors.header import Planned
from actors.tensors.shard_writer import Chunks, write_index, write_shard
from actors.tensors.stored import byte_chunks
from schemas.codec import Manifest, TensorRow

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}
"""What transformers demands of a file's metadata."""


def decode_checkpoint(folder: Path, out: Path) -> Iterator[Phase]:
    """folder: an artifact. Raises CodecError when `out` is there already, for tensors that the artifact lacks, and for
    files that aren't what was written."""
    manifest = read_manifest(folder)
    _refuse_gaps(manifest)
    if out.exists():
        raise CodecError(f"{out} is there already: name a folder that isn't")
    part = out.with_name(f".{out.name}-{uuid4().hex}")
    try:
        shards: dict[str, list[TensorRow]] = {}
        for row in manifest.tensors:
            shards.setdefault(row.shard, []).append(row)
        planned = {shard: [_planned(row) for row in rows] for shard, rows in shards.items()}
        for number, (shard, rows) in enumerate(shards.items()):
            yield Phase("decode", number, len(shards), "shards")
            by_name = {row.name: row for row in rows}
            write_shard(part / shard, planned[shard], partial(_chunks, folder, by_name), METADATA)
        if set(shards) != {SINGLE}:
            write_index(part / INDEX, planned)
        for file in manifest.extra:
            beside = part / file.key.removeprefix(f"{EXTRA}/")
            beside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file.key, beside)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_gaps(manifest: Manifest) -> None:
    missing = [row for row in manifest.tensors if row.file is None]
    if missing:
        names = ", ".join(f"{row.name} ({row.problem})" for row in missing[:3])
        raise CodecError(
            f"artifact {manifest.artifact!r} lacks {len(missing)} of {len(manifest.tensors)} tensors: {names}; "
            "mend the checkpoint that it was made of, and calibrate again"
        )


def _planned(row: TensorRow) -> Planned:
    return Planned(row.name, row.dtype, row.shape)


def _chunks(folder: Path, rows: dict[str, TensorRow], tensor: Planned) -> Chunks:
    row = rows[tensor.name]
    if row.params is None:
        yield from byte_chunks(open_checkpoint(tensor_file(folder, row)).tensor(row.name))
        return
    for matrix in range(row.matrices):
        decoded = decoded_rows(folder, row, matrix)
        for values in stored_order(decoded, row.shape) if row.transposed else (values for _, values in decoded):
            yield from_float32(values, row.dtype)


def stored_order(
    rows: Iterator[tuple[int, NDArray[np.float32]]], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Rows of output units, as columns of a matrix stored (inputs, outputs): it has to be there as a whole."""
    inputs, outputs = shape[-2:]
    stored = np.empty((inputs, outputs), np.float32)
    for first, values in rows:
        stored[:, first : first + len(values)] = values.T
    yield stored
