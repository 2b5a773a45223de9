"""SELECTs over the catalogue, by a DuckDB that reaches nothing else: no files, no network, no
extensions, no settings, and nothing that it could change but its own empty memory.

An answer is streamed as Arrow batches. It ends with the block that asked for it, with the time that
it may take, or when there is more of it in memory than there may be.
"""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import duckdb
import pyarrow as pa

from actors.errors import Refused
from actors.sql.config import SqlConfig
from daemon.sql.catalogue import Catalogue, Labelled, Source, Unknown
from schemas.events.base import Refusal, RefusalStatus
from schemas.events.sql import SqlColumn, SqlRows

T = TypeVar("T")

BATCH_ROWS = 16_384
ALLOWED = ("SELECT", "EXPLAIN")
HINT = "one SELECT (or WITH, VALUES, DESCRIBE, SUMMARIZE, EXPLAIN): datasets are changed by ingest alone"
UNREADABLE = "reading the stream registered as"


class Answer:
    """What a query gives. Batches are taken once, in order."""

    def __init__(self, schema: pa.Schema, batches: Callable[[], AsyncIterator[pa.RecordBatch]]) -> None:
        self.schema = schema
        self.batches = batches


class DuckEngine:
    """One locked DuckDB; each query has a cursor of its own."""

    def __init__(self, catalogue: Catalogue, config: SqlConfig) -> None:
        self._catalogue = catalogue
        self._config = config
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._threads = anyio.CapacityLimiter(config.concurrent)
        self._running = anyio.Semaphore(config.concurrent)
        self._waiting = 0

    @asynccontextmanager
    async def answer(self, query: str, versions: Mapping[str, int]) -> AsyncIterator[Answer]:
        """Raises Refused: invalid with DuckDB's words and its caret, busy, unavailable."""
        await self._turn()
        cursor = self._duckdb().cursor()
        deadline = time.monotonic() + self._config.timeout_s
        sources: Mapping[str, Source | Labelled] = {}
        try:
            with self._speaking(deadline):
                await self._bounded(lambda: _check(cursor, query), cursor, deadline)
                sources = await self._catalogue.named(query, versions)
                schema, reader = await self._bounded(lambda: _run(cursor, query, sources), cursor, deadline)

            async def batches() -> AsyncIterator[pa.RecordBatch]:
                while True:
                    with self._speaking(deadline):
                        batch = await self._bounded(lambda: next(reader, None), cursor, deadline)
                    if batch is None:
                        return
                    yield batch

            yield Answer(schema, batches)
        except duckdb.CatalogException as error:
            raise await self._unknown(error) from error
        except duckdb.Error as error:
            raise await self._unreadable(error, query, versions, sources) from error
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(duckdb.Error):
                    cursor.interrupt()
                await anyio.to_thread.run_sync(cursor.close)
                self._running.release()

    async def _turn(self) -> None:
        """Wait until it may run. Raises Refused when enough wait already."""
        try:
            self._running.acquire_nowait()
            return
        except anyio.WouldBlock:
            if self._waiting >= self._config.concurrent:
                reason = f"{self._config.concurrent} queries run and as many wait"
                raise Refused(Refusal("busy", reason, "come again", 1.0)) from None
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1

    async def rows(self, query: str, limit: int, versions: Mapping[str, int]) -> SqlRows:
        """The first `limit` rows. Raises Refused."""
        began = time.monotonic()
        rows: list[list[Any]] = []
        async with self.answer(query, versions) as answer:
            async for batch in answer.batches():
                columns = [column.to_pylist() for column in batch.slice(0, limit + 1 - len(rows)).columns]
                rows.extend(map(list, zip(*columns, strict=True)))
                if len(rows) > limit:
                    break
            columns_ = [SqlColumn(field.name, str(field.type)) for field in answer.schema]
        return SqlRows(columns_, rows[:limit], len(rows) > limit, time.monotonic() - began)

    async def _bounded(self, work: Callable[[], T], cursor: duckdb.DuckDBPyConnection, deadline: float) -> T:
        """In a thread until the deadline; cancelled, it is stopped first, so that the cursor is free."""
        begun, ended = threading.Event(), threading.Event()
        left = False  # nobody waits for it any more: what didn't begin by now never will

        def run() -> T:
            begun.set()
            try:
                return work()
            finally:
                ended.set()

        async def stop_late() -> None:
            try:
                await anyio.sleep(max(0.0, deadline - time.monotonic()))
            finally:
                with anyio.CancelScope(shield=True):
                    # Again and again: an interrupt that comes before the query begins stops nothing.
                    while not ended.is_set() and (begun.is_set() or not left):
                        cursor.interrupt()
                        await anyio.sleep(0.02)

        async with anyio.create_task_group() as group:
            group.start_soon(stop_late)
            try:
                with anyio.CancelScope(shield=True):
                    outcome = await _caught(run, self._threads)
            finally:
                left = True
            group.cancel_scope.cancel()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    @contextmanager
    def _speaking(self, deadline: float) -> Iterator[None]:
        """DuckDB's errors as refusals, but for unknown names and bad files, which `answer` has more to say about."""
        try:
            yield
        except duckdb.CatalogException:
            raise
        except duckdb.InterruptException as error:
            if time.monotonic() < deadline:
                raise
            hint = "make it simpler, or raise [sql] timeout_s"
            raise _refused("invalid", f"the query took over {self._config.timeout_s:g} s", hint) from error
        except duckdb.OutOfMemoryException as error:
            hint = "make it smaller, or raise [sql] memory_mb"
            raise _refused("invalid", f"the query needs over {self._config.memory_mb} MB", hint) from error
        except Unknown as error:
            raise _refused("invalid", str(error), "lakehouse datasets show NAME lists its versions") from error
        except FileNotFoundError as error:
            raise _refused("conflict", f"data went while it was read: {error}", "ask again") from error
        except duckdb.Error as error:
            if UNREADABLE in str(error):
                raise
            raise _refused("invalid", str(error)) from error

    async def _unknown(self, error: duckdb.CatalogException) -> Refused:
        names = ", ".join((await self._catalogue.names())[:30])
        return _refused("invalid", str(error), f"there are: {names}" if "Table with name" in str(error) else "")

    async def _unreadable(
        self,
        error: duckdb.Error,
        query: str,
        versions: Mapping[str, int],
        sources: Mapping[str, Source | Labelled],
    ) -> Refused:
        """A file that `sources` had is damaged, unless it isn't anybody's any more: dropped meanwhile, or moved."""
        try:
            now = await self._catalogue.named(query, versions)
        except (FileNotFoundError, Unknown):
            now = {}
        if not _files(sources) <= _files(now):
            return _refused("conflict", f"data went while it was read: {error}", "ask again")
        return _refused("unavailable", f"a data file can't be read: {error}", "restore it from a backup")

    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            config = {
                "threads": self._config.threads,
                "memory_limit": f"{self._config.memory_mb}MB",
                "temp_directory": "",
            }
            self._connection = duckdb.connect(":memory:", config=config)
            for setting in (
                "SET enable_external_access = false",
                "SET python_enable_replacements = false",
                "SET allow_community_extensions = false",
                "SET autoinstall_known_extensions = false",
                "SET autoload_known_extensions = false",
                "SET lock_configuration = true",
            ):
                self._connection.execute(setting)
        return self._connection


