"""The query planner beside a searcher: it decides and measures, acts when it is told to, learns, is kept."""

import contextlib

import msgspec
import numpy as np
import pytest

from actors.errors import Refused
from actors.index.core import planned_effort
from actors.planner.config import PlannerConfig
from actors.planner.core_gain import Pair
from actors.planner_ports import counted
from schemas.config import HnswConfig
from schemas.documents.planner import PlannerDocument
from schemas.documents.promotion import PromotionEntry
from schemas.events.index import DropIndex, GetIndexStats, Search
from schemas.events.lance import MigrateIndex
from schemas.events.planner import (
    ExportPlanner,
    GetPlanner,
    ImportPlanner,
    LearnPlanner,
    PatternShift,
    PlannerModeChanged,
    ResetPlanner,
    SetPlanner,
)
from schemas.events.promotion import ConfigPromoted
from tests.integration.index_house import IndexHouse, clustered, rows_of

DIM = 32


def made(folder, **settings):
    house = IndexHouse(folder, sample_share=1.0)
    house.planner_config = PlannerConfig(**{"pattern_clusters": 20, **settings})
    return house


async def filled(house):
    """An index of 3000 vectors, and queries for it."""
    house.vectors = clustered(3000, DIM)
    await house.dataset("data", rows_of(house.vectors), "vector")
    await house.create("docs", "data", "vector", config=HnswConfig(ef_search=20))
    house.searcher.check_s = 0.02
    return house


@pytest.fixture
async def house(tmp_path):
    async with made(tmp_path).running() as house:
        yield await filled(house)


async def ask(house, n, seed=1, **more):
    """n searches; the last one's answer."""
    for query in clustered(n, DIM, seed):
        answer = await house.bus.ask(Search("docs", vector=query.tolist(), explain=True, **more))
    return answer


async def labelled(house, n):
    """Until so many queries were run again."""

    async def enough():
        return (await house.bus.ask(GetPlanner("docs"))).labels >= n

    for seed in range(20):
        await ask(house, 50, seed + 100)
        await house.searcher.on_check()
        if await enough():
            return
    raise AssertionError("no labels came")


async def test_in_shadow_it_is_told_everything_and_changes_nothing(house):
    answer = await ask(house, 30)
    explained = answer.explain.planner
    assert (explained.mode, explained.acted, explained.decided) == ("shadow", False, "Default")
    assert (explained.effort, explained.default_effort, answer.explain.ef_search) == (20, 20, 20)
    operators = {one.operator: one for one in explained.operators}
    assert set(operators) == {"read", "plan", "graph", "fetch"}
    assert operators["graph"].criticality == 1
    status = await house.bus.ask(GetPlanner("docs"))
    assert (status.queries_processed, status.trajectories, status.background_cycles) == (30, 30, 0)
    assert status.avg_latency_us > status.planner_us > 0
    assert (await ask(house, 1, ef_search=30)).explain.planner is None  # who says an effort isn't planned for
    assert (await ask(house, 1, version=0)).explain.planner is None


async def test_it_learns_from_queries_that_were_run_again_and_is_kept(tmp_path):
    house = made(tmp_path)
    async with house.running():
        await filled(house)
        with pytest.raises(Refused, match="queries to learn from"):
            await house.bus.ask(LearnPlanner("docs"))
        assert (await house.bus.ask(GetPlanner("docs"))).trajectories == 0
        await labelled(house, 60)
        learned = await house.bus.ask(LearnPlanner("docs"))
        assert (learned.index, learned.patterns > 0, learned.labels >= 60) == ("docs", True, True)
        explained = (await ask(house, 1, 5)).explain.planner
        assert explained.decided in ("PatternApplied", "DefaultWithAdaptation")
        before = await house.bus.ask(GetPlanner("docs"))
        assert (before.background_cycles, before.patterns_stored) == (1, learned.patterns)
        assert before.gain is None  # nothing was chosen yet: there is nothing to compare
        await ask(house, 60, 7)
        await house.searcher.on_check()
        before = await house.bus.ask(GetPlanner("docs"))
        assert before.gain.pairs >= 60
        assert before.trajectories == 61  # the others were taken
    async with house.running():
        after = await house.bus.ask(GetPlanner("docs"))
        assert (after.patterns_stored, after.labels, after.background_cycles) == (
            before.patterns_stored, before.labels, 1,
        )  # fmt: skip
        assert after.queries_processed == before.queries_processed
        assert after.gain.speed.value == pytest.approx(before.gain.speed.value, rel=1e-5)
        again = (await ask(house, 1, 5)).explain.planner
        assert (again.decided, again.effort) == (explained.decided, explained.effort)


