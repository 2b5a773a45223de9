"""Files that watched folders brought: the table `system/watched_files` in primary."""

from collections.abc import Sequence

from actors.ports import TableRef, Tables
from daemon.storage.struct_table import StructTable
from schemas.documents.watch import SeenFile

SEEN = TableRef("primary", "system/watched_files")


class TableSeenFiles:
    """The port `SeenFiles`."""

    def __init__(self, tables: Tables) -> None:
        self._table = StructTable(tables, SEEN, SeenFile)

    async def all(self) -> list[SeenFile]:
        return await self._table.read() if await self._table.state() is not None else []

    async def append(self, seen: Sequence[SeenFile]) -> None:
        await self._table.append(seen, lambda one: (f"{one.sha256}-{one.path}-{one.time}", one.path))
