"""An index's vectors at a dataset version as two files that any process can map, in

    <cache>/snapshots/<index>/<identity>-<version>/{rows,vectors}.npy

where the identity stands for the index as it was made, so that one made anew under the same name
finds no old files. A row's vector never changes, so a snapshot takes what it can from the one
before and reads only the rows that came since. Old ones go when new ones come, unless someone
holds them: then they go when they are let go. Everything here can be made again from the tables.
"""

import contextlib
import hashlib
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from actors.errors import CorruptState
from actors.index.artifacts import vectors_table
from actors.ports import ROW, Registry, Snapshot, TableRef, Tables
from daemon.storage import durable, snapshot_files
from daemon.storage.data_files import is_member
from daemon.storage.snapshot_files import SnapshotWriter
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.names import IndexName

KEEP = 2


class TableSnapshots:
    """The port `Snapshots`. One process has the cache to itself."""

    def __init__(self, tables: Tables, registry: Registry, cache: Path) -> None:
        self._tables = tables
        self._registry = registry
        self._folder = cache / "snapshots"
        self._locks: defaultdict[IndexName, anyio.Lock] = defaultdict(anyio.Lock)
        self._made: dict[Path, Snapshot] = {}
        self._holders: Counter[Path] = Counter()
        self._doomed: set[Path] = set()  # held, and to be removed when nobody holds them
        self._swept: set[IndexName] = set()

    @contextlib.asynccontextmanager
    async def held(self, index: IndexName, version: int | None = None) -> AsyncIterator[Snapshot]:
        async with self._locks[index]:
            snapshot = await self._get(index, version)
            folder = snapshot.rows_path.parent
            self._holders[folder] += 1
        try:
            yield snapshot
        finally:
            self._holders[folder] -= 1
            if folder in self._doomed:
                with anyio.CancelScope(shield=True):
                    await self._remove([folder])

    async def snapshot(self, index: IndexName, version: int | None = None) -> Snapshot:
        """As `held`, for those who open the files before anything newer is made."""
        async with self._locks[index]:  # callers of the same snapshot share one build
            return await self._get(index, version)

    async def _get(self, index: IndexName, version: int | None) -> Snapshot:
        if index not in self._swept:  # what a killed process left
            await self._prune(self._folder / index)
            self._swept.add(index)
        while True:
            document, dataset = await self._documents(index)
            try:
                return await self._of(document, dataset, version)
            except FileNotFoundError:
                if await self._documents(index) == (document, dataset):
                    raise
                # one of the two was moved while it was read

    async def _of(self, document: IndexDocument, dataset: DatasetDocument, version: int | None) -> Snapshot:
        index, covered = document.index, await self._covered(document, dataset)
        version = covered if version is None else version
        if version < 0 or version > covered:
            raise FileNotFoundError(
                f"index {index}: its vectors cover dataset {document.dataset} up to version {covered}, not {version}"
            )
        folder = self._folder / index / f"{_identity(document, dataset)}-{version:010d}"
        if folder not in self._made or not folder.is_dir():
            made = await anyio.to_thread.run_sync(_describe, folder, version) if folder.is_dir() else None
            if made is None:
                await self._remove([folder])
                await self._build(document, dataset, version, folder)
                made = await anyio.to_thread.run_sync(_describe, folder, version)
            if made is None:
                raise CorruptState(f"the snapshot {folder} can't be read right after it was written; check the disk")
            self._made[folder] = made
        return self._made[folder]

    async def covered(self, index: IndexName) -> int:
        return await self._covered(*await self._documents(index))

    async def forget(self, index: IndexName) -> None:
        async with self._locks[index]:
            await self._remove(_entries(self._folder / index))
            with contextlib.suppress(OSError):  # not there, or not empty: some are held
                (self._folder / index).rmdir()

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
        files = SnapshotWriter(folder, document.metric, document.dim)
        try:
            todo = await anyio.to_thread.run_sync(files.start, keys, self._before(folder))
            size = max(1, snapshot_files.CHUNK_BYTES // (4 * document.dim))
            for start in range(0, len(todo), size):
                places = todo[start : start + size]  # ascending in `keys`
                wanted = np.sort(numbers[places])
                read = await self._tables.read(source, [column], version=at, rows=wanted)
                order = places[np.argsort(numbers[places], kind="stable")]
                await anyio.to_thread.run_sync(files.fill, order, read.column(column))
            await anyio.to_thread.run_sync(files.finish)
        finally:
            files.discard()
        await self._prune(folder.parent, folder)

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

    async def _prune(self, folder: Path, made: Path | None = None) -> None:
        """Keep the newest of an index, and `made` in any case."""
        entries = _entries(folder)
        whole = [path for path in entries if not path.name.startswith(durable.TEMPORARY)]
        newest = sorted(whole, key=lambda path: (path == made, path.stat().st_mtime), reverse=True)
        await self._remove([path for path in entries if path not in newest[:KEEP]])

    async def _remove(self, folders: Iterable[Path]) -> None:
        """Remove snapshots of one index; one that is held goes when it is let go. Renamed first,
        at one stroke: nobody is given a snapshot of which half is gone."""
        going = []
        for folder in folders:
            if self._holders[folder] > 0:
                self._doomed.add(folder)
                continue
            self._doomed.discard(folder)
            self._made.pop(folder, None)
            with contextlib.suppress(FileNotFoundError):  # a removal under way was quicker
                going.append(folder.rename(folder.parent / f"{durable.TEMPORARY}{uuid.uuid4().hex}"))
        self._holders = +self._holders  # without those that are 0
        for path in going:
            await anyio.to_thread.run_sync(shutil.rmtree, path, True)


def _newest_per_key(numbers: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of several rows with one key the last: numbers and keys, keys ascending."""
    unique, last = np.unique(keys[::-1], return_index=True)
    return numbers[::-1][last], unique


def _identity(document: IndexDocument, dataset: DatasetDocument) -> str:
    parts = (document.created, document.column, document.metric, document.dim, dataset.created, dataset.path)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _describe(folder: Path, version: int) -> Snapshot | None:
    """None when the files aren't a snapshot: torn by a power cut, say. A cache is made again."""
    try:
        rows = np.load(folder / "rows.npy")
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if vectors.ndim != 2 or rows.shape != vectors.shape[:1]:
        return None
    return Snapshot(version, vectors.shape[0], vectors.shape[1], folder / "rows.npy", folder / "vectors.npy")


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
