"""Buckets: named places for objects, by URL. `file://` is a directory that we write ourselves,
because object stores' local back ends don't fsync (obstore 0.12: none in an strace of a put);
`s3://` and `memory://` (tests) go through obstore. Every put is durable and atomic on return.

What the objects mean is elsewhere: documents in registry.py, tables in tables.py.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import anyio.to_thread

from actors.errors import CorruptState
from actors.ports import Artifact
from daemon.storage import durable
from daemon.storage.local_store import LocalStore
from daemon.storage.remote_store import RemoteStore
from schemas.names import BucketName, Sha256

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.=+-]*)*")


class Store(Protocol):
    """One bucket. Raises FileNotFoundError, FileExistsError, Transient."""

    root: Path | None
    """The directory of a local bucket."""

    async def put(self, key: str, data: bytes, overwrite: bool) -> None: ...
    async def upload(self, key: str, path: Path, overwrite: bool) -> Artifact: ...
    async def get(self, key: str) -> bytes: ...
    async def fetch(self, key: str, sha256: Sha256 | None) -> Path:
        """A local file with the content, not yet verified."""
        ...

    async def list(self, prefix: str) -> list[str]: ...
    async def delete(self, key: str) -> None: ...
    async def delete_prefix(self, prefix: str) -> None: ...


class ObjectBuckets:
    """The port `Buckets`. For tests: `ObjectBuckets({"primary": "memory://"}, cache=tmp_path)`."""

    def __init__(
        self,
        urls: Mapping[BucketName, str],
        cache: Path,
        options: Mapping[BucketName, Mapping[str, str]] | None = None,
    ) -> None:
        """urls: `file:///directory` (made when missing), `s3://bucket/prefix`, `memory://`.
        cache: where fetched objects of remote buckets are kept. options: of the object store,
        by bucket: endpoint, region, access_key_id, … Raises ValueError for another kind of URL."""
        self.urls = dict(urls)
        self.options = {name: dict((options or {}).get(name, {})) for name in urls}
        self._stores = {
            name: _open(name, url, cache / "objects" / name, self.options[name]) for name, url in urls.items()
        }
        self._verified: dict[tuple[str, int, int], Sha256] = {}

    def names(self) -> list[BucketName]:
        return sorted(self._stores)

    def local_path(self, bucket: BucketName, key: str) -> Path | None:
        """Where an object of a `file://` bucket lies; None for other buckets."""
        root = self._store(bucket).root
        return root / _checked(key) if root else None

    async def put(self, bucket: BucketName, key: str, data: bytes, *, overwrite: bool = False) -> Artifact:
        await self._store(bucket).put(_checked(key), data, overwrite)
        return Artifact(key, hashlib.sha256(data).hexdigest(), len(data))

    async def upload(self, bucket: BucketName, key: str, path: Path, *, overwrite: bool = False) -> Artifact:
        return await self._store(bucket).upload(_checked(key), path, overwrite)

    async def get(self, bucket: BucketName, key: str) -> bytes:
        return await self._store(bucket).get(_checked(key))

    async def fetch(self, bucket: BucketName, key: str, sha256: Sha256 | None = None) -> Path:
        path = await self._store(bucket).fetch(_checked(key), sha256)
        if sha256 is not None and await anyio.to_thread.run_sync(self._hash, path) != sha256:
            if self._store(bucket).root is None:
                path.unlink(missing_ok=True)  # our own copy: the next fetch downloads it again
            raise CorruptState(
                f"object {key} in bucket {bucket} fails its checksum; "
                "restore it from a backup, or run `lakehouse repair` to see what else is damaged"
            )
        return path

    async def list(self, bucket: BucketName, prefix: str) -> list[str]:
        """Keys below the folder `prefix` ("" for all), sorted."""
        prefix = prefix.rstrip("/")
        return sorted(await self._store(bucket).list(_checked(prefix) if prefix else ""))

    async def delete(self, bucket: BucketName, key: str) -> None:
        await self._store(bucket).delete(_checked(key))

    async def delete_prefix(self, bucket: BucketName, prefix: str) -> None:
        """Delete everything below a folder."""
        await self._store(bucket).delete_prefix(_checked(prefix.rstrip("/")))

    def _store(self, bucket: BucketName) -> Store:
        try:
            return self._stores[bucket]
        except KeyError:
            raise KeyError(f"there is no bucket {bucket!r}; known are {', '.join(self.names())}") from None

    def _hash(self, path: Path) -> Sha256:
        """sha256 of a file, remembered for as long as its size and modification time stay."""
        stat = path.stat()
        identity = (str(path), stat.st_size, stat.st_mtime_ns)
        if identity not in self._verified:
            with path.open("rb") as file:
                self._verified[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._verified[identity]


def _open(name: BucketName, url: str, cache: Path, options: Mapping[str, str]) -> Store:
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        root = Path(unquote(parts.path))
        durable.make_directory(root)
        return LocalStore(name, root)
    if parts.scheme in ("s3", "memory"):
        return RemoteStore(name, url, cache, options)
    raise ValueError(f"bucket {name}: {url!r} must be file:///directory or s3://bucket/prefix")


def _checked(key: str) -> str:
    """The key, if it can't leave its bucket. Raises ValueError."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no object key: parts of letters, digits and _.=+- between single slashes")
    return key
