"""Where a searcher asks a planner: what is told of queries that were run again."""

import numpy as np
import pytest

from actors.index import planning
from actors.index.planning import _filled
from actors.planner.config import PlannerConfig
from actors.planner.planners import Planners
from actors.planner_ports import Outcome, Run, Situation, scale

LADDER = [10, 20, 40, 80, 160]


def test_times_of_what_was_not_run_grow_with_effort_as_those_that_were():
    """A search takes 15 us and a half for each unit of effort; from 20 on nothing is missed."""
    truth = [Run(15 + ef / 2, 1.0 if ef >= 20 else 0.7) for ef in LADDER]
    filled = _filled([(10, truth[0]), (20, truth[1]), (80, truth[3])], LADDER)
    assert [run.recall for run in filled] == [run.recall for run in truth]
    assert [run.us for run in filled] == pytest.approx([run.us for run in truth])
    assert _filled(list(zip(LADDER, truth, strict=True)), LADDER) == truth
    slower = _filled([(20, Run(30.0, 1.0)), (80, Run(25.0, 1.0))], LADDER[1:])  # noise: more effort was faster
    assert [run.us for run in slower] == [30, 30, 25, 30]
    assert _filled([(4000, Run(9.0, 1.0))], [4000, 4000]) == [Run(9.0, 1.0)] * 2  # where efforts end


@pytest.mark.parametrize(("full_at", "efforts"), [(0, [10, 160]), (1, [10, 20, 160]), (4, LADDER), (9, LADDER)])
async def test_the_ladder_is_climbed_until_nothing_is_missed_and_once_beyond(monkeypatch, full_at, efforts):
    async def run(_index, _query, _truth, effort):
        return Run(float(effort), 1.0 if LADDER.index(effort) >= full_at else 0.5)

    monkeypatch.setattr(planning, "_run", run)
    assert [effort async for effort, _ in planning._climbed(None, None, None, LADDER)] == efforts


def test_more_hits_take_more_effort_and_fewer_no_less():
    assert [scale(k, "hnsw") for k in (1, 10, 40)] == [1, 1, 4]
    assert scale(40, "lance") == 1  # not more cells


def test_a_strategy_that_gives_up_pays_for_what_answered_instead():
    """The graph was chosen, found too few, and exact search answered after it."""
    planners = Planners(PlannerConfig())
    query, both = np.ones(8, np.float32), ("exact", "filtered_graph")
    situation = Situation("docs", "hnsw", 0.95, query, 10, 9000, 900, ("filter", "graph"), 50, "exact", both, 0.0)
    outcome = Outcome([("graph", 900.0), ("exact", 1400.0)], 2400.0, 2300.0, 0, 600, 1.0, 0.0)
    plan = planners.choose(situation)._replace(strategy="filtered_graph")
    arms = planners.indexes["docs"].instant.bandit
    planners.observe(plan._replace(acting=True), outcome)
    assert (arms.arm(1, "exact").n, arms.arm(1, "filtered_graph").n) == (0, 1)
    assert arms.arm(1, "filtered_graph").us == pytest.approx(2300)
    planners.observe(plan._replace(acting=False), outcome)  # the default answered
    assert (arms.arm(1, "exact").n, arms.arm(1, "filtered_graph").n) == (1, 1)
