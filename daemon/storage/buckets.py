"""Buckets: named places for objects, by URL. `file://` is a directory that we write ourselves,
because object stores' local back ends don't fsync (obstore 0.12: none in an strace of a put);
`s3://` and `memory://` (tests) go through obstore. Every put is durable and atomic on return.

Which buckets there are, and how they are opened, is known.py's. What the objects mean is
elsewhere: documents in registry.py, tables in tables.py.
"""

import contextlib
import hashlib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread

from actors.errors import CorruptState
from actors.ports import Artifact, Entry, Place, Waiting
from daemon.storage.known import KnownBuckets, Location, Store
from schemas.names import BucketName, Sha256

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
        return []

    async def bring_home(self, bucket: BucketName) -> Waiting:
        return Waiting(bucket, 0, 0, "")

    async def location(self, bucket: BucketName) -> Location:
        return (await self._known.find(bucket)).location

    async def put(self, bucket: BucketName, key: str, data: bytes, *, overwrite: bool = False) -> Artifact:
        await (await self._store(bucket)).put(_checked(key), data, overwrite)
        return Artifact(key, hashlib.sha256(data).hexdigest(), len(data))

    async def upload(self, bucket: BucketName, key: str, path: Path, *, overwrite: bool = False) -> Artifact:
        return await (await self._store(bucket)).upload(_checked(key), path, overwrite)

    async def get(self, bucket: BucketName, key: str) -> bytes:
        return await (await self._store(bucket)).get(_checked(key))

    async def copy(self, source: BucketName, key: str, bucket: BucketName) -> Artifact:
        path = await self.fetch(source, key)
        artifact = await self.upload(bucket, key, path, overwrite=True)
        copied = await self.fetch(bucket, key, artifact.sha256)
        for place, file in ((source, path), (bucket, copied)):
            if (await self._store(place)).root is None:  # our own copy of a remote object has served its turn
                await anyio.Path(file).unlink(missing_ok=True)
        return artifact

    async def fetch(self, bucket: BucketName, key: str, sha256: Sha256 | None = None) -> Path:
        path = await (await self._store(bucket)).fetch(_checked(key), sha256)
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
        return sorted(found, key=lambda entry: entry.key)

    async def list(self, bucket: BucketName, prefix: str) -> list[str]:
        """Keys below the folder `prefix` ("" for all), sorted."""
        return [entry.key for entry in await self.entries(bucket, prefix)]

    async def delete(self, bucket: BucketName, key: str) -> None:
        await (await self._store(bucket)).delete(_checked(key))

    async def delete_prefix(self, bucket: BucketName, prefix: str) -> None:
        """Delete everything below a folder."""
        await (await self._store(bucket)).delete_prefix(_checked(prefix.rstrip("/")))

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
