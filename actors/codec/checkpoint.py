"""A checkpoint of one or many safetensors files, read a few rows at a time.

`open_checkpoint` reads headers alone and sorts tensors into those that can be read and problems that name file and
tensor. Values are read by pread, not through a map: pages of a map count as this process's memory, and a file that
shrinks under one kills it with SIGBUS.
"""

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.codec.dtypes import BITS, NUMPY, READABLE, to_float32
from actors.codec.header import LENGTH_BYTES, CheckpointError, Header, header_bytes, parse_header

INDEX_SUFFIX = ".safetensors.index.json"
CHUNK_BYTES = 16 << 20
"""Of float32 rows, or of copied bytes, in memory at once."""


class StoredTensor(msgspec.Struct, frozen=True):
    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes, from the start of the file
    bytes: int

    @property
    def columns(self) -> int:
        """Length of the last axis: a row in the file."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows of all matrices together: those of expert e are rows e·n to (e + 1)·n."""
        return prod(self.shape[:-1])


class Problem(msgspec.Struct, frozen=True):
    """What can't be used, and why. tensor None: said of the file, and harms no tensor."""

    file: str
    tensor: str | None
    message: str


class Checkpoint(msgspec.Struct, frozen=True):
    tensors: Mapping[str, StoredTensor]  # by shard, then in the order of their data
    problems: tuple[Problem, ...]
    metadata: Mapping[str, str]  # of all shards together

    def tensor(self, name: str) -> StoredTensor:
        """Raises CheckpointError with the reason where it can't be used."""
        if name in self.tensors:
            return self.tensors[name]
        for problem in self.problems:
            if problem.tensor == name:
                raise CheckpointError(problem.file, name, problem.message)
        raise CheckpointError("checkpoint", name, f"no such tensor among {len(self.tensors)}")


def open_checkpoint(path: Path) -> Checkpoint:
    """path: a safetensors file, an index, or a directory with either. Raises CheckpointError where not even the
    names of its tensors can be told."""
    target = _locate(path)
    if not target.name.endswith(INDEX_SUFFIX):
        header, start = _read_header(target)
        found = {entry.name: entry for entry in _stored(header, start, target)}
        return Checkpoint(found, tuple(_problems(header, target)), header.metadata)
    return _open_sharded(target)


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    for preferred in ("model" + INDEX_SUFFIX, "model.safetensors"):
        if (path / preferred).exists():
            return path / preferred
    for pattern in ("*" + INDEX_SUFFIX, "*.safetensors"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:4])
            raise CheckpointError(str(path), None, f"{len(found)} files, {names} …, and no index; name one")
    raise CheckpointError(str(path), None, "no *.safetensors file in it")


def _read_header(file: Path) -> tuple[Header, int]:
    """The header and where the data starts."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = header_bytes(opened.read(LENGTH_BYTES), size, str(file))
            raw = opened.read(length)
    except FileNotFoundError:
        raise CheckpointError(str(file), None, "missing shard: there is no such file") from None
    except OSError as error:
        raise CheckpointError(str(file), None, f"can't be read: {error.strerror}") from None
    start = LENGTH_BYTES + length
    return parse_header(raw, size - start, str(file)), start


def _stored(header: Header, start: int, file: Path) -> Iterator[StoredTensor]:
    for entry in header.entries:
        yield StoredTensor(entry.name, file, entry.dtype, entry.shape, start + entry.begin, entry.end - entry.begin)


def _problems(header: Header, file: Path) -> Iterator[Problem]:
    if header.file_problem is not None:
        yield Problem(str(file), None, header.file_problem)
    for name, message in header.problems.items():
        yield Problem(str(file), name, message)


def _open_sharded(index: Path) -> Checkpoint:
    """A tensor is taken from the shard that the index names; one that the index doesn't know from where it is."""
    shards = _read_index(index)
    owner = {name: shard for shard, names in shards.items() for name in names}
    tensors: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    metadata: dict[str, str] = {}
    for shard, names in sorted(shards.items()):
        file = index.parent / shard
        if shard in ("", "..") or "\0" in shard or Path(shard).name != shard:
            problems += [
                Problem(str(index), name, f"its shard {shard!r} isn't in the index's folder") for name in names
            ]
            continue
        try:
            header, start = _read_header(file)
        except CheckpointError as error:
            problems += [Problem(str(file), name, error.problem) for name in names]
            continue
        metadata |= header.metadata
        problems += _problems(header, file)
        for tensor in _stored(header, start, file):
            if owner.get(tensor.name, shard) != shard:
                problems.append(Problem(str(file), None, f"{tensor.name} is here too; taken from {owner[tensor.name]}"))
            elif tensor.name in tensors:
                problems.append(Problem(str(file), None, f"{tensor.name} is here too, and the index doesn't tell"))
            else:
                tensors[tensor.name] = tensor
        absent = names - {entry.name for entry in header.entries} - set(header.problems)
        problems += [Problem(str(file), name, "the index has it here, the shard doesn't") for name in sorted(absent)]
    return Checkpoint(tensors, tuple(problems), metadata)


