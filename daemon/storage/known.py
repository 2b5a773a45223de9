"""Which buckets there are, and their open stores. The configuration names some. The others were provisioned at run
time: each has a marker object below one place (storage.profile_root), so that every process finds it, after every
restart, and no document has to be kept in step. A marker without a URL says that the bucket lies beside it; one with
a URL, that it lies there.

A bucket that was taken away, or made again elsewhere, is noticed by the other processes within RECHECK_S.
"""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import anyio.to_thread
import msgspec

from actors.errors import CorruptState, Transient
from actors.ports import Artifact, Entry, Place
from daemon.storage import durable, store_options
from daemon.storage.local_store import LocalStore
from daemon.storage.remote_store import RemoteStore
from schemas.names import BucketName, Sha256

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Of a bucket. Names of requests were checked already; those of folders and of revisions weren't."""
MARKER = "bucket.json"
"""The object that makes a folder below the profile root a bucket."""
RECHECK_S = 2.0
"""A marker that was read so long ago is read again."""


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

    async def entries(self, prefix: str) -> list[Entry]: ...
    async def delete(self, key: str) -> None: ...
    async def delete_prefix(self, prefix: str) -> None: ...


class Location(msgspec.Struct, frozen=True):
    """Where a bucket is, for those who open its files by other means (deltalake)."""

    url: str
    options: store_options.StoreOptions  # of the object store, with its credentials
    folder: Path | None  # the directory of a `file://` bucket


class Opened(msgspec.Struct, frozen=True):
    place: Place
    location: Location
    store: Store


class _Marker(msgspec.Struct, frozen=True):
    bucket: BucketName
    url: str = ""  # empty: the bucket lies beside its marker
    options: dict[str, str] = {}  # nothing secret


class _Seen(msgspec.Struct):
    """A marker as it was last read."""

    marker: _Marker
    at: float  # monotonic
    opened: Opened | None = None


