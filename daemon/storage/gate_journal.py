"""What trainings of gates gave: the table `gate_events` in primary."""

from collections.abc import Sequence

from actors.ports import TableRef, Tables
from daemon.storage.struct_table import StructTable
from schemas.documents.gate import GateEvent

GATE = TableRef("primary", "system/gate_events")


class TableGateJournal:
    """The port `GateJournal`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._table = StructTable(tables, GATE, GateEvent)

    async def append(self, events: Sequence[GateEvent]) -> None:
        await self._table.append(events, lambda event: (event.run, event.profile))

    async def run(self, run: str) -> list[GateEvent]:
        if await self._table.state() is None:
            return []
        rows = await self._tables.find(GATE, "run", [run])
        return await self._table.read(rows=rows) if len(rows) else []
