"""From what a request names to local files that a job in the worker process can open: a checkpoint's folder, a
column's vectors, a text."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import numpy as np
import pyarrow as pa

from actors.codec.base import CodecError
from actors.codec.store import link_tree
from actors.ports import ROW, Buckets, Registry, Snapshots, TableRef, Tables
from actors.roots import OutsideRoots, real_path
from schemas.codec import Checkpoint, CodecTarget, VectorColumn
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.base import Refusal, RefusalStatus
from schemas.names import Metric

BUCKET = "bucket://"
SETTING = "codec.allowed_roots"


class NoTarget(Exception):
    """What a request names can't be had; it is refused with this reason and hint, before or while it is worked on."""

    def __init__(self, reason: str, hint: str = "", status: RefusalStatus = "invalid") -> None:
        super().__init__(reason)
        self.refusal = Refusal(status, reason, hint)


class Local(msgspec.Struct, frozen=True):
    """A target on this machine, for `actors.codec.checkpoints.source.open_source`."""

    path: Path
    version: int | None = None  # of a column's dataset
    metric: Metric | None = None  # of the index over the column; None: there is none
    rows: Path | None = None  # (n,) int64 row numbers of a column's vectors


class Targets:
    def __init__(
        self,
        buckets: Buckets,
        registry: Registry,
        tables: Tables,
        snapshots: Snapshots,
        cache: Path,
        roots: Sequence[str],
    ) -> None:
        self._buckets = buckets
        self._registry = registry
        self._tables = tables
        self._snapshots = snapshots
        self._cache = cache
        self._roots = roots

    @asynccontextmanager
    async def held(self, target: CodecTarget, version: int | None = None) -> AsyncIterator[Local]:
        """The target while it is worked on; a column at `version`, or as it is now. Raises NoTarget."""
        if isinstance(target, Checkpoint):
            yield Local(await self.path(target.path, "folder or file"))
            return
        index = await self._index(target)
        if index is None:
            yield await self._column(target, version)
            return
        try:
            async with self._snapshots.held(index.index, version) as snapshot:
                if snapshot.rows == 0:
                    raise NoTarget(f"index {index.index!r} has no rows yet", "wait until it is ready", "unavailable")
                yield Local(snapshot.vectors_path, snapshot.version, index.metric, snapshot.rows_path)
        except FileNotFoundError as error:
            raise NoTarget(f"the vectors of index {index.index!r} can't be had: {error}", "", "unavailable") from error

    async def path(self, path: str, what: str) -> Path:
        """A file or folder under the allowed roots, or of a bucket; a file, where `what` says so. Raises NoTarget."""
        found = await self._objects(path) if path.startswith(BUCKET) else self._below_roots(path, what)
        if what == "file" and found.is_dir():
            raise NoTarget(f"{path} is a folder, and a file is needed", "name a file in it")
        return found

    def _below_roots(self, path: str, what: str) -> Path:
        try:
            real = real_path(path, self._roots, SETTING)
        except OutsideRoots as error:
            hint = f"{error.hint}, or put it into a bucket and name bucket://NAME/PREFIX"
            raise NoTarget(error.reason, hint if error.status == "forbidden" else error.hint, error.status) from None
        if not _exists(real, path):
            hint = "the path is looked up on the machine that does the work"
            raise NoTarget(f"{path}: there is no such {what}", hint, "not_found")
        if not real.is_file() and not real.is_dir():  # opening a pipe would wait for its writer
            raise NoTarget(f"{path} is neither a file nor a folder", f"name a {what}")
        return real

    def new_folder(self, path: str) -> Path:
        """A folder under the allowed roots that isn't there yet. Raises NoTarget."""
        try:
            real = real_path(path, self._roots, SETTING)
        except OutsideRoots as error:
            raise NoTarget(error.reason, error.hint, error.status) from None
        if _exists(real, path):
            raise NoTarget(f"{path} is there already", "name a folder that isn't", "conflict")
        return real

    async def _index(self, target: VectorColumn) -> IndexDocument | None:
        """The index whose vectors are meant. Raises NoTarget."""
        dataset = await self._registry.load(DatasetDocument, target.dataset)
        if dataset is None:
            raise NoTarget(f"there is no dataset {target.dataset!r}", "lakehouse datasets lists them", "not_found")
        over = [
            document
            for _, document, _ in await self._registry.all(IndexDocument)
            if (document.dataset, document.column) == (target.dataset, target.column)
        ]
        if target.index is not None:
            named = [document for document in over if document.index == target.index]
            if not named:
                others = ", ".join(document.index for document in over) or "none"
                raise NoTarget(
                    f"index {target.index!r} isn't over {target.dataset}.{target.column}",
                    f"indexes over it: {others}",
                    "not_found",
                )
            return named[0]
        if len(over) > 1:
            names = ", ".join(document.index for document in over)
            raise NoTarget(
                f"{target.dataset}.{target.column} has several indexes: {names}",
                f"say which: {target.dataset}.{target.column}@INDEX, or `index`",
            )
        return over[0] if over else None

    async def _column(self, target: VectorColumn, version: int | None) -> Local:
        """A vector column without an index, written out as the jobs read it."""
        found = await self._registry.load(DatasetDocument, target.dataset)
        assert found is not None  # _index looked
        table = TableRef(found[0].bucket, found[0].path)
        state = await self._tables.state(table, version)
        if state is None or target.column not in state.schema.names:
            has = ", ".join(state.schema.names) if state else "no rows yet"
            raise NoTarget(f"dataset {target.dataset!r} has no column {target.column!r}", f"it has {has}", "not_found")
        kind = state.schema.field(target.column).type
        if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            hint = "create an index over it: its vectors are what a codec is for"
            raise NoTarget(f"{target.dataset}.{target.column} is {kind}, no vectors", hint)
        name = hashlib.sha256(f"{table}\0{target.column}\0{state.version}".encode()).hexdigest()
        place = self._cache / "columns" / name / "vectors.npy"
        if not place.exists():
            rows = await self._tables.read(table, [target.column], version=state.version)
            await anyio.to_thread.run_sync(_write_vectors, rows, target.column, place)
        return Local(place, state.version, None, place.with_name("rows.npy"))

    async def _objects(self, url: str) -> Path:
        """What lies in a bucket under a prefix, as a local folder; one object, as its file."""
        bucket, _, prefix = url.removeprefix(BUCKET).partition("/")
        prefix = prefix.strip("/")
        try:
            keys = await self._buckets.list(bucket, prefix)
            if not keys:
                return await self._buckets.fetch(bucket, prefix)
        except KeyError:
            names = ", ".join(await self._buckets.names())
            raise NoTarget(f"{url}: there is no bucket {bucket!r}", f"there are {names}", "not_found") from None
        except (FileNotFoundError, ValueError):
            raise NoTarget(f"{url}: there is no such object, and none below it", "", "not_found") from None
        files = {key.removeprefix(f"{prefix}/"): await self._buckets.fetch(bucket, key) for key in keys}
        place = self._cache / "inputs" / hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        await anyio.to_thread.run_sync(link_tree, files, place)
        return place


def _exists(real: Path, path: str) -> bool:
    """Raises NoTarget where that can't be told: folders that the daemon may not enter, a name that is too long."""
    try:
        return real.exists()
    except OSError as error:
        raise NoTarget(f"{path} can't be looked up: {error.strerror}") from None


def _write_vectors(table: Any, column: str, place: Path) -> None:
    """vectors.npy (n, d) float32 and rows.npy (n,). Raises NoTarget for vectors of several lengths, or missing ones."""
    values = table.column(column).combine_chunks()
    if values.null_count:
        raise NoTarget(f"column {column!r} has {values.null_count} rows without a vector", "give every row one")
    lengths = np.unique(np.diff(values.offsets.to_numpy())) if hasattr(values, "offsets") else [values.type.list_size]
    if len(lengths) != 1:
        raise NoTarget(f"column {column!r} has vectors of {len(lengths)} lengths: {list(lengths[:5])}", "give one")
    vectors = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, int(lengths[0]))
    if not np.isfinite(vectors).all():
        raise CodecError(f"column {column!r} holds values that aren't finite")
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place.with_name("rows.npy"), table.column(ROW).to_numpy())
    part = place.with_name(".vectors.npy")
    np.save(part, vectors)
    part.replace(place)
