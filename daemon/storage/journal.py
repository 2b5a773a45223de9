"""The trial journal as a table: one row per measured point, the columns those of TrialPoint."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import anyio

from actors.ports import TableRef, Tables
from daemon.storage.struct_table import StructTable
from schemas.documents.trial import TrialPoint
from schemas.names import IndexName

JOURNAL = TableRef("primary", "system/trials")


class TableJournal:
    """The port `Journal`. The table only grows, so what was read stays and only rows added
    since are read."""

    def __init__(self, tables: Tables, now: Callable[[], float] = time.time) -> None:
        self._table = StructTable(tables, JOURNAL, TrialPoint)
        self._lock = anyio.Lock()
        self._read = 0  # rows below this number are in `_points`
        self._version = -1
        self._points: defaultdict[IndexName, list[TrialPoint]] = defaultdict(list)

    async def append(self, points: Sequence[TrialPoint]) -> None:
        """A trial is written as a whole, by the commit that carries its id."""
        await self._table.append(points, lambda point: (f"trial-{point.trial}", point.trial))

    async def points(self, index: IndexName) -> list[TrialPoint]:
        async with self._lock:
            await self._catch_up()
            return list(self._points[index])

    async def trial(self, index: IndexName, trial: str) -> list[TrialPoint]:
        return [point for point in await self.points(index) if point.trial == trial]

    async def _catch_up(self) -> None:
        state = await self._table.state()
        if state is None or state.version == self._version:
            return
        for point in await self._table.read(version=state.version, min_row=self._read):
            self._points[point.index].append(point)
        self._read, self._version = state.next_row, state.version
