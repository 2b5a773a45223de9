"""What can be built: the search space of each backend, and the steps in it. Pure.

A graph has a ladder of values on each axis, each about 1.4 times the one before: recall and cost move
with the logarithm of M and ef_construction, and a finer step is lost in noise. So a uniform draw of
rungs is log-uniform over the bounds, and one rung is the "small step".

Lance has index types, and for each a ladder of partitions, twice the one before, around what the rule
gives for the rows; IVF_PQ has numbers of sub-vectors too. Another type at its rule's values is a step.

The effort is no axis: the sweep finds it for each build.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Protocol, get_args

import msgspec

from actors.autotune.surrogate import predicted_cost
from actors.backends.lance_rules import default_partitions, first_config, resolve
from schemas.config import (
    DEFAULT_CONFIG,
    EF_CONSTRUCTION_BOUNDS,
    EF_SEARCH_BOUNDS,
    M_BOUNDS,
    PARTITION_BOUNDS,
    Build,
    GraphConfig,
    HnswConfig,
    IndexConfig,
    LanceBuild,
    LanceType,
)
from schemas.documents.trial import TrialPoint
from schemas.names import Backend, Rows

LANCE_TYPES: tuple[LanceType, ...] = get_args(LanceType)
DOUBLINGS = 3
"""So far a ladder of partitions goes from the rule's number, down and up."""
SUB_VECTOR_DIMS = (16, 8, 4)
"""Dimensions a sub-vector, in the order in which recall grows."""


class Ladder(msgspec.Struct, frozen=True):
    """The values that graphs are proposed of."""

    M: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32, 48, 64)
    ef_construction: tuple[int, ...] = (10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400)


LADDER = Ladder()


class Policy(msgspec.Struct, frozen=True):
    """The rule's settings. They go into the journal with every proposal, as JSON; a field that a row's lacks
    has its default."""

    target_recall: float
    epsilon: float = 0.25
    m_bounds: tuple[int, int] = M_BOUNDS
    ef_construction_bounds: tuple[int, int] = EF_CONSTRUCTION_BOUNDS
    ef_search_bounds: tuple[int, int] = EF_SEARCH_BOUNDS
    backends: tuple[Backend, ...] = ("hnsw",)  # that may be proposed, the one that serves first
    dim: int = 0  # of the vectors, and their number: what Lance's space is made from
    rows: Rows = 0


class Space(Protocol):
    """The builds of one backend."""

    def builds(self) -> Sequence[Build]:
        """All of them, always in the same order."""
        ...

    def steps(self, champion: TrialPoint) -> Sequence[Build]:
        """Those one step away from the champion's. A champion that misses the target needs a better build."""
        ...

    def tried(self, points: Sequence[TrialPoint]) -> set[Build]: ...
    def likeliest(self, steps: Sequence[Build], points: Sequence[TrialPoint], champion: TrialPoint) -> Sequence[Build]:
        """The steps that are predicted to be the cheapest; several when they tie."""
        ...

    def config(self, build: Any) -> IndexConfig:
        """With the effort that its sweep begins at."""
        ...

    def step_in_words(self, champion: TrialPoint, build: Any) -> str: ...
    def draw_in_words(self, build: Any) -> str: ...


def space_of(backend: Backend, policy: Policy, champion: TrialPoint | None, ladder: Ladder = LADDER) -> Space:
    """champion: of that backend."""
    return GraphSpace(policy, ladder, champion) if backend == "hnsw" else LanceSpace(policy)


class GraphSpace:
    """Graphs of the champion's seed."""

    def __init__(self, policy: Policy, ladder: Ladder, champion: TrialPoint | None) -> None:
        self._ms = _within(ladder.M, policy.m_bounds)
        self._efcs = _within(ladder.ef_construction, policy.ef_construction_bounds)
        self._target = policy.target_recall
        live = champion.config if champion else DEFAULT_CONFIG
        self._live = live if isinstance(live, HnswConfig) else DEFAULT_CONFIG
        low, high = policy.ef_search_bounds
        self._ef = min(max(self._live.ef_search, low), high)

    def builds(self) -> Sequence[GraphConfig]:
        return [self._graph(m, efc) for m, efc in itertools.product(self._ms, self._efcs)]

    def steps(self, champion: TrialPoint) -> Sequence[GraphConfig]:
        """A rung up, down or neither on each axis; only upwards from one that misses the target."""
        up_only = champion.recall_lower < self._target
        near_m = _steps(self._live.M, self._ms, up_only)
        near_efc = _steps(self._live.ef_construction, self._efcs, up_only)
        near = [self._graph(m, efc) for m, efc in itertools.product(near_m, near_efc)]
        return [graph for graph in near if graph != self._live.build]

    def tried(self, points: Sequence[TrialPoint]) -> set[Build]:
        return {self._graph(p.M or 0, p.ef_construction or 0) for p in points if p.backend == "hnsw"}

    def likeliest(self, steps: Sequence[Build], points: Sequence[TrialPoint], champion: TrialPoint) -> Sequence[Build]:
        graphs = [step for step in steps if isinstance(step, GraphConfig)]
        trials = [p for p in points if p.chosen and p.backend == "hnsw"]
        trials = [p for p in trials if p.dataset_version == points[-1].dataset_version]
        costs = predicted_cost(graphs, trials, champion, self._target)
        return [step for step, cost in zip(graphs, costs, strict=True) if cost == costs.min()]

    def config(self, build: GraphConfig) -> HnswConfig:
        return HnswConfig(build.M, build.ef_construction, self._ef, build.seed)

    def step_in_words(self, champion: TrialPoint, build: GraphConfig) -> str:
        live = self._live
        return f"champion M {live.M} → {build.M}, ef_construction {live.ef_construction} → {build.ef_construction}"

    def draw_in_words(self, build: GraphConfig) -> str:
        return f"{build} drawn log-uniformly"

    def _graph(self, m: int, efc: int) -> GraphConfig:
        return GraphConfig(m, efc, self._live.seed)


