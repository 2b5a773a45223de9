"""One search from query to hits: check, embed, filter, choose a strategy, search, fetch columns.

What is wrong with a query comes back as a Refusal, never as an exception. The plain road (one
vector, no filter, low ef, columns in memory) awaits nothing: it costs microseconds over hnswlib.
"""

import math
import struct
from itertools import repeat
from time import perf_counter

import anyio.to_thread
import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.index import core
from actors.index.coded import CodedVectors
from actors.index.core import Strategy
from actors.index.filters import Filters, Matching
from actors.index.live import INLINE_US, THREADS
from actors.index.served import ServedIndex
from actors.index.vectors import Neighbours, VectorSet
from schemas.codec import ArtifactName
from schemas.events.base import Refusal
from schemas.events.index import Explanation, Hit, Search, SearchResult, Step

EXACT_US_PER_FLOAT = 0.0005
"""Time of exact search per row and dimension."""


class Stopwatch:
    """Times of a query; of its steps when somebody wants them explained."""

    def __init__(self, explain: bool) -> None:
        self.started = self._lap = perf_counter()
        self.steps: list[Step] = []
        self._explain = explain

    def step(self, name: str, note: str = "", *values: object) -> None:
        """A step ended here. The note is formatted with the values, as a log line is."""
        if not self._explain:
            return
        now = perf_counter()
        self.steps.append(Step(name, (now - self._lap) * 1e6, note % values))
        self._lap = now

    @property
    def total_us(self) -> float:
        return (perf_counter() - self.started) * 1e6


class Answer(msgspec.Struct, frozen=True):
    """A search's neighbours before their columns are fetched, and how they were found."""

    queries: NDArray[np.float32]  # (q, d)
    found: Neighbours  # (q, <= k)
    strategy: Strategy
    ef: int
    matching: int | None  # rows that the filter leaves
    vectors: VectorSet  # what was searched
    codec: ArtifactName | None  # by whose codes
    result: SearchResult


async def search(index: ServedIndex, query: Search, filters: Filters) -> Answer | Refusal:
    """Answers a query."""
    watch = Stopwatch(query.explain)
    columns = index.columns.default if query.columns is None else query.columns
    unknown = [] if query.columns is None else [name for name in columns if name not in index.columns.names]
    if unknown:
        hint = f"it has {', '.join(index.columns.names)}"
        return Refusal("invalid", f"dataset {index.document.dataset!r} has no column {unknown[0]!r}", hint)
    queries = await query_vectors(index, query)
    if isinstance(queries, Refusal):
        return queries
    watch.step("embed" if query.text is not None else "read")

    vectors, config, generation, coded = index.vectors, index.config, index.generation, index.codes
    matching: Matching | None = None
    if query.filter is not None:
        try:
            matching = await filters.matching(index.document, index.dataset, query.filter, vectors)
        except ValueError as error:
            return Refusal("invalid", f"the filter can't be used: {error}", "a SQL predicate: \"module = 'json'\"")
        watch.step("filter", "%d rows match", len(matching))
    ef = max(query.ef_search or config.ef_search, query.k)
    found, strategy, vectors, ef = await _neighbours(index, coded, queries, query.k, ef, vectors, matching, watch)
    hits = await _hits(index, found, columns)
    watch.step("fetch", "%d columns", len(columns))

    index.queries += len(queries)
    explain = None
    if query.explain:
        count = None if matching is None else len(matching)
        explain = Explanation(generation, config, strategy, ef, len(vectors), count, watch.steps)
    result = SearchResult(index.document.index, generation, hits, watch.total_us, explain)
    codec = coded.artifact if coded is not None and strategy == "codes" else None
    return Answer(queries, found, strategy, ef, None if matching is None else len(matching), vectors, codec, result)


async def query_vectors(index: ServedIndex, query: Search) -> NDArray[np.float32] | Refusal:
    """(q, d) float32, finite."""
    if (query.text is not None) + (query.vector is not None) + (query.vectors is not None) != 1:
        return Refusal("invalid", "a search needs exactly one of text, vector and vectors")
    if query.text is not None:
        if index.embedder is None:
            hint = f"give a vector of {index.document.dim} numbers"
            return Refusal("invalid", f"index {index.document.index!r} has vectors and no embedder", hint)
        try:
            return await index.embedder.embed([query.text])
        except ValueError as error:
            return Refusal("unavailable", f"the embedder gave no usable vector: {error}", "look at the model server")
    name, dim = index.document.index, index.document.dim
    given = [query.vector or []] if query.vectors is None else query.vectors
    if not given:
        return Refusal("invalid", "vectors is empty", "give at least one")
    for vector in given:
        if len(vector) != dim:
            return Refusal("invalid", f"a query has {len(vector)} dimensions, index {name!r} has {dim}")
    pack = struct.Struct(f"{dim}f").pack  # half the time of np.array
    try:
        queries = np.frombuffer(b"".join([pack(*vector) for vector in given]), np.float32).reshape(-1, dim)
    except (struct.error, OverflowError):
        return Refusal("invalid", "a query holds something that is no float32 number")
    if not math.isfinite(float(np.vdot(queries, queries))):
        return Refusal("invalid", "a query's numbers are not finite, or too large")
    return queries


