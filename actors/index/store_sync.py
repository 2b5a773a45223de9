"""Brings a Lance store in line with its dataset: rows that went are taken out, rows that came are
appended with their columns and vectors, in one move of the store's head.
"""

import anyio.to_thread
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.backends import lance_store
from actors.backends.lance_store import Place
from actors.hnsw import normalise
from actors.index.artifacts import vectors_table
from actors.index.heads import StoreHeads, advanced
from actors.ports import ROW, Buckets, Registry, Snapshots, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.documents.store import StoreDocument
from schemas.names import IndexName, Rows

PART_ROWS = 50_000
"""Rows read and appended at a time."""


class Synced(msgspec.Struct, frozen=True):
    store: StoreDocument
    added: Rows
    deleted: Rows
    fragments: int


class StoreSync:
    def __init__(
        self, registry: Registry, tables: Tables, buckets: Buckets, snapshots: Snapshots, heads: StoreHeads
    ) -> None:
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._snapshots = snapshots
        self._heads = heads

    async def run(self, name: IndexName) -> Synced | None:
        """None when the store covers what the index's vectors cover, or there is none. Raises Transient when
        its bucket is away, CorruptState when it can't be read."""
        async with self._heads.lock(name):
            found = await self._registry.load(IndexDocument, name)
            store = await self._heads.load(name)
            dataset = await self._registry.load(DatasetDocument, found[0].dataset) if found else None
            if found is None or store is None or dataset is None:
                return None
            document, table = found[0], TableRef(dataset[0].bucket, dataset[0].path)
            version = await self._covered(document, table, store)
            if version <= store.version:
                return None
            place = await self._buckets.lance_place(document.bucket, store.key)
            live = await self._tables.read(table, [], version=version)
            held, _ = await anyio.to_thread.run_sync(lance_store.rows_of, place)
            rows = np.asarray(live[ROW].to_numpy(), np.int64)
            missing = np.setdiff1d(rows, held, assume_unique=True)
            gone = np.setdiff1d(held, rows, assume_unique=True)
            lance_version = 0
            if len(gone):
                lance_version = await anyio.to_thread.run_sync(lance_store.delete_rows, place, gone)
            added = 0
            for start in range(0, len(missing), PART_ROWS):
                some = missing[start : start + PART_ROWS]
                lance_version, came = await self._append(place, document, table, store, version, some)
                added += came
            total = len(held) - len(gone) + added
            fragments, newest = await anyio.to_thread.run_sync(lance_store.fragments_of, place)
            moved = await self._heads.change(
                name, store.key, lambda one: advanced(one, lance_version or newest, version, total, added)
            )
        return None if moved is None else Synced(moved, added, len(gone), fragments)

    async def _covered(self, document: IndexDocument, table: TableRef, store: StoreDocument) -> int:
        """The dataset version to go to: texts needn't wait for vectors."""
        if store.vectors:
            return await self._snapshots.covered(document.index)
        state = await self._tables.state(table)
        return state.version if state else -1

    async def _append(
        self,
        place: Place,
        document: IndexDocument,
        table: TableRef,
        store: StoreDocument,
        version: int,
        rows: NDArray[np.int64],
    ) -> tuple[int, Rows]:
        """The store's version after it, and how many rows have a vector and came."""
        schema = await anyio.to_thread.run_sync(lance_store.schema_at, place)
        vectors = None
        if store.vectors:
            rows, vectors = await self._vectors(document, table, version, rows)
        if not len(rows):
            return 0, 0
        state = await self._tables.state(table, version)
        known = set(state.schema.names) if state else set()
        names = [name for name in schema.names if name in known]
        read = await self._tables.read(table, names, version=version, rows=rows)
        batch = lance_store.batch_of(schema, rows, vectors, {name: read[name] for name in names})
        return await anyio.to_thread.run_sync(lance_store.append, place, schema, [batch]), len(rows)

    async def _vectors(
        self, document: IndexDocument, table: TableRef, version: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of `rows` that have a vector, ascending, and their vectors as a snapshot has them."""
        if document.embedder.kind == "none":
            read = await self._tables.read(table, [document.column], version=version, rows=rows)
            numbers, column = np.asarray(read[ROW].to_numpy(), np.int64), read[document.column]
        else:
            source = vectors_table(document)
            keys = await self._tables.read(source, ["source_row"])
            there = np.isin(keys["source_row"].to_numpy(), rows)
            read = await self._tables.read(source, ["source_row", "vector"], rows=keys[ROW].to_numpy()[there])
            numbers, column = np.asarray(read["source_row"].to_numpy(), np.int64), read["vector"]
        return _paired(numbers, column.combine_chunks(), document)


def _paired(
    numbers: NDArray[np.int64], lists: pa.Array, document: IndexDocument
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ascending by number, one each: of several the last."""
    if lists.null_count:
        numbers, lists = numbers[lists.is_valid().to_numpy(zero_copy_only=False)], lists.drop_null()
    vectors = np.asarray(lists.flatten().to_numpy(), np.float32).reshape(-1, document.dim)
    unique, last = np.unique(numbers[::-1], return_index=True)
    vectors = vectors[::-1][last]
    return unique, normalise(vectors) if document.metric == "cosine" else vectors
