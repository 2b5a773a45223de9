"""Buckets, as the shells see them: named places for objects. Apart from ports.py for its length;
import them from there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from actors.backends.lance_store import Place as LancePlace
from schemas.names import BucketName, Bytes, Sha256


class Artifact(msgspec.Struct, frozen=True):
    key: str
    sha256: Sha256
    bytes: Bytes


class Entry(msgspec.Struct, frozen=True):
    """An object as a listing shows it."""

    key: str
    bytes: Bytes
    tag: str  # another one when it was written again


class Place(msgspec.Struct, frozen=True):
    """Where a bucket lies, as it may be shown."""

    url: str
    options: dict[str, str]  # of the object store; credentials by name only
    origin: Literal["configured", "provisioned"]


class Waiting(msgspec.Struct, frozen=True):
    """What waits in `rescue` until its bucket can be written."""

    bucket: BucketName
    objects: int
    bytes: Bytes
    reason: str  # why the first of them couldn't be written


class Buckets(Protocol):
    """Objects in named buckets. Keys are relative, `/`-separated, without `..`. Raises KeyError
    for an unknown bucket, FileNotFoundError for a missing object, Transient when the store
    can't be reached."""

    async def names(self) -> list[BucketName]:
        """The configured buckets and the provisioned ones, sorted."""
        ...

    async def provision(self, bucket: BucketName, url: str = "", options: Mapping[str, str] | None = None) -> bool:
        """Make a bucket unless there is one of that name: at `url`, else under
        storage.profile_root. Every process of the lakehouse then knows it. True when it was
        made. Raises ValueError for what can't be one."""
        ...

    async def remove(self, bucket: BucketName) -> None:
        """Forget a provisioned bucket; its objects stay where they are. A missing one is no
        error. Raises ValueError for a configured one."""
        ...

    async def place(self, bucket: BucketName) -> Place: ...
    async def lance_place(self, bucket: BucketName, key: str, lance_version: int | None = None) -> LancePlace:
        """Where a Lance store is, for those who open it by pylance. Raises ValueError for a bucket that
        pylance can't reach."""
        ...

    async def reach(self, bucket: BucketName) -> None:
        """Raises Transient when the bucket can't be read."""
        ...

    async def waiting(self) -> list[Waiting]:
        """By bucket: what couldn't be written there and was put into `rescue`."""
        ...

    async def bring_home(self, bucket: BucketName) -> Waiting:
        """Write what waits for a bucket into it, verified, in the order in which it came.
        Returns what was brought. Raises Transient, with the rest still waiting, when the bucket
        can't be written yet."""
        ...

    async def check(self, bucket: BucketName) -> None:
        """Raises Transient unless an object can be written there, read and removed."""
        ...

    async def put(self, bucket: BucketName, key: str, data: bytes, *, overwrite: bool = False) -> Artifact:
        """Write durably and all at once. Raises FileExistsError unless `overwrite`."""
        ...

    async def upload(self, bucket: BucketName, key: str, path: Path) -> Artifact:
        """As `put`, with the content of a local file."""
        ...

    async def get(self, bucket: BucketName, key: str) -> bytes: ...
    async def copy(self, source: BucketName, key: str, bucket: BucketName) -> Artifact:
        """Put an object of `source` under its key into `bucket`, in the place of what is there,
        and read it back. Raises CorruptState when it isn't the same."""
        ...

    async def fetch(self, bucket: BucketName, key: str, sha256: Sha256 | None = None) -> Path:
        """A local, read-only file with the object's content. Raises CorruptState when its
        checksum isn't `sha256`."""
        ...

    async def entries(self, bucket: BucketName, prefix: str) -> list[Entry]:
        """What lies below a folder ("": in all), sorted by key."""
        ...

    async def list(self, bucket: BucketName, prefix: str) -> list[str]:
        """The keys of `entries`."""
        ...

    async def delete(self, bucket: BucketName, key: str) -> None:
        """A missing object is no error."""
        ...

    async def delete_prefix(self, bucket: BucketName, prefix: str) -> None: ...
