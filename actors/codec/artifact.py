"""An artifact as a local folder: how a quantised tensor's file is laid out, the manifest, and what is read back of it.

    manifest.json               what was done to every tensor (schemas.codec.Manifest)
    tensors/000012.safetensors  a copied tensor under its own name; of a quantised one, for each matrix m, the family's
                                arrays as `m.state.<name>` and `m.codes.<name>`
    extra/…                     what a loader needs beside the tensors; of a column, the numbers of its rows

Written by calibration, uploaded by the shell; `restore` makes a checkpoint of it again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.codec.base import ENCODER, Arrays, CodecError
from actors.codec.families import rabitq, rotated
from actors.codec.family import FAMILIES
from actors.codec.versions import versions
from actors.tensors.checkpoint import Checkpoint, open_checkpoint
from actors.tensors.header import CheckpointError
from actors.tensors.identity import content_sha256
from actors.tensors.shard_writer import Written, write_arrays
from actors.tensors.stored import read_array
from schemas.codec import ArtifactName, CodecParams, CodecTarget, Family, Manifest, Override, StoredFile, TensorRow

MANIFEST = "manifest.json"
EXTRA = "extra"
CHUNK_FLOATS = 1 << 22
"""Decoded at a time: 16 MiB."""

BESIDE = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "preprocessor_config.json", "*.model", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/config.json",
)  # fmt: skip
"""What loaders look for beside the tensors."""

MOST_EXTRA = 64 << 20
"""Bytes of such a file; a larger one is no tokenizer."""


# --- written ------------------------------------------------------------------------------------


def write_matrices(path: Path, matrices: Sequence[tuple[Arrays, Arrays]]) -> Written:
    """(state, codes) of each matrix of a tensor. What is needed to encode only isn't kept."""
    kept: dict[str, NDArray[np.generic]] = {}
    for number, (state, codes) in enumerate(matrices):
        kept |= {f"{number}.state.{name}": array for name, array in state.items() if not name.startswith(ENCODER)}
        kept |= {f"{number}.codes.{name}": array for name, array in codes.items()}
    return write_arrays(path, kept)


def extra_files(folder: Path) -> list[Path]:
    """What goes along from a checkpoint's folder."""
    found = {path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.stat().st_size <= MOST_EXTRA)


def manifest_of(
    *,
    artifact: ArtifactName,
    target: CodecTarget,
    params: CodecParams,
    overrides: Sequence[Override],
    rows: Sequence[TensorRow],
    extra: Sequence[StoredFile],
    dataset_version: int | None = None,
) -> Manifest:
    quantised = [row for row in rows if row.charge is not None]
    weights = sum(_elements(row) for row in quantised)
    copied = [row for row in rows if row.charge is None and row.bits_per_weight is not None]
    bits = sum(8 * row.charge.total for row in quantised if row.charge)
    all_bits = bits + sum((row.bits_per_weight or 0) * _elements(row) for row in copied)
    everything = weights + sum(map(_elements, copied))
    return Manifest(
        artifact=artifact,
        target=target,
        target_sha256=content_sha256((row.name, row.dtype, row.shape, row.sha256) for row in rows),
        params=params,
        overrides=list(overrides),
        tensors=list(rows),
        extra=list(extra),
        bits_per_weight=bits / weights if weights else 0.0,
        total_bits_per_weight=all_bits / everything if everything else 0.0,
        dataset_version=dataset_version,
        rows=rows[0].shape[0] if dataset_version is not None else None,
        versions=versions(),
    )


def _elements(row: TensorRow) -> int:
    return int(np.prod(row.shape, dtype=np.int64))


# --- read back ----------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Raises CodecError for a folder that has none, or one that can't be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise CodecError(f"{folder}: no {MANIFEST}: no artifact, or one that isn't whole") from None
    except msgspec.DecodeError as error:
        raise CodecError(f"{folder / MANIFEST}: {error}") from None


def tensor_file(folder: Path, row: TensorRow) -> Path:
    """The file of a tensor, checked. Raises CheckpointError for one that isn't there or isn't what was written."""
    if row.file is None:
        raise CheckpointError(row.shard, row.name, row.problem or "the artifact has no file of it")
    path = folder / row.file.key
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(row.file.key, row.name, f"can't be read: {error.strerror}") from None
    if digest != row.file.sha256:
        raise CheckpointError(row.file.key, row.name, "fails its checksum: restore the artifact, or calibrate again")
    return path


