"""Local writes that survive a power cut: temporary file, fsync, rename or link, fsync of the
directory. Anything less lost acknowledged writes in simulated cuts (tmp + rename alone: thousands).
Whoever writes a file that must be there tomorrow writes it through here; what the files mean, and
which bucket they belong to, is elsewhere.
"""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY = ".tmp-"
"""Names that begin so are unfinished writes: readers skip them, a crash may leave one behind."""


class DiskFailure(BaseException):
    """An fsync failed, so nobody knows what is on the disk: the kernel may have dropped the
    pages and will report success next time (Rebello et al., ATC'20). Not an Exception, so that
    nothing retries: the daemon ends, is restarted and reads again what is really there."""


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what was there. Raises OSError; then the old content stands."""
    with _temporary(path) as (temporary, file):
        file.write(data)
        _finish(file)
        os.replace(temporary, path)
    sync_directory(path.parent)


def create(path: Path, data: bytes) -> None:
    """As `write`, but raises FileExistsError when `path` exists: of two writers exactly one wins."""
    with _temporary(path) as (temporary, file):
        file.write(data)
        _finish(file)
        os.link(temporary, path)
    sync_directory(path.parent)


def copy(path: Path, source: Path, *, overwrite: bool) -> str:
    """As `write` or `create`, with the content of `source`. Returns its sha256."""
    digest = hashlib.sha256()
    with _temporary(path) as (temporary, file), source.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
        _finish(file)
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    sync_directory(path.parent)
    return digest.hexdigest()


def make_directory(path: Path) -> None:
    """Make `path` and its parents, each durable in the one above."""
    missing = []
    at = path
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_file(path: Path) -> None:
    """Flush a file that someone else has written and that nobody relies on yet."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor, str(path), fresh=True)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises DiskFailure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor, str(path), fresh=False)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, gone afterwards unless it was renamed."""
    make_directory(path.parent)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def _finish(file: BinaryIO) -> None:
    file.flush()
    _sync(file.fileno(), file.name, fresh=True)


def _sync(descriptor: int, name: str, *, fresh: bool) -> None:
    """`fresh`: nobody relies on the content yet, so a full disk may be told as what it is: the
    file is thrown away and written anew, never synced again."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if fresh and error.errno in FULL:
            raise
        raise DiskFailure(f"fsync of {name} failed: {error.strerror}") from error
