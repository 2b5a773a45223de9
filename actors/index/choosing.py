"""Gathers what the choice of an index's backend is made from; the choice itself is core's."""

from actors.backends import lance_store
from actors.index.core import Choice, choose_backend, graph_bytes
from actors.ports import Journal, Registry
from schemas.documents.index import IndexDocument
from schemas.documents.promotion import PromotionDocument
from schemas.names import Backend, Bytes, Micros, Rows


class BackendChooser:
    def __init__(self, registry: Registry, journal: Journal, budget_bytes: Bytes) -> None:
        self._registry = registry
        self._journal = journal
        self._budget_bytes = budget_bytes

    async def choose(self, document: IndexDocument, rows: Rows) -> Choice:
        if document.backend != "auto":
            return Choice(document.backend)
        found = await self._registry.load(PromotionDocument, document.index)
        current = found[0].current if found else None
        return choose_backend(
            "auto",
            current.config.backend if current else None,
            graph_bytes(rows, document.dim, document.config.M),
            self._budget_bytes,
            lance_store.available(),
            await self._measured(document),
        )

    async def _measured(self, document: IndexDocument) -> dict[Backend, Micros]:
        points = await self._journal.points(document.index)
        holding = [p for p in points if p.chosen and p.recall_lower >= document.target_recall]
        return {point.backend: point.p50_us for point in holding}
