"""Where a table's data files are: in the bucket's own directory when it is local, otherwise in a
cache, from which they are uploaded and into which they are fetched."""

import os
from collections.abc import Iterable
from pathlib import Path

import anyio

from actors.errors import Transient
from actors.ports import TableRef
from daemon.storage import durable
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.data_files import DataFile
from daemon.storage.known import Location


class TableFiles:
    def __init__(self, buckets: ObjectBuckets, ref: TableRef, bucket: Location, cache: Path) -> None:
        self._buckets = buckets
        self._ref = ref
        self._root = bucket.folder
        self._local = bucket.folder / ref.path if bucket.folder else None
        self.folder = self._local or cache / ref.bucket / ref.path
        """Where new files are written."""

    def make_folder(self) -> None:
        """Raises Transient when the bucket's own directory isn't there: its disk isn't mounted."""
        if self._root is not None and not self._root.is_dir():
            raise Transient(f"bucket {self._ref.bucket}: the directory {self._root} is not there", 30)
        durable.make_directory(self.folder)

    async def publish(self, files: Iterable[DataFile]) -> None:
        """Bring new files into the bucket. Local ones are there already."""
        if self._local is None:
            for file in files:
                path = self.folder / file.path
                await self._buckets.upload(self._ref.bucket, self._key(file), path, at_home=True)

    async def path(self, file: DataFile) -> Path:
        """A local file with its content. Files never change, so one in the cache is good."""
        path = self.folder / file.path
        if self._local is not None or await anyio.Path(path).exists():
            return path
        return await self._buckets.fetch(self._ref.bucket, self._key(file))

    async def discard(self, files: Iterable[DataFile]) -> None:
        """Take files away that no version holds."""
        for file in files:
            try:
                os.unlink(self.folder / file.path)
            except FileNotFoundError:
                continue
            if self._local is None:
                await self._buckets.delete(self._ref.bucket, self._key(file))

    def _key(self, file: DataFile) -> str:
        return f"{self._ref.path}/{file.path}"