async def test_a_query_is_labelled_for_the_hits_that_it_wanted(house):
    await ask(house, 30, 2, k=5)
    await house.searcher.on_check()
    planned = house.planners.indexes["docs"]
    assert planned.instant.labels.size == 30
    assert (await house.bus.ask(GetIndexStats("docs"))).live_recall is None  # which is of ten hits
    await ask(house, 30, 2, k=40)
    await house.searcher.on_check()
    few, many = planned.instant.labels.recall[:30], planned.instant.labels.recall[30:]
    assert np.allclose(few * 5, np.round(few * 5), atol=1e-4)
    assert np.allclose(many * 40, np.round(many * 40), atol=1e-4)
    assert not np.allclose(many * 10, np.round(many * 10), atol=1e-4)
    assert (await house.bus.ask(GetIndexStats("docs"))).live_recall.samples == 30
    await ask(house, 30, 2, k=200)  # too many
    await house.searcher.on_check()
    assert planned.instant.labels.size == 60


async def test_on_it_acts_and_what_is_sampled_is_not_acted_on(house):
    await labelled(house, 60)
    await house.bus.ask(LearnPlanner("docs"))
    assert (await house.bus.ask(SetPlanner("docs", "on"))).mode == "on"
    assert not (await ask(house, 1)).explain.planner.acted  # each is sampled here
    house.searcher._config = type(house.searcher._config)(sample_share=0.0)
    planned = house.planners.indexes["docs"]
    bank = planned.instant.learned.bank
    bank = bank._replace(confidence=np.full_like(bank.confidence, 0.95))  # else of times, and of load
    planned.instant.adopt(planned.instant.learned._replace(bank=bank))
    answer = await ask(house, 1)
    assert answer.explain.planner.decided == "PatternApplied"
    effort = bank.effort[answer.explain.planner.pattern]
    assert answer.explain.ef_search == answer.explain.planner.effort == round(2**effort)
    unsure = bank._replace(confidence=bank.confidence * 0.5)
    calibration = planned.instant.learned.calibration._replace(shift=6.0, slope=0.0)
    planned.instant.adopt(planned.instant.learned._replace(bank=unsure, calibration=calibration))
    answer = await ask(house, 1)
    assert (answer.explain.planner.acted, answer.explain.planner.decided) == (True, "DefaultWithAdaptation")
    assert answer.explain.ef_search == answer.explain.planner.effort == 64
    many = (await ask(house, 1, k=40)).explain.planner
    assert (many.effort, many.default_effort) == (256, 40)  # four times as many are wanted
    assert (await house.bus.ask(SetPlanner("docs", "off"))).mode == "off"
    assert (await ask(house, 1)).explain.planner is None


async def test_its_own_measurement_turns_it_on_and_back(house):
    events = []
    await ask(house, 1)
    planned = house.planners.indexes["docs"]

    async def judged(pair):
        noise = np.random.default_rng(0).normal(0, 0.001, (150, 4)) * [1, 1, 0, 0]
        planned.instant.pairs = np.array([Pair(*pair)] * 150) + noise
        planned.compared += 100
        events.extend(await house.planner.on_watch())
        return (await house.bus.ask(GetPlanner("docs"))).mode

    assert await judged((100.0, 105.0, 0.95, 0.95)) == "shadow"
    assert await judged((100.0, 80.0, 0.95, 0.90)) == "shadow"  # faster by finding less
    assert await judged((100.0, 80.0, 0.95, 0.95)) == "on"
    assert await judged((100.0, 105.0, 0.95, 0.95)) == "shadow"
    changes = [event for event in events if isinstance(event, PlannerModeChanged)]
    assert [change.mode for change in changes] == ["on", "shadow"]
    assert "1.25 times as fast" in changes[0].why
    found = await house.registry.load(PlannerDocument, "docs")
    assert found[0].mode == "shadow"


async def test_filters_are_tried_by_every_strategy(house):
    for share in (10, 2500):
        answer = await ask(house, 40, filter=f"number < {share}")
        assert answer.explain.planner.default_strategy == answer.explain.strategy
    await house.searcher.on_check()
    arms = house.planners.indexes["docs"].instant.bandit.contexts
    assert arms[2]["exact"].n == 40  # each timed once, though run again
    assert "filtered_graph" not in arms[2]
    assert arms[0]["exact"].n > 0
    assert arms[0]["filtered_graph"].samples > 0
    assert (await house.bus.ask(GetPlanner("docs"))).gain.pairs >= 40


async def test_a_shift_is_told_and_learnt_from_at_once(house):
    await ask(house, 120)
    await house.bus.ask(LearnPlanner("docs"))
    other = np.random.default_rng(3).standard_normal(DIM).astype(np.float32)
    for half in (9, 10):  # two windows in a row must say so
        for query in clustered(60, DIM, half):
            await house.bus.ask(Search("docs", vector=(0.3 * query + other / np.linalg.norm(other)).tolist()))
        said = await house.planner.on_watch()
        assert bool(said) == (half == 10)
    assert [type(event).__name__ for event in said] == ["PlannerLearned", "PatternShift"]
    assert next(event for event in said if isinstance(event, PatternShift)).z > 2


