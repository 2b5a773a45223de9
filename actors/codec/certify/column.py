"""A column's function: what search over its codes finds, beside exact search over its vectors.

Queries are rows that the codec wasn't fitted on, each left out of its own results. Candidates come from decoded rows as
they are: not made to unit length again, since the search that an index does over codes doesn't either.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from actors import hnsw
from actors.codec.artifact import CHUNK_FLOATS, CodedColumn
from actors.codec.certify import compare
from schemas.certificate import ColumnFunction, ColumnGate, Estimate
from schemas.names import Metric

Blocks = Iterable[tuple[int, NDArray[np.float32]]]
"""(first row, (k, d) decoded rows), in turn."""


def truth(vectors: NDArray[np.float32], own: NDArray[np.intp], k: int, metric: Metric) -> NDArray[np.int64]:
    """(q, k) exact nearest rows of the rows `own`, themselves left out."""
    positions, _ = hnsw.exact_topk(np.ascontiguousarray(vectors[own]), vectors, k + 1, metric)
    return _without(positions, own, k)


def candidates(
    blocks: Blocks, queries: NDArray[np.float32], own: NDArray[np.intp], count: int, metric: Metric
) -> NDArray[np.int64]:
    """(q, count) rows that look nearest by their decoded selves, nearest first; `own` left out."""
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for first, block in _cut(blocks, max(count + 1, CHUNK_FLOATS // max(1, len(queries)))):
        distances = -(queries @ block.T)  # (q, b)
        if metric == "l2":
            distances = np.einsum("bd,bd->b", block, block) + 2 * distances
        best = np.concatenate([best, distances], axis=1)
        numbers = np.broadcast_to(np.arange(first, first + len(block)), distances.shape)
        rows = np.concatenate([rows, numbers], axis=1)
        if best.shape[1] > count + 1:
            kept = np.argpartition(best, count, axis=1)[:, : count + 1]
            best, rows = np.take_along_axis(best, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    order = np.argsort(best, axis=1, kind="stable")
    return _without(np.take_along_axis(rows, order, axis=1), own, min(count, rows.shape[1] - 1))


def _cut(blocks: Blocks, rows: int) -> Blocks:
    """Into blocks of so many rows at most: distances of all queries to one are in memory."""
    for first, block in blocks:
        for start in range(0, len(block), rows):
            yield first + start, block[start : start + rows]


def rescored(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], found: NDArray[np.int64], k: int, metric: Metric
) -> NDArray[np.int64]:
    """(q, k) of the candidates, by exact distance."""
    out = np.empty((len(queries), min(k, found.shape[1])), np.int64)
    for number, (query, rows) in enumerate(zip(queries, found, strict=True)):
        positions, _ = hnsw.exact_topk(query[None], np.ascontiguousarray(vectors[rows]), k, metric)
        out[number] = rows[positions[0]]
    return out


def recall(exact: NDArray[np.int64], found: NDArray[np.int64], rng: np.random.Generator) -> Estimate:
    """recall@k by ids, over queries."""
    k = exact.shape[1]
    hits = np.array([len(np.intersect1d(a, b[:k])) for a, b in zip(exact, found, strict=True)])
    return compare.estimate(hits, np.full(len(hits), k), rng)


def decoded(column: CodedColumn) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, CHUNK_FLOATS // column.columns)
    for first in range(0, column.rows, step):
        yield first, column.decode(first, first + step)


def measure(
    vectors: NDArray[np.float32],  # (n, d), may be memory-mapped
    blocks: Blocks,
    own: NDArray[np.intp],
    gate: ColumnGate,
    metric: Metric,
    rng: np.random.Generator,
) -> dict[str, Estimate]:
    """`recall` of candidates that are rescored exactly, `codes` of those by their codes alone."""
    queries = np.ascontiguousarray(vectors[own], np.float32)
    exact = truth(vectors, own, gate.k, metric)
    found = candidates(blocks, queries, own, gate.k * gate.oversample, metric)
    return {
        "recall": recall(exact, rescored(vectors, queries, found, gate.k, metric), rng),
        "codes": recall(exact, found, rng),
    }


def function(
    column: CodedColumn, shares: dict[str, Estimate], queries: int, gate: ColumnGate, rows: int
) -> ColumnFunction:
    return ColumnFunction(
        rows=rows,
        queries=queries,
        k=gate.k,
        recall=shares["recall"],
        recall_codes=shares["codes"],
        oversample=gate.oversample,
        code_bytes_share=column.bytes / (4 * rows * column.columns),
    )


def _without(rows: NDArray[np.int64], own: NDArray[np.intp], k: int) -> NDArray[np.int64]:
    """The first k of each line that aren't its own row."""
    others = rows != own[:, None]
    order = np.argsort(~others, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, axis=1)
