"""Where a searcher asks a query planner: before a search, after it, and in the background of sampled queries, which are
run again up a ladder of efforts and by every strategy. The planner itself is behind the port; without one nothing here
costs anything. What isn't planned: several vectors at once, hybrid search, old versions, and whoever says an effort
himself.
"""

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar

import anyio.lowlevel
import anyio.to_thread
import numpy as np
import structlog
from numpy.typing import NDArray

from actors.errors import CorruptState, Transient
from actors.index import core
from actors.index.answer import Answer, Near, Stopwatch
from actors.index.filters import Matching
from actors.index.heads import companion_name
from actors.index.lance_served import LanceServed
from actors.index.live import THREADS
from actors.index.sampling import WAITING, recall_against
from actors.index.served import ServedIndex
from actors.index.shelf import Served, Shelf
from actors.planner_ports import PROBES, Outcome, Plan, QueryPlanner, Run, Situation, counted, scale
from schemas.events.index import Search
from schemas.names import Share
from schemas.planner import PlannerExplanation

LONGEST = 1e15
"""Longer vectors, but by cosine, are searched as without a planner."""
BEYOND = 4
"""Rungs: four times the effort."""
SMALL = 2000
"""Rows of an index that exact search over all of it is worth a try in."""

GONE = (CorruptState, FileNotFoundError, Transient)
"""A store that was optimised or dropped since."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Planning:
    def __init__(self, planner: QueryPlanner, shelf: Shelf) -> None:
        self._planner = planner
        self._shelf = shelf
        self._turn = False
        self._filtered: deque[tuple[Served, Plan, NDArray[np.float32], int, Matching, int]] = deque(maxlen=WAITING)

    def before(
        self, index: Served, query: Search, queries: NDArray[np.float32], matching: Matching | None, sampled: bool
    ) -> Plan | None:
        """What is planned for a query; None: it is searched as without a planner. A `sampled` one always is: so live
        recall stays that of the generation, whatever the planner does."""
        if len(queries) != 1 or index.place != index.document.index:  # companions have no planner of their own
            return None
        if query.ef_search is not None or query.nprobes is not None or query.refine_factor is not None:
            return None
        if isinstance(index, ServedIndex) and (index.graph is None or index.codes is not None):
            return None
        if not self._planner.wants(index.place, sampled or query.explain):
            return None
        since = perf_counter()
        vector = _unit(queries[0], index.document.metric)
        if vector is None:
            return None
        rows, left = len(index.vectors), None if matching is None else len(matching)
        strategy, strategies, effort = _would(index, query.k, rows, left)
        if isinstance(index, ServedIndex) and strategy != "exact_all" and self.beside(index) is not None:
            strategies = (*strategies, "lance")
        embedded = ("embed",) if query.text is not None else ()
        filtered = ("filter",) if matching is not None else ()
        plan = self._asked(
            index,
            self._planner.choose,
            Situation(
                index.place,
                index.backend,
                index.document.target_recall,
                vector,
                query.k,
                rows,
                left,
                (*embedded, *filtered, "graph" if strategy == "filtered_graph" else strategy, "fetch"),
                effort,
                strategy,
                strategies,
                since,
                PROBES * index.config.partitions if isinstance(index, LanceServed) else min(core.EF_LIMIT, rows),
            ),
        )
        return plan._replace(acting=False) if sampled and plan is not None else plan

    def beside(self, index: Served, version: int | None = None) -> LanceServed | None:
        """The same index on Lance, where it is kept ready and in memory, and holds the rows of `version`, by default
        those that serve: while it lags behind an append, what it would answer is out of date."""
        found = self._shelf.loaded(companion_name(index.document.index, "lance"))
        wanted = index.vectors.version if version is None else version
        return found if isinstance(found, LanceServed) and found.vectors.version == wanted else None

    def elsewhere(self, index: Served, plan: Plan | None, version: int) -> LanceServed | None:
        """Where a query is planned to be answered, if not by what serves the index."""
        lance = plan is not None and plan.acting and plan.strategy == "lance" and isinstance(index, ServedIndex)
        return self.beside(index, version) if lance else None

    async def answered(
        self,
        lance: LanceServed,
        query: Search,
        queries: NDArray[np.float32],
        matching: Matching | None,
        columns: list[str],
        watch: Stopwatch,
    ) -> Near | None:
        """By the store beside what serves the index. None where it can't be read any more: what serves can."""
        rows = None if matching is None else Matching(matching.rows, matching.rows)
        try:
            return await lance.neighbours(lance.vectors, queries, query.k, query, rows, columns, watch)
        except GONE as error:
            watch.step("lance", "it is gone")
            log.info("the store beside an index can't be read", index=lance.place, why=str(error))
            return None

    def after(self, plan: Plan, index: Served, near: Near, query: Search, watch: Stopwatch) -> None:
        since, steps = perf_counter(), watch.laps
        search_us = sum(us for name, us in steps if name in ("graph", "exact", "lance"))
        scanned = len(index.vectors) if near.strategy == "exact" else 0
        effort = counted(near.effort)
        self._asked(
            index,
            self._planner.observe,
            plan,
            Outcome(
                steps,
                watch.total_us,
                search_us,
                effort,
                12 * max(effort, near.found[0].size) + 4 * scanned,
                1.0 if isinstance(index, ServedIndex) else 0.0,
                since,
            ),
        )

    def explain(self, index: Served, plan: Plan | None, watch: Stopwatch) -> PlannerExplanation | None:
        return None if plan is None else self._asked(index, self._planner.explain, plan, watch.laps)

    def _asked(self, index: Served, ask: Callable[..., T], *args: Any) -> T | None:
        """A planner that breaks is asked no more of that index: no search may fail for what only makes it faster."""
        try:
            return ask(*args)
        except Exception as error:
            if self._planner.broke(index.place, error):
                log.exception("the planner broke, and is asked no more until it is reset", index=index.place)
            return None

    def keep(self, index: Served, query: Search, answer: Answer) -> None:
        """A sampled query with a filter, to be run again by every strategy."""
        if answer.plan is not None and answer.filtered is not None and len(answer.filtered):
            version = answer.vectors.version
            self._filtered.append((index, answer.plan, answer.queries, query.k, answer.filtered, version))

    async def check(self) -> None:
        """Those that wait are run again, unless the rows have changed."""
        while self._filtered:
            index, plan, query, k, filtered, version = self._filtered.popleft()
            if index.vectors.version == version:
                with contextlib.suppress(*GONE):
                    await self.compare(index, plan, query, k, filtered)

    async def label(
        self, index: Served, plan: Plan, query: NDArray[np.float32], truth: NDArray[np.float32], answered: Share
    ) -> None:
        """Tells the planner what a sampled query (1, d), whose `truth` (k,) are the exact distances of its hits,
        needed; `answered` is the recall that it had. Nothing, where the index isn't any more what was asked."""
        if index.document.dim != query.shape[1]:
            return
        k = len(truth)
        unit = scale(k, index.backend)
        ladder = [min(round(effort * unit), core.EF_LIMIT) for effort in self._planner.ladder]
        try:
            runs = [run async for run in _climbed(index, query, truth, ladder)]
            others = await self._others(index, query, truth)
            self._turn = not self._turn  # neither is always the first, or always warm
            default, planned = plan.default_effort, plan.effort
            first, second = (planned, default) if self._turn else (default, planned)
            timed = {first: await _run(index, query, truth, first)}
            if second != first:
                timed[second] = await _run(index, query, truth, second)
        except (NoGraphError, *GONE):
            return
        chosen = others.get(plan.strategy, timed[planned])
        self._asked(index, self._planner.label, plan, _filled(runs, ladder), timed[default], chosen, answered)
        self._asked(index, self._planner.compare, plan, others)

    async def _others(self, index: Served, query: NDArray[np.float32], truth: NDArray[np.float32]) -> dict[str, Run]:
        """How the other strategies do on a query (1, d) without a filter."""
        runs: dict[str, Run] = {}
        k = len(truth)
        if isinstance(index, ServedIndex) and len(index.vectors) <= SMALL:
            started = perf_counter()
            index.vectors.exact(query, k, None)
            runs["exact_all"] = Run((perf_counter() - started) * 1e6, 1.0)
        if (run := await self._by_lance(index, query, k, None, truth)) is not None:
            runs["lance"] = run
        return runs

    async def compare(self, index: Served, plan: Plan, query: NDArray[np.float32], k: int, filtered: Matching) -> None:
        """Tells the planner how every strategy does on a sampled filtered query (1, d)."""
        if not isinstance(index, ServedIndex) or index.graph is None:
            return
        rows, k = len(index.vectors), min(k, len(filtered))
        started = perf_counter()
        _, truth = await anyio.to_thread.run_sync(index.vectors.exact, query, k, filtered.positions, limiter=THREADS)
        runs = {"exact": Run((perf_counter() - started) * 1e6, 1.0)}
        if _worth_a_graph(k, rows, len(filtered)):
            started = perf_counter()
            near = await index.by_filtered_graph(
                query, k, index.config.ef_search, filtered, Stopwatch(False), core.UNBOUND
            )
            us = (perf_counter() - started) * 1e6
            if near is not None:  # else it is what exact search would have had to answer
                runs["filtered_graph"] = Run(us, recall_against(near.found[1][0], truth[0]))
            else:
                runs["filtered_graph"] = Run(us + runs["exact"].us, 1.0)
        if (run := await self._by_lance(index, query, k, filtered, truth[0])) is not None:
            runs["lance"] = run
        self._asked(index, self._planner.compare, plan, runs)

    async def _by_lance(
        self,
        index: Served,
        query: NDArray[np.float32],
        k: int,
        filtered: Matching | None,
        truth: NDArray[np.float32],
    ) -> Run | None:
        """How Lance does on the same query (1, d); None where it isn't ready beside what serves, or is gone."""
        lance = self.beside(index)
        if lance is None or not isinstance(index, ServedIndex):
            return None
        started = perf_counter()
        asked = Search(index.document.index, k=k)
        near = await self.answered(lance, asked, query, filtered, [], Stopwatch(False))
        return None if near is None else Run((perf_counter() - started) * 1e6, recall_against(near.found[1][0], truth))


