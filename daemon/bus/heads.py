"""Heads of registry documents: small values that move by compare-and-set.

A head says which revision of a document is current. On NATS it is an entry of the JetStream KV
bucket LAKEHOUSE_HEADS under the key `kind.name`; in memory it is a dict with the same rules.
What a head means, and the revisions themselves, live in the registry (daemon/storage).
"""

import asyncio
import re
from collections.abc import Awaitable, Iterable
from itertools import islice
from typing import Any, Protocol, TypeVar

import nats.errors
import nats.js.errors
from nats.js import api

from actors.errors import Conflict, Transient
from daemon.disk import Disk

T = TypeVar("T")

KEY = re.compile(r"[-/_=.a-zA-Z0-9]+")
"""What JetStream KV takes, and so what heads in memory take."""

BUCKET = "LAKEHOUSE_HEADS"
ATTEMPTS = 5
"""Tries per operation; each waits for the JetStream context's timeout (2 s)."""


class Heads(Protocol):
    """Keys are `kind.name`; a revision is an int that only grows. Every operation raises
    Transient when the store can't be reached."""

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """The value and its revision, or None."""
        ...

    async def set(self, key: str, value: bytes, expected: int | None) -> int:
        """Move the head from revision `expected` (None: there is none yet); returns the new
        revision once it is durable. Raises Conflict when it is at another one. Two writers
        must not write the same bytes: after a lost answer, a head with this very value above
        `expected` counts as ours."""
        ...

    async def delete(self, key: str, expected: int | None = None) -> None:
        """Remove the head; a missing one is no error. Raises Conflict when `expected` is given
        and the head is at another revision."""
        ...

    async def all(self, prefix: str = "") -> dict[str, tuple[bytes, int]]:
        """Every head whose key begins with `prefix`, by key, sorted."""
        ...


class MemoryHeads:
    """Heads of one process, for tests and simulations."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[bytes, int]] = {}
        self._revision = 0

    async def get(self, key: str) -> tuple[bytes, int] | None:
        return self._heads.get(key)

    async def set(self, key: str, value: bytes, expected: int | None) -> int:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key that NATS takes")
        self._expect(key, expected)
        self._revision += 1
        self._heads[key] = (bytes(value), self._revision)
        return self._revision

    async def delete(self, key: str, expected: int | None = None) -> None:
        if key in self._heads:
            if expected is not None:
                self._expect(key, expected)
            del self._heads[key]

    async def all(self, prefix: str = "") -> dict[str, tuple[bytes, int]]:
        return {key: head for key, head in sorted(self._heads.items()) if key.startswith(prefix)}

    def _expect(self, key: str, expected: int | None) -> None:
        head = self._heads.get(key)
        if (head[1] if head else None) != expected:
            raise Conflict(f"head {key} is at revision {head[1] if head else None}, not {expected}")


AT_ONCE = 64
"""Heads that are asked for at the same time."""


async def gathered(reads: Iterable[Awaitable[T]]) -> list[T]:
    """What each gives, in order; AT_ONCE of them at a time. Raises what the first to fail raises."""
    found: list[T] = []
    waiting = iter(reads)
    while batch := list(islice(waiting, AT_ONCE)):
        found += await asyncio.gather(*batch)
    return found


class NatsHeads:
    """Heads in JetStream KV. Survives lost answers: a compare-and-set that timed out is tried
    again, and one that then conflicts is settled by reading the value back."""

    def __init__(self, js: Any, kv: Any, disk: Disk | None = None) -> None:
        """disk: where the server stores, when that is here."""
        self._js = js
        self._kv = kv
        self._disk = disk

    @classmethod
    async def open(cls, js: Any, *, bucket: str = BUCKET, replicas: int = 1, disk: Disk | None = None) -> "NatsHeads":
        """Open the bucket, making it when it is missing. js: a JetStreamContext."""
        config = api.KeyValueConfig(bucket=bucket, history=1, storage=api.StorageType.FILE, replicas=replicas)
        try:
            kv = await js.key_value(bucket)
        except nats.js.errors.BucketNotFoundError:
            kv = await js.create_key_value(config)
        return cls(js, kv, disk)

    async def get(self, key: str) -> tuple[bytes, int] | None:
        for attempt in range(ATTEMPTS):
            try:
                entry = await self._kv.get(key)
                return entry.value or b"", entry.revision
            except nats.js.errors.KeyNotFoundError:
                return None
            except UNREACHABLE as error:
                await self._pause(key, attempt, error)
        raise AssertionError("unreachable")

    async def set(self, key: str, value: bytes, expected: int | None) -> int:
        for attempt in range(ATTEMPTS):
            try:
                if expected is None:
                    return int(await self._kv.create(key, value))
                return int(await self._kv.update(key, value, last=expected))
            except nats.js.errors.KeyWrongLastSequenceError as error:
                head = await self.get(key)
                if attempt and head and head[0] == value and head[1] > (expected or 0):
                    return head[1]
                raise Conflict(f"head {key} is at revision {head[1] if head else None}, not {expected}") from error
            except UNREACHABLE as error:
                await self._pause(key, attempt, error)
        raise AssertionError("unreachable")

    async def delete(self, key: str, expected: int | None = None) -> None:
        for attempt in range(ATTEMPTS):
            try:
                head = await self.get(key)
                if head is None:
                    return
                await self._kv.delete(key, last=expected if expected is not None else head[1])
                return
            except nats.js.errors.BadRequestError as error:  # wrong last sequence
                if expected is not None:
                    raise Conflict(f"head {key} is at another revision than {expected}") from error
            except UNREACHABLE as error:
                await self._pause(key, attempt, error)
        raise Conflict(f"head {key} kept moving while it was deleted")

    async def all(self, prefix: str = "") -> dict[str, tuple[bytes, int]]:
        # Not kv.keys(): it watches, and a watch can end early. The stream's subjects are exact,
        # but still name deleted keys, so each is read.
        pre = f"$KV.{self._kv._name}."
        kind = prefix[: prefix.rfind(".") + 1]  # whole tokens can be left to the server
        for attempt in range(ATTEMPTS):
            try:
                info = await self._js.stream_info(f"KV_{self._kv._name}", subjects_filter=f"{pre}{kind}>")
                break
            except UNREACHABLE as error:
                await self._pause(prefix, attempt, error)
        found = sorted(subject[len(pre) :] for subject in info.state.subjects or {})
        found = [key for key in found if key.startswith(prefix)]
        there = await gathered(self.get(key) for key in found)
        return {key: head for key, head in zip(found, there, strict=True) if head is not None}

    async def _pause(self, key: str, attempt: int, error: Exception) -> None:
        if attempt == ATTEMPTS - 1:
            full = self._disk.full() if self._disk is not None else None
            away = full or f"the NATS server does not answer ({error})"
            raise Transient(f"{away}; head {key!r} is as it was or moved") from error
        await asyncio.sleep(0.1 * 2**attempt)


UNREACHABLE = (
    nats.errors.TimeoutError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    nats.errors.NoRespondersError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
)
"""What nats-py raises when the server is away: the answer is unknown, trying again is right."""
