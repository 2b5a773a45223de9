"""Tables in Delta format over the buckets: atomic commits, versions, time travel. FACTS chose
deltalake over pyiceberg (needs a catalog) and Lance (only Lance reads it). It opens tables and
writes checkpoints; data files (data_files.py) and log entries (delta_log.py) are written by us,
durably and in bounded memory. What a commit rewrites is decided in plan.py.
"""

import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from actors.errors import CorruptState, Transient
from actors.ports import ROW, TableRef, TableState
from daemon.storage import columns as types
from daemon.storage import data_files, durable, plan
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.commit import Commit
from daemon.storage.data_files import BadDataFile
from daemon.storage.delta_log import Version
from daemon.storage.predicate import PredicateEngine, Query
from daemon.storage.table_files import TableFiles
from daemon.storage.table_log import RETENTION_H, TableLog
from schemas.events.dataset import CommitInfo

T = TypeVar("T")

ATTEMPTS = 100
MAINTAIN_EVERY = 50
KEPT_MATCHES = 64
MATCH_LIMIT_S = 10.0
MATCHES = 4
"""So many predicates run at a time; DuckDB has two threads for all of them."""


class DeltaTables:
    """The port `Tables`. For tests: `DeltaTables(ObjectBuckets({"primary": tmp_path.as_uri()},
    tmp_path / "cache"), tmp_path / "cache")`.

    Within this process commits to a table take turns. Other processes are met at the log entry,
    which only one can create: the loser plans its commit again on top of it."""

    def __init__(self, buckets: ObjectBuckets, cache: Path, now: Callable[[], float] = time.time) -> None:
        """cache: where files for remote buckets are written before they are uploaded. now: the
        time that commits carry, in seconds since the epoch."""
        self._buckets = buckets
        self._cache = cache
        self._now = now
        self._logs: dict[TableRef, TableLog] = {}
        self._locks: defaultdict[TableRef, anyio.Lock] = defaultdict(anyio.Lock)
        self._matches: OrderedDict[tuple[TableRef, int, float, str], NDArray[np.int64]] = OrderedDict()
        self._engine: PredicateEngine | None = None
        self._threads = anyio.CapacityLimiter(8)
        self._matching = anyio.Semaphore(MATCHES)
        self.match_limit_s = MATCH_LIMIT_S

    async def state(self, table: TableRef, version: int | None = None) -> TableState | None:
        found = await self._version(table, version)
        return _state(found) if found else None

    async def commit(
        self,
        table: TableRef,
        batches: Iterable[pa.RecordBatch],
        note: CommitInfo,
        *,
        remove: Collection[int] | NDArray[np.int64] = (),
        replace: bool = False,
        schema: pa.Schema | None = None,
    ) -> TableState:
        """As the port says; and: columns that the batches lack are null, `schema` may add
        columns to an existing table, `replace` may change them. Small files are merged on the
        way."""
        log = await self._log(table)
        files = await self._files(table)
        async with self._locks[table]:
            before = await log.newest()
            done = await log.version_of(note.message)
            if done is not None:
                return await self._done(table, done)
            commit = Commit(files, np.unique(np.asarray(remove, np.int64)), replace)
            await self._thread(lambda: commit.stage(before, batches, schema))
            try:
                for attempt in range(ATTEMPTS):
                    # merging can wait: who lost a race must be quick to win the next
                    async with self._reading(table, before):
                        after = await commit.plan(before, note, self._now(), self._thread, merge=attempt == 0)
                    commit.keep(after)  # from here on it may be made, even if we never hear of it
                    try:
                        await log.append(before, after, after.note or note)
                        break
                    except FileExistsError:
                        before = await log.newest()
                    done = await log.version_of(note.message)
                    if done is not None:  # it was ours: the answer to a first try was lost
                        commit.keep(await self._existing(table, done))
                        return await self._done(table, done)
                    commit.keep(None)
                else:
                    raise Transient(f"table {table.path}: other processes kept committing first")
            finally:
                await commit.clean_up()
            if after.version % MAINTAIN_EVERY == MAINTAIN_EVERY - 1:
                await log.maintain()
            return _state(after)

    async def read(
        self,
        table: TableRef,
        columns: Sequence[str] | None = None,
        *,
        version: int | None = None,
        min_row: int | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> pa.Table:
        """As the port says; _row comes first. Raises ValueError for an unknown column."""
        found = await self._existing(table, version)
        wanted = None if rows is None else np.unique(rows)
        if wanted is not None and min_row is not None:
            wanted = wanted[wanted >= min_row]
        names = [ROW, *(name for name in columns if name != ROW)] if columns is not None else found.schema.names
        unknown = [name for name in names if name not in found.schema.names]
        if unknown:
            raise ValueError(f"table {table.path} has no column {', '.join(map(repr, unknown))}")
        chosen = found.files if wanted is None else plan.touched(found.files, wanted)
        chosen = [file for file in chosen if min_row is None or file.max_row >= min_row]
        files = await self._files(table)

        def collect(paths: Sequence[Path]) -> pa.Table:
            parts = [data_files.read_rows(path, found.schema, names, wanted) for path in paths]
            schema = pa.schema([found.schema.field(name) for name in names])
            result = pa.concat_tables(parts) if parts else schema.empty_table()
            numbers = result.column(ROW).to_numpy()
            if np.any(numbers[1:] < numbers[:-1]):  # files of merged runs may interleave
                order = np.argsort(numbers, kind="stable")
                result, numbers = result.take(pa.array(order)), numbers[order]
            return result if min_row is None else result.slice(int(np.searchsorted(numbers, min_row)))

        async with self._reading(table, found):
            paths = [await files.path(file) for file in chosen]
            return await self._thread(lambda: collect(paths))

    async def match(self, table: TableRef, predicate: str, *, version: int | None = None) -> NDArray[np.int64]:
        """As the port says. Answers are remembered by table version. A predicate that takes more
        than `match_limit_s` is stopped (ValueError), and so is one whose caller has gone."""
        found = await self._existing(table, version)
        key = (table, found.version, found.note.time if found.note else 0.0, predicate)
        if key not in self._matches:
            files = await self._files(table)
            async with self._matching, self._reading(table, found):
                paths = [await files.path(file) for file in found.files]
                rows = await self._run(Query(self._duckdb(), predicate, data_files.dataset(paths, found.schema)))
            rows.flags.writeable = False
            self._matches[key] = rows
            while len(self._matches) > KEPT_MATCHES:
                self._matches.popitem(last=False)
        self._matches.move_to_end(key)
        return self._matches[key]

    async def scan(self, table: TableRef, version: int | None = None) -> ds.Dataset:
        """Its rows as an Arrow dataset, without _row, for engines that push columns and filters
        down. Raises FileNotFoundError."""
        found = await self._existing(table, version)
        files = await self._files(table)
        async with self._reading(table, found):
            paths = [await files.path(file) for file in found.files]
        return data_files.dataset(paths, types.user_schema(found.schema))

    async def find(
        self, table: TableRef, column: str, values: Sequence[str | int], *, version: int | None = None
    ) -> NDArray[np.int64]:
        found = await self._existing(table, version)
        if column not in found.schema.names:
            raise ValueError(f"table {table.path} has no column {column!r}")
        wanted = types.converted(values, found.schema.field(column).type)
        files = await self._files(table)
        async with self._reading(table, found):
            paths = [await files.path(file) for file in found.files]
            return await self._thread(lambda: data_files.find_rows(paths, found.schema, column, wanted))

    async def history(self, table: TableRef, limit: int = 50, upto: int | None = None) -> list[CommitInfo]:
        return await (await self._log(table)).history(limit, upto)

    async def drop(self, table: TableRef) -> None:
        async with self._locks[table]:
            await (await self._log(table)).drop()

    async def _log(self, table: TableRef) -> TableLog:
        if table not in self._logs:
            bucket = await self._buckets.location(table.bucket)
            self._logs.setdefault(table, TableLog(self._buckets, table, bucket))
        return self._logs[table]

    async def _files(self, table: TableRef) -> TableFiles:
        return TableFiles(self._buckets, table, await self._buckets.location(table.bucket), self._cache / "tables")

    async def _version(self, table: TableRef, version: int | None) -> Version | None:
        log = await self._log(table)
        return await (log.newest() if version is None else log.at(version))

    async def _existing(self, table: TableRef, version: int | None) -> Version:
        found = await self._version(table, version)
        if found is None:
            which = "" if version is None else f" at version {version}"
            raise FileNotFoundError(f"there is no table {table.path} in bucket {table.bucket}{which}")
        return found

    async def _done(self, table: TableRef, version: int) -> TableState:
        """The state after a commit that was made before."""
        return _state(await self._existing(table, version))

    @asynccontextmanager
    async def _reading(self, table: TableRef, version: Version | None) -> AsyncIterator[None]:
        """Around the reading of a version's data files: says what it means when one is missing
        or bad."""
        try:
            yield
        except FileNotFoundError as error:
            newest = await self._existing(table, None)  # or it was dropped meanwhile
            if version is not None and version.version < newest.version:
                raise FileNotFoundError(
                    f"the files of version {version.version} of table {table.path} are gone: "
                    f"they are kept for {RETENTION_H // 24} days"
                ) from error
            raise _unreadable(table, error) from error
        except BadDataFile as error:
            raise _unreadable(table, error) from error

    async def _run(self, query: Query) -> NDArray[np.int64]:
        try:
            with anyio.fail_after(self.match_limit_s):
                return await anyio.to_thread.run_sync(query.run, limiter=self._threads, abandon_on_cancel=True)
        except TimeoutError as error:
            raise ValueError(
                f"the predicate takes more than {self.match_limit_s:g} s over this table; make it simpler"
            ) from error
        finally:
            query.interrupt()

    async def _thread(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as error:
            if error.errno in durable.FULL:
                raise Transient(f"the disk is full: {error}", 30) from error
            raise

    def _duckdb(self) -> PredicateEngine:
        if self._engine is None:
            self._engine = PredicateEngine()
        return self._engine


def _unreadable(table: TableRef, error: Exception) -> CorruptState:
    return CorruptState(
        f"a data file of table {table.path} in bucket {table.bucket} can't be read: {error}. "
        "Restore it from a backup; nothing was changed"
    )


def _state(version: Version) -> TableState:
    schema = types.user_schema(version.schema)
    return TableState(version.version, version.rows, version.next_row, version.bytes, schema)