def _would(index: Served, k: int, rows: int, left: int | None) -> tuple[str, tuple[str, ...], int]:
    """The strategy without a planner, those that may answer, and the effort without a planner."""
    if isinstance(index, LanceServed):
        return "lance", ("lance",), counted(index.config.effort)
    effort = max(index.config.ef_search, k)
    chosen: str = core.strategy(k, effort, rows, left, index.exact_below_rows)
    if left is None:
        if chosen == "exact":
            return "exact_all", ("exact_all",), effort
        return chosen, ("graph", "exact_all") if rows <= SMALL else ("graph",), effort
    both = ("exact", "filtered_graph") if _worth_a_graph(k, rows, left) else ("exact",)
    return chosen, both, effort


def _worth_a_graph(k: int, rows: int, left: int) -> bool:
    """Whether a filtered graph search can be had at all."""
    return left > 0 and core.widened(k, 1, rows, left)[1] <= core.EF_LIMIT


class NoGraphError(Exception):
    """There is no graph to ask any more: the query is not a label."""


async def _climbed(
    index: Served, query: NDArray[np.float32], truth: NDArray[np.float32], ladder: Sequence[int]
) -> AsyncIterator[tuple[int, Run]]:
    """Runs at every effort until one has full recall, and once more BEYOND it: more effort changes nothing but the
    time."""
    last = len(ladder)
    for place, effort in enumerate(ladder):
        if place <= last or place == min(last + BEYOND, len(ladder) - 1):
            await anyio.lowlevel.checkpoint()  # short searches await nothing, and there are many
            run = await _run(index, query, truth, effort)
            if run.recall == 1.0:
                last = min(last, place)
            yield effort, run
            if place > last:
                return


