"""An adapter directory in PEFT's format on this machine: its configuration and where its factors lie. Headers alone are
read until rows are asked for."""

import hashlib
from collections.abc import Iterator, Mapping
from errno import EFBIG
from pathlib import Path

import msgspec
import numpy as np

from actors.gate.core_lora import F32, Lora, Module, Unmergeable, check_together, modules_of, read_config
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.dtypes import READABLE
from actors.tensors.stored import CHUNK_BYTES, StoredTensor, row_chunks
from schemas.names import AdapterName

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MOST_SMALL = 16 << 20  # bytes
FLOATS = READABLE & {"F16", "BF16", "F32", "F64"}


class SourceAdapter(msgspec.Struct, frozen=True):
    name: AdapterName
    folder: Path
    lora: Lora
    modules: Mapping[str, Module]
    tensors: Mapping[str, StoredTensor]

    def b_rows(self, module: str, first: int, stop: int) -> F32:
        """(stop - first, r) rows of B."""
        tensor = self.tensors[self.modules[module].b]
        found = np.empty((stop - first, self.modules[module].rank), np.float32)
        for row, values in row_chunks(tensor, first, stop):
            found[row - first : row - first + len(values)] = values
        return found

    def a_chunks(self, module: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[F32]:
        """Rows of A in turn, (k, in) each."""
        for _, values in row_chunks(self.tensors[self.modules[module].a], chunk_bytes=chunk_bytes):
            yield values


def open_adapter(name: AdapterName, folder: Path) -> SourceAdapter:
    """Raises Unmergeable with the reason, CheckpointError for a file that can't be read."""
    who = f"adapter {name}"
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not weights.is_file():
        old = (folder / "adapter_model.bin").is_file()
        hint = "; adapter_model.bin is a pickle, which isn't read: save it as safetensors" if old else ""
        raise Unmergeable(f"{who}: {folder} has no {WEIGHTS}{hint}")
    if not config.is_file():
        raise Unmergeable(f"{who}: {folder} has no {CONFIG}")
    lora = read_config(read_small(config), who)
    checkpoint = open_checkpoint(weights)
    for problem in checkpoint.problems:
        if problem.tensor is not None:
            raise Unmergeable(f"{who}: {problem.tensor}: {problem.message}")
    for tensor in checkpoint.tensors.values():
        if tensor.dtype not in FLOATS:
            raise Unmergeable(f"{who}: {tensor.name} is quantised ({tensor.dtype}); its factors have to be floats")
    modules = modules_of({name: tensor.shape for name, tensor in checkpoint.tensors.items()}, lora, who)
    return SourceAdapter(name, folder, lora, modules, dict(checkpoint.tensors))


def open_adapters(folders: Mapping[AdapterName, Path]) -> list[SourceAdapter]:
    """Those that are of one base. Raises Unmergeable."""
    adapters = [open_adapter(name, folder) for name, folder in folders.items()]
    check_together({adapter.name: (adapter.lora, adapter.modules) for adapter in adapters})
    return adapters


def opened_job(folders: Mapping[AdapterName, Path]) -> Iterator[list[str]]:
    """The bases that adapters which can be merged name; headers may have 100 MB. Raises Unmergeable."""
    yield [adapter.lora.base for adapter in open_adapters(folders)]


def read_small(path: Path) -> bytes:
    """A configuration or a manifest. Raises OSError, also for one that has grown beyond what such a file is."""
    with path.open("rb") as file:
        raw = file.read(MOST_SMALL + 1)
    if len(raw) > MOST_SMALL:
        raise OSError(EFBIG, f"more than {MOST_SMALL >> 20} MiB, which is too much for such a file", str(path))
    return raw


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
