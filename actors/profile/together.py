"""Several things at once, and the time that they took together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from actors.ports import Clock
from schemas.names import Seconds


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose failure is the first error itself, not a group of them."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


class Stopwatch:
    """Runs while anybody is inside: overlapping waits count once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inside = 0
        self._entered = 0.0
        self.seconds: Seconds = 0.0

    def __enter__(self) -> None:
        if self._inside == 0:
            self._entered = self._clock.monotonic()
        self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside -= 1
        if self._inside == 0:
            self.seconds += self._clock.monotonic() - self._entered
