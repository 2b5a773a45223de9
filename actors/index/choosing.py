"""Gathers what the choice of an index's backend is made from; the choice itself is core's."""

from actors.index.core import Choice, choose_backend, graph_bytes
from actors.index.fitness import unfit
from actors.index.store_making import column_names
from actors.ports import Buckets, Journal, Registry
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.documents.promotion import PromotionDocument
from schemas.names import Backend, Bytes, Micros, Rows


class BackendChooser:
    def __init__(self, registry: Registry, buckets: Buckets, journal: Journal, budget_bytes: Bytes) -> None:
        self._registry = registry
        self._buckets = buckets
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
            await self._may_have_store(document),
            await self._measured(document),
        )

    async def _may_have_store(self, document: IndexDocument) -> bool:
        dataset = await self._registry.load(DatasetDocument, document.dataset)
        if dataset is None:
            return False
        return await unfit(document.dataset, column_names(dataset[0]), document.bucket, self._buckets) is None

    async def _measured(self, document: IndexDocument) -> dict[Backend, Micros]:
        points = await self._journal.points(document.index)
        holding = [p for p in points if p.chosen and p.recall_lower >= document.target_recall]
        return {point.backend: point.p50_us for point in holding}
