"""The slot's one line: whoever changes something has the turn, under a name, and the others wait in order.
Looking needs no turn; what a look is to change does, if nobody else has had it since.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from schemas.events.base import Refusal


class Line:
    def __init__(self) -> None:
        self._turn = anyio.Lock()
        self._orders: list[str] = []  # the one that has the turn, then those that wait
        self.turns = 0  # so many have been taken

    @property
    def taken(self) -> bool:
        return bool(self._orders)

    @property
    def waiting(self) -> int:
        return max(0, len(self._orders) - 1)

    def still(self, turns: int) -> bool:
        """Whether nobody has the turn, nor has had it since there were so many."""
        return not self.taken and self.turns == turns

    @asynccontextmanager
    async def turn(self, what: str) -> AsyncIterator[None]:
        """A place in line, then the slot."""
        self._orders.append(what)
        try:
            async with self._turn:
                self.turns += 1
                yield
        finally:
            self._orders.remove(what)

    def busy(self) -> Refusal:
        """For whom won't wait."""
        more = f", and {self.waiting} more wait{'s' if self.waiting == 1 else ''}" if self.waiting else ""
        return Refusal("conflict", f"{self._orders[0]} is under way{more}", "wait for it (wait=true), or try later")
