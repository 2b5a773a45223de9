"""The query planner when something goes wrong: nothing of it may reach a search, or what is known of another index."""

import base64
import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from actors import hnsw
from actors.errors import CorruptState, Refused
from actors.index.lance_served import LanceServed
from actors.planner import state
from actors.planner.config import PlannerConfig
from actors.planner.core_labels import Calibration, Labels
from actors.planner_ports import Situation
from schemas.config import HnswConfig
from schemas.documents.planner import PlannerDocument
from schemas.events.index import DropIndex, GetIndexStats, Search
from schemas.events.lance import MigrateIndex
from schemas.events.planner import (
    ExportPlanner,
    GetPlanner,
    ImportPlanner,
    LearnPlanner,
    PlannerLearned,
    PlannerModeChanged,
    ResetPlanner,
    SetPlanner,
)
from tests.integration.index_house import IndexHouse, clustered, rows_of
from tests.integration.test_planner import DIM, ask, filled, labelled, made


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[IndexHouse]:
    async with made(tmp_path).running() as house:
        yield await filled(house)


async def ask_it(house: IndexHouse, index: str, n: int = 1) -> Any:
    for query in clustered(n, DIM, 3):
        answer = await house.bus.ask(Search(index, vector=query.tolist(), explain=True))
    return answer


