"""How a snapshot's two files are written: what an older snapshot has is copied, the rest is filled
in as it is read. Which rows and which versions is daemon/storage/snapshots.py.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from daemon.storage import durable
from daemon.storage.data_files import is_member
from schemas.names import Metric

CHUNK_BYTES = 64 << 20
"""Vectors read and copied at a time."""


class SnapshotWriter:
    """A snapshot on its way: written under a temporary name, renamed when whole."""

    def __init__(self, folder: Path, metric: Metric, dim: int) -> None:
        self._folder = folder
        self._temporary = folder.parent / f"{durable.TEMPORARY}{uuid.uuid4().hex}"
        self._metric = metric
        self._dim = dim
        self._missing: list[NDArray[np.int64]] = []  # places whose vector is null

    def start(self, rows: NDArray[np.int64], before: Path | None) -> NDArray[np.int64]:
        """rows: (n,) int64, ascending. Takes over what `before` has; returns the places, (m,)
        ascending, that still need a vector."""
        self._temporary.mkdir(parents=True)
        self._rows = rows
        self._vectors = _mapped(self._temporary / "vectors.npy", len(rows), self._dim)
        if before is None or len(rows) == 0:
            return np.arange(len(rows))
        try:
            old_rows, old = np.load(before / "rows.npy"), np.load(before / "vectors.npy", mmap_mode="r")
        except FileNotFoundError:  # whoever held it let it go meanwhile
            return np.arange(len(rows))
        known = is_member(rows, old_rows)
        places = np.flatnonzero(known)
        for part in np.array_split(places, 1 + len(places) * self._dim * 4 // CHUNK_BYTES):
            self._vectors[part] = old[np.searchsorted(old_rows, rows[part])]
        return np.flatnonzero(~known)

    def fill(self, places: NDArray[np.int64], column: pa.ChunkedArray) -> None:
        """places: (m,), where each of the m vectors of the column belongs."""
        lists = column.combine_chunks()
        if lists.null_count:
            there = lists.is_valid().to_numpy(zero_copy_only=False)
            self._missing.append(places[~there])
            places, lists = places[there], lists.drop_null()
        vectors = lists.flatten().to_numpy().reshape(-1, self._dim)  # (m, d) float32
        if self._metric == "cosine":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(norms == 0, np.float32(1), norms)  # a zero vector stays zero
        self._vectors[places] = vectors

    def finish(self) -> None:
        if self._missing:
            self._leave_out(np.concatenate(self._missing))
        np.save(self._temporary / "rows.npy", self._rows)
        self._vectors.flush()
        del self._vectors
        for name in ("rows.npy", "vectors.npy"):
            durable.sync_file(self._temporary / name)
        durable.sync_directory(self._temporary)
        try:
            os.rename(self._temporary, self._folder)
        except OSError:  # another process made the same
            if not self._folder.is_dir():
                raise

    def discard(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _leave_out(self, places: NDArray[np.int64]) -> None:
        """Rows without a vector have no place in a snapshot."""
        keep = np.setdiff1d(np.arange(len(self._rows)), places)
        whole, self._rows = self._vectors, self._rows[keep]
        self._vectors = _mapped(self._temporary / "kept.npy", len(keep), self._dim)
        self._vectors[:] = whole[keep]
        os.replace(self._temporary / "kept.npy", self._temporary / "vectors.npy")


def _mapped(path: Path, rows: int, dim: int) -> "np.memmap[Any, np.dtype[np.float32]]":
    """A new (rows, dim) file, mapped, with its blocks on the disk: writing into a hole of a full
    disk would be a SIGBUS, which ends the process, where this is an OSError."""
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return mapped
