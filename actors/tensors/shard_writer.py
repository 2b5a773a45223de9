"""Writes safetensors files and their index: in chunks, all at once or not at all, the same bytes for the same tensors.

A file is complete where it has its name. What a killed writer leaves is named TEMPORARY…, is nobody's, and can be
removed by whoever owns the folder.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.errors import Unfit
from actors.tensors.dtypes import name_of
from actors.tensors.header import Planned, lay_out
from schemas.names import Bytes, Sha256

TEMPORARY = ".part-"

Chunks = Iterable[bytes | bytearray | memoryview]


class Written(msgspec.Struct, frozen=True):
    sha256: Sha256
    bytes: Bytes


def write_shard(
    path: Path,
    tensors: Sequence[Planned],
    chunks_of: Callable[[Planned], Chunks],
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Asks `chunks_of` for each tensor's bytes in turn, in the order of the layout, and holds one chunk at a time.
    Raises Unfit for a tensor that gives more or fewer bytes than its shape takes; then nothing is at `path`, or
    what was there before."""
    ordered, beginning = lay_out(tensors, metadata or {})
    digest = hashlib.sha256(beginning)
    total = len(beginning)
    with _replacing(path) as file:
        file.write(beginning)
        for tensor in ordered:
            given = 0
            for chunk in chunks_of(tensor):
                given += memoryview(chunk).nbytes
                if given > tensor.bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
            if given != tensor.bytes:
                amount = "more than" if given > tensor.bytes else f"{given} of"
                raise Unfit(f"{path}: {tensor.name}: got {amount} {tensor.bytes} bytes")
            total += given
    return Written(digest.hexdigest(), total)


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> Written:
    """A file of whole arrays: codebooks, codes, scales."""
    planned = [Planned(name, name_of(array), array.shape) for name, array in arrays.items()]

    def chunks_of(tensor: Planned) -> Chunks:
        array = np.ascontiguousarray(arrays[tensor.name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        yield little.reshape(-1).view(np.uint8).data

    return write_shard(path, planned, chunks_of, metadata)


def write_index(path: Path, shards: Mapping[str, Sequence[Planned]]) -> Written:
    """`model.safetensors.index.json` over shards by file name, as transformers writes it."""
    weight_map = {tensor.name: shard for shard, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.bytes for tensors in shards.values() for tensor in tensors)
    if len(weight_map) != sum(map(len, shards.values())):
        raise Unfit(f"{path}: a tensor is in two shards")
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    raw = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    with _replacing(path) as file:
        file.write(raw)
    return Written(hashlib.sha256(raw).hexdigest(), len(raw))


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place, durably, if the block ends well, and is gone if it doesn't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