def _filled(runs: Sequence[tuple[int, Run]], ladder: Sequence[int]) -> list[Run]:
    """Of every effort: what wasn't run has full recall, and a time that grows with effort as it did between the last
    two that were run."""
    known = dict(runs)
    if len(runs) < 2 or len(known) == len(ladder):
        return [known.get(effort, runs[-1][1]) for effort in ladder]
    (low, first), (high, second) = runs[-2:]
    slope = max(0.0, second.us - first.us) / max(1, high - low)
    return [known.get(effort, Run(first.us + slope * (effort - low), 1.0)) for effort in ladder]


async def _run(index: Served, query: NDArray[np.float32], truth: NDArray[np.float32], effort: int) -> Run:
    """A search with that effort. Raises NoGraphError."""
    k, started = len(truth), perf_counter()
    if isinstance(index, LanceServed):
        wanted, backend = core.planned_effort(index.config, effort), index.vectors.backend
        found = await anyio.to_thread.run_sync(backend.near, query[0], k, wanted, None, [], limiter=THREADS)
        distances = np.asarray(found[1], np.float32)
    elif index.graph is not None:
        near, _ = await index.graph.search(query, k, max(effort, k))
        distances = np.empty(0, np.float32) if near is None else near[1][0]
    else:
        raise NoGraphError
    return Run((perf_counter() - started) * 1e6, recall_against(distances, truth))


def _unit(query: NDArray[np.float32], metric: str) -> NDArray[np.float32] | None:
    """None: so long that the planner's sums of squares would leave float32."""
    length = float(query @ query) ** 0.5
    if metric != "cosine":
        return query if length < LONGEST else None
    return query * np.float32(1 / length) if length > 0 else query
