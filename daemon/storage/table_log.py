"""One table's versions: found, cached, made. The newest version is kept and brought up to date
from the entries after it, so asking again costs a stat. The entries' form is delta_log.py's."""

import contextlib
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import msgspec
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from actors.errors import CorruptState, Transient
from actors.ports import TableRef
from daemon.storage import delta_log, durable
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.delta_log import Version
from daemon.storage.known import Location
from daemon.storage.store_options import s3_options
from schemas.events.dataset import CommitInfo

KEPT_VERSIONS = 64
RETENTION_H = 7 * 24
"""Files that left a table stay so long for time travel and for readers of older versions."""


class TableLog:
    def __init__(self, buckets: ObjectBuckets, ref: TableRef, bucket: Location) -> None:
        self._buckets = buckets
        self._ref = ref
        self._bucket = bucket
        self._folder = bucket.folder / ref.path if bucket.folder else None
        self._lock = anyio.Lock()
        self._newest: Version | None = None
        self._entry: tuple[int, int] | None = None  # identity of the newest entry's file
        self._loaded: DeltaTable | None = None  # knows the messages of commits up to its version
        self._messages: dict[str, int] = {}  # and this those after it
        self._old: OrderedDict[int, Version] = OrderedDict()

    async def newest(self) -> Version | None:
        """The newest version, or None when there is no table. Raises CorruptState, Transient."""
        if self._newest is not None and self._unchanged(self._newest):
            return self._newest
        async with self._lock:
            return await self._refresh()

    async def at(self, version: int) -> Version | None:
        """A version, or None when there is none. One before a damaged entry can still be had."""
        try:
            newest = await self.newest()
            last = newest.version if newest else None
        except CorruptState:
            last = await self._last_entry()
        if last is None or not 0 <= version <= last:
            return None
        async with self._lock:  # what is loaded belongs to this table, not to one dropped meanwhile
            if version not in self._old:
                try:
                    self._keep(await self._describe(await self._load(version)))
                except CorruptState:
                    last = await self._last_entry()
                    if last is None or last < version:  # another process has dropped it meanwhile
                        return None
                    raise
            self._old.move_to_end(version)
            return self._old[version]

    async def version_of(self, message: str) -> int | None:
        """The version that a message's commit made; None when it made none."""
        if message in self._messages or self._loaded is None:
            return self._messages.get(message)
        version: int | None = self._loaded.transaction_version(message)
        return version

    async def append(self, before: Version | None, after: Version, note: CommitInfo) -> None:
        """Make `after` the newest version. Raises FileExistsError when another commit was first,
        Transient when the table was dropped meanwhile."""
        table_id = uuid.uuid5(uuid.NAMESPACE_URL, f"lakehouse:{self._ref.bucket}/{self._ref.path}")
        entry = delta_log.encode_entry(str(table_id), before, after, note)
        # Under the lock, so that a reader meets the entry either not at all or taken in: one that
        # found it in between took it in a second time, as a version that has no entry.
        async with self._lock:
            if before is not None and before is self._newest and not self._entry_is_ours(before):
                raise Transient(f"table {self._ref.path} was dropped by another process")
            await self._buckets.put(self._ref.bucket, self._key(after.version), entry, at_home=True)
            self._take(after)

    async def history(self, limit: int, upto: int | None = None) -> list[CommitInfo]:
        newest = await self.newest()
        notes: list[CommitInfo] = []
        version = newest.version if newest else -1
        if upto is not None:
            version = min(version, upto)
        while version >= 0 and len(notes) < limit:
            try:
                made = self._old[version].note if version in self._old else (await self._made(version))[0]
            except FileNotFoundError:  # another program cleans the log up, or the table was dropped
                break
            if made is not None:
                notes.append(made)
            version -= 1
        return notes

    async def maintain(self) -> None:
        """Write a checkpoint, and delete files that left the table long ago or that a killed
        commit left behind. The table is whole without, so a failure is left for the next time."""
        if self._newest is None:
            return
        with contextlib.suppress(DeltaError, OSError, Transient, CorruptState):
            table = await self._load(self._newest.version)
            await anyio.to_thread.run_sync(self._checkpoint, table)
            stale = await anyio.to_thread.run_sync(
                lambda: table.vacuum(retention_hours=RETENTION_H, dry_run=True, full=True)
            )
            for path in stale:
                if not path.startswith("part-"):  # not one of ours
                    continue
                await self._buckets.delete(self._ref.bucket, f"{self._ref.path}/{path}")

    async def drop(self) -> None:
        """Delete everything, newest entry first, so that an interrupted drop leaves an older
        version and not a broken table."""
        async with self._lock:
            keys = await self._buckets.list(self._ref.bucket, f"{self._ref.path}/_delta_log")
            entries = [key for key in keys if key.endswith(".json")]
            for key in [key for key in keys if key not in entries] + entries[::-1]:
                await self._buckets.delete(self._ref.bucket, key)
            await self._buckets.delete_prefix(self._ref.bucket, self._ref.path)
            self._forget()

    def _unchanged(self, newest: Version) -> bool:
        """Cheaply known only for local tables: the newest entry is the same and none follows."""
        if self._folder is None:
            return False
        following = self._folder / delta_log.entry_key(newest.version + 1)
        return self._entry_is_ours(newest) and not os.path.exists(following)

    async def _refresh(self) -> Version | None:
        newest = self._newest
        if newest is not None and self._entry_is_ours(newest):
            while True:
                try:
                    entry = await self._read(newest.version + 1)
                except FileNotFoundError:
                    return newest
                with self._reading():
                    newest = delta_log.apply_entry(newest, entry)
                self._take(newest)
        self._forget()
        version = await self._last_entry()
        while version is not None:
            try:
                loaded = await self._load(version)
                self._take(await self._describe(loaded))
            except CorruptState:
                last = await self._last_entry()
                if last == version:
                    raise
                version = last  # another process is dropping it
            else:
                self._loaded = loaded
                break
        return self._newest

    async def _last_entry(self) -> int | None:
        """The newest version by the names in the log: all entries below one that is seen are there.
        deltalake's own listing finds gaps in a large log being written; given a version, none."""
        keys = await self._buckets.list(self._ref.bucket, f"{self._ref.path}/_delta_log")
        versions = [version for key in keys if (version := delta_log.version_of_key(key)) is not None]
        return max(versions, default=None)

    async def _read(self, version: int) -> bytes:
        """An entry. Raises FileNotFoundError; CorruptState for an empty one: deltalake opens a
        table without the version that it made, so its rows would be lost without a word."""
        entry = await self._buckets.get(self._ref.bucket, self._key(version))
        with self._reading():
            if not entry.strip():
                raise ValueError(f"its log entry {delta_log.entry_key(version)} is empty")
        return entry

    def _entry_is_ours(self, newest: Version) -> bool:
        """False when the table was dropped and made again by another process."""
        if self._folder is None:
            return True
        entry = _identity(self._folder / delta_log.entry_key(newest.version))
        return entry is not None and entry == self._entry

    async def _load(self, version: int) -> DeltaTable:
        """A version that has an entry, through deltalake."""
        url, options = self._location()

        def load() -> DeltaTable:
            with self._reading():
                if self._folder is not None:
                    delta_log.refuse_empty_entries(self._folder, version)
                try:
                    return DeltaTable(url, version, options)
                except DeltaError:
                    if self._folder is None or not delta_log.set_aside_torn_checkpoints(self._folder):
                        raise
                    return DeltaTable(url, version, options)

        return await anyio.to_thread.run_sync(load)

    async def _describe(self, table: DeltaTable) -> Version:
        with self._reading():
            note, next_row = await self._made(table.version())
            return await anyio.to_thread.run_sync(delta_log.open_version, table, next_row, note)

    async def _made(self, version: int) -> tuple[CommitInfo | None, int]:
        """The note of a version, and the next row number, from the last entry of ours up to it."""
        note = None
        for back in range(version, -1, -1):
            entry = await self._read(back)
            with self._reading():
                made = delta_log.decode_entry(entry)
            if made is not None:
                note = made.note if back == version else None
                return note, made.next_row
        return note, 0

    def _take(self, version: Version) -> None:
        self._newest = version
        self._keep(version)
        if version.note is not None:
            self._messages[version.note.message] = version.version
        if self._folder is not None:
            self._entry = _identity(self._folder / delta_log.entry_key(version.version))

    def _keep(self, version: Version) -> None:
        self._old[version.version] = version
        while len(self._old) > KEPT_VERSIONS:
            self._old.popitem(last=False)

    def _forget(self) -> None:
        self._newest = self._loaded = self._entry = None
        self._messages.clear()
        self._old.clear()

    def _key(self, version: int) -> str:
        return f"{self._ref.path}/{delta_log.entry_key(version)}"

    def _location(self) -> tuple[str, dict[str, str]]:
        if self._folder is not None:
            return str(self._folder), {}
        url, options = self._bucket.url, self._bucket.options
        if not url.startswith("s3://"):
            raise ValueError(f"bucket {self._ref.bucket}: tables need file:// or s3://, not {url}")
        return f"{url.rstrip('/')}/{self._ref.path}", dict(s3_options(options))

    def _checkpoint(self, table: DeltaTable) -> None:
        table.create_checkpoint()
        if self._folder is not None:
            for path in (self._folder / "_delta_log").glob("*checkpoint*"):
                if path.stat().st_mtime > time.time() - 60:
                    durable.sync_file(path)
            durable.sync_directory(self._folder / "_delta_log")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What a bad log makes deltalake and our decoder say, as CorruptState."""
        try:
            yield
        except (DeltaError, msgspec.MsgspecError, ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).split(": ParsedLogPath {")[0].splitlines()[0]  # the rest is a dump
            raise CorruptState(
                f"table {self._ref.path} in bucket {self._ref.bucket} can't be opened: {reason}. "
                "Restore its folder from a backup; nothing was changed"
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
