"""One search from query to hits: check, embed, filter, search, fetch columns. Which strategy answers is
the backend's (served.py, lance_served.py); texts and their fusion with vectors are by_text.py's.

What is wrong with a query comes back as a Refusal, never as an exception. The plain road (one
vector, no filter, low ef, columns in memory) awaits nothing: it costs microseconds over hnswlib.
"""

from itertools import repeat

import numpy as np

from actors.index.answer import Answer, Near, Stopwatch
from actors.index.asked import foreign, query_vectors, wrong
from actors.index.by_text import TextSearch
from actors.index.filters import Filters, Matching
from actors.index.lance_served import StoreVectors
from actors.index.past import Past
from actors.index.planning import Planning
from actors.index.served import ServedIndex
from actors.index.shelf import Served
from actors.index.vectors import VectorSet
from actors.planner_ports import Plan
from actors.vector_backend import Neighbours
from schemas.config import HnswEffort
from schemas.events.base import Refusal
from schemas.events.index import Explanation, Hit, Search, SearchResult


async def search(
    index: Served,
    query: Search,
    filters: Filters,
    texts: TextSearch,
    past: Past,
    planning: Planning,
    sampled: bool = False,
) -> Answer | Refusal:
    """Answers a query. `sampled`: it will be run again."""
    watch = Stopwatch(query.explain)
    columns = index.columns.default if query.columns is None else query.columns
    unknown = [] if query.columns is None else [name for name in columns if name not in index.columns.names]
    if unknown:
        hint = f"it has {', '.join(index.columns.names)}"
        return Refusal("invalid", f"dataset {index.document.dataset!r} has no column {unknown[0]!r}", hint)
    graph = isinstance(index, ServedIndex) or index.config.ef > 0
    if (refusal := wrong(query) or foreign(query, index.backend, graph)) is not None:
        return refusal
    queries = np.empty((0, index.document.dim), np.float32)
    if query.mode != "text":
        given = await query_vectors(index, query)
        if isinstance(given, Refusal):
            return given
        queries = given
        watch.step("embed" if query.text is not None and query.vector is None else "read")

    config, generation, codes = index.config, index.generation, index.codes
    vectors: VectorSet | StoreVectors = index.vectors
    matching: Matching | None = None
    if query.version is not None:
        then = await past.at(index, query.version)
        if isinstance(then, Refusal):
            return then
        vectors = then
    if query.filter is not None:
        try:
            matching = await filters.matching(index.document, index.dataset, query.filter, vectors)
        except ValueError as error:
            return Refusal("invalid", f"the filter can't be used: {error}", "a SQL predicate: \"module = 'json'\"")
        watch.step("filter", "%d rows match", len(matching))

    near: Near
    plan: Plan | None = None
    if query.version is not None:
        near = await past.neighbours(vectors, queries, query.k, matching)
        watch.step("exact", "version %d, %d rows", query.version, len(vectors))
        hits = await past.hits(index, query.version, near.found, columns)
    elif query.mode == "vector":
        plan = planning.before(index, query, queries, matching, sampled)
        if plan is not None:
            watch.step("plan", "%s, effort %d", plan.strategy, plan.effort)
        lance = planning.elsewhere(index, plan, vectors.version)
        other = None
        if lance is not None:
            other = await planning.answered(lance, query, queries, matching, columns, watch)
        if plan is not None and plan.strategy == "lance" and other is None and isinstance(index, ServedIndex):
            plan = plan._replace(acting=False)  # the rows changed since the filter was looked up, or the store is gone
        near = other or await index.neighbours(vectors, queries, query.k, query, matching, columns, watch, plan)
        hits = await _hits(index, near.found, columns) if near.hits is None else near.hits
    else:
        found = await texts.search(index, vectors, queries, query, matching, columns, watch)
        if isinstance(found, Refusal):
            return found
        near, hits = found
    watch.step("fetch", "%d columns", len(columns))

    if plan is not None:
        planning.after(plan, index, near, query, watch)
    index.queries += max(1, len(queries))
    left = None if matching is None else len(matching)
    explain = None
    if query.explain:
        ef = near.effort.ef_search if isinstance(near.effort, HnswEffort) else 0
        version = near.vectors.version
        explain = Explanation(
            generation, config, near.strategy, ef, len(near.vectors), left, watch.steps, version, near.effort,
            planning.explain(index, plan, watch),
        )  # fmt: skip
    result = SearchResult(index.document.index, generation, hits, watch.total_us, explain)
    codec = codes.artifact if codes is not None and near.strategy == "codes" else None
    return Answer(queries, near.found, near.strategy, near.effort, left, near.vectors, codec, result, plan, matching)


async def _hits(index: Served, found: Neighbours, columns: list[str]) -> list[list[Hit]]:
    """Hits with ids and columns. A row that was deleted meanwhile is left out."""
    rows, distances = found
    names = [index.columns.id_column, *columns]
    flat = rows.ravel()
    if not len(flat):
        return [[] for _ in rows]
    if isinstance(index, ServedIndex) and index.columns.has(names):
        there, values = index.columns.values(flat, names)
    else:
        there, values = await index.values(flat, names)
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
