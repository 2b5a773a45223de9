"""One tensor in a safetensors file, read a few rows at a time.

By pread and not through a map: pages of a map count as this process's memory, and a file that shrinks under one kills
it with SIGBUS, daemon and all.
"""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.tensors.dtypes import BITS, NUMPY, READABLE, to_float32
from actors.tensors.header import CheckpointError

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


def byte_chunks(tensor: StoredTensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytearray]:
    """The stored bytes, for a copy of any dtype."""
    with _open(tensor) as file:
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
    with _open(tensor) as file:
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
    with _open(tensor) as file:
        return np.frombuffer(_pread(file, tensor, 0, tensor.bytes), NUMPY[tensor.dtype]).reshape(tensor.shape)


def _open(tensor: StoredTensor) -> BinaryIO:
    try:
        return tensor.file.open("rb")
    except OSError as error:
        raise CheckpointError(str(tensor.file), tensor.name, f"can't be read: {error.strerror}") from None


def _pread(file: BinaryIO, tensor: StoredTensor, start: int, count: int) -> bytearray:
    raw = bytearray(count)
    view = memoryview(raw)
    done = 0
    while done < count:
        try:
            read = os.preadv(file.fileno(), [view[done:]], tensor.offset + start + done)
        except OSError as error:
            raise CheckpointError(str(tensor.file), tensor.name, f"can't be read: {error.strerror}") from None
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