class KnownBuckets:
    def __init__(
        self,
        urls: Mapping[BucketName, str],
        cache: Path,
        options: Mapping[BucketName, Mapping[str, str]],
        root: str,
        root_options: Mapping[str, str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """As ObjectBuckets. Raises ValueError for a URL of another kind."""
        self._cache = cache
        self._root, self._root_options = root.rstrip("/"), dict(root_options)
        self._markers: Store | None = None
        if root:
            self._markers = self._open("storage.profile_root", self._root, self._root_options, "configured").store
        self._configured = {
            name: self._open(name, url, options.get(name, {}), "configured") for name, url in urls.items()
        }
        self._seen: dict[BucketName, _Seen] = {}
        self._monotonic = monotonic

    async def names(self) -> list[BucketName]:
        """Every bucket, as of now. Raises Transient."""
        folders = await self._markers.folders() if self._markers else []
        for folder in folders:
            await self._look(folder, fresh=True)
        self._seen = {name: seen for name, seen in self._seen.items() if name in folders}
        return sorted({*self._configured, *self._seen})

    def configured(self, bucket: BucketName) -> Opened:
        """Raises KeyError."""
        return self._configured[bucket]

    async def find(self, bucket: BucketName) -> Opened:
        """Raises KeyError for an unknown bucket, Transient where the places can't be looked through or the
        bucket's credentials aren't there."""
        if found := self._configured.get(bucket):
            return found
        seen = await self._look(bucket)
        if seen is None:
            raise KeyError(f"there is no bucket {bucket!r}; known are {', '.join(await self.names())}")
        if seen.opened is None:
            seen.opened = await anyio.to_thread.run_sync(self._open_marked, seen.marker)
        return seen.opened

    async def place(self, bucket: BucketName) -> Place:
        """Raises KeyError, Transient."""
        if found := self._configured.get(bucket):
            return found.place
        seen = await self._look(bucket)
        if seen is None:
            raise KeyError(f"there is no bucket {bucket!r}; known are {', '.join(await self.names())}")
        return self._place(seen.marker)

    async def provision(self, bucket: BucketName, url: str, options: Mapping[str, str]) -> bool:
        """As the port."""
        if not NAME.fullmatch(bucket):
            raise ValueError(f"{bucket!r} is no bucket name: a-z 0-9 _ -, at most 63, the first a letter or digit")
        if bucket in self._configured or await self._look(bucket) is not None:
            return False
        if self._markers is None:
            raise ValueError(f"bucket {bucket!r} can't be made: there is no storage.profile_root")
        marker = _Marker(bucket, url, dict(options))
        if url:
            await anyio.to_thread.run_sync(store_options.checked, url, options)
            await anyio.to_thread.run_sync(_make_root, bucket, url)
            try:
                await anyio.to_thread.run_sync(self._open_marked, marker)
            except Transient as error:
                raise ValueError(str(error)) from error
        try:
            await self._markers.put(f"{bucket}/{MARKER}", msgspec.json.encode(marker), overwrite=False)
        except FileExistsError:  # another process was quicker
            return False
        return True

    async def remove(self, bucket: BucketName) -> None:
        """As the port."""
        if bucket in self._configured:
            raise ValueError(f"bucket {bucket!r} is named in lakehouse.toml, or built in")
        if self._markers is not None and NAME.fullmatch(bucket):
            await self._markers.delete(f"{bucket}/{MARKER}")
        self._seen.pop(bucket, None)

    async def _look(self, bucket: BucketName, fresh: bool = False) -> _Seen | None:
        """The marker of a provisioned bucket; None when there is none."""
        if self._markers is None or not NAME.fullmatch(bucket) or bucket in self._configured:
            return None
        seen, now = self._seen.get(bucket), self._monotonic()
        if seen is not None and not fresh and now - seen.at < RECHECK_S:
            return seen
        try:
            raw = await self._markers.get(f"{bucket}/{MARKER}")
            marker = msgspec.json.decode(raw, type=_Marker)
        except FileNotFoundError:
            self._seen.pop(bucket, None)
            return None
        except msgspec.DecodeError as error:
            raise CorruptState(
                f"the marker {bucket}/{MARKER} below storage.profile_root is damaged: {error}"
            ) from error
        except Transient:
            if seen is None:
                raise
            return seen  # what was known holds until it can be looked up again
        seen = self._seen.get(bucket)  # another task may have looked meanwhile
        if seen is None or seen.marker != marker:
            seen = self._seen[bucket] = _Seen(marker, now)
        seen.at = now
        return seen

    def _place(self, marker: _Marker) -> Place:
        if marker.url:
            return Place(marker.url, store_options.shown(marker.options), "provisioned")
        return Place(f"{self._root}/{marker.bucket}", store_options.shown(self._root_options), "provisioned")

    def _open_marked(self, marker: _Marker) -> Opened:
        """Raises Transient: the variables or the file that it names may come."""
        url, options = marker.url, marker.options
        if not url:
            url, options = f"{self._root}/{marker.bucket}", self._root_options
        try:
            return self._open(marker.bucket, url, options, "provisioned")
        except ValueError as error:
            raise Transient(str(error), 30) from error

    def _open(self, name: BucketName, url: str, options: Mapping[str, str], origin: str) -> Opened:
        parts = urlsplit(url)
        place = Place(store_options.without_userinfo(url), store_options.shown(options), origin)  # type: ignore[arg-type]
        known = store_options.resolved(name, options)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            root = folder_of(url)
            if origin == "configured":  # others were made when they were provisioned: a disk may be unmounted since
                durable.make_directory(root)
            return Opened(place, Location(url, known, root), LocalStore(name, root))
        if parts.scheme in ("s3", "memory"):
            return Opened(place, Location(url, known, None), RemoteStore(name, url, self._cache / name, known))
        raise ValueError(f"bucket {name}: {url!r} must be file:///directory or s3://bucket/prefix")


def folder_of(url: str) -> Path:
    """The directory of a `file://` URL."""
    return Path(unquote(urlsplit(url).path))


def _make_root(bucket: BucketName, url: str) -> None:
    if urlsplit(url).scheme != "file":
        return
    try:
        durable.make_directory(folder_of(url))
    except OSError as error:
        raise ValueError(f"bucket {bucket}: {folder_of(url)} can't be made: {error.strerror}") from error
