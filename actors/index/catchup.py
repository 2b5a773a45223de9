"""Brings a text index's vectors in line with its dataset: rows that came are embedded, rows that
went are taken out. By difference of row sets, so it may stop anywhere and be run again at will.

The vectors table has a row per dataset row: source_row (its _row), vector. A commit's note
carries in `source` the dataset version that the table covers from then on; only the last commit
of a catch-up moves it on.
"""

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.index.artifacts import vectors_table
from actors.ports import ROW, Bus, Clock, Embedder, Snapshots, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.base import Progress
from schemas.events.dataset import CommitInfo
from schemas.names import Rows

COMMIT_ROWS = 8192
"""Vectors per commit: what a kill costs at most."""

SCHEMA = pa.schema([pa.field("source_row", pa.int64()), pa.field("vector", pa.list_(pa.float32()))])


class Covered(msgspec.Struct, frozen=True):
    """Where an index's vectors stand."""

    version: int
    rows: Rows
    added: Rows = 0  # by this catch-up
    deleted: Rows = 0


class CatchUp:
    def __init__(self, tables: Tables, snapshots: Snapshots, bus: Bus, clock: Clock, embed_batch: int) -> None:
        self._tables = tables
        self._snapshots = snapshots
        self._bus = bus
        self._clock = clock
        self._embed_batch = embed_batch

    async def run(self, document: IndexDocument, dataset: DatasetDocument, embedder: Embedder) -> Covered:
        """Embeds what is missing. Raises Transient when the embedder's server is away; what was
        committed by then stays."""
        source, target = TableRef(dataset.bucket, dataset.path), vectors_table(document)
        state = await self._tables.state(source)
        if state is None:
            raise FileNotFoundError(f"dataset {dataset.dataset} has no table")
        live = await self._rows(source, state.version)
        have, numbers = await self._have(target)
        missing = np.setdiff1d(live, have, assume_unique=True)
        gone = numbers[~np.isin(have, live, assume_unique=True)]
        before = await self._snapshots.covered(document.index)
        if before == state.version and not len(missing) and not len(gone):
            return Covered(state.version, len(live))
        stops = range(COMMIT_ROWS, len(missing), COMMIT_ROWS)
        parts = np.split(missing, list(stops))
        for number, part in enumerate(parts):
            batch = await self._embedded(
                document, source, state.version, part, number * COMMIT_ROWS, len(missing), embedder
            )
            last = number == len(parts) - 1
            note = CommitInfo(
                version=0,
                time=self._clock.now(),
                operation="append",
                rows=len(part),
                message=f"{document.index}-v{state.version}-{part[0] if len(part) else 'none'}-{len(part)}",
                source=str(state.version if last else before),
            )
            await self._tables.commit(target, [batch], note, remove=gone if last else (), schema=SCHEMA)
        return Covered(state.version, len(live), len(missing), len(gone))

    async def _rows(self, table: TableRef, version: int | None = None) -> NDArray[np.int64]:
        read = await self._tables.read(table, [], version=version)
        return np.asarray(read[ROW].to_numpy(), np.int64)

    async def _have(self, target: TableRef) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The dataset rows that have a vector, and those vectors' own row numbers."""
        if await self._tables.state(target) is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        read = await self._tables.read(target, ["source_row"])
        return np.asarray(read["source_row"].to_numpy(), np.int64), np.asarray(read[ROW].to_numpy(), np.int64)

    async def _embedded(
        self,
        document: IndexDocument,
        source: TableRef,
        version: int,
        rows: NDArray[np.int64],
        done: Rows,
        total: Rows,
        embedder: Embedder,
    ) -> pa.RecordBatch:
        """The vectors of dataset rows `rows`, as a batch for the vectors table."""
        vectors = np.empty((len(rows), embedder.dim), np.float32)
        for start in range(0, len(rows), self._embed_batch):
            some = rows[start : start + self._embed_batch]
            read = await self._tables.read(source, [document.column], version=version, rows=some)
            texts = [text or "" for text in read[document.column].to_pylist()]
            vectors[start : start + len(some)] = await embedder.embed(texts)
            await self._bus.signal(
                Progress(f"{document.index}-embed", document.index, "embed", done + start + len(some), total)
            )
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * embedder.dim)
        lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
        return pa.record_batch([pa.array(rows), lists], schema=SCHEMA)