async def test_one_that_breaks_is_asked_no_more_of_that_index_alone_and_says_so(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("other", "data", "vector")
    await ask(house, 3)
    instant = house.planners.indexes["docs"].instant

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(instant, "before", broken)
    answer = await ask(house, 3)
    assert len(answer.queries[0]) == 10
    assert answer.explain.planner is None
    assert (await ask_it(house, "other")).explain.planner is not None
    status = await house.bus.ask(GetPlanner("docs"))
    assert (status.mode, "RuntimeError: a bug" in status.why) == ("off", True)
    assert (await house.bus.ask(ResetPlanner("docs"))).mode == "shadow"
    assert (await ask(house, 1)).explain.planner is not None


def forged(exported: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(zlib.decompress(exported))
    change(document)
    return zlib.compress(json.dumps(document).encode())


async def test_what_is_imported_must_fit_and_else_nothing_changes(house: IndexHouse) -> None:
    await labelled(house, 60)
    await house.bus.ask(LearnPlanner("docs"))
    exported = (await house.bus.ask(ExportPlanner("docs"))).state
    before = await house.bus.ask(GetPlanner("docs"))

    def nan(document: dict[str, Any]) -> None:
        block = document["arrays"]["calibration"]
        block["data"] = base64.b64encode(b"\xff" * 16).decode()

    for change, said in (
        (nan, "doesn't fit: its arrays don't fit: calibration"),
        (lambda d: d.update(hidden_dim=128), "hidden_dim 128 and seed 42, not 256"),
        (lambda d: d.update(backend="lance"), "efforts of lance, index 'docs' is served by hnsw"),
        (lambda d: d.update(dim=300_000_000), "300000000 dimensions"),  # said before anything of it is made
    ):
        with pytest.raises(Refused, match=said):
            await house.bus.ask(ImportPlanner("docs", forged(exported, change)))
    after = await house.bus.ask(GetPlanner("docs"))
    assert (after.patterns_stored, after.labels) == (before.patterns_stored, before.labels)
    assert (await ask(house, 1)).explain.planner.decided != "Default"


async def test_off_outlives_a_reset_and_a_changed_configuration(tmp_path: Path) -> None:
    house = made(tmp_path)
    async with house.running():
        await filled(house)
        await ask(house, 3)
        await house.bus.ask(SetPlanner("docs", "off"))
        assert (await house.bus.ask(ResetPlanner("docs"))).mode == "off"
    house.planner_config = PlannerConfig(hidden_dim=64)
    async with house.running():
        status = await house.bus.ask(GetPlanner("docs"))
        assert (status.mode, status.why) == ("off", "asked")
        assert (await ask(house, 1)).explain.planner is None


async def test_a_cycle_whose_index_is_reset_meanwhile_changes_nothing(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await labelled(house, 60)
    planner, taught = house.planner, house.planner._taught

    async def slow(*args: Any) -> Any:
        lesson = await taught(*args)
        await house.bus.ask(ResetPlanner("docs"))
        return lesson

    monkeypatch.setattr(planner, "_taught", slow)
    with pytest.raises(Refused, match="reset or replaced while"):
        with anyio.fail_after(20):
            await house.bus.ask(LearnPlanner("docs"))
    status = await house.bus.ask(GetPlanner("docs"))
    assert (status.patterns_stored, status.background_cycles) == (0, 0)


async def test_a_process_that_knows_nothing_of_an_index_takes_its_mode(house: IndexHouse) -> None:
    await house.bus.ask(SetPlanner("docs", "off"))
    house.planners.forget("docs")  # as one that was started before the index was planned for
    await house.planner.on_mode(PlannerModeChanged("docs", "off", "shadow", "asked", "elsewhere"))
    assert (await ask(house, 1)).explain.planner is None


async def test_what_is_sampled_is_noted_with_its_query(house: IndexHouse) -> None:
    await ask(house, 40)
    await ask(house, 20, filter="number < 2500")
    ring = house.planners.indexes["docs"].instant.ring

    async def noted() -> bool:
        await house.searcher.on_check()
        return bool((~np.isnan(ring.look().recall)).sum() == 60)

    await house.until(noted)
    seen = ring.look()
    known = ~np.isnan(seen.recall)
    assert (seen.quality[known & (seen.recall < 0.95)] == 0).all()
    assert (seen.quality[seen.recall >= 0.95] > 0).all()


async def test_labels_that_come_during_a_cycle_are_kept_when_there_is_no_room_for_more(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await labelled(house, 60)
    planner, instant, taught = house.planner, house.planners.indexes["docs"].instant, house.planner._taught
    full = np.resize(np.arange(instant.labels.size), 2000)
    instant.labels = Labels(*(values[full] for values in instant.labels))

    async def slow(*args: Any) -> Any:
        lesson = await taught(*args)
        await ask(house, 5, 77)
        await house.searcher.on_check()
        return lesson

    monkeypatch.setattr(planner, "_taught", slow)
    before = instant.labels.plans[-1].copy()
    await house.bus.ask(LearnPlanner("docs"))
    assert instant.labels.size == 2000
    assert (instant.labels.plans[-6] == before).all()


@pytest.mark.parametrize("length", [1.0, 1e19])
async def test_vectors_whose_squares_leave_float32_harm_nothing(tmp_path: Path, length: float) -> None:
    async with made(tmp_path).running() as house:
        house.vectors = hnsw.normalise(clustered(3000, DIM) + np.float32(1))
        house.vectors[:50] *= np.float32(length)
        house.vectors[50:60] = 0
        await house.dataset("data", rows_of(house.vectors), "vector")
        await house.create("docs", "data", "vector", config=HnswConfig(ef_search=20), metric="l2")
        for _ in range(2):
            await labelled(house, 60)
            await ask(house, 120, 5)
            await house.bus.ask(LearnPlanner("docs"))
            for query in (house.vectors[70] * np.float32(1.7e19), house.vectors[55]):
                for mode in ("shadow", "on"):
                    await house.bus.ask(SetPlanner("docs", mode))
                    assert len(await house.ids("docs", query)) == 10
                await house.searcher.on_check()
        assert not house.planners.broken
        document = (await house.registry.load(PlannerDocument, "docs"))[0]
        assert state.planned_of(document, house.planner_config).instant.labels.size


async def test_the_effort_that_is_explained_is_that_of_the_search(house: IndexHouse) -> None:
    answer = await ask(house, 1, k=100)
    planned = answer.explain.planner
    assert (planned.effort, planned.default_effort, answer.explain.ef_search) == (100, 100, 100)
    await house.create("far", "data", "vector", backend="lance")
    for k in (10, 100):
        query = house.vectors[0].tolist()
        explained = (await house.bus.ask(Search("far", vector=query, k=k, explain=True))).explain
        assert explained.planner.effort == explained.planner.default_effort == explained.config.nprobes


async def test_effort_ends_where_more_finds_nothing_more(house: IndexHouse) -> None:
    await labelled(house, 60)
    await house.bus.ask(LearnPlanner("docs"))
    await house.bus.ask(SetPlanner("docs", "on"))
    house.searcher._config = msgspec.structs.replace(house.config, sample_share=0.0)
    instant = house.planners.indexes["docs"].instant
    unsure = instant.learned.bank._replace(confidence=instant.learned.bank.confidence * 0.5)
    instant.adopt(instant.learned._replace(bank=unsure, calibration=Calibration(9.8, 0.0)))
    answer = await ask(house, 1, k=1000)
    assert answer.explain.planner.acted
    assert answer.explain.ef_search == 3000  # its rows, not 900 for each 10 of k


async def test_a_strategy_pays_for_what_it_falls_back_to(house: IndexHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    served = house.searcher._shelf.loaded("docs")
    house.searcher._config = msgspec.structs.replace(house.config, sample_share=0.0)
    await house.bus.ask(SetPlanner("docs", "on"))
    monkeypatch.setattr("actors.index.served._first", lambda *_: None)  # never enough of them match
    chosen = house.planners.choose
    monkeypatch.setattr(house.planners, "choose", lambda s: chosen(s)._replace(strategy="filtered_graph"))
    answer = await ask(house, 4, filter="number < 2900")
    assert answer.explain.strategy == "exact"
    arms = house.planners.indexes["docs"].instant.bandit.contexts[0]
    assert (arms["filtered_graph"].n, "exact" in arms) == (4, False)
    assert served is not None


async def test_a_store_beside_that_lags_behind_isnt_asked(house: IndexHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.bus.ask(MigrateIndex("docs"))
    house.searcher.upkeep_s = 0.1

    async def beside() -> bool:
        with contextlib.suppress(Refused):
            await house.bus.ask(Search("docs", vector=house.vectors[0].tolist(), backend="lance"))
            return True
        return False

    await house.until(beside)
    house.searcher._config = msgspec.structs.replace(house.config, sample_share=0.0)
    chosen = house.planners.choose
    monkeypatch.setattr(house.planners, "choose", lambda s: chosen(s)._replace(acting=True, strategy="lance"))
    assert (await ask(house, 1)).explain.strategy == "lance"
    store = house.searcher._shelf.loaded("docs@lance") or house.searcher._planning.beside(
        house.searcher._shelf.loaded("docs")
    )
    monkeypatch.setattr(store.vectors, "version", store.vectors.version - 1)
    for more in ({}, {"filter": "number < 2900"}):
        answer = await ask(house, 1, **more)
        assert answer.explain.strategy != "lance"
        assert not [step for step in answer.explain.steps if step.name == "lance"]


async def test_queries_for_less_than_ten_are_labelled_too(house: IndexHouse) -> None:
    await ask(house, 40, k=3)

    async def told() -> bool:
        await house.searcher.on_check()
        return (await house.bus.ask(GetPlanner("docs"))).labels == 40

    await house.until(told)
    assert (await house.bus.ask(GetIndexStats("docs"))).live_recall is None  # that is told at 10


async def test_what_fails_of_one_index_doesnt_keep_the_others_from_learning(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("other", "data", "vector")
    await ask(house, 120)
    await ask_it(house, "other", 120)
    assert list(house.planners.indexes) == ["docs", "other"]
    keeper, save = house.planner._keeper, house.planner._keeper.save

    async def damaged(name: str) -> None:
        if name == "docs":
            raise CorruptState("its document fails its checksum")
        await save(name)

    monkeypatch.setattr(keeper, "save", damaged)
    said = await house.planner.on_cycle()
    assert [event.index for event in said if isinstance(event, PlannerLearned)] == ["other"]
    house.planners.indexes["docs"].instant.pairs = np.tile([100.0, 50.0, 1.0, 1.0], (150, 1))
    house.planners.indexes["docs"].compared += 150
    assert await house.planner.on_watch() == []


async def test_an_index_made_anew_in_other_dimensions_is_not_asked_what_the_old_one_was(house: IndexHouse) -> None:
    await house.dataset("thin", rows_of(clustered(3000, 8)), "vector")
    await house.create("narrow", "thin", "vector")
    narrow = house.searcher._shelf.loaded("narrow")
    assert narrow is not None
    query = house.vectors[0]
    plan = house.planners.choose(
        Situation("docs", "hnsw", 0.95, query, 10, 3000, None, ("graph",), 50, "graph", (), 0.0)
    )
    assert plan is not None
    await house.searcher._planning.label(narrow, plan, query[None], np.zeros(10, np.float32), 1.0)
    assert house.planners.indexes["docs"].instant.labels.size == 0


async def test_a_store_that_went_away_takes_its_own_samples_alone_with_it(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any) -> None:
        raise FileNotFoundError("the Lance store of docs")

    monkeypatch.setattr(house.searcher._planning, "_by_lance", gone)
    await ask(house, 20)
    await ask(house, 5, filter="number < 2500")

    async def watched() -> bool:
        await house.searcher.on_check()
        recall = (await house.bus.ask(GetIndexStats("docs"))).live_recall
        return recall is not None and recall.samples == 20

    await house.until(watched)


async def test_labels_are_kept_without_a_cycle_or_a_stop(house: IndexHouse) -> None:
    async def kept() -> int:
        found = await house.registry.load(PlannerDocument, "docs")
        return 0 if found is None else found[0].arrays["labels.default"].shape[0]

    await labelled(house, 60)
    assert await kept() == 0
    await house.planner.on_watch()
    first = await kept()
    assert first >= 60
    await ask(house, 20, 55)
    await house.searcher.on_check()
    await house.planner.on_watch()
    assert await kept() == first  # a few more are not worth it


async def test_nothing_stays_of_an_index_that_was_dropped_under_a_search(house: IndexHouse) -> None:
    await ask(house, 3)
    await house.bus.ask(SetPlanner("docs", "on"))
    kept = await house.registry.load(PlannerDocument, "docs")
    await house.bus.ask(DropIndex("docs"))

    async def gone() -> bool:
        return await house.registry.load(PlannerDocument, "docs") is None

    await house.until(gone)
    house.planners.of("docs", DIM, 0.95)  # a search that began before the drop
    await house.registry.save("docs", kept[0], expected=None)  # as a cycle's last step
    await house.planner.on_watch()
    assert "docs" not in house.planners.indexes
    assert await gone()


async def test_no_search_fails_for_a_store_beside_that_is_gone(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.bus.ask(MigrateIndex("docs"))
    house.searcher.upkeep_s = 0.1

    async def beside() -> bool:
        return house.searcher._planning.beside(house.searcher._shelf.loaded("docs")) is not None  # type: ignore[arg-type]

    async def gone(*_: Any) -> None:
        raise FileNotFoundError("the Lance store of docs")

    await house.until(beside)
    house.searcher._config = msgspec.structs.replace(house.config, sample_share=0.0)
    chosen = house.planners.choose
    monkeypatch.setattr(house.planners, "choose", lambda s: chosen(s)._replace(acting=True, strategy="lance"))
    monkeypatch.setattr(LanceServed, "neighbours", gone)
    for more, strategy in (({}, "graph"), ({"filter": "number < 10"}, "exact")):
        answer = await ask(house, 1, **more)
        assert (answer.explain.strategy, len(answer.queries[0])) == (strategy, 10)
        assert not answer.explain.planner.acted
    assert not house.searcher._loader.unreadable
    house.searcher._config = house.config
    await ask(house, 20, 5)  # and it still hears of those that are run again

    async def told() -> bool:
        await house.searcher.on_check()
        return house.planners.indexes["docs"].instant.labels.size == 20

    await house.until(told)


async def test_what_is_reset_while_it_is_kept_doesnt_come_back(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await labelled(house, 60)
    keeper, document = house.planner._keeper, house.planner._keeper.document

    async def slow(*args: Any) -> Any:
        made = await document(*args)
        await house.bus.ask(ResetPlanner("docs"))
        return made

    monkeypatch.setattr(keeper, "document", slow)
    await keeper.save("docs")
    assert await house.registry.load(PlannerDocument, "docs") is None


async def test_a_shift_while_it_is_judged_leaves_it_in_shadow(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(house, 1)
    planned = house.planners.indexes["docs"]
    planned.instant.pairs = np.tile([100.0, 50.0, 1.0, 1.0], (150, 1))
    planned.compared += 150
    gain = planned.gain

    def slow() -> Any:
        measured = gain()
        planned.shifted()
        return measured

    monkeypatch.setattr(planned, "gain", slow)
    assert await house.planner.on_watch() == []
    assert (planned.mode, planned.looks) == ("shadow", 0)


async def test_looks_while_it_is_on_ask_for_no_more_confidence_later(house: IndexHouse) -> None:
    await ask(house, 1)
    planned = house.planners.indexes["docs"]
    for _ in range(4):
        planned.instant.pairs = np.tile([100.0, 50.0, 1.0, 1.0], (150, 1))
        planned.compared += 100
        await house.planner.on_watch()
    assert (planned.mode, planned.looks) == ("on", 1)


async def test_an_index_that_cant_be_looked_up_doesnt_keep_the_others_from_being_watched(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("other", "data", "vector")
    await ask(house, 1)
    await ask_it(house, "other")
    load = house.registry.load

    async def damaged(kind: Any, name: str) -> Any:
        if name == "docs":
            raise CorruptState("its document fails its checksum")
        return await load(kind, name)

    monkeypatch.setattr(house.registry, "load", damaged)
    planned = house.planners.indexes["other"]
    planned.instant.pairs = np.tile([100.0, 50.0, 1.0, 1.0], (150, 1))
    planned.compared += 150
    (said,) = await house.planner.on_watch()
    assert isinstance(said, PlannerModeChanged)
    assert (said.index, said.mode) == ("other", "on")


async def test_efforts_of_another_backend_are_not_taken_over(house: IndexHouse) -> None:
    await labelled(house, 60)
    await house.bus.ask(LearnPlanner("docs"))
    planned = house.planners.indexes["docs"]
    learned = planned.instant.learned
    found = await house.registry.load(PlannerDocument, "docs")
    assert found is not None
    there = msgspec.structs.replace(found[0], backend="lance")
    await house.registry.save("docs", there, expected=found[1])
    await house.planner._keeper.follow("docs", "elsewhere")
    assert house.planners.indexes["docs"] is planned
    assert planned.instant.learned is learned
    revision = (await house.registry.load(PlannerDocument, "docs"))[1]  # type: ignore[index]
    await house.registry.save("docs", found[0], expected=revision)
    await house.planner._keeper.follow("docs", "elsewhere")
    assert house.planners.indexes["docs"] is planned
    assert planned.instant.learned is not learned
