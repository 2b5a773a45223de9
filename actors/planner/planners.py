"""The QueryPlanner port: an instant loop for each index, and whether it acts. Lives in the process that searches; the
actor beside it runs the background cycles and keeps the state. Its clock is the performance counter: a choice costs
microseconds.
"""

import math
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from actors.planner import core_gain
from actors.planner.config import PlannerConfig
from actors.planner.core_gain import Pair
from actors.planner.core_labels import LADDER, Labels
from actors.planner.core_slack import slacks
from actors.planner.instant import EXACT, Choice, Instant
from actors.planner_ports import PROBES, Outcome, Plan, Run, Situation, counted, scale
from schemas.config import IndexConfig
from schemas.names import Backend, IndexName, Share
from schemas.planner import Criticality, PlannerExplanation, PlannerGain, PlannerMode

FORGET = 0.3
"""What strategies were seen to do counts so much after a shift, or when recall drifts."""


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
        self.own_us = 0.0  # sum of what choosing and remembering took
        self.chosen = 0  # since start
        self.tested = (0, 0)  # trajectories seen when the last two windows of the watch for shifts ended
        self.kept = 0  # labels when the state was kept last
        self.promotions = 0  # since start
        self.compared = 0  # queries run again with and without what was chosen
        self.judged = 0  # of them when it was last looked at whether it helps
        self.looks = 0  # in shadow, at whether it is to be turned on
        self._gain: tuple[tuple[int, int], PlannerGain | None] = ((0, 0), None)
        self.passed = 0.0  # share of a query that is still to be looked at

    def gain(self) -> PlannerGain | None:
        """Measured anew when there are new pairs: some 20 ms, so not on the event loop."""
        now, known = (self.compared, self.looks), self._gain
        if known[0] != now:
            gain = core_gain.measured(self.instant.pairs, self.instant.target, max(1, self.looks))
            self._gain = known = (now, gain)
        return known[1]

    def promoted(self, before: IndexConfig | None, now: IndexConfig) -> None:
        """Another configuration is to serve: what was measured against the former proves nothing. Of another build
        neither do the labels, and nothing is chosen until there are new ones."""
        instant = self.instant
        if before == now:
            return
        self.promotions += 1
        self._unproved()
        if before is not None and before.build == now.build:
            instant.labels = instant.labels.after(*(math.log2(counted(one.effort)) for one in (before, now)))
        else:
            instant.labels = Labels.empty(instant.config.hidden_dim)
            instant.adopt(instant.learned._replace(calibration=None))

    def shifted(self) -> None:
        """The queries are of another kind now: what was measured on the former ones proves nothing."""
        self.instant.bandit.discount(FORGET)
        self._unproved()

    def _unproved(self) -> None:
        self.instant.pairs = self.instant.pairs[:0]
        self.compared = self.judged = self.looks = 0
        self._gain = ((0, 0), None)


class Ticket:
    """What a plan must be remembered with."""

    __slots__ = ("choice", "number", "of", "own_us")

    def __init__(self, of: Planned, choice: Choice, own_us: float) -> None:
        self.of, self.choice, self.own_us = of, choice, own_us
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
        planned = self.of(situation.index_name, len(situation.query), situation.target, situation.backend)
        if planned.mode == "off":
            return None
        rows = max(1, situation.rows)
        matching = rows if situation.matching is None else situation.matching
        unit = scale(situation.k, situation.backend)
        default = math.log2(max(1.0, situation.effort / unit))
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
            effort = min(round(2**choice.effort * unit), max(situation.most, situation.effort))
        planned.chosen += 1
        acting = planned.mode == "on"
        own_us = (perf_counter() - situation.since) * 1e6
        planned.own_us += own_us
        return Plan(acting, effort, choice.strategy, situation.effort, Ticket(planned, choice, own_us))

    def observe(self, plan: Plan, outcome: Outcome) -> None:
        ticket = _ticket(plan)
        instant = ticket.of.instant
        ticket.number = instant.after(
            ticket.choice,
            outcome.steps,
            math.log2(outcome.effort) if outcome.effort > 0 else 0.0,
            outcome.total_us,
            outcome.bytes / (1 << 20),
            outcome.cache_hits,
        )
        # a strategy that gave up and left it to another took that time: it is the one that is chosen, or not
        instant.played(
            ticket.choice, plan.strategy if plan.acting else ticket.choice.default_strategy, outcome.search_us
        )
        own_us = (perf_counter() - outcome.since) * 1e6
        ticket.own_us += own_us
        ticket.of.own_us += own_us

    def label(self, plan: Plan, ladder: Sequence[Run], default: Run, planned: Run, answered: Share) -> None:
        ticket = _ticket(plan)
        choice, instant = ticket.choice, ticket.of.instant
        recall = np.array([run.recall for run in ladder], np.float32)
        us = np.array([run.us for run in ladder], np.float32)
        instant.told(choice, recall, us)
        instant.ring.grade(ticket.number, answered, instant.target)
        if choice.kind != "Default" or choice.strategy != choice.default_strategy:
            self._pair(ticket, default, planned)

    def compare(self, plan: Plan, runs: Mapping[str, Run]) -> None:
        ticket = _ticket(plan)
        choice, instant = ticket.choice, ticket.of.instant
        for name, run in runs.items():
            if name not in EXACT:
                instant.bandit.sampled(choice.decade, name, run.recall)
            if name != choice.default_strategy:  # that was timed when it answered: what is run again isn't acted on
                instant.bandit.timed(choice.decade, name, run.us)
        default, planned = runs.get(choice.default_strategy), runs.get(choice.strategy)
        if default is not None:
            instant.ring.grade(ticket.number, default.recall, instant.target)
            if planned is not None:
                self._pair(ticket, default, planned)

    def _pair(self, ticket: Ticket, default: Run, planned: Run) -> None:
        """The planner's own time is charged to what it chose."""
        ticket.of.instant.compared(Pair(default.us, planned.us + ticket.own_us, default.recall, planned.recall))
        ticket.of.compared += 1

    def explain(self, plan: Plan, steps: Sequence[tuple[str, float]]) -> PlannerExplanation:
        ticket = _ticket(plan)
        choice, unit = ticket.choice, PROBES if ticket.of.backend == "lance" else 1
        effort, default_effort = (max(1, round(count / unit)) for count in (plan.effort, plan.default_effort))
        return PlannerExplanation(
            mode=ticket.of.mode,
            acted=plan.acting,
            decided=choice.kind,
            effort=effort,
            default_effort=default_effort,
            strategy=choice.strategy,
            default_strategy=choice.default_strategy,
            pattern=choice.pattern if choice.pattern >= 0 else None,
            similarity=choice.similarity,
            confidence=choice.confidence,
            own_us=ticket.own_us,
            operators=[Criticality(s.operator, s.us, s.slack_us, s.criticality) for s in slacks(steps)],
        )

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
