"""What the index actors ask of a query planner, as a Protocol: so they never import it.

    plan = planner.choose(situation)       before a search, in tens of microseconds
    planner.observe(plan, outcome)         after it
    planner.label(plan, ladder)            later, of a sampled one: run again at every effort of `planner.ladder`
    planner.compare(plan, runs)            of a sampled filtered one: run again by every strategy

Efforts are ef_search of a graph, or PROBES times the nprobes of a Lance index.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.names import Backend, IndexName, Share
from schemas.planner import PlannerExplanation

PROBES = 10


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
    most: int = 1 << 20  # effort; more finds nothing more, or costs more than exact search


class Plan(NamedTuple):
    """What is to be done. `acting` False: it is only noted, and the search goes on as without a planner."""

    acting: bool
    effort: int
    strategy: str
    ticket: object  # the planner's own


class Outcome(NamedTuple):
    """What came of a search."""

    steps: Sequence[tuple[str, float]]  # operators and their times in microseconds, in order
    total_us: float
    search_us: float  # of the strategy alone
    strategy: str  # that was begun with: what it fell back to is its cost
    effort: int  # that it took; 0: exact
    bytes: int  # of working memory
    cache_hits: Share  # of the columns that were in memory


class Run(NamedTuple):
    """One answer of a sampled query that was run again."""

    us: float
    recall: Share


class QueryPlanner(Protocol):
    ladder: tuple[int, ...]
    """Efforts that a label is measured at, ascending."""

    def wants(self, index: IndexName, surely: bool) -> bool:
        """Whether it wants to see the next query of an index. `surely`: it is run again, or is to be explained."""
        ...

    def choose(self, situation: Situation) -> Plan | None:
        """None: nothing to say, and nothing to be told."""
        ...

    def observe(self, plan: Plan, outcome: Outcome) -> None: ...

    def label(self, plan: Plan, runs: Sequence[Run]) -> None:
        """`runs`: one for each effort of the ladder, in order."""
        ...

    def compare(self, plan: Plan, runs: Mapping[str, Run]) -> None:
        """`runs` by strategy; those that could be had."""
        ...

    def explain(self, plan: Plan, steps: Sequence[tuple[str, float]]) -> PlannerExplanation: ...

    def broke(self, index: IndexName, error: Exception) -> bool:
        """One of the above raised, of this index: it wants to see no more of it. False when it knows already."""
        ...


class NoPlanner:
    """Searches go as they would."""

    ladder: tuple[int, ...] = ()

    def wants(self, index: IndexName, surely: bool) -> bool:
        return False

    def choose(self, situation: Situation) -> Plan | None:
        return None

    def observe(self, plan: Plan, outcome: Outcome) -> None: ...
    def label(self, plan: Plan, runs: Sequence[Run]) -> None: ...
    def compare(self, plan: Plan, runs: Mapping[str, Run]) -> None: ...
    def explain(self, plan: Plan, steps: Sequence[tuple[str, float]]) -> PlannerExplanation:
        raise LookupError("there is no planner")

    def broke(self, index: IndexName, error: Exception) -> bool:
        return False
