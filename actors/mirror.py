"""Copies what lies below a folder of one bucket to another, in passes: the first while everybody goes on writing, the
last, short one while nobody does. Every object is read back and compared before it counts. The storage desk makes the
first pass, the owner of a dataset or index the last; they share a Mirror, so that nothing is copied twice.
"""

from collections.abc import Iterable

import anyio
import msgspec

from actors.ports import Buckets, Entry
from schemas.names import BucketName, Bytes

AT_ONCE = 4
"""Objects on their way at the same time."""


class Mirrored(msgspec.Struct, frozen=True):
    """What lies in the other bucket after a pass."""

    objects: int
    bytes: Bytes


class Mirror:
    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._copied: dict[tuple[BucketName, BucketName, str], str] = {}  # the source's tag of what was verified

    async def run(self, source: BucketName, bucket: BucketName, folders: Iterable[str]) -> Mirrored:
        """Afterwards `bucket` has what `source` has below `folders`, and nothing else there. What goes meanwhile from
        `source` may be left over until the next pass. Raises CorruptState, Transient."""
        objects, size = 0, 0
        for folder in folders:
            there = await self._buckets.entries(source, folder)
            have = {entry.key: entry for entry in await self._buckets.entries(bucket, folder)}
            todo = [entry for entry in there if not self._is_copied(source, entry, bucket, have)]
            await self._copy_all(source, bucket, todo)
            for key in have.keys() - {entry.key for entry in there}:
                await self._buckets.delete(bucket, key)
            objects += len(there)
            size += sum(entry.bytes for entry in there)
        return Mirrored(objects, size)

    def _is_copied(self, source: BucketName, entry: Entry, bucket: BucketName, have: dict[str, Entry]) -> bool:
        there = have.get(entry.key)
        known = self._copied.get((source, bucket, entry.key))
        return there is not None and there.bytes == entry.bytes and known == entry.tag

    async def _copy_all(self, source: BucketName, bucket: BucketName, entries: list[Entry]) -> None:
        limit = anyio.CapacityLimiter(AT_ONCE)
        try:
            async with anyio.create_task_group() as group:
                for entry in entries:
                    group.start_soon(self._copy, source, entry, bucket, limit)
        except ExceptionGroup as failed:  # the runtime decides by what it was
            raise failed.exceptions[0] from failed

    def forget(self, source: BucketName, bucket: BucketName) -> None:
        """What is known of copies from one to the other: they will be compared anew."""
        self._copied = {known: tag for known, tag in self._copied.items() if known[:2] != (source, bucket)}

    async def _copy(self, source: BucketName, entry: Entry, bucket: BucketName, limit: anyio.CapacityLimiter) -> None:
        async with limit:
            try:
                await self._buckets.copy(source, entry.key, bucket)
            except FileNotFoundError:  # it went meanwhile
                return
            self._copied[source, bucket, entry.key] = entry.tag
