"""What couldn't be written to its bucket, kept in the bucket `rescue` with its destination noted, until it is brought
home. One write or deletion is one entry,

    rescued/<bucket>/<key>/<time, ns, 20 digits>-<random>.content   (none for a deletion)
    rescued/<bucket>/<key>/<time, ns, 20 digits>-<random>.json      the note; it is written last, and makes it count

and an entry never changes, so that bringing one home and writing the next don't meet: of several entries of a key the
newest counts, and as long as there is one, what is written to the key goes here too. Tables don't take this road: of
two processes only one may make a version, and only the bucket itself can say which.
"""

import hashlib
import os
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import msgspec
import structlog

from actors.errors import CorruptState, Transient
from actors.ports import Artifact, Entry, Waiting
from daemon.storage.known import Store
from schemas.names import BucketName, Bytes, Sha256

FOLDER, CONFLICTS = "rescued", "conflicts"
LOOK_S = 1.0
"""A remote rescue is asked this often whether anything waits for a bucket; a folder, each time."""
ORPHAN_NS = 3600 * 10**9
"""Content without a note is what a killed process has left, after so long."""

log = structlog.get_logger(__name__)


class Note(msgspec.Struct, frozen=True):
    """The destination of an entry."""

    bucket: BucketName
    key: str
    overwrite: bool
    deleted: bool
    sha256: Sha256 | None = None  # None: of a deletion
    bytes: Bytes = 0
    reason: str = ""  # why it couldn't be written


class Kept(msgspec.Struct, frozen=True):
    """An entry: its name, without the ending, and its note."""

    name: str
    note: Note

    @property
    def content(self) -> str:
        return f"{self.name}.content"


