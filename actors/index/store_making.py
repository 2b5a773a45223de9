"""Makes a Lance store: rows, ids, columns and vectors of an index at one dataset version, or its texts
alone. Written in parts of bounded size; it counts from the moment that its head is saved, which is
the last thing that happens.
"""

from collections.abc import Sequence

import anyio.to_thread
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.backends import lance_store
from actors.errors import Conflict
from actors.index import artifacts
from actors.ports import ROW, Buckets, Bus, Clock, Registry, Snapshot, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.documents.store import StoreDocument, StoreVersion
from schemas.events.base import Progress
from schemas.names import BucketName, Rows

PART_BYTES = 256 << 20
"""Vectors written in one commit, which is one file."""
TEXT_ROWS = 200_000
UNDER_WAY_S = 86_400.0
"""A store that isn't named by any head may still be being made for so long."""


class StoreMaking:
    def __init__(self, registry: Registry, tables: Tables, buckets: Buckets, bus: Bus, clock: Clock) -> None:
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._bus = bus
        self._clock = clock

    async def with_vectors(
        self, document: IndexDocument, dataset: DatasetDocument, snapshot: Snapshot, before: StoreDocument | None
    ) -> StoreDocument:
        """A store of the snapshot. Takes the place of `before`, which has texts only or is damaged. Raises
        ValueError for columns or a bucket that it can't have, Transient when the bucket is away."""
        rows, vectors = await anyio.to_thread.run_sync(_mapped, snapshot)
        per = max(1, PART_BYTES // (4 * document.dim))
        names = column_names(dataset)
        store = await self._make(document, dataset, names, snapshot.version, rows, vectors, per)
        return await self._save(store, document.bucket, before)

    async def with_texts(self, document: IndexDocument, dataset: DatasetDocument) -> StoreDocument | None:
        """A store for full-text search; None for a dataset without rows."""
        table = TableRef(dataset.bucket, dataset.path)
        state = await self._tables.state(table)
        if state is None or not state.rows or document.text_column is None:
            return None
        read = await self._tables.read(table, [], version=state.version)
        rows = np.asarray(read[ROW].to_numpy(), np.int64)
        names = list(dict.fromkeys([dataset.id_column, document.text_column]))
        store = await self._make(document, dataset, names, state.version, rows, None, TEXT_ROWS)
        return await self._save(store, document.bucket, None)

    async def _make(
        self,
        document: IndexDocument,
        dataset: DatasetDocument,
        columns: Sequence[str],
        version: int,
        rows: NDArray[np.int64],
        vectors: NDArray[np.float32] | None,
        per: Rows,
    ) -> StoreDocument:
        name, table = document.index, TableRef(dataset.bucket, dataset.path)
        await self._sweep(document)
        key = artifacts.store_key(name, int(self._clock.now() * 1e3))
        state = await self._tables.state(table, version)
        assert state is not None
        typed = pa.schema([state.schema.field(column) for column in columns])
        schema = lance_store.schema_of(typed, None if vectors is None else document.dim)
        place = await self._buckets.lance_place(document.bucket, key)
        lance_version = await anyio.to_thread.run_sync(lance_store.create, place, schema)
        for start in range(0, len(rows), per):
            some = rows[start : start + per]
            read = await self._tables.read(table, columns, version=version, rows=some)
            part = None if vectors is None else vectors[start : start + per]
            batch = lance_store.batch_of(schema, some, part, {column: read[column] for column in columns})
            lance_version = await anyio.to_thread.run_sync(lance_store.append, place, schema, [batch])
            await self._bus.signal(Progress(f"{name}-store", name, "migrate", start + len(some), len(rows)))
        id_column, text = dataset.id_column, document.text_column if document.text_column in columns else None
        lance_version = max(
            lance_version, await anyio.to_thread.run_sync(lance_store.index_columns, place, id_column, text)
        )
        return StoreDocument(
            index=name,
            key=key,
            lance_version=lance_version,
            version=version,
            rows=len(rows),
            vectors=vectors is not None,
            text_column=text,
            history=[StoreVersion(version, lance_version)],
            created=self._clock.now(),
        )

    async def _sweep(self, document: IndexDocument) -> None:
        """Removes what a making that was killed has left: no head names it, and it is too old to be another's that
        is under way."""
        head = await self._registry.load(StoreDocument, document.index)
        old = artifacts.store_key(document.index, int((self._clock.now() - UNDER_WAY_S) * 1e3))
        keys = await self._buckets.list(document.bucket, f"indexes/{document.index}/lance")
        for folder in {"/".join(key.split("/")[:4]) for key in keys}:
            if folder < old and (head is None or folder != head[0].key):
                await self._buckets.delete_prefix(document.bucket, folder)

    async def _save(self, store: StoreDocument, bucket: BucketName, replaced: StoreDocument | None) -> StoreDocument:
        """In the place of `replaced`, or of a store of texts; another that came meanwhile stays. Raises Conflict."""
        index = await self._registry.load(IndexDocument, store.index)
        if index is None or index[0].created > store.created:
            await self._buckets.delete_prefix(bucket, store.key)
            raise FileNotFoundError(f"index {store.index}, dropped meanwhile")
        before = await self._registry.load(StoreDocument, store.index)
        expected = {replaced.key} if replaced else set()
        if before is not None and before[0].key not in expected and (before[0].vectors or not store.vectors):
            await self._buckets.delete_prefix(bucket, store.key)
            return before[0]
        try:
            await self._registry.save(store.index, store, expected=before[1] if before else None, bucket=bucket)
        except Conflict:
            await self._buckets.delete_prefix(bucket, store.key)
            raise
        if before is not None:
            await self._buckets.delete_prefix(bucket, before[0].key)
        return store


def column_names(dataset: DatasetDocument) -> list[str]:
    """What a store takes over: every column but vectors."""
    return [column.name for column in dataset.columns if column.role != "vector"]


def _mapped(snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.load(snapshot.rows_path), np.load(snapshot.vectors_path, mmap_mode="r")
