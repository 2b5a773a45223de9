"""The QueryPlanner port: an instant loop for each index, and whether it acts. Lives in the process that searches; the
actor beside it runs the background cycles and keeps the state. Its clock is the performance counter: a choice costs
microseconds.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from actors.planner import core_gain
from actors.planner.config import PlannerConfig
from actors.planner.core_gain import Gain, Pair
from actors.planner.core_labels import LADDER, between
from actors.planner.core_slack import slacks
from actors.planner.instant import EXACT, Choice, Instant
from actors.planner_ports import PROBES, Outcome, Plan, Run, Situation
from schemas.names import Backend, IndexName
from schemas.planner import Criticality, PlannerExplanation, PlannerMode


class Planned:
    """One index."""

    def __init__(self, config: PlannerConfig, dim: int, target: float, mode: PlannerMode) -> None:
        self.instant = Instant(config, dim, target)
        self.mode: PlannerMode = mode
        self.why = "the default"
        self.backend: Backend | None = None  # whose efforts it has learnt; None: not a query yet
        self.cycles = 0
        self.learned: float | None = None
        self.cycle_s = 0.0
        self.own_us = 0.0  # sum of what choosing took
        self.chosen = 0  # since start
        self.tested = 0  # trajectories when the queries were last tested for a shift
        self._gain: tuple[int, Gain | None] = (-1, None)
        self.compared = 0
        self.labelled = 0  # since start
        self.passed = 0.0  # share of a query that is still to be looked at

    def gain(self) -> Gain | None:
        """Measured anew when there are new pairs."""
        if self._gain[0] != self.compared:
            self._gain = (self.compared, core_gain.measured(self.instant.pairs, self.instant.target))
        return self._gain[1]


class Ticket:
    """What a plan must be remembered with."""

    __slots__ = ("choice", "default_effort", "number", "of", "own_us")

    def __init__(self, of: Planned, choice: Choice, own_us: float, default_effort: int) -> None:
        self.of, self.choice, self.own_us, self.default_effort = of, choice, own_us, default_effort
        self.number = -1  # of its trajectory


class Planners:
    """Implements actors.planner_ports.QueryPlanner."""

    ladder: tuple[int, ...] = LADDER

    def __init__(self, config: PlannerConfig) -> None:
        self.config = config
        self.indexes: dict[IndexName, Planned] = {}
        self.broken: dict[IndexName, str] = {}
        """Why nothing more is planned for an index: until it is reset, or another state imported."""

    def of(self, index: IndexName, dim: int, target: float, backend: Backend | None = None) -> Planned:
        """An index's loop; a new one where there is none, or its vectors are of another kind now, or its efforts."""
        known = self.indexes.get(index)
        if known is not None and backend is not None:
            known.backend = known.backend or backend
        if known is None or known.instant.embedding.dim != dim or backend not in (None, known.backend):
            mode = self.config.mode if known is None or known.mode != "off" else known.mode
            known = self.indexes[index] = Planned(self.config, dim, target, mode)
            known.backend = backend
        known.instant.target = target
        return known

    def wants(self, index: IndexName, surely: bool) -> bool:
        """In shadow one query in so many is enough to learn from: those that nothing is chosen for cost nothing."""
        if not self.config.enabled or index in self.broken:
            return False
        planned = self.indexes.get(index)
        if planned is None or planned.mode == "on":
            return True
        if planned.mode == "off":
            return False
        if surely:
            return True
        planned.passed += self.config.shadow_share
        looks = planned.passed > 1 - 1e-9
        planned.passed -= looks
        return looks

    def choose(self, situation: Situation) -> Plan | None:
        started = perf_counter()
        planned = self.of(situation.index_name, len(situation.query), situation.target, situation.backend)
        if planned.mode == "off":
            return None
        rows = max(1, situation.rows)
        matching = rows if situation.matching is None else situation.matching
        lance = situation.backend == "lance"
        scale = 1.0 if lance else max(1.0, situation.k / 10)  # labels are of recall@10
        default = float(np.log2(max(1.0, situation.effort / scale)))
        choice = planned.instant.before(
            situation.query,
            situation.operators,
            situation.k,
            max(1, matching) / rows,
            default,
            situation.strategy,
            situation.strategies,
        )
        effort = situation.effort
        if choice.kind != "Default":
            least = PROBES if lance else situation.k
            effort = min(max(round(2**choice.effort * scale), least), max(situation.most, situation.effort))
        own_us = (perf_counter() - started) * 1e6
        planned.own_us += own_us
        planned.chosen += 1
        acting = planned.mode == "on"
        return Plan(acting, effort, choice.strategy, Ticket(planned, choice, own_us, situation.effort))

    def observe(self, plan: Plan, outcome: Outcome) -> None:
        ticket = _ticket(plan)
        instant = ticket.of.instant
        ticket.number = instant.after(
            ticket.choice,
            outcome.steps,
            float(np.log2(outcome.effort)) if outcome.effort > 0 else 0.0,
            outcome.total_us,
            outcome.bytes / (1 << 20),
            outcome.cache_hits,
        )
        instant.played(ticket.choice, outcome.strategy, outcome.search_us)

    def label(self, plan: Plan, runs: Sequence[Run]) -> None:
        """A labelled query was answered as without a planner."""
        ticket = _ticket(plan)
        recall = np.array([run.recall for run in runs], np.float32)
        us = np.array([run.us for run in runs], np.float32)
        ticket.of.instant.told(ticket.choice, recall, us, ticket.own_us)
        self._grade(ticket, float(between(recall[None], np.array([ticket.choice.default_effort]))[0]))
        ticket.of.labelled += 1
        ticket.of.compared += 1

    def compare(self, plan: Plan, runs: Mapping[str, Run]) -> None:
        ticket = _ticket(plan)
        choice, instant = ticket.choice, ticket.of.instant
        for name, run in runs.items():
            if name not in EXACT:
                instant.bandit.sampled(choice.decade, name, run.recall)
            if name != choice.strategy or not plan.acting:  # what answered was timed then
                instant.bandit.timed(choice.decade, name, run.us)
        default, planned = runs.get(choice.default_strategy), runs.get(choice.strategy)
        if default is not None:
            self._grade(ticket, default.recall)
        if default is not None and planned is not None:
            instant.compared(Pair(default.us, planned.us + ticket.own_us, default.recall, planned.recall))
            ticket.of.compared += 1

    def explain(self, plan: Plan, steps: Sequence[tuple[str, float]]) -> PlannerExplanation:
        ticket = _ticket(plan)
        choice, unit = ticket.choice, PROBES if ticket.of.backend == "lance" else 1
        return PlannerExplanation(
            mode=ticket.of.mode,
            acted=plan.acting,
            decided=choice.kind,
            effort=max(1, plan.effort // unit),
            default_effort=max(1, ticket.default_effort // unit),
            strategy=choice.strategy,
            default_strategy=choice.default_strategy,
            pattern=choice.pattern if choice.pattern >= 0 else None,
            similarity=choice.similarity,
            confidence=choice.confidence,
            own_us=ticket.own_us,
            operators=[Criticality(s.operator, s.us, s.slack_us, s.criticality) for s in slacks(steps)],
        )

    def _grade(self, ticket: Ticket, recall: float) -> None:
        instant = ticket.of.instant
        instant.ring.grade(ticket.number, recall, instant.target)

    def broke(self, index: IndexName, error: Exception) -> bool:
        if index in self.broken:
            return False
        self.broken[index] = f"it broke, and plans no more until it is reset: {type(error).__name__}: {error}"
        return True

    def forget(self, index: IndexName) -> None:
        self.indexes.pop(index, None)
        self.broken.pop(index, None)


def _ticket(plan: Plan) -> Ticket:
    assert isinstance(plan.ticket, Ticket)
    return plan.ticket
