"""A stand-in for the owners of Lance stores, for tests of the HTTP side: it keeps rows in memory and says what it
was asked."""

from collections.abc import Sequence
from typing import Any

from actors.backends.lance_rules import first_config, resolve
from actors.base import Actor, handles
from schemas.documents.store import StoreVersion
from schemas.events.base import Refusal
from schemas.events.lance import (
    AppendDocuments,
    DeleteDocuments,
    DropStore,
    GetDocument,
    GetStoreStats,
    IndexedBy,
    IndexStore,
    MigrateIndex,
    OptimizeQueued,
    OptimizeStore,
    StoreChanged,
    StoredDocument,
    StoreDropped,
    StoreQueued,
    StoreStats,
)

ROWS, DIM = 100_000, 384


class Stores(Actor):
    """Index `docs` has a store once it was migrated; its ids are texts, and its vectors short."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] | None = None
        self.asked: list[Any] = []

    @handles
    async def on_migrate(self, command: MigrateIndex) -> Sequence[StoreQueued | Refusal]:
        self.asked.append(command)
        self.rows = {}
        return self._queued(command)

    @handles
    async def on_index(self, command: IndexStore) -> Sequence[StoreQueued | Refusal]:
        self.asked.append(command)
        return [self._none(command.index)] if self.rows is None else self._queued(command)

    @handles
    async def on_document(self, query: GetDocument) -> Sequence[StoredDocument | Refusal]:
        self.asked.append(query)
        row = (self.rows or {}).get(str(query.id))
        if row is None:
            return [Refusal("not_found", f"index {query.index!r} has no document {query.id!r}", "ids are texts")]
        return [StoredDocument(query.index, query.id, row, [0.5, 0.25])]

    @handles
    async def on_append(self, command: AppendDocuments) -> Sequence[StoreChanged | Refusal]:
        self.asked.append(command)
        if self.rows is None:
            return [self._none(command.index)]
        if any("id" not in row for row in command.rows):
            return [Refusal("invalid", "row 1 has no id", "give each row its `id`")]
        self.rows |= {str(row["id"]): row for row in command.rows}
        return [StoreChanged(command.index, 4, 13, len(command.rows))]

    @handles
    async def on_delete(self, command: DeleteDocuments) -> Sequence[StoreChanged]:
        self.asked.append(command)
        there = self.rows or {}
        gone = [there.pop(str(id)) for id in command.ids if str(id) in there]
        return [StoreChanged(command.index, 5, 14, len(gone))]

    @handles
    async def on_optimize(self, command: OptimizeStore) -> Sequence[OptimizeQueued]:
        self.asked.append(command)
        return [OptimizeQueued(command.index, 60)]

    @handles
    async def on_stats(self, query: GetStoreStats) -> Sequence[StoreStats | Refusal]:
        if self.rows is None:
            return [self._none(query.index)]
        build = resolve(ROWS, DIM)
        index = IndexedBy(f"{build.name}-v3", build, 3, ROWS, 60, True)
        return [
            StoreStats(
                query.index, "primary", f"indexes/{query.index}/lance/1", True, ROWS, 0, 1, 10, 13, 4, [index],
                "text", 0.0006, [StoreVersion(4, 13)], "pylance",
            )
        ]  # fmt: skip

    @handles
    async def on_drop(self, command: DropStore) -> Sequence[StoreDropped | Refusal]:
        if command.index == "served":
            return [Refusal("conflict", "Lance serves index 'served'", "lakehouse index backend served hnsw")]
        self.rows = None
        return [StoreDropped(command.index)]

    def _queued(self, wanted: MigrateIndex | IndexStore) -> Sequence[StoreQueued | Refusal]:
        try:
            build = resolve(ROWS, DIM, wanted.index_type, wanted.partitions, wanted.sub_vectors)
        except ValueError as error:
            return [Refusal("invalid", str(error), "leave it out for the rule's")]
        return [StoreQueued(wanted.index, 4, first_config(build))]

    @staticmethod
    def _none(index: str) -> Refusal:
        return Refusal("not_found", f"index {index!r} has no Lance store", f"lakehouse lance migrate {index}")
