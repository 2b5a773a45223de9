"""A multipart upload, streamed to the uploads folder: one `file` part, and fields beside it.

The file is bounded in size, leaves the disk its reserve, and is removed when anything fails.
aiohttp's own limit (client_max_size) doesn't cover streamed bodies.
"""

import asyncio
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import BodyPartReader, MultipartReader, web

from daemon.http.config import HttpConfig
from daemon.http.errors import HttpError

PREFIX = "upload-"
CHUNK = 1024 * 1024
FIELD_LIMIT = 64 * 1024
CHECK_DISK_EVERY = 64 * CHUNK


class Upload(NamedTuple):
    path: Path
    name: str  # as the client called the file, without folders
    fields: dict[str, str]


@asynccontextmanager
async def received(request: web.Request, folder: Path, config: HttpConfig) -> AsyncIterator[Upload]:
    """The upload, whole and on disk, until the block ends. Raises HttpError (malformed,
    too_large, unavailable) and TimeoutError for a client that stalls."""
    limit = config.max_upload_mb * 1024 * 1024
    if request.content_length is not None and request.content_length > limit + FIELD_LIMIT:
        raise _too_large(config)
    _check_disk(folder, config, request.content_length or 0)
    path: Path | None = None
    name, fields = "", {}
    try:
        reader = await _multipart(request)
        while (part := await _soon(reader.next(), config)) is not None:
            if not isinstance(part, BodyPartReader):
                raise HttpError("malformed", "a part of the form is a form itself")
            if part.name != "file":
                fields[str(part.name)] = await _field(part, config)
            elif path is not None:
                raise HttpError("malformed", "there is more than one `file`", "send one file a request")
            else:
                name = Path((part.filename or "").replace("\\", "/")).name
                path = folder / f"{PREFIX}{uuid.uuid4().hex}{_suffix(name)}"
                await _write(part, path, limit, config)
        if path is None:
            raise HttpError("malformed", "the form has no part `file`", "curl -F dataset=docs -F file=@rows.csv …")
        yield Upload(path, name, fields)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Removes what a killed process left: nobody waits for it any more."""
    for path in folder.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)


async def _multipart(request: web.Request) -> MultipartReader:
    try:
        return await request.multipart()
    except (AssertionError, ValueError, KeyError) as error:  # what aiohttp raises for a bad Content-Type
        raise HttpError("malformed", f"this is no multipart form: {error}") from error


async def _soon(waiting: Any, config: HttpConfig) -> Any:
    async with asyncio.timeout(config.read_timeout_s):
        try:
            return await waiting
        except ValueError as error:  # a broken boundary or part header
            raise HttpError("malformed", f"the form is broken: {error}") from error


async def _field(part: BodyPartReader, config: HttpConfig) -> str:
    value = b""
    while chunk := await _soon(part.read_chunk(CHUNK), config):
        value += chunk
        if len(value) > FIELD_LIMIT:
            raise HttpError("too_large", f"form field {part.name!r} is over {FIELD_LIMIT} bytes")
    return value.decode()


async def _write(part: BodyPartReader, path: Path, limit: int, config: HttpConfig) -> None:
    size = checked = 0
    with path.open("xb", buffering=0) as file:
        os.chmod(path, 0o600)
        while chunk := await _soon(part.read_chunk(CHUNK), config):
            size += len(chunk)
            if size > limit:
                raise _too_large(config)
            if size - checked >= CHECK_DISK_EVERY:
                _check_disk(path.parent, config, 0)
                checked = size
            await asyncio.to_thread(file.write, chunk)


def _check_disk(folder: Path, config: HttpConfig, coming: int) -> None:
    free = shutil.disk_usage(folder).free
    if free - coming < config.min_free_mb * 1024 * 1024:
        raise HttpError(
            "unavailable",
            f"the disk has {free // 1024**2} MiB free: the upload would leave less than {config.min_free_mb} MiB",
            "make room, or lower [http] min_free_mb",
        )


def _too_large(config: HttpConfig) -> HttpError:
    return HttpError("too_large", f"the file is over {config.max_upload_mb} MiB", "[http] max_upload_mb")


def _suffix(name: str) -> str:
    """The file's own suffixes, by which its format is known; nothing else of its name."""
    found = re.search(r"(\.[a-z0-9]{1,8}){1,2}$", name.lower())
    return found[0] if found else ""