def _read_index(index: Path) -> dict[str, set[str]]:
    """Shard -> names of its tensors."""
    try:
        decoded = msgspec.json.decode(index.read_bytes(), type=_Index)
    except OSError as error:
        raise CheckpointError(str(index), None, f"can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(str(index), None, f"malformed index: {error}") from None
    shards: dict[str, set[str]] = {}
    for name, shard in decoded.weight_map.items():
        shards.setdefault(shard, set()).add(name)
    return shards


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def byte_chunks(tensor: StoredTensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytearray]:
    """The stored bytes, for a copy of any dtype."""
    with tensor.file.open("rb") as file:
        for start in range(0, tensor.bytes, chunk_bytes):
            yield _pread(file, tensor, start, min(chunk_bytes, tensor.bytes - start))


def row_chunks(
    tensor: StoredTensor, first: int = 0, stop: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(row, (k, columns) float32) for rows first to stop in turn. Raises CheckpointError for a dtype that isn't read
    as numbers and at the first NaN or infinite value."""
    if tensor.dtype not in READABLE:
        raise CheckpointError(str(tensor.file), tensor.name, f"unsupported dtype {tensor.dtype}; it can only be copied")
    stop = tensor.rows if stop is None else stop
    if not 0 <= first <= stop <= tensor.rows:
        raise CheckpointError(str(tensor.file), tensor.name, f"rows {first} to {stop} of {tensor.rows}")
    row_bytes = tensor.columns * BITS[tensor.dtype] // 8
    at_once = max(1, chunk_bytes // max(1, 4 * tensor.columns))
    with tensor.file.open("rb") as file:
        for row in range(first, stop, at_once):
            count = min(at_once, stop - row)
            raw = _pread(file, tensor, row * row_bytes, count * row_bytes)
            values = to_float32(raw, tensor.dtype).reshape(count, tensor.columns)
            _refuse_non_finite(values, row, tensor)
            yield row, values


def read_matrix(tensor: StoredTensor, number: int = 0, *, transposed: bool = False) -> NDArray[np.float32]:
    """(rows, columns) float32 of one matrix, of expert `number` where there are several; `transposed` as the route
    says. Takes the matrix once, and a chunk."""
    per_matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    shape = (tensor.columns, per_matrix) if transposed else (per_matrix, tensor.columns)
    matrix = np.empty(shape, np.float32)
    stored = matrix.T if transposed else matrix
    begin = number * per_matrix
    for row, values in row_chunks(tensor, begin, begin + per_matrix):
        stored[row - begin : row - begin + len(values)] = values
    return matrix


def read_array(tensor: StoredTensor) -> NDArray[np.generic]:
    """A whole tensor as it is stored, in numpy's type: codes, scales and codebooks of an artifact."""
    if tensor.dtype not in NUMPY:
        raise CheckpointError(str(tensor.file), tensor.name, f"numpy has no {tensor.dtype}")
    with tensor.file.open("rb") as file:
        return np.frombuffer(_pread(file, tensor, 0, tensor.bytes), NUMPY[tensor.dtype]).reshape(tensor.shape)


def _pread(file: BinaryIO, tensor: StoredTensor, start: int, count: int) -> bytearray:
    raw = bytearray(count)
    view = memoryview(raw)
    done = 0
    while done < count:
        read = os.preadv(file.fileno(), [view[done:]], tensor.offset + start + done)
        if read == 0:
            raise CheckpointError(str(tensor.file), tensor.name, "truncated since it was opened")
        done += read
    return raw


def _refuse_non_finite(values: NDArray[np.float32], row: int, tensor: StoredTensor) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    at, column = np.argwhere(~finite)[0]
    what = "NaN" if np.isnan(values[at, column]) else "infinite"
    if tensor.dtype == "F64" and what == "infinite":
        what = "infinite as float32"
    count = np.count_nonzero(~finite)
    problem = f"row {row + at}, column {column} is {what}; {count} such in rows {row} to {row + len(values)}"
    raise CheckpointError(str(tensor.file), tensor.name, problem)
