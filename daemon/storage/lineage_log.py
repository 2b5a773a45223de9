"""Run events: the table `lineage` in primary."""

from collections.abc import Sequence

from actors.ports import TableRef, Tables
from daemon.storage.struct_table import StructTable
from schemas.documents.lineage import LineageRow

LINEAGE = TableRef("primary", "system/lineage")


class TableLineageLog:
    """The port `LineageLog`."""

    def __init__(self, tables: Tables) -> None:
        self._table = StructTable(tables, LINEAGE, LineageRow)

    async def append(self, rows: Sequence[LineageRow]) -> None:
        last = rows[-1]  # of one run: what is told together is written together
        await self._table.append(rows, lambda _: (f"{last.run}-{last.state}", last.job))

    async def newest(self, limit: int) -> list[LineageRow]:
        state = await self._table.state()
        return await self._table.read(min_row=max(0, state.next_row - limit)) if state is not None else []