def decoded_rows(folder: Path, row: TensorRow, matrix: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, (k, columns) float32) of a quantised tensor's matrix, in chunks; rows are output units."""
    if row.params is None:
        raise CodecError(f"{row.name} isn't quantised: {row.reason}")
    state, codes = arrays_of(open_checkpoint(tensor_file(folder, row)), matrix)
    yield from decoded(state, codes, row.params)


def arrays_of(file: Checkpoint, matrix: int) -> tuple[Arrays, Arrays]:
    """State and codes of a matrix, as its family left them."""
    parts: dict[str, dict[str, NDArray[np.generic]]] = {"state": {}, "codes": {}}
    for name, tensor in file.tensors.items():
        number, part, key = name.split(".", 2)
        if int(number) == matrix:
            parts[part][key] = read_array(tensor)
    return parts["state"], parts["codes"]


def decoded(state: Arrays, codes: Arrays, params: CodecParams) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Rows in chunks: no family's decoding of a row depends on the others."""
    family = FAMILIES[params.family]
    rows = len(next(iter(codes.values())))
    step = max(1, CHUNK_FLOATS // max(1, _columns(family.decode(state, sliced(codes, 0, 1), params))))
    for first in range(0, rows, step):
        yield first, family.decode(state, sliced(codes, first, first + step), params)


def sliced(codes: Arrays, first: int, stop: int) -> Mapping[str, NDArray[np.generic]]:
    return {name: array[first:stop] for name, array in codes.items()}


def _columns(row: NDArray[np.float32]) -> int:
    return int(row.shape[1])


class Quick(Protocol):
    """A family whose inner products take less than decoding."""

    def turn(self, state: Arrays, queries: NDArray[np.float32], params: CodecParams) -> NDArray[np.float32]: ...

    def products(
        self, state: Arrays, codes: Arrays, params: CodecParams, turned: NDArray[np.float32]
    ) -> NDArray[np.float32]: ...


QUICK: Mapping[Family, Quick] = {"rotated": rotated, "rabitq": rabitq}


class CodedColumn:
    """A column's vectors as codes in memory."""

    def __init__(self, params: CodecParams, state: Arrays, codes: Arrays) -> None:
        self.params = params
        self.state = state
        self.codes = codes
        self._family = FAMILIES[params.family]
        self._quick = QUICK.get(params.family)
        self.columns = _columns(self.decode(0, 1))

    @property
    def rows(self) -> int:
        return len(next(iter(self.codes.values())))

    @property
    def bytes(self) -> int:
        """Codes, codebooks, scales and a rotation."""
        return sum(array.nbytes for array in (*self.state.values(), *self.codes.values()))

    def decode(self, first: int, stop: int) -> NDArray[np.float32]:
        return self._family.decode(self.state, sliced(self.codes, first, stop), self.params)

    def encode(self, vectors: NDArray[np.float32]) -> Arrays:
        """Codes of other vectors (n, columns), by what was learnt from the column's. Raises CodecError."""
        return self._family.encode(self.state, vectors, self.params)

    def turn(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """(q, columns) as `products` takes them, which may be of another width."""
        return self._quick.turn(self.state, queries, self.params) if self._quick else queries

    def products(self, turned: NDArray[np.float32], codes: Arrays) -> NDArray[np.float32]:
        """(q, n) inner products of queries with decoded rows."""
        if self._quick:
            return self._quick.products(self.state, codes, self.params, turned)
        products: NDArray[np.float32] = turned @ self._family.decode(self.state, codes, self.params).T
        return products

    def squares(self, codes: Arrays) -> NDArray[np.float32]:
        """(n,) squared lengths of decoded rows."""
        rows = self._family.decode(self.state, codes, self.params)
        squares: NDArray[np.float32] = np.einsum("nd,nd->n", rows, rows)
        return squares


def open_column(folder: Path) -> CodedColumn:
    """Raises CodecError."""
    manifest = read_manifest(folder)
    row = manifest.tensors[0]
    if manifest.dataset_version is None or row.params is None:
        raise CodecError(f"artifact {manifest.artifact!r} is of a checkpoint, not of a column's vectors")
    return CodedColumn(row.params, *arrays_of(open_checkpoint(tensor_file(folder, row)), 0))