async def _caught(work: Callable[[], T], threads: anyio.CapacityLimiter) -> T | BaseException:
    try:
        return await anyio.to_thread.run_sync(work, limiter=threads)
    except Exception as error:
        return error


def _check(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raises Refused for what is no single SELECT."""
    statements = cursor.extract_statements(query)
    if len(statements) != 1:
        raise _refused("invalid", f"{len(statements)} statements: one is run at a time", HINT)
    kind = statements[0].type.name
    if kind not in ALLOWED:
        raise _refused("invalid", f"{kind} statements aren't run here", HINT)


def _run(
    cursor: duckdb.DuckDBPyConnection, query: str, sources: Mapping[str, Source | Labelled]
) -> tuple[pa.Schema, pa.RecordBatchReader]:
    for name, source in sources.items():
        _register(cursor, name, source)
    cursor.execute("BEGIN TRANSACTION READ ONLY")  # EXPLAIN ANALYZE runs what it explains
    try:
        reader = cursor.sql(query).to_arrow_reader(BATCH_ROWS)
    except (duckdb.BinderException, duckdb.CatalogException):
        cursor.execute(query)  # says it again, with the line and a caret
        raise
    return reader.schema, iter(reader)


def _files(sources: Mapping[str, Source | Labelled]) -> set[str]:
    parts = [part for one in sources.values() for part in (one.parts.values() if isinstance(one, Labelled) else [one])]
    return {file for part in parts for file in getattr(part, "files", ())}


def _register(cursor: duckdb.DuckDBPyConnection, name: str, source: Source | Labelled) -> None:
    """For this cursor alone."""
    if not isinstance(source, Labelled):
        cursor.register(name, source)
        return
    names = ", ".join(f'"{column}"' for column in source.schema.names)
    cursor.register(f"{name}#", source.schema.empty_table())
    selects = [f'SELECT NULL::VARCHAR AS "{source.label}", {names} FROM "{name}#"']
    for value, part in source.parts.items():  # names of datasets and indexes: nothing in them to be escaped
        cursor.register(f"{name}#{value}", part)
        selects.append(f"SELECT '{value}', {names} FROM \"{name}#{value}\"")
    cursor.execute(f'CREATE TEMP VIEW "{name}" AS {" UNION ALL ".join(selects)}')


def _refused(status: RefusalStatus, reason: str, hint: str = "") -> Refused:
    return Refused(Refusal(status, reason, hint))
