"""One `file://` bucket: a directory, written through durable.py. Objects are plain files under
their keys, so anyone can read them; `fetch` gives the file itself, without a copy."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from actors.errors import Transient
from actors.ports import Artifact, Entry
from daemon.storage import durable
from schemas.names import BucketName, Sha256

T = TypeVar("T")


class LocalStore:
    """See known.Store. An object's file is never changed in place."""

    root: Path | None

    def __init__(self, name: BucketName, root: Path) -> None:
        self._name = name
        self._root = self.root = root

    def _walk(self, prefix: str) -> list[Entry]:
        found = []
        for folder, folders, files in os.walk(self._root / prefix):
            folders[:] = [name for name in folders if not name.startswith(durable.TEMPORARY)]  # on their way out
            for file in files:
                if file.startswith(durable.TEMPORARY):
                    continue
                path = os.path.join(folder, file)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:  # it went meanwhile
                    continue
                tag = f"{stat.st_ino}-{stat.st_mtime_ns}"
                found.append(Entry(os.path.relpath(path, self._root), stat.st_size, tag))
        return found

    async def put(self, key: str, data: bytes, overwrite: bool) -> None:
        write = durable.write if overwrite else durable.create
        await self._run(lambda: write(self._root / key, data), key)

    async def upload(self, key: str, path: Path, overwrite: bool) -> Artifact:
        target = self._root / key
        sha256 = await self._run(lambda: durable.copy(target, path, overwrite=overwrite), key)
        return Artifact(key, sha256, target.stat().st_size)

    async def get(self, key: str) -> bytes:
        return await self._run((self._root / key).read_bytes, key)

    async def fetch(self, key: str, sha256: Sha256 | None) -> Path:
        path = self._root / key
        if not await self._run(path.is_file, key):
            raise FileNotFoundError(f"there is no object {key} in bucket {self._name}")
        return path

    async def folders(self) -> list[str]:
        return await self._run(lambda: [path.name for path in self._root.iterdir() if path.is_dir()], "")

    async def entries(self, prefix: str) -> list[Entry]:
        return await self._run(lambda: self._walk(prefix), prefix)

    async def delete(self, key: str) -> None:
        await self._run(lambda: (self._root / key).unlink(missing_ok=True), key)

    async def delete_prefix(self, prefix: str) -> None:
        await self._run(lambda: self._remove(prefix), prefix)

    def _remove(self, prefix: str) -> None:
        """Renamed first, so that who writes below it meanwhile begins a new folder."""
        going = self._root / f"{durable.TEMPORARY}{uuid.uuid4().hex}"
        try:
            (self._root / prefix).rename(going)
        except FileNotFoundError:  # others remove it, too
            return
        durable.sync_directory((self._root / prefix).parent)
        shutil.rmtree(going)

    async def _run(self, operation: Callable[[], T], key: str) -> T:
        """In a thread, with the disk's errors in the daemon's words."""

        def run() -> T:
            if not self._root.is_dir():  # an unmounted disk: don't write into the mount point
                raise Transient(
                    f"bucket {self._name}: the directory {self._root} is not there; is its disk mounted?", 30
                )
            return operation()

        try:
            return await anyio.to_thread.run_sync(run)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(f"there is no object {key} in bucket {self._name}") from error
        except FileExistsError as error:
            raise FileExistsError(f"object {key} exists already in bucket {self._name}") from error
        except OSError as error:
            if error.errno in durable.FULL:
                raise Transient(f"bucket {self._name} is full: free space under {self._root}", 30) from error
            raise Transient(f"bucket {self._name}: {key}: {error.strerror}", 5) from error
