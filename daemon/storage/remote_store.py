"""One `s3://` bucket (or `memory://`, for tests) through obstore. Fetched objects are kept in a
local cache. S3 itself makes puts durable, atomic and, with mode "create", exclusive."""

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio.to_thread
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import MemoryStore, S3Store

from actors.errors import Transient
from actors.ports import Artifact, Entry
from schemas.names import BucketName, Sha256

RETRY_S = 20.0


class RemoteStore:
    """See known.Store."""

    root: Path | None = None

    def __init__(self, name: BucketName, url: str, cache: Path, options: Mapping[str, str]) -> None:
        """options: S3's, as obstore names them (endpoint, region, access_key_id …); what is not
        given comes from the environment's AWS_ variables."""
        self._name = name
        self._cache = cache
        self._store = MemoryStore() if url.startswith("memory:") else _s3(url, options)

    async def put(self, key: str, data: bytes, overwrite: bool) -> None:
        with self._errors(key):
            await obstore.put_async(self._store, key, data, mode="overwrite" if overwrite else "create")

    async def upload(self, key: str, path: Path, overwrite: bool) -> Artifact:
        artifact = await anyio.to_thread.run_sync(_describe, key, path)
        with self._errors(key):
            # Multipart uploads know no "create", so what must be exclusive goes up in one piece
            # (S3 allows 5 GiB).
            await obstore.put_async(
                self._store,
                key,
                path,
                mode="overwrite" if overwrite else "create",
                use_multipart=None if overwrite else False,
            )
        return artifact

    async def get(self, key: str) -> bytes:
        with self._errors(key):
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def fetch(self, key: str, sha256: Sha256 | None) -> Path:
        with self._errors(key):
            version = sha256 or str((await obstore.head_async(self._store, key))["e_tag"])
            path = self._cache / hashlib.sha256(f"{key}\0{version}".encode()).hexdigest() / key.rsplit("/", 1)[-1]
            if path.is_file():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{uuid.uuid4().hex}")
            try:
                result = await obstore.get_async(self._store, key)
                async with await anyio.open_file(temporary, "wb") as file:
                    async for chunk in result.stream(min_chunk_size=8 << 20):
                        await file.write(bytes(chunk))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            return path

    async def folders(self) -> list[str]:
        with self._errors(""):
            return list((await obstore.list_with_delimiter_async(self._store))["common_prefixes"])

    async def entries(self, prefix: str) -> list[Entry]:
        with self._errors(prefix):
            return [
                Entry(meta["path"], meta["size"], str(meta["e_tag"]))
                async for batch in obstore.list(self._store, prefix or None)
                for meta in batch
            ]

    async def delete(self, key: str) -> None:
        with self._errors(key):
            try:
                await obstore.delete_async(self._store, key)
            except FileNotFoundError:
                return

    async def delete_prefix(self, prefix: str) -> None:
        for entry in await self.entries(prefix):
            await self.delete(entry.key)

    def _errors(self, key: str) -> AbstractContextManager[None]:
        return _errors(self._name, key)


@contextmanager
def _errors(bucket: BucketName, key: str) -> Iterator[None]:
    """obstore's errors in the daemon's words."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no object {key} in bucket {bucket}") from error
    except AlreadyExistsError as error:
        raise FileExistsError(f"object {key} exists already in bucket {bucket}") from error
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise Transient(f"bucket {bucket} refuses access to {key}: check its credentials", 30) from error
    except (BaseError, OSError) as error:
        raise Transient(f"bucket {bucket} can't be reached: {str(error).splitlines()[0]}", 5) from error


def _s3(url: str, options: Mapping[str, str]) -> S3Store:
    plain = str(options.get("endpoint", "")).startswith("http://")
    return S3Store.from_url(
        url,
        config=cast(Any, dict(options)),
        client_options=cast(Any, {"allow_http": True} if plain else {}),
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=RETRY_S)},
    )


def _describe(key: str, path: Path) -> Artifact:
    with path.open("rb") as file:
        return Artifact(key, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
