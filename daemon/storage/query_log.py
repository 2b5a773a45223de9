"""Vectors of sampled live queries, a table per index: the newest KEEP of them."""

import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.ports import ROW, TableRef, Tables
from schemas.events.dataset import CommitInfo
from schemas.names import IndexName, Timestamp

KEEP = 100_000
SLACK = 10_000
"""How far the log may grow over KEEP before the oldest rows are removed, many at once."""

SCHEMA = pa.schema([("time", pa.float64()), ("vector", pa.list_(pa.float32()))])


class TableQueryLog:
    """The port `QueryLog`."""

    def __init__(self, tables: Tables, keep: int = KEEP, slack: int = SLACK) -> None:
        self._tables = tables
        self._keep = keep
        self._slack = slack

    async def append(self, index: IndexName, vectors: NDArray[np.float32], times: Sequence[Timestamp]) -> None:
        if len(vectors) == 0:
            return
        table = table_of(index)
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
        batch = pa.record_batch(
            [pa.array(times, pa.float64()), pa.ListArray.from_arrays(offsets, flat)], names=["time", "vector"]
        )
        note = CommitInfo(version=0, time=0, operation="append", rows=0, message=f"queries-{uuid.uuid4().hex}")
        await self._tables.commit(table, [batch], note, remove=await self._overflow(table), schema=SCHEMA)

    async def sample(self, index: IndexName, n: int, seed: int) -> NDArray[np.float32]:
        """The same log and seed give the same sample. Vectors of another length than the newest
        (the index was made anew) are left out. (0, 0) when nothing is logged."""
        table = table_of(index)
        if await self._tables.state(table) is None:
            return np.zeros((0, 0), np.float32)
        numbers = (await self._tables.read(table, [])).column(ROW).to_numpy()
        order = np.random.default_rng(seed).permutation(numbers)
        newest = await self._vectors(table, numbers[-1:])
        chosen: dict[bytes, NDArray[np.float32]] = {}
        for start in range(0, len(order), max(n, 1)):
            for vector in await self._vectors(table, order[start : start + n]):
                if len(chosen) < n and len(vector) == len(newest[0]):
                    chosen.setdefault(vector.tobytes(), vector)
            if len(chosen) >= n:
                break
        return np.stack(list(chosen.values())) if chosen else np.zeros((0, 0), np.float32)

    async def _vectors(self, table: TableRef, rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """In ascending row number, whatever the order of `rows`."""
        column = (await self._tables.read(table, ["vector"], rows=rows)).column("vector")
        return [vector.values.to_numpy() for vector in column]

    async def _overflow(self, table: TableRef) -> NDArray[np.int64]:
        state = await self._tables.state(table)
        if state is None or state.rows <= self._keep + self._slack:
            return np.zeros(0, np.int64)
        numbers: NDArray[np.int64] = (await self._tables.read(table, [])).column(ROW).to_numpy()
        return numbers[: len(numbers) - self._keep]


def table_of(index: IndexName) -> TableRef:
    return TableRef("primary", f"system/query_log/{index}")
