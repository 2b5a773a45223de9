"""Which graph to try next: ε-greedy over the build axes, from the journal alone.

The search space is a ladder of values on each axis, each about 1.4 times the one before: recall
and cost move with the logarithm of M and ef_construction, and a finer step is lost in noise. So
a uniform draw of rungs is log-uniform over the bounds, and one rung is the "small step". ef_search
is no axis: the sweep finds it for each graph.

The champion here is the journal's: the last configuration measured as champion, and since then
whatever beat it. Nothing else goes in, so the journal proposes the same again (see `replay`).
"""

import hashlib
import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from actors.autotune.decide import better, chosen_points
from actors.autotune.surrogate import predicted_cost
from schemas.config import DEFAULT_CONFIG, EF_CONSTRUCTION_BOUNDS, EF_SEARCH_BOUNDS, M_BOUNDS, GraphConfig, HnswConfig
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import Proposal
from schemas.names import IndexName


class Ladder(msgspec.Struct, frozen=True):
    """The values that proposals are made of."""

    M: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32, 48, 64)
    ef_construction: tuple[int, ...] = (10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400)


LADDER = Ladder()


class Policy(msgspec.Struct, frozen=True):
    """The rule's settings. They go into the journal with every proposal, as JSON."""

    target_recall: float
    epsilon: float = 0.25
    m_bounds: tuple[int, int] = M_BOUNDS
    ef_construction_bounds: tuple[int, int] = EF_CONSTRUCTION_BOUNDS
    ef_search_bounds: tuple[int, int] = EF_SEARCH_BOUNDS


def propose(index: IndexName, points: Sequence[TrialPoint], policy: Policy, ladder: Ladder = LADDER) -> Proposal | None:
    """The next graph to try, from all rows of the index's journal; None when nothing untried is
    left within the bounds. A graph counts as tried when it was on the journal's newest dataset
    version: a later version than that holds no trial at all."""
    ms = _within(ladder.M, policy.m_bounds)
    efcs = _within(ladder.ef_construction, policy.ef_construction_bounds)
    champion = journal_champion(points, policy.target_recall)
    seed = champion.seed if champion else DEFAULT_CONFIG.seed
    tried = _tried(points)
    rng = np.random.default_rng(_seed(index, len(points)))
    draw = float(rng.random())  # drawn first, always: the rest may not shift it
    untried = [(m, efc) for m, efc in itertools.product(ms, efcs) if (m, efc) not in tried]
    if not untried:
        return None
    near = _neighbours(champion, ms, efcs, policy.target_recall) if champion else []
    steps = [graph for graph in near if graph not in tried]
    explore = draw < policy.epsilon or not steps
    pool = untried if explore else _likeliest(steps, points, champion, policy.target_recall)
    m, efc = pool[int(rng.integers(len(pool)))]
    if not explore and champion:
        rule = f"exploit: champion M {champion.M} → {m}, ef_construction {champion.ef_construction} → {efc}"
    elif draw < policy.epsilon:
        rule = f"explore: M {m}, ef_construction {efc} drawn log-uniformly, {draw:.3f} < ε {policy.epsilon:g}"
    else:
        rule = f"explore: M {m}, ef_construction {efc} drawn log-uniformly, every step from the champion is tried"
    low, high = policy.ef_search_bounds
    ef = min(max(champion.ef_search if champion else DEFAULT_CONFIG.ef_search, low), high)
    return Proposal(
        config=HnswConfig(m, efc, ef, seed),
        proposer="explore" if explore else "exploit",
        rule=rule,
        draw=draw,
        journal_rows=len(points),
        policy=msgspec.json.encode(policy).decode(),
    )


def journal_champion(points: Sequence[TrialPoint], target: float) -> TrialPoint | None:
    """The champion that the journal's rows tell of. A champion's own trial sets it: that is the
    first of every campaign and tells what was live. A later point takes its place when better."""
    champion: TrialPoint | None = None
    for point in chosen_points(points):
        if champion is None or point.proposer == "champion" or better(point, champion, target):
            champion = point
    return champion


def exhausted(points: Sequence[TrialPoint], policy: Policy, ladder: Ladder = LADDER) -> bool:
    """Every step from the journal's champion is tried."""
    champion = journal_champion(points, policy.target_recall)
    if champion is None:
        return False
    ms = _within(ladder.M, policy.m_bounds)
    efcs = _within(ladder.ef_construction, policy.ef_construction_bounds)
    tried = _tried(points)
    return all(graph in tried for graph in _neighbours(champion, ms, efcs, policy.target_recall))


def by_graph(configs: Sequence[HnswConfig], proposer: str = "grid") -> list[Proposal]:
    """A grid's points as proposals, one a graph, in the order first named: points that share a
    graph are one build."""
    grouped: dict[GraphConfig, list[int]] = {}
    for config in configs:
        grouped.setdefault(config.graph, []).append(config.ef_search)
    return [
        Proposal(
            config=HnswConfig(graph.M, graph.ef_construction, efs[0], graph.seed),
            proposer="grid",
            rule=f"{proposer}: M {graph.M}, ef_construction {graph.ef_construction}, ef_search "
            + ", ".join(map(str, sorted(set(efs)))),
            extra_ef=sorted(set(efs)),
        )
        for graph, efs in grouped.items()
    ]


def _neighbours(champion: TrialPoint, ms: Sequence[int], efcs: Sequence[int], target: float) -> list[tuple[int, int]]:
    """A rung up, down or neither on each axis. A champion that misses the target needs a better
    graph, so then only upwards."""
    up_only = champion.recall_lower < target
    near_m = _steps(champion.M, ms, up_only)
    near_efc = _steps(champion.ef_construction, efcs, up_only)
    here = (champion.M, champion.ef_construction)
    return [graph for graph in itertools.product(near_m, near_efc) if graph != here]


def _likeliest(
    steps: list[tuple[int, int]], points: Sequence[TrialPoint], champion: TrialPoint | None, target: float
) -> list[tuple[int, int]]:
    """The steps that are predicted to be the cheapest; several when they tie."""
    if champion is None:
        return steps
    trials = [p for p in chosen_points(points) if p.dataset_version == points[-1].dataset_version]
    costs = predicted_cost(steps, trials, champion, target)
    return [step for step, cost in zip(steps, costs, strict=True) if cost == costs.min()]


def _steps(value: int, rungs: Sequence[int], up_only: bool) -> list[int]:
    below = [rung for rung in rungs if rung < value][-1:]
    above = [rung for rung in rungs if rung > value][:1]
    here = [value] if rungs[0] <= value <= rungs[-1] else []  # someone may have promoted what is out of bounds
    return [*([] if up_only and here else below), *here, *above]


def _within(rungs: Sequence[int], bounds: tuple[int, int]) -> list[int]:
    """The rungs within the bounds, and the bounds themselves."""
    low, high = bounds
    return sorted({low, high, *(rung for rung in rungs if low <= rung <= high)})


def _tried(points: Sequence[TrialPoint]) -> set[tuple[int, int]]:
    newest = max((point.dataset_version for point in points), default=-1)
    return {(point.M, point.ef_construction) for point in points if point.dataset_version == newest}


def _seed(index: IndexName, journal_rows: int) -> list[int]:
    return [int.from_bytes(hashlib.sha256(index.encode()).digest()[:8], "big"), journal_rows]
