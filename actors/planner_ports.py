"""What the index actors ask of a query planner, as a Protocol: so they never import it.

    plan = planner.choose(situation)       before a search, in tens of microseconds
    planner.observe(plan, outcome)         after it
    planner.label(plan, ladder, …)         later, of a sampled one: run again up `planner.ladder`
    planner.compare(plan, runs)            of a sampled filtered one: run again by every strategy

An effort is the ef_search of a graph, or PROBES times the nprobes of a Lance index, whose refine factor and ef grow
with it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.config import Effort, HnswEffort
from schemas.names import Backend, IndexName, Share
from schemas.planner import PlannerExplanation

PROBES = 10
"""Efforts of Lance count cells by tenths: the ladder, which is of ef_search, does for them too."""


class Situation(NamedTuple):
    """What is known of a query before it is searched."""

    index_name: IndexName
    backend: Backend
    target: Share  # recall to hold
    query: NDArray[np.float32]  # (d,) of unit length where the metric is cosine
    k: int
    rows: int
    matching: int | None  # rows that the filter leaves; None without a filter
    operators: tuple[str, ...]
    effort: int  # without a planner
    strategy: str  # without a planner
    strategies: tuple[str, ...]  # that may answer
    since: float  # when planning it began, by the performance counter
    most: int = 1 << 20  # effort; more finds nothing more, or costs more than exact search


class Plan(NamedTuple):
    """What is to be done. `acting` False: it is only noted, and the search goes on as without a planner."""

    acting: bool
    effort: int
    strategy: str
    default_effort: int  # without a planner
    ticket: object  # the planner's own


class Outcome(NamedTuple):
    """What came of a search."""

    steps: Sequence[tuple[str, float]]  # operators and their times in microseconds, in order
    total_us: float
    search_us: float  # of the strategy alone
    effort: int  # that it took; 0: exact
    bytes: int  # of working memory
    cache_hits: Share  # of the columns that were in memory
    since: float  # when telling it began, by the performance counter


class Run(NamedTuple):
    """One answer of a sampled query that was run again."""

    us: float
    recall: Share


def counted(effort: Effort | None) -> int:
    """An effort as a planner counts it; 0: exact."""
    if effort is None:
        return 0
    return effort.ef_search if isinstance(effort, HnswEffort) else PROBES * effort.nprobes


def scale(k: int, backend: Backend) -> float:
    """More hits take more of a graph's effort in proportion: efforts are learnt as those of ten hits. They don't take
    more cells."""
    return max(1.0, k / 10) if backend == "hnsw" else 1.0


class QueryPlanner(Protocol):
    ladder: tuple[int, ...]
    """Efforts that a label tells of, ascending; each times `scale`."""

    def wants(self, index: IndexName, surely: bool) -> bool:
        """Whether it wants to see the next query of an index. `surely`: it is run again, or is to be explained."""
        ...

    def choose(self, situation: Situation) -> Plan | None:
        """None: nothing to say, and nothing to be told."""
        ...

    def observe(self, plan: Plan, outcome: Outcome) -> None: ...

    def label(self, plan: Plan, ladder: Sequence[Run], default: Run, planned: Run, answered: Share) -> None:
        """`ladder`: a run for each of its efforts, in order, those beyond full recall perhaps estimated; `default` and
        `planned`: without the planner, and as it chose; `answered`: the recall of what the user got."""
        ...

    def compare(self, plan: Plan, runs: Mapping[str, Run]) -> None:
        """`runs` by strategy; those that could be had."""
        ...

    def explain(self, plan: Plan, steps: Sequence[tuple[str, float]]) -> PlannerExplanation: ...

    def broke(self, index: IndexName, error: Exception) -> bool:
        """One of the above raised, of this index: it wants to see no more of it. False when it knows already."""
        ...
