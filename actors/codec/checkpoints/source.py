"""What a calibration or a sweep works on: the tensors of a checkpoint, or one matrix of vectors, opened by number.

The worker process opens one anew for each step; headers alone are read until a matrix is asked for.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.codec.checkpoints.architecture import Architecture, parse_architecture
from actors.codec.core import Route, route_checkpoint
from actors.tensors import stored
from actors.tensors.checkpoint import Checkpoint, open_checkpoint
from actors.tensors.header import CheckpointError
from actors.tensors.identity import stored_sha256
from actors.tensors.stored import StoredTensor
from schemas.codec import Override
from schemas.names import Sha256

COLUMN_SUFFIX = ".npy"
CONFIG = "config.json"


class Item(msgspec.Struct, frozen=True):
    """One tensor: where it lies and what becomes of it; or why it can't be used."""

    number: int
    name: str
    shard: str
    route: Route | None  # None: with a problem
    problem: str = ""
    stored: StoredTensor | None = None  # of a checkpoint
    vectors: Path | None = None  # of a column: an .npy file of (n, d) float32

    @property
    def dtype(self) -> str:
        return "F32" if self.vectors else self.stored.dtype if self.stored else ""

    def matrix(self, number: int = 0) -> NDArray[np.float32]:
        """(rows, columns) float32, a row being one output unit or one vector. Raises CheckpointError."""
        if self.vectors is not None:
            rows: NDArray[np.float32] = np.load(self.vectors, mmap_mode="r")
            return rows
        if self.stored is None or self.route is None:
            raise CheckpointError(self.shard, self.name, self.problem)
        return stored.read_matrix(self.stored, number, transposed=self.route.transposed)

    def sha256(self) -> Sha256:
        """Of its bytes as they are stored. Raises CheckpointError."""
        if self.vectors is not None:
            digest, rows = hashlib.sha256(), self.matrix()
            step = max(1, stored.CHUNK_BYTES // max(1, 4 * rows.shape[1]))
            for start in range(0, len(rows), step):
                digest.update(np.ascontiguousarray(rows[start : start + step]).data)
            return digest.hexdigest()
        if self.stored is None:
            raise CheckpointError(self.shard, self.name, self.problem)
        return stored_sha256(self.stored)


class Source(msgspec.Struct, frozen=True):
    items: tuple[Item, ...]  # by number
    folder: Path
    architecture: Architecture | None  # None: there is no config.json
    metadata: dict[str, str] = {}  # of the safetensors files
    notes: tuple[str, ...] = ()  # what is odd about a file and harms no tensor


def open_source(path: Path, overrides: Sequence[Override] = ()) -> Source:
    """path: a safetensors file, an index, a folder with either, or an .npy of vectors. Raises CheckpointError where
    no tensors can be told, CodecError for an override that can't be done or decides nothing, ConfigError."""
    if path.name.endswith(COLUMN_SUFFIX):
        return _column(path)
    checkpoint = open_checkpoint(path)
    folder = path if path.is_dir() else path.parent
    architecture = _architecture(folder)
    return Source(_items(checkpoint, overrides, architecture), folder, architecture, dict(checkpoint.metadata),
                  tuple(f"{p.file}: {p.message}" for p in checkpoint.problems if p.tensor is None))  # fmt: skip


def _architecture(folder: Path) -> Architecture | None:
    config = folder / CONFIG
    return parse_architecture(config.read_bytes(), str(config)) if config.is_file() else None


def _items(
    checkpoint: Checkpoint, overrides: Sequence[Override], architecture: Architecture | None
) -> tuple[Item, ...]:
    tensors = list(checkpoint.tensors.values())
    model_type = architecture.model_type if architecture else None
    routes = route_checkpoint(((t.name, t.shape, t.dtype) for t in tensors), overrides, model_type)
    items = [
        Item(number, tensor.name, tensor.file.name, route, stored=tensor)
        for number, (tensor, route) in enumerate(zip(tensors, routes, strict=True))
    ]
    broken = [problem for problem in checkpoint.problems if problem.tensor is not None]
    items += [
        Item(len(items) + place, str(problem.tensor), Path(problem.file).name, None, problem.message)
        for place, problem in enumerate(broken)
    ]
    return tuple(items)


def _column(path: Path) -> Source:
    shape = np.load(path, mmap_mode="r").shape
    route = Route(
        name="vectors", shape=shape, kind="quantise", rule="column", reason="a column of vectors",
        matrices=1, rows=shape[0], columns=shape[1],
    )  # fmt: skip
    return Source((Item(0, "vectors", path.name, route, vectors=path),), path.parent, None)
