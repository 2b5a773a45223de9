"""An index's vectors at a dataset version as two files that any process can map, in

    <cache>/snapshots/<index>/<identity>-<version>/{rows,vectors}.npy

where the identity stands for the index as it was made, so that one made anew under the same name
finds no old files. A row's vector never changes, so a snapshot takes what it can from the one
before and reads only the rows that came since. Everything here can be made again from the tables.
"""

import hashlib
import os
import shutil
import uuid
from collections import defaultdict
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.ports import ROW, Registry, Snapshot, TableRef, Tables
from daemon.storage import durable
from daemon.storage.data_files import is_member
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.names import IndexName, Metric

KEEP = 2
CHUNK_BYTES = 64 << 20


class TableSnapshots:
    """The port `Snapshots`."""

    def __init__(self, tables: Tables, registry: Registry, cache: Path) -> None:
        self._tables = tables
        self._registry = registry
        self._folder = cache / "snapshots"
        self._locks: defaultdict[IndexName, anyio.Lock] = defaultdict(anyio.Lock)
        self._made: dict[Path, Snapshot] = {}

    async def snapshot(self, index: IndexName, version: int | None = None) -> Snapshot:
        document, dataset = await self._documents(index)
        covered = await self._covered(document, dataset)
        version = covered if version is None else version
        if version < 0 or version > covered:
            raise FileNotFoundError(
                f"index {index}: its vectors cover dataset {document.dataset} up to version {covered}, not {version}"
            )
        folder = self._folder / index / f"{_identity(document, dataset)}-{version:010d}"
        async with self._locks[index]:  # callers of the same snapshot share one build
            if folder not in self._made or not folder.is_dir():
                if not folder.is_dir():
                    await self._build(document, dataset, version, folder)
                self._made[folder] = await anyio.to_thread.run_sync(_describe, folder, version)
        return self._made[folder]

    async def covered(self, index: IndexName) -> int:
        return await self._covered(*await self._documents(index))

    async def forget(self, index: IndexName) -> None:
        async with self._locks[index]:
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(self._folder / index, ignore_errors=True))
            self._made = {folder: made for folder, made in self._made.items() if folder.parent.name != index}

    async def _documents(self, index: IndexName) -> tuple[IndexDocument, DatasetDocument]:
        document = await self._registry.load(IndexDocument, index)
        if document is None:
            raise FileNotFoundError(f"there is no index {index}")
        dataset = await self._registry.load(DatasetDocument, document[0].dataset)
        if dataset is None:
            raise FileNotFoundError(f"there is no dataset {document[0].dataset}, on which index {index} stands")
        return document[0], dataset[0]

    async def _covered(self, document: IndexDocument, dataset: DatasetDocument) -> int:
        if document.embedder.kind == "none":
            state = await self._tables.state(TableRef(dataset.bucket, dataset.path))
            return state.version if state else -1
        newest = await self._tables.history(vectors_table(document), limit=1)
        return int(newest[0].source) if newest else -1

    async def _build(self, document: IndexDocument, dataset: DatasetDocument, version: int, folder: Path) -> None:
        live = (await self._tables.read(TableRef(dataset.bucket, dataset.path), [], version=version)).column(ROW)
        # source: where vectors are; keys: the _row that each of its rows is known by in a snapshot
        if document.embedder.kind == "none":
            source, column, at = TableRef(dataset.bucket, dataset.path), document.column, version
            numbers = keys = live.to_numpy()
        else:
            source, column = vectors_table(document), "vector"
            at = await self._covering(source, version)
            table = await self._tables.read(source, ["source_row"], version=at)
            numbers, keys = _newest_per_key(table.column(ROW).to_numpy(), table.column("source_row").to_numpy())
            keep = is_member(keys, live.to_numpy())
            numbers, keys = numbers[keep], keys[keep]
        files = _Builder(folder, document.metric, document.dim)
        try:
            todo = await anyio.to_thread.run_sync(files.start, keys, self._before(folder))
            size = max(1, CHUNK_BYTES // (4 * document.dim))
            for start in range(0, len(todo), size):
                places = todo[start : start + size]  # ascending in `keys`
                wanted = np.sort(numbers[places])
                read = await self._tables.read(source, [column], version=at, rows=wanted)
                order = places[np.argsort(numbers[places], kind="stable")]
                await anyio.to_thread.run_sync(files.fill, order, read.column(column))
            await anyio.to_thread.run_sync(files.finish)
        finally:
            files.discard()
        await anyio.to_thread.run_sync(self._prune, folder)

    async def _covering(self, vectors: TableRef, version: int) -> int:
        """The version of a vectors table that covers a dataset version most closely: a later one
        may have lost rows that were live then."""
        notes = await self._tables.history(vectors, limit=1000)
        enough = [note for note in notes if int(note.source) >= version]
        return max(enough, key=lambda note: (-int(note.source), note.version)).version

    def _before(self, folder: Path) -> Path | None:
        """The newest snapshot of the same index as it was made, whatever its version."""
        identity = folder.name.split("-")[0]
        return max(folder.parent.glob(f"{identity}-*"), default=None)

    def _prune(self, made: Path) -> None:
        """Keep the newest. Whoever has an old one mapped keeps it: unlinking takes the name only."""
        others = sorted((path for path in made.parent.iterdir() if path != made), key=_modified, reverse=True)
        for path in others[KEEP - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


class _Builder:
    """The two files on their way: written under a temporary name, renamed when whole."""

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
        self._vectors = np.lib.format.open_memmap(
            self._temporary / "vectors.npy", "w+", np.float32, (len(rows), self._dim)
        )
        if before is None or len(rows) == 0:
            return np.arange(len(rows))
        old_rows, old = np.load(before / "rows.npy"), np.load(before / "vectors.npy", mmap_mode="r")
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
        self._vectors = np.lib.format.open_memmap(
            self._temporary / "kept.npy", "w+", np.float32, (len(keep), self._dim)
        )
        self._vectors[:] = whole[keep]
        os.replace(self._temporary / "kept.npy", self._temporary / "vectors.npy")


def vectors_table(document: IndexDocument) -> TableRef:
    """Where the vectors of a text index are: columns source_row (the dataset's _row), vector."""
    return TableRef(document.bucket, f"indexes/{document.index}/vectors")


def _newest_per_key(numbers: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of several rows with one key the last: numbers and keys, keys ascending."""
    unique, last = np.unique(keys[::-1], return_index=True)
    return numbers[::-1][last], unique


def _identity(document: IndexDocument, dataset: DatasetDocument) -> str:
    parts = (document.created, document.column, document.metric, document.dim, dataset.created, dataset.path)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _describe(folder: Path, version: int) -> Snapshot:
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    return Snapshot(version, vectors.shape[0], vectors.shape[1], folder / "rows.npy", folder / "vectors.npy")


def _modified(path: Path) -> float:
    return path.stat().st_mtime
