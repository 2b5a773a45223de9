"""The gate before a graph: which searches and writes may run at the same time.

hnswlib's ef belongs to the index object and its searches are not safe beside add_items,
mark_deleted or resize. So searches with the same ef run together, everyone else waits in
order of arrival, and a writer is alone. Lives on the event loop: no locks, no threads.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import takewhile

import anyio

WRITE = -1
"""The lane of writers; every other lane is an ef."""


class EfGate:
    """Readers in lanes by ef, writers alone, first come first served."""

    def __init__(self) -> None:
        self._lane = 0  # lane of those inside
        self._inside = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    def free_for(self, ef: int) -> bool:
        """Whether a search with this ef could run now, on the loop, before anything else does.
        It needn't enter: nobody can come in between."""
        return not self._waiting and (self._inside == 0 or self._lane == ef)

    @asynccontextmanager
    async def read(self, ef: int) -> AsyncIterator[None]:
        """While inside, the graph's ef is the caller's to set to `ef`."""
        await self._enter(ef)
        try:
            yield
        finally:
            self._leave()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[None]:
        """While inside, nobody else is."""
        await self._enter(WRITE)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, lane: int) -> None:
        if not self._waiting and (self._inside == 0 or (self._lane == lane and lane != WRITE)):
            self._lane = lane
            self._inside += 1
            return
        turn = anyio.Event()
        self._waiting.append((lane, turn))
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # let in and cancelled at once
                self._leave()
            else:
                self._waiting.remove((lane, turn))
                self._admit()
            raise

    def _leave(self) -> None:
        self._inside -= 1
        self._admit()

    def _admit(self) -> None:
        """Lets in the first in line and, when it is a search, those of its ef that stand before
        the next writer: they run together, so nobody waits longer for it."""
        if not self._waiting:
            return
        lane = self._waiting[0][0]
        if self._inside and (lane != self._lane or lane == WRITE):
            return
        together = [self._waiting[0]]
        if lane != WRITE:
            together = [w for w in takewhile(lambda w: w[0] != WRITE, self._waiting) if w[0] == lane]
        self._lane = lane
        self._inside += len(together)
        for waiter in together:
            self._waiting.remove(waiter)
            waiter[1].set()
