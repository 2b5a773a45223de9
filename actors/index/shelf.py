"""The indexes in memory: loaded on demand, at most once at a time, and put away least recently
used first when they exceed the budget.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import anyio

from actors.index.lance_served import LanceServed
from actors.index.served import ServedIndex
from schemas.events.base import Refusal
from schemas.names import Bytes

Served = ServedIndex | LanceServed
Load = Callable[[str], Awaitable[Served | Refusal]]
"""By the registry name of its head."""


class Shelf:
    def __init__(self, load: Load, budget_bytes: Bytes) -> None:
        self._load = load
        self._budget_bytes = budget_bytes
        self._loaded: OrderedDict[str, Served] = OrderedDict()
        self._loading: dict[str, anyio.Lock] = {}

    def here(self, name: str) -> Served | None:
        """The index if it is in memory, marked as used."""
        index = self._loaded.get(name)
        if index is not None:
            self._loaded.move_to_end(name)
        return index

    def loaded(self, name: str) -> Served | None:
        """The index if it is in memory."""
        return self._loaded.get(name)

    def all(self) -> list[Served]:
        return list(self._loaded.values())

    @property
    def bytes(self) -> Bytes:
        return sum(index.bytes for index in self._loaded.values())

    async def get(self, name: str) -> Served | Refusal:
        """The index, loaded if need be; askers at the same time share the load."""
        index = self.here(name)
        if index is not None:
            return index
        async with self._lock(name):
            index = self.here(name)
            if index is not None:
                return index
            loaded = await self._load(name)
            if not isinstance(loaded, Refusal):
                self._loaded[name] = loaded
                self.evict()
            return loaded

    async def renew(self, name: str) -> Served | Refusal:
        """Load it anew: another backend serves it now. Searches under way end on the old one, which goes on
        serving when the new one can't be loaded."""
        async with self._lock(name):
            loaded = await self._load(name)
            if not isinstance(loaded, Refusal):
                self._loaded[name] = loaded
                self.evict()
            return loaded

    async def settled(self, name: str) -> Served | None:
        """The index if it is in memory, once a load under way has ended."""
        async with self._lock(name):
            return self._loaded.get(name)

    async def drop(self, name: str) -> None:
        async with self._lock(name):
            self._loaded.pop(name, None)
        self._loading.pop(name, None)

    def evict(self) -> None:
        """Put away what exceeds the budget; the one used last stays, whatever its size."""
        while len(self._loaded) > 1 and self.bytes > self._budget_bytes:
            self._loaded.popitem(last=False)

    def _lock(self, name: str) -> anyio.Lock:
        return self._loading.setdefault(name, anyio.Lock())
