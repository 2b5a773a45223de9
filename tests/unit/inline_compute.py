"""The Compute port without a process: a job runs in the event loop, one step at a time."""

from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")


class InlineCompute:
    """For tests of what stands on the port. The loop turns between two items; jobs keep their order."""

    def __init__(self) -> None:
        self._turn = anyio.Semaphore(1)

    async def stream(self, job: Callable[..., Iterator[T]], *args: Any) -> AsyncGenerator[T, None]:
        async with self._turn:
            for item in job(*args):
                yield item
                await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing to end."""
