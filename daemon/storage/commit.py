"""One commit on its way: its rows are staged once, then files are planned and written against
the table's newest version, again if another commit came first. Files that end up in no version
are taken away. Making the version is the log's (table_log.py)."""

from collections.abc import Awaitable, Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from daemon.storage import data_files, plan
from daemon.storage.columns import stored_schema, widened
from daemon.storage.data_files import DataFile
from daemon.storage.delta_log import Version, ordered
from daemon.storage.table_files import TableFiles
from schemas.events.dataset import CommitInfo

T = TypeVar("T")
Thread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Commit:
    def __init__(self, files: TableFiles, remove: NDArray[np.int64], replace: bool) -> None:
        """remove: (n,) int64, ascending. replace: take every row out."""
        self._files = files
        self._remove = remove
        self._replace = replace
        self._staged: list[DataFile] = []
        self._first_row = 0
        self._schema: pa.Schema | None = None
        self._written: list[DataFile] = []  # everything that this commit wrote
        self._published: set[str] = set()
        self._kept: set[str] = set()  # and what of it the table holds now

    def stage(self, before: Version | None, batches: Iterable[pa.RecordBatch], given: pa.Schema | None) -> None:
        """Write the new rows, in a thread. Raises ValueError when they don't fit the table."""
        rest = iter(batches)
        first = next(rest, None)
        declared = given if given is not None else first.schema if first is not None else None
        if before is None or (self._replace and declared is not None):
            if declared is None:
                raise ValueError("a new table without rows needs a schema")
            self._schema = stored_schema(declared)
        else:
            self._schema = before.schema if given is None else widened(before.schema, stored_schema(given))
        self._first_row = before.next_row if before else 0
        self._files.make_folder()
        rows = rest if first is None else chain([first], rest)
        self._staged = data_files.write_rows(self._files.folder, self._schema, rows, self._first_row)
        self._written = list(self._staged)

    async def plan(
        self, before: Version | None, note: CommitInfo, now: float, thread: Thread, *, merge: bool
    ) -> Version:
        """The version that this commit makes of `before`; its new files are written and in the
        bucket. thread: runs a function in a thread. merge: gather small files on the way."""
        next_row = before.next_row if before else 0
        if next_row != self._first_row and self._staged:
            await self._renumber(next_row - self._first_row, thread)
        self._first_row = next_row
        old = () if before is None or self._replace else before.files
        removed = before.rows if before and self._replace else 0
        files = list(self._staged)
        hit = {file.path for file in plan.touched(old, self._remove)}
        for file in old:
            if file.path not in hit:
                files.append(file)
                continue
            left = await self._without(file, thread)
            files += left
            removed += file.rows - sum(f.rows for f in left)
        added = sum(file.rows for file in self._staged)
        if merge:
            files = await self._merged(list(ordered(files)), thread)
        version = before.version + 1 if before else 0
        there = {file.path for file in before.files} if before else set()
        fresh = [file for file in files if file.path not in there | self._published]
        await self._files.publish(fresh)
        self._published |= {file.path for file in fresh}
        note = msgspec.structs.replace(note, version=version, time=now, rows=added or removed)
        return Version(version, self._schema, ordered(files), next_row + added, note)

    def keep(self, version: Version | None) -> None:
        """`version` is or may be made: its files stay. None: it was not."""
        self._kept = {file.path for file in version.files} if version else set()

    async def clean_up(self) -> None:
        await self._files.discard(file for file in self._written if file.path not in self._kept)

    async def _renumber(self, shift: int, thread: Thread) -> None:
        """Another process gave our row numbers away: move up."""
        paths = [self._files.folder / file.path for file in self._staged]
        self._staged = await thread(lambda: data_files.rewrite(self._files.folder, self._schema, paths, shift=shift))
        self._written += self._staged

    async def _without(self, file: DataFile, thread: Thread) -> list[DataFile]:
        """What is left of a file after the removal: itself, nothing, or its other rows."""
        path = await self._files.path(file)

        def rewrite() -> list[DataFile]:
            gone = int(data_files.is_member(data_files.row_numbers(path), self._remove).sum())
            if gone == 0:
                return [file]
            if gone == file.rows:
                return []
            return data_files.rewrite(self._files.folder, self._schema, [path], without=self._remove)

        left: list[DataFile] = await thread(rewrite)
        self._written += [f for f in left if f.path != file.path]
        return left

    async def _merged(self, files: list[DataFile], thread: Thread) -> list[DataFile]:
        run = plan.to_merge(files)
        if not run:
            return files
        paths = [await self._files.path(file) for file in run]
        merged: list[DataFile] = await thread(lambda: data_files.rewrite(self._files.folder, self._schema, paths))
        self._written += merged
        return files[: len(files) - len(run)] + merged
