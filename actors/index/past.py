"""Search in an index as it was at an older version of its dataset, for audit: exactly, from the Lance
store where it still has that version, else from a snapshot of the tables.
"""

from collections import OrderedDict

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from actors.backends.lance import LanceBackend
from actors.errors import CorruptState
from actors.index.answer import Near
from actors.index.filters import Matching
from actors.index.heads import StoreHeads
from actors.index.lance_served import LanceServed, StoreVectors
from actors.index.live import THREADS
from actors.index.served import ServedIndex
from actors.index.vectors import VectorSet
from actors.ports import ROW, Buckets, Snapshots, Tables
from actors.vector_backend import Neighbours
from schemas.documents.index import IndexDocument
from schemas.events.base import Refusal
from schemas.events.index import Hit
from schemas.names import IndexName, Timestamp

KEPT = 4
"""Versions that are kept open."""

AsItWas = VectorSet | StoreVectors


class Past:
    def __init__(self, tables: Tables, buckets: Buckets, snapshots: Snapshots, heads: StoreHeads) -> None:
        self._tables = tables
        self._buckets = buckets
        self._snapshots = snapshots
        self._heads = heads
        self._kept: OrderedDict[tuple[IndexName, Timestamp, int], AsItWas] = OrderedDict()

    async def at(self, index: ServedIndex | LanceServed, version: int) -> AsItWas | Refusal:
        """The index's vectors as they were."""
        document = index.document
        key = (document.index, document.created, version)
        found = self._kept.get(key)
        if found is None:
            opened = await self._stored(document, version) or await self._snapshot(document, version)
            if isinstance(opened, Refusal):
                return opened
            found = self._kept[key] = opened
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return found

    async def neighbours(
        self, vectors: AsItWas, queries: NDArray[np.float32], k: int, matching: Matching | None
    ) -> Near:
        among = None
        if matching is not None:
            among = matching.positions if isinstance(vectors, VectorSet) else matching.rows
        found = await anyio.to_thread.run_sync(vectors.exact, queries, k, among, limiter=THREADS)
        return Near(found, "exact", vectors, None)

    async def hits(
        self, index: ServedIndex | LanceServed, version: int, found: Neighbours, columns: list[str]
    ) -> list[list[Hit]]:
        """With the columns' values of that version."""
        names = list(dict.fromkeys([index.columns.id_column, *columns]))
        read = await self._tables.read(index.dataset, names, version=version, rows=np.unique(found[0]))
        values = {name: read[name].to_pylist() for name in names}
        place = {row: at for at, row in enumerate(read[ROW].to_pylist())}
        return [
            [
                Hit(values[names[0]][place[row]], distance, {name: values[name][place[row]] for name in columns})
                for row, distance in zip(rows, distances, strict=True)
                if row in place
            ]
            for rows, distances in zip(found[0].tolist(), found[1].tolist(), strict=True)
        ]

    async def _stored(self, document: IndexDocument, version: int) -> StoreVectors | None:
        store = await self._heads.load(document.index)
        lance_version = store.at(version) if store and store.vectors else None
        if store is None or lance_version is None:
            return None
        place = await self._buckets.lance_place(document.bucket, store.key, lance_version)
        try:
            backend = await anyio.to_thread.run_sync(LanceBackend.load, place, document.metric)
        except (FileNotFoundError, CorruptState):  # optimised away: the tables have it
            return None
        return StoreVectors(backend, version)

    async def _snapshot(self, document: IndexDocument, version: int) -> VectorSet | Refusal:
        try:
            async with self._snapshots.held(document.index, version) as snapshot:
                return await anyio.to_thread.run_sync(VectorSet.open, snapshot, document.metric)
        except FileNotFoundError as error:
            hint = f"versions are those of its dataset: lakehouse datasets show {document.dataset}"
            return Refusal(
                "not_found", f"index {document.index!r} can't be searched at version {version}: {error}", hint
            )