class LanceSpace:
    def __init__(self, policy: Policy) -> None:
        self._rows, self._dim, self._target = policy.rows, policy.dim, policy.target_recall
        self._by_rule = lance_by_rule(policy.rows, policy.dim) if policy.rows and policy.dim else []

    def builds(self) -> Sequence[LanceBuild]:
        return [
            LanceBuild(of.index_type, partitions, subs)
            for of in self._by_rule
            for partitions in self._partitions(of.index_type)
            for subs in self._sub_vectors(of)
        ]

    def steps(self, champion: TrialPoint) -> Sequence[LanceBuild]:
        """A rung of partitions up or down, one of sub-vectors, or another type by rule. From one that misses the
        target in all its cells: what keeps more of a vector, for cells don't change that."""
        here = champion.config.build
        if not isinstance(here, LanceBuild):
            return []
        misses = champion.recall_lower < self._target
        counts = [] if misses else _steps(here.partitions, self._partitions(here.index_type), False)
        subs = _steps(here.sub_vectors, self._sub_vectors(here), misses) if here.sub_vectors else []
        near = [msgspec.structs.replace(here, partitions=n) for n in counts]
        near += [msgspec.structs.replace(here, sub_vectors=n) for n in subs]
        near += [build for build in self._by_rule if build.index_type != here.index_type]
        return [build for build in near if build != here]

    def tried(self, points: Sequence[TrialPoint]) -> set[Build]:
        return {
            LanceBuild(p.index_type, p.partitions or 1, p.sub_vectors or 0)  # type: ignore[arg-type]
            for p in points
            if p.backend == "lance"
        }

    def likeliest(self, steps: Sequence[Build], points: Sequence[TrialPoint], champion: TrialPoint) -> Sequence[Build]:
        """Nothing is known beforehand: how many cells are best depends on the data and the disk."""
        return steps

    def config(self, build: LanceBuild) -> IndexConfig:
        return first_config(build)

    def step_in_words(self, champion: TrialPoint, build: LanceBuild) -> str:
        return f"champion {champion.config.build} → {build}"

    def draw_in_words(self, build: LanceBuild) -> str:
        return f"{build} drawn uniformly"

    def _partitions(self, index_type: LanceType) -> list[int]:
        by_rule = default_partitions(self._rows, index_type)
        most = min(self._rows, PARTITION_BOUNDS[1])
        ladder = (by_rule * 2**n if n >= 0 else by_rule // 2**-n for n in range(-DOUBLINGS, DOUBLINGS + 1))
        return sorted({n for n in ladder if 1 <= n <= most})

    def _sub_vectors(self, build: LanceBuild) -> list[int]:
        """Of IVF_PQ; [0] of the other types."""
        if build.index_type != "IVF_PQ":
            return [0]
        some = [self._dim // dims for dims in SUB_VECTOR_DIMS if self._dim % dims == 0]
        return some or [resolve(self._rows, self._dim, "IVF_PQ").sub_vectors]


def lance_by_rule(rows: Rows, dim: int) -> list[LanceBuild]:
    """One of each type that dimensions and rows allow."""
    found = []
    for index_type in LANCE_TYPES:
        try:
            found.append(resolve(rows, dim, index_type))
        except ValueError:
            continue
    return found


def _steps(value: int, rungs: Sequence[int], up_only: bool) -> list[int]:
    below = [rung for rung in rungs if rung < value][-1:]
    above = [rung for rung in rungs if rung > value][:1]
    here = [value] if rungs[0] <= value <= rungs[-1] else []  # someone may have promoted what is out of bounds
    return [*([] if up_only and here else below), *here, *above]


def _within(rungs: Sequence[int], bounds: tuple[int, int]) -> list[int]:
    """The rungs within the bounds, and the bounds themselves."""
    low, high = bounds
    return sorted({low, high, *(rung for rung in rungs if low <= rung <= high)})
