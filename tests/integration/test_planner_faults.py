"""The query planner when something goes wrong: nothing of it may reach a search, or what is known of another index."""

import base64
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from actors.errors import Refused
from actors.planner.config import PlannerConfig
from schemas.events.index import Search
from schemas.events.planner import (
    ExportPlanner,
    GetPlanner,
    ImportPlanner,
    LearnPlanner,
    ResetPlanner,
    SetPlanner,
)
from tests.integration.index_house import IndexHouse, clustered
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
