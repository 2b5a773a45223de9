"""Buckets: named places for objects, by URL. `file://` is a directory that we write ourselves,
because object stores' local back ends don't fsync (obstore 0.12: none in an strace of a put);
`s3://` and `memory://` (tests) go through obstore. Every put is durable and atomic on return.

Which buckets there are is said by the configuration and, for those that were provisioned, by the
place below which they lie: whoever finds the marker object there has found the bucket, so every
process knows it, after every restart, and no document has to be kept in step.

What the objects mean is elsewhere: documents in registry.py, tables in tables.py.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import anyio.to_thread
import msgspec

from actors.errors import CorruptState
from actors.ports import Artifact
from daemon.storage import durable
from daemon.storage.local_store import LocalStore
from daemon.storage.remote_store import RemoteStore
from schemas.names import BucketName, Sha256

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.=+-]*)*")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Of a bucket. Names of requests were checked already; those of folders and of revisions weren't."""
MARKER = "bucket.json"
"""The object that makes a folder below the profile root a bucket."""


class Location(msgspec.Struct, frozen=True):
    """Where a bucket is, for those who open its files by other means (deltalake)."""

    url: str
    options: dict[str, str]  # of the object store
    folder: Path | None  # the directory of a `file://` bucket


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

    async def folders(self) -> list[str]:
        """Names of the folders at the top."""
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
        *,
        profile_root: str = "",
        profile_options: Mapping[str, str] | None = None,
    ) -> None:
        """urls: `file:///directory` (made when missing), `s3://bucket/prefix`, `memory://`.
        cache: where fetched objects of remote buckets are kept. options: of the object store,
        by bucket: endpoint, region, access_key_id, … profile_root: URL below which buckets are
        provisioned; empty: none can be. Raises ValueError for another kind of URL."""
        self._cache = cache / "objects"
        self._profile_root, self._profile_options = profile_root.rstrip("/"), dict(profile_options or {})
        self._profiles: Store | None = None  # the place below which buckets are provisioned
        if profile_root:
            self._profiles = self._open("storage.profile_root", self._profile_root, self._profile_options)[1]
        self._opened = {name: self._open(name, url, (options or {}).get(name, {})) for name, url in urls.items()}
        self._verified: dict[tuple[str, int, int], Sha256] = {}

    async def names(self) -> list[BucketName]:
        """The configured buckets and the provisioned ones. Raises Transient."""
        for folder in await self._profiles.folders() if self._profiles else []:
            await self._find(folder)
        return sorted(self._opened)

    async def provision(self, bucket: BucketName) -> bool:
        """As in the port. Raises ValueError for a name that is none, Transient."""
        if not NAME.fullmatch(bucket):
            raise ValueError(f"{bucket!r} is no bucket name: a-z 0-9 _ -, at most 63, the first a letter or digit")
        if await self._find(bucket) is not None:
            return False
        if self._profiles is None:
            raise ValueError(f"bucket {bucket!r} can't be made: there is no storage.profile_root")
        try:
            await self._profiles.put(f"{bucket}/{MARKER}", msgspec.json.encode({"bucket": bucket}), overwrite=False)
        except FileExistsError:  # another process was quicker
            return False
        return True

    async def location(self, bucket: BucketName) -> Location:
        return (await self._known(bucket))[0]

    async def put(self, bucket: BucketName, key: str, data: bytes, *, overwrite: bool = False) -> Artifact:
        await (await self._store(bucket)).put(_checked(key), data, overwrite)
        return Artifact(key, hashlib.sha256(data).hexdigest(), len(data))

    async def upload(self, bucket: BucketName, key: str, path: Path, *, overwrite: bool = False) -> Artifact:
        return await (await self._store(bucket)).upload(_checked(key), path, overwrite)

    async def get(self, bucket: BucketName, key: str) -> bytes:
        return await (await self._store(bucket)).get(_checked(key))

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

    async def list(self, bucket: BucketName, prefix: str) -> list[str]:
        """Keys below the folder `prefix` ("" for all), sorted."""
        prefix = prefix.rstrip("/")
        return sorted(await (await self._store(bucket)).list(_checked(prefix) if prefix else ""))

    async def delete(self, bucket: BucketName, key: str) -> None:
        await (await self._store(bucket)).delete(_checked(key))

    async def delete_prefix(self, bucket: BucketName, prefix: str) -> None:
        """Delete everything below a folder."""
        await (await self._store(bucket)).delete_prefix(_checked(prefix.rstrip("/")))

    async def _store(self, bucket: BucketName) -> Store:
        return (await self._known(bucket))[1]

    async def _known(self, bucket: BucketName) -> tuple[Location, Store]:
        found = self._opened.get(bucket) or await self._find(bucket)
        if found is None:
            raise KeyError(f"there is no bucket {bucket!r}; known are {', '.join(await self.names())}")
        return found

    async def _find(self, bucket: BucketName) -> tuple[Location, Store] | None:
        """A bucket that is configured, was found before, or is below the profile root."""
        if bucket in self._opened:
            return self._opened[bucket]
        if self._profiles is None or not NAME.fullmatch(bucket):
            return None
        try:
            await self._profiles.get(f"{bucket}/{MARKER}")
        except FileNotFoundError:
            return None
        url = f"{self._profile_root}/{bucket}"
        return self._opened.setdefault(bucket, self._open(bucket, url, self._profile_options))

    def _open(self, name: BucketName, url: str, options: Mapping[str, str]) -> tuple[Location, Store]:
        store = _open(name, url, self._cache / name, options)
        return Location(url, dict(options), store.root), store

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
