"""The query planner over HTTP: the real actor, told of queries as a searcher tells it."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from actors.planner_ports import Outcome, Run, Situation
from tests.integration.http_house import House, house

LADDER_LABELS = 110


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


def told(here: House, n: int) -> None:
    """n queries are searched; the first of them run again."""
    rng = np.random.default_rng(1)
    for number, query in enumerate(rng.standard_normal((n, 384)).astype(np.float32)):
        plan_of, since = ("graph", "fetch"), perf_counter()
        situation = Situation("docs", "hnsw", 0.95, query, 10, 5000, None, plan_of, 50, "graph", ("graph",), since)
        plan = here.planners.choose(situation)
        assert plan is not None
        here.planners.observe(plan, Outcome([("graph", 80.0)], 100.0, 80.0, 50, 600, 1.0, perf_counter()))
        if number < LADDER_LABELS:
            runs = [Run(float(ef), min(1.0, 0.8 + ef / 300)) for ef in here.planners.ladder]
            here.planners.label(plan, runs, Run(50.0, 0.95), Run(float(plan.effort), 0.95), 0.95)


async def test_it_is_shown_taught_exported_reset_and_imported(here: House) -> None:
    told(here, 150)
    status, body = await here.call("GET", "/planner/docs")
    assert (status, body["mode"], body["queries_processed"], body["labels"]) == (200, "shadow", 150, LADDER_LABELS)
    wanted = {"pattern_hit_rate", "avg_latency_us", "background_cycles", "patterns_stored", "trajectories_dropped"}
    assert wanted | {"ewc_tasks"} <= body.keys()
    status, learned = await here.call("POST", "/planner/docs/learn")
    assert (status, learned["trajectories"], learned["labels"]) == (200, 150, LADDER_LABELS)
    assert learned["patterns"] > 0
    told(here, 10)
    status, body = await here.call("GET", "/planner/docs")
    assert (body["background_cycles"], body["gain"]["pairs"]) == (1, 10)
    assert body["gain"]["speed"]["low"] <= body["gain"]["speed"]["value"]
    status, exported = await here.call("POST", "/planner/docs/export")
    assert status == 200
    assert len(base64.b64decode(exported["state"])) > 1000
    status, body = await here.call("POST", "/planner/docs/reset")
    assert (status, body["patterns_stored"], body["queries_processed"]) == (200, 0, 0)
    status, body = await here.call("POST", "/planner/docs/import", json={"state": exported["state"]})
    assert (status, body["patterns_stored"], body["mode"]) == (200, learned["patterns"], "shadow")


async def test_a_mode_is_set_and_what_is_wrong_is_said(here: House) -> None:
    for mode in ("on", "off", "shadow"):
        status, body = await here.call("PUT", "/planner/docs", json={"mode": mode})
        assert (status, body["mode"], body["why"]) == (200, mode, "asked")
    status, body = await here.call("PUT", "/planner/docs", json={"mode": "sometimes"})
    assert (status, body["error"]) == (422, "invalid")
    status, body = await here.call("POST", "/planner/docs/learn")
    assert (status, body["error"]) == (409, "conflict")
    assert "needs 100 queries" in body["reason"]
    status, body = await here.call("POST", "/planner/docs/import", json={"state": base64.b64encode(b"no").decode()})
    assert (status, body["error"]) == (422, "invalid")
    for method, path in (("GET", "/planner/nope"), ("POST", "/planner/nope/learn"), ("POST", "/planner/nope/reset")):
        status, body = await here.call(method, path)
        assert (status, body["error"]) == (404, "not_found")
