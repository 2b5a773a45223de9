"""Buckets: named places for objects, by URL. `file://` is a directory that we write ourselves,
because object stores' local back ends don't fsync (obstore 0.12: none in an strace of a put);
`s3://` and `memory://` (tests) go through obstore. Every put is durable and atomic on return.

Which buckets there are, and how they are opened, is known.py's. What can't be written goes to the
bucket `rescue` (rescue.py) and is read from there. What the objects mean is elsewhere: documents
in registry.py, tables in tables.py.
"""

import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from actors.backends.lance_store import Place as LancePlace
from actors.errors import CorruptState, Transient
from actors.ports import Artifact, Entry, Place, Waiting
from daemon.storage.known import KnownBuckets, Location, Store
from daemon.storage.rescue import Kept, Rescue
from daemon.storage.store_options import s3_options
from schemas.names import BucketName, Sha256

T = TypeVar("T")

DOWN_S = 10.0
"""After a failed write, a bucket isn't tried for so long: what is meant for it goes to `rescue` at once."""
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.=+-]*)*")


class ObjectBuckets:
    """The port `Buckets`. For tests: `ObjectBuckets({"primary": "memory://"}, cache=tmp_path)`."""

    def __init__(
        self,
        urls: Mapping[BucketName, str],
        cache: Path,
        options: Mapping[BucketName, Mapping[str, str]] | None = None,
        *,
        profile_root: str = "",
        profile_options: Mapping[str, str] | None = None,
    ) -> None:
        """urls: `file:///directory` (made when missing), `s3://bucket/prefix`, `memory://`.
        cache: where fetched objects of remote buckets are kept. options: of the object store,
        by bucket (store_options.py). profile_root: URL below which buckets are provisioned;
        empty: none can be. Raises ValueError for another kind of URL."""
        self._known = KnownBuckets(urls, cache / "objects", options or {}, profile_root, profile_options or {})
        self._verified: dict[tuple[str, int, int], Sha256] = {}
        self._rescue = Rescue(self._known.configured("rescue").store) if "rescue" in urls else None
        self._down: dict[BucketName, tuple[float, Transient]] = {}  # until when a bucket isn't tried, and why

    async def names(self) -> list[BucketName]:
        return await self._known.names()

    async def provision(self, bucket: BucketName, url: str = "", options: Mapping[str, str] | None = None) -> bool:
        return await self._known.provision(bucket, url, options or {})

    async def remove(self, bucket: BucketName) -> None:
        await self._known.remove(bucket)

    async def place(self, bucket: BucketName) -> Place:
        return await self._known.place(bucket)

    async def check(self, bucket: BucketName) -> None:
        store, key = await self._store(bucket), f"system/check-{uuid.uuid4().hex}"
        await store.put(key, key.encode(), overwrite=False)
        try:
            if await store.get(key) != key.encode():
                raise CorruptState(f"bucket {bucket} gives back something else than what was put")
        finally:
            await store.delete(key)

    async def reach(self, bucket: BucketName) -> None:
        with contextlib.suppress(FileNotFoundError):
            await (await self._store(bucket)).get("system/nothing")

    async def waiting(self) -> list[Waiting]:
        return await self._rescue.waiting() if self._rescue else []

    async def bring_home(self, bucket: BucketName) -> Waiting:
        if self._rescue is None:
            return Waiting(bucket, 0, 0, "")
        await self.check(bucket)
        self._down.pop(bucket, None)
        return await self._rescue.bring_home(bucket, await self._store(bucket), self._hash)

    async def location(self, bucket: BucketName) -> Location:
        return (await self._known.find(bucket)).location

    async def lance_place(self, bucket: BucketName, key: str, lance_version: int | None = None) -> LancePlace:
        location = await self.location(bucket)
        if location.folder is None and not location.url.startswith("s3://"):
            raise ValueError(f"bucket {bucket} ({location.url}) can't hold a Lance store: file:// and s3:// can")
        root = str(location.folder) if location.folder else location.url.rstrip("/")
        return LancePlace(f"{root}/{_checked(key)}", s3_options(location.options), lance_version)

    async def put(
        self, bucket: BucketName, key: str, data: bytes, *, overwrite: bool = False, at_home: bool = False
    ) -> Artifact:
        """As the port says; at_home: it counts only in the bucket itself."""

        async def home(store: Store) -> Artifact:
            await store.put(key, data, overwrite)
            return Artifact(key, hashlib.sha256(data).hexdigest(), len(data))

        return await self._write(bucket, _checked(key), home, data, overwrite, at_home)

    async def upload(
        self, bucket: BucketName, key: str, path: Path, *, overwrite: bool = False, at_home: bool = False
    ) -> Artifact:
        """As `put`."""

        async def home(store: Store) -> Artifact:
            return await store.upload(key, path, overwrite)

        return await self._write(bucket, _checked(key), home, path, overwrite, at_home)

    async def get(self, bucket: BucketName, key: str) -> bytes:
        if (kept := await self._kept(bucket, _checked(key))) is not None:
            with contextlib.suppress(FileNotFoundError):  # it went home meanwhile
                return await anyio.Path(await self._rescued(kept)).read_bytes()
        return await (await self._store(bucket)).get(key)

    async def copy(self, source: BucketName, key: str, bucket: BucketName) -> Artifact:
        path = await self.fetch(source, key)
        artifact = await self.upload(bucket, key, path, overwrite=True, at_home=True)
        copied = await self.fetch(bucket, key, artifact.sha256)
        for place, file in ((source, path), (bucket, copied)):
            if (await self._store(place)).root is None:  # our own copy of a remote object has served its turn
                await anyio.Path(file).unlink(missing_ok=True)
        return artifact

    async def fetch(self, bucket: BucketName, key: str, sha256: Sha256 | None = None) -> Path:
        kept, path = await self._kept(bucket, _checked(key)), None
        if kept is not None:
            with contextlib.suppress(FileNotFoundError):  # it went home meanwhile
                path = await self._rescued(kept)
        if path is None:
            path = await (await self._store(bucket)).fetch(key, sha256)
        if sha256 is not None and await anyio.to_thread.run_sync(self._hash, path) != sha256:
            if (await self._store(bucket)).root is None:
                path.unlink(missing_ok=True)  # our own copy: the next fetch downloads it again
            raise CorruptState(
                f"object {key} in bucket {bucket} fails its checksum; "
                "restore it from a backup, or run `lakehouse repair` to see what else is damaged"
            )
        return path

    async def entries(self, bucket: BucketName, prefix: str) -> list[Entry]:
        prefix = prefix.rstrip("/")
        found = await (await self._store(bucket)).entries(_checked(prefix) if prefix else "")
        there = {entry.key: entry for entry in found}
        for key, kept in (await self._rescue.below(bucket, prefix) if self._rescue else {}).items():
            there[key] = Entry(key, kept.note.bytes, kept.name)
            if kept.note.deleted:
                del there[key]
        return sorted(there.values(), key=lambda entry: entry.key)

    async def list(self, bucket: BucketName, prefix: str) -> list[str]:
        """Keys below the folder `prefix` ("" for all), sorted."""
        return [entry.key for entry in await self.entries(bucket, prefix)]

    async def delete(self, bucket: BucketName, key: str) -> None:
        async def home(store: Store) -> None:
            await store.delete(key)

        await self._write(bucket, _checked(key), home, None, True, False)

    async def delete_prefix(self, bucket: BucketName, prefix: str) -> None:
        """Delete everything below a folder. Raises Transient when the bucket can't be reached."""
        prefix = _checked(prefix.rstrip("/"))
        if self._rescue is not None:
            await self._rescue.drop_below(bucket, prefix)
        await (await self._store(bucket)).delete_prefix(prefix)

    async def _write(
        self,
        bucket: BucketName,
        key: str,
        home: Callable[[Store], Awaitable[T]],
        content: bytes | Path | None,
        overwrite: bool,
        at_home: bool,
    ) -> T | Artifact:
        """Write or delete (content None) an object: at home, or, when that can't be, in `rescue`. As long as a key
        has something there, what is written to it joins it: the order stays. Raises what `home` raises."""
        if at_home or self._rescue is None or bucket == "rescue":
            return await home(await self._store(bucket))
        kept = await self._rescue.newest(bucket, key)
        until, failed = self._down.get(bucket, (0.0, None))
        if kept is None and (failed is None or time.monotonic() >= until):
            try:
                return await home(await self._store(bucket))
            except Transient as error:
                self._down[bucket] = time.monotonic() + DOWN_S, error
                failed = error
        if kept is not None and not kept.note.deleted and not overwrite:
            raise FileExistsError(f"object {key} exists already in bucket {bucket}")
        reason = str(failed) if failed else "an older one waits"
        try:
            return await self._rescue.keep(bucket, key, content, overwrite=overwrite, reason=reason)
        except Transient:
            if failed is None:
                raise
            raise failed from None

    async def _kept(self, bucket: BucketName, key: str) -> Kept | None:
        """What waits in `rescue` under a key. Raises FileNotFoundError when it waits to be deleted."""
        kept = await self._rescue.newest(bucket, key) if self._rescue is not None else None
        if kept is not None and kept.note.deleted:
            raise FileNotFoundError(f"there is no object {key} in bucket {bucket}")
        return kept

    async def _rescued(self, kept: Kept) -> Path:
        assert self._rescue is not None
        return await self._rescue.path(kept)

    async def _store(self, bucket: BucketName) -> Store:
        return (await self._known.find(bucket)).store

    def _hash(self, path: Path) -> Sha256:
        """sha256 of a file, remembered for as long as its size and modification time stay."""
        stat = path.stat()
        identity = (str(path), stat.st_size, stat.st_mtime_ns)
        if identity not in self._verified:
            with path.open("rb") as file:
                self._verified[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._verified[identity]


def _checked(key: str) -> str:
    """The key, if it can't leave its bucket. Raises ValueError."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no object key: parts of letters, digits and _.=+- between single slashes")
    return key