async def test_what_was_learnt_of_another_configuration_proves_nothing(house):
    await labelled(house, 60)
    await house.bus.ask(LearnPlanner("docs"))
    await ask(house, 60, 7)
    await house.searcher.on_check()
    instant = house.planners.indexes["docs"].instant
    known, before = instant.labels.size, HnswConfig(ef_search=20)
    assert len(instant.pairs) > 0

    async def promoted(previous, config):
        entry = PromotionEntry(
            config=config, trial="t", recall=1, recall_lower=1, p50_us=1, promoted_by="t", note="", time=0, cause="t"
        )
        await house.planner.on_promoted(ConfigPromoted("docs", entry, previous))
        return (await house.registry.load(PlannerDocument, "docs"))[0]

    await promoted(before, before)
    assert len(instant.pairs) > 0
    await promoted(before, HnswConfig(ef_search=40))  # the same graph: what each query needs is what it was
    assert (instant.labels.size, len(instant.pairs)) == (known, 0)
    assert 2**instant.labels.default == pytest.approx(40)
    kept = await promoted(HnswConfig(ef_search=40), HnswConfig(M=32, ef_search=40))
    assert (instant.labels.size, instant.learned.calibration) == (0, None)
    assert kept.arrays["labels.default"].shape == [0]
    assert instant.learned.bank.size > 0
    assert (await ask(house, 1)).explain.planner.decided == "Default"


async def test_it_is_exported_imported_reset_and_goes_with_its_index(house):
    await labelled(house, 60)
    await house.bus.ask(LearnPlanner("docs"))
    patterns = (await house.bus.ask(GetPlanner("docs"))).patterns_stored
    state = (await house.bus.ask(ExportPlanner("docs"))).state
    assert len(state) < 1 << 20  # a message on the bus
    assert (await house.bus.ask(ResetPlanner("docs"))).patterns_stored == 0
    taken = await house.bus.ask(ImportPlanner("docs", state))
    assert (taken.patterns_stored, taken.mode, taken.gain) == (patterns, "shadow", None)
    with pytest.raises(Refused, match="no planner's state"):
        await house.bus.ask(ImportPlanner("docs", state[:-20]))
    await house.create("narrow", "data", "vector")
    house.planners.indexes["narrow"] = house.planners.of("narrow", 8, 0.95)
    with pytest.raises(Refused, match="dimensions"):
        await house.bus.ask(ImportPlanner("narrow", state))
    await house.bus.ask(DropIndex("docs"))

    async def gone():
        return await house.registry.load(PlannerDocument, "docs") is None

    await house.until(gone)
    with pytest.raises(Refused, match="no index"):
        await house.bus.ask(GetPlanner("docs"))


async def test_a_planner_that_breaks_is_asked_no_more_and_no_search_fails(house, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(house.planners, "choose", broken)
    answer = await ask(house, 3)
    assert len(answer.queries[0]) == 10
    assert answer.explain.planner is None


async def test_an_index_on_lance_is_searched_with_what_is_planned(house, monkeypatch):
    await house.create("far", "data", "vector", backend="lance")
    await house.bus.ask(SetPlanner("far", "on"))
    house.searcher._config = msgspec.structs.replace(house.config, sample_share=0.0)
    own = house.planners.choose
    monkeypatch.setattr(house.planners, "choose", lambda s: own(s)._replace(effort=2 * s.effort))
    explain = (await house.bus.ask(Search("far", vector=house.vectors[0].tolist(), explain=True))).explain
    assert explain.planner.acted
    assert explain.effort == planned_effort(explain.config, 2 * counted(explain.config.effort)) != explain.config.effort
    for query in clustered(80, DIM, 3):
        found = await house.ids("far", query)
        truth = [f"r{row}" for row in np.argsort(-(house.vectors @ query), kind="stable")[:10]]
        assert len(set(found) & set(truth)) >= 5
    assert (await house.bus.ask(GetPlanner("far"))).queries_processed >= 1


async def test_lance_beside_a_graph_is_an_arm_that_is_measured_and_can_be_chosen(house, monkeypatch):
    await house.bus.ask(MigrateIndex("docs"))
    house.searcher.upkeep_s = 0.1

    async def beside():
        with contextlib.suppress(Refused):
            await house.bus.ask(Search("docs", vector=house.vectors[0].tolist(), backend="lance"))
            return True
        return False

    await house.until(beside)
    await ask(house, 60, filter="number < 2900")
    await house.searcher.on_check()
    arms = [arm for known in house.planners.indexes["docs"].instant.bandit.contexts.values() for arm in known]
    assert "lance" in arms
    chosen = house.planners.choose
    monkeypatch.setattr(house.planners, "choose", lambda s: chosen(s)._replace(acting=True, strategy="lance"))
    house.searcher._config = msgspec.structs.replace(house.config, sample_share=0.0)
    for more, strategy in (({}, "lance"), ({"filter": "number < 2900"}, "exact")):  # of so few, exactly, in the store
        answer = await ask(house, 3, **more)
        assert answer.explain.strategy == strategy
        assert "lance" in [step.name for step in answer.explain.steps] or strategy == "exact"
        assert {"number"} <= set(answer.queries[0][0].columns)