class Rescue:
    def __init__(self, store: Store, now_ns: Callable[[], int] = time.time_ns) -> None:
        """store: of the bucket `rescue`."""
        self._store = store
        self._now_ns = now_ns
        self._asked: dict[BucketName, tuple[float, bool]] = {}  # remote: until when it is known whether any waits

    async def newest(self, bucket: BucketName, key: str) -> Kept | None:
        """The entry that stands for an object; None: what lies at home does."""
        if not await self._maybe(bucket, key):
            return None
        found = [kept for kept in await self._kept(f"{bucket}/{key}") if kept.note.key == key]
        return found[-1] if found else None

    async def keep(
        self, bucket: BucketName, key: str, content: bytes | Path | None, *, overwrite: bool, reason: str
    ) -> Artifact:
        """Durable on return. content None: the object is to be deleted. Raises Transient."""
        name = f"{FOLDER}/{bucket}/{key}/{self._now_ns():020d}-{os.urandom(6).hex()}"
        artifact = Artifact(key, "", 0)
        if isinstance(content, bytes):
            await self._store.put(f"{name}.content", content, overwrite=False)
            artifact = Artifact(key, hashlib.sha256(content).hexdigest(), len(content))
        elif content is not None:
            stored = await self._store.upload(f"{name}.content", content, overwrite=False)
            artifact = Artifact(key, stored.sha256, stored.bytes)
        note = Note(bucket, key, overwrite, content is None, artifact.sha256 or None, artifact.bytes, reason)
        await self._store.put(f"{name}.json", msgspec.json.encode(note), overwrite=False)
        self._asked[bucket] = (time.monotonic() + LOOK_S, True)
        return artifact

    async def path(self, kept: Kept) -> Path:
        """A local file with an entry's content. Raises FileNotFoundError when it went home meanwhile."""
        return await self._store.fetch(kept.content, kept.note.sha256)

    async def below(self, bucket: BucketName, prefix: str) -> dict[str, Kept]:
        """The newest entry of every key of a bucket below a folder ("": all)."""
        if not await self._maybe(bucket, prefix):
            return {}
        return {kept.note.key: kept for kept in await self._kept("/".join(filter(None, (bucket, prefix))))}

    async def waiting(self) -> list[Waiting]:
        entries = await self._store.entries(FOLDER)
        buckets = sorted({entry.key.split("/")[1] for entry in entries if entry.key.endswith(".json")})
        found = []
        for bucket in buckets:
            kept = list((await self.below(bucket, "")).values())
            if kept:
                size = sum(each.note.bytes for each in kept)
                found.append(Waiting(bucket, len(kept), size, kept[0].note.reason))
        return found

    async def bring_home(self, bucket: BucketName, home: Store, verify: Callable[[Path], Sha256]) -> Waiting:
        """As the port. verify: the sha256 of a file."""
        objects, size = 0, 0
        kept = await self._kept(bucket)
        for key, group in groupby(kept, key=lambda each: each.note.key):
            entries = list(group)
            try:
                if await self._bring(entries, home, verify):
                    objects += 1
                    size += entries[-1].note.bytes
            except FileNotFoundError:  # another process brought it
                continue
            except Transient:
                if not objects:
                    raise
                break  # the rest waits
            await self._forget(entries)
            log.info("brought home", bucket=bucket, key=key, bytes=entries[-1].note.bytes)
        await self._sweep(bucket)
        return Waiting(bucket, objects, size, "")

    async def drop_below(self, bucket: BucketName, prefix: str) -> None:
        if await self._maybe(bucket, prefix):
            await self._forget(await self._kept(f"{bucket}/{prefix}"))

    async def _bring(self, entries: list[Kept], home: Store, verify: Callable[[Path], Sha256]) -> bool:
        """What the entries of one key come to. False when nothing had to be written."""
        last = entries[-1]
        if last.note.deleted:
            await home.delete(last.note.key)
            return False
        replaces = last.note.overwrite or any(each.note.deleted for each in entries)
        source = await self._store.fetch(last.content, last.note.sha256)
        if verify(source) != last.note.sha256:
            raise CorruptState(f"object {last.content} in bucket rescue fails its checksum; restore it from a backup")
        try:
            await home.upload(last.note.key, source, overwrite=replaces)
        except FileExistsError:  # it arrived after all, and only the answer was lost; or another was there before
            there = await home.fetch(last.note.key, None)
            if verify(there) != last.note.sha256:
                aside = f"{CONFLICTS}/{last.name.removeprefix(f'{FOLDER}/')}"
                log.error("two objects of one key: the older one stays", key=last.note.key, other=aside)
                await self._store.upload(aside, source, overwrite=True)
            return False
        copied = await home.fetch(last.note.key, last.note.sha256)
        if verify(copied) != last.note.sha256:
            raise CorruptState(f"bucket {last.note.bucket} gives back another {last.note.key} than what was put")
        return True

    async def _forget(self, entries: list[Kept]) -> None:
        for each in entries:  # the note first: content without one counts for nothing
            await self._store.delete(f"{each.name}.json")
        for each in entries:
            if not each.note.deleted:
                await self._store.delete(each.content)

    async def _kept(self, folder: str) -> list[Kept]:
        """Entries below a folder by key and age, oldest first."""
        found = []
        for entry in await self._store.entries(f"{FOLDER}/{folder}"):
            if not entry.key.endswith(".json"):
                continue
            try:
                note = msgspec.json.decode(await self._store.get(entry.key), type=Note)
            except FileNotFoundError:  # it went home meanwhile
                continue
            except msgspec.DecodeError as error:
                log.error("a note can't be read, its object is left alone", note=entry.key, why=str(error))
                continue
            found.append(Kept(entry.key.removesuffix(".json"), note))
        return sorted(found, key=lambda kept: (kept.note.key, kept.name))

    async def _sweep(self, bucket: BucketName) -> None:
        entries: list[Entry] = await self._store.entries(f"{FOLDER}/{bucket}")
        noted = {entry.key.removesuffix(".json") for entry in entries if entry.key.endswith(".json")}
        for entry in entries:
            name = entry.key.removesuffix(".content")
            born = int(name.rpartition("/")[2].partition("-")[0])
            if entry.key.endswith(".content") and name not in noted and self._now_ns() - born > ORPHAN_NS:
                await self._store.delete(entry.key)

    async def _maybe(self, bucket: BucketName, prefix: str) -> bool:
        """False when nothing waits for a bucket, as cheaply as it can be known: every read asks."""
        if self._store.root is not None:
            return (self._store.root / FOLDER / bucket / prefix).is_dir()
        until, known = self._asked.get(bucket, (0.0, False))
        if time.monotonic() >= until:
            known = bool(await self._store.entries(f"{FOLDER}/{bucket}"))
            self._asked[bucket] = (time.monotonic() + LOOK_S, known)
        return known