async def _neighbours(
    index: ServedIndex,
    coded: CodedVectors | None,
    queries: NDArray[np.float32],
    k: int,
    ef: int,
    vectors: VectorSet,
    matching: Matching | None,
    watch: Stopwatch,
) -> tuple[Neighbours, Strategy, VectorSet, int]:
    """Neighbours, how they were found, in which vectors, and the ef that it took (0: exact)."""
    graph, rows = None if coded else index.graph, len(vectors)
    left = None if matching is None else len(matching)
    chosen = core.strategy(k, ef, rows, left, index.exact_below_rows)
    if graph is not None and chosen == "graph":
        for wide in (ef, min(4 * ef, core.EF_LIMIT)):
            found, view = await graph.search(queries, k, wide)
            watch.step("graph", "ef %d, %d fresh rows", wide, len(view.fresh_rows))
            if found is not None:
                return found, "graph", view.vectors, wide
    if graph is not None and chosen == "filtered_graph" and matching is not None:
        fetch, wide = core.widened(k, ef, rows, len(matching))
        while core.ROWS_PER_EF * wide < len(matching) and wide <= core.EF_LIMIT:
            found, _ = await graph.search(queries, fetch, wide)
            kept = None if found is None else await anyio.to_thread.run_sync(_first, found, matching, k)
            watch.step("graph", "ef %d, %d neighbours, %s match", wide, fetch, "enough" if kept else "too few")
            if kept is not None:
                return kept, "filtered_graph", vectors, wide
            fetch, wide = min(rows, 2 * fetch), 2 * wide
    among = None if matching is None else matching.positions
    if coded is not None and core.by_codes(k, rows, left, index.exact_below_rows):
        near = await anyio.to_thread.run_sync(coded.search, queries, k, among, limiter=THREADS)
        watch.step("codes", "%s, %d rows", coded.artifact, rows if among is None else len(among))
        return near, "codes", vectors, 0
    scanned = rows if among is None else len(among)
    if len(queries) * scanned * vectors.dim * EXACT_US_PER_FLOAT < INLINE_US:
        exact = vectors.exact(queries, k, among)
    else:
        exact = await anyio.to_thread.run_sync(vectors.exact, queries, k, among, limiter=THREADS)
    watch.step("exact", "%d rows", scanned)
    return exact, "exact", vectors, 0


def _first(found: Neighbours, matching: Matching, k: int) -> Neighbours | None:
    """The first k matching neighbours of each query; None when a query has fewer."""
    holds = matching.holds(found[0])  # (q, k')
    if holds.sum(axis=1).min() < k:
        return None
    order = np.argsort(~holds, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found[0], order, axis=1), np.take_along_axis(found[1], order, axis=1)


async def _hits(index: ServedIndex, found: Neighbours, columns: list[str]) -> list[list[Hit]]:
    """Hits with ids and columns. A row that was deleted meanwhile is left out."""
    rows, distances = found
    names = [index.columns.id_column, *columns]
    flat = rows.ravel()
    if not len(flat):
        return [[] for _ in rows]
    there, values = (
        index.columns.values(flat, names) if index.columns.has(names) else await index.columns.read(flat, names)
    )
    rest = zip(*values[1:], strict=True) if columns else repeat(())
    if len(there) == len(flat):
        near, k = distances.ravel().tolist(), rows.shape[1]
        if columns:
            made = list(map(Hit, values[0], near, map(dict, map(zip, repeat(columns), rest))))
        else:
            made = list(map(Hit, values[0], near))
        return [made[start : start + k] for start in range(0, len(made), k)]
    known = zip(there, values[0], rest, strict=False)
    by_row = {row: (id, dict(zip(columns, more, strict=True))) for row, id, more in known}
    return [
        [Hit(by_row[r][0], d, by_row[r][1]) for r, d in zip(some, near, strict=True) if r in by_row]
        for some, near in zip(rows.tolist(), distances.tolist(), strict=True)
    ]
