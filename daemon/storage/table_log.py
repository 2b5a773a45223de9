"""One table's versions: found, cached, made. The newest version is kept and brought up to date
from the entries after it, so asking again costs a stat. The entries' form is delta_log.py's."""

import contextlib
import os
import time
import uuid
from collections import OrderedDict
from pathlib import Path

import anyio.to_thread
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from actors.errors import CorruptState, Transient
from actors.ports import TableRef
from daemon.storage import delta_log, durable
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.delta_log import Version
from schemas.events.dataset import CommitInfo

KEPT_VERSIONS = 64
RETENTION_H = 7 * 24
"""Files that left a table stay so long for time travel and for readers of older versions."""


class TableLog:
    def __init__(self, buckets: ObjectBuckets, ref: TableRef) -> None:
        self._buckets = buckets
        self._ref = ref
        self._folder = buckets.local_path(ref.bucket, ref.path)
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
        newest = await self.newest()
        if newest is None or not 0 <= version <= newest.version:
            return None
        if version not in self._old:
            loaded = await self._load(version)
            if loaded is None:
                return None
            self._keep(await self._describe(loaded))
        self._old.move_to_end(version)
        return self._old[version]

    async def version_of(self, message: str) -> int | None:
        """The version that a message's commit made; None when it made none."""
        if message in self._messages or self._loaded is None:
            return self._messages.get(message)
        version: int | None = self._loaded.transaction_version(message)
        return version

    async def append(self, before: Version | None, after: Version, note: CommitInfo) -> None:
        """Make `after` the newest version. Raises FileExistsError when another commit was first."""
        table_id = uuid.uuid5(uuid.NAMESPACE_URL, f"lakehouse:{self._ref.bucket}/{self._ref.path}")
        entry = delta_log.encode_entry(str(table_id), before, after, note)
        await self._buckets.put(self._ref.bucket, self._key(after.version), entry)
        self._take(after)

    async def history(self, limit: int) -> list[CommitInfo]:
        newest = await self.newest()
        notes: list[CommitInfo] = []
        version = newest.version if newest else -1
        while version >= 0 and len(notes) < limit:
            made = self._old[version].note if version in self._old else (await self._made(version))[0]
            if made is not None:
                notes.append(made)
            version -= 1
        return notes

    async def maintain(self) -> None:
        """Write a checkpoint, and delete files that left the table long ago or that a killed
        commit left behind. The table is whole without, so a failure is left for the next time."""
        with contextlib.suppress(DeltaError, OSError, Transient, CorruptState):
            table = await self._load(None)
            if table is None:
                return
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
        entry = _identity(self._folder / delta_log.entry_key(newest.version))
        return entry == self._entry and not os.path.exists(self._folder / delta_log.entry_key(newest.version + 1))

    async def _refresh(self) -> Version | None:
        if self._newest is not None and self._entry_is_ours(self._newest):
            with contextlib.suppress(FileNotFoundError):
                while True:
                    entry = await self._buckets.get(self._ref.bucket, self._key(self._newest.version + 1))
                    try:
                        self._take(delta_log.apply_entry(self._newest, entry))
                    except ValueError as error:
                        raise self._corrupt(error) from error
            return self._newest
        self._forget()
        table = await self._load(None)
        if table is not None:
            self._loaded = table
            self._take(await self._describe(table))
        return self._newest

    def _entry_is_ours(self, newest: Version) -> bool:
        """False when the table was dropped and made again by another process."""
        if self._folder is None:
            return True
        return _identity(self._folder / delta_log.entry_key(newest.version)) == self._entry

    async def _load(self, version: int | None) -> DeltaTable | None:
        """The table through deltalake, at its newest or another version."""
        url, options = self._location()
        if self._folder is not None and not (self._folder / delta_log.entry_key(0)).exists():
            return None

        def load() -> DeltaTable | None:
            try:
                return DeltaTable(url, version, options)
            except TableNotFoundError:
                return None
            except DeltaError as error:
                if self._folder is not None and delta_log.set_aside_torn_checkpoints(self._folder):
                    return DeltaTable(url, version, options)
                raise self._corrupt(error) from error

        return await anyio.to_thread.run_sync(load)

    async def _describe(self, table: DeltaTable) -> Version:
        note, next_row = await self._made(table.version())
        try:
            return await anyio.to_thread.run_sync(delta_log.open_version, table, next_row, note)
        except ValueError as error:
            raise self._corrupt(error) from error

    async def _made(self, version: int) -> tuple[CommitInfo | None, int]:
        """The note of a version, and the next row number, from the last entry of ours up to it."""
        note = None
        for back in range(version, -1, -1):
            made = delta_log.decode_entry(await self._buckets.get(self._ref.bucket, self._key(back)))
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
        url, options = self._buckets.urls[self._ref.bucket], self._buckets.options[self._ref.bucket]
        if not url.startswith("s3://"):
            raise ValueError(f"bucket {self._ref.bucket}: tables need file:// or s3://, not {url}")
        plain = options.get("endpoint", "").startswith("http://")
        return f"{url.rstrip('/')}/{self._ref.path}", {
            **{f"aws_{name}": value for name, value in options.items()},
            **({"allow_http": "true"} if plain else {}),
        }

    def _checkpoint(self, table: DeltaTable) -> None:
        table.create_checkpoint()
        if self._folder is not None:
            for path in (self._folder / "_delta_log").glob("*checkpoint*"):
                if path.stat().st_mtime > time.time() - 60:
                    durable.sync_file(path)
            durable.sync_directory(self._folder / "_delta_log")

    def _corrupt(self, error: Exception) -> CorruptState:
        reason = str(error).splitlines()[0]
        return CorruptState(
            f"table {self._ref.path} in bucket {self._ref.bucket} can't be opened: {reason}. "
            "Restore its _delta_log folder from a backup; nothing was changed"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
