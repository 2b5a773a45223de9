"""The codec trials as a table, a row a codec measured on a matrix, and the frontier that SQL finds in it."""

from collections.abc import Sequence
from functools import cached_property, reduce
from typing import Any

import anyio.to_thread
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.ports import ROW, TableRef, Tables
from daemon.storage.predicate import PredicateEngine
from daemon.storage.struct_table import StructTable
from schemas.codec import CodecJobId, CodecParams
from schemas.documents.codec_trial import CodecTrial
from schemas.events.codec import FrontierPoint, Measure

CODEC_TRIALS = TableRef("primary", "system/codec_trials")

FRONTIER = """
WITH newest AS (
    SELECT *, "rows" * "columns" AS weights,
        CASE $measure WHEN 'icc_3_1' THEN icc_3_1 WHEN 'icc_1_1' THEN icc_1_1 WHEN 'row_cosine' THEN row_cosine
            WHEN 'relative_l2' THEN -relative_l2 WHEN 'norm_error' THEN -norm_error END AS good
    FROM codec_trials
    WHERE refused = ''
        AND ($target IS NULL OR target = $target)
        AND ($tensor IS NULL OR tensor = $tensor)
        AND ($job IS NULL OR job = $job)
    QUALIFY row_number() OVER (PARTITION BY target, tensor, "matrix", signature ORDER BY _row DESC) = 1
), points AS (
    SELECT signature,
        sum(bits_per_weight * weights) / sum(weights) AS bits,
        sum(good * weights) / sum(weights) AS good,
        count(DISTINCT (target, tensor)) AS tensors,
        sum(weights)::BIGINT AS weights,
        min(good) AS worst,
        count(*) FILTER (WHERE memorised) AS memorised
    FROM newest GROUP BY signature
)
SELECT *, CASE WHEN $measure IN ('relative_l2', 'norm_error') THEN -1 ELSE 1 END AS sign,
    weights = max(weights) OVER ()
        AND good = max(good) OVER (PARTITION BY weights ORDER BY bits RANGE UNBOUNDED PRECEDING)
        AND bits = min(bits) OVER (PARTITION BY weights ORDER BY good DESC RANGE UNBOUNDED PRECEDING) AS frontier
FROM points ORDER BY bits, sign * good, signature
"""
"""Nothing that costs no more is better (the second window), and nothing as good costs less (the third), among those
that were measured on as much as any: what was measured on a few tensors alone can't be compared."""

_READ = (
    "job", "target", "tensor", "matrix", "rows", "columns", "signature", "bits_per_weight", "memorised", "refused",
    "icc_3_1", "icc_1_1", "relative_l2", "row_cosine", "norm_error",
)  # fmt: skip


class TableCodecJournal:
    """The port `CodecJournal`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._table = StructTable(tables, CODEC_TRIALS, CodecTrial)

    @cached_property
    def _engine(self) -> PredicateEngine:
        return PredicateEngine()

    async def append(self, trials: Sequence[CodecTrial]) -> None:
        await self._table.append(trials, lambda trial: (f"codec-{trial.job}-{trial.group}", trial.job))

    async def trials(
        self, *, job: CodecJobId | None = None, target: str | None = None, tensor: str | None = None, limit: int = 1000
    ) -> tuple[list[CodecTrial], int]:
        state = await self._table.state()
        if state is None:
            return [], 0
        wanted = {"job": job, "target": target, "tensor": tensor}
        found: list[NDArray[np.int64]] = [
            await self._tables.find(CODEC_TRIALS, column, [value], version=state.version)
            for column, value in wanted.items()
            if value is not None
        ]
        if not found:
            found.append((await self._tables.read(CODEC_TRIALS, [], version=state.version)).column(ROW).to_numpy())
        rows = reduce(np.intersect1d, found)
        newest = await self._table.read(version=state.version, rows=rows[-limit:])
        return newest[::-1], len(rows)

    async def frontier(
        self, measure: Measure, *, target: str | None = None, tensor: str | None = None, job: CodecJobId | None = None
    ) -> tuple[list[FrontierPoint], str]:
        if await self._table.state() is None:
            return [], FRONTIER
        trials = await self._tables.read(CODEC_TRIALS, _READ)
        asked = {"measure": measure, "target": target, "tensor": tensor, "job": job}
        return await anyio.to_thread.run_sync(self._points, trials, asked), FRONTIER

    def _points(self, trials: pa.Table, asked: dict[str, str | None]) -> list[FrontierPoint]:
        with self._engine.cursor() as cursor:
            cursor.register("codec_trials", trials)
            found = cursor.execute(FRONTIER, asked)
            names = [column[0] for column in found.description or ()]
            return [_point(dict(zip(names, row, strict=True))) for row in found.fetchall()]


def _point(row: dict[str, Any]) -> FrontierPoint:
    return FrontierPoint(
        signature=row["signature"],
        params=msgspec.json.decode(row["signature"], type=CodecParams),
        bits_per_weight=row["bits"],
        value=row["sign"] * row["good"],
        tensors=row["tensors"],
        weights=row["weights"],
        worst=row["sign"] * row["worst"],
        memorised=row["memorised"],
        frontier=row["frontier"],
    )
