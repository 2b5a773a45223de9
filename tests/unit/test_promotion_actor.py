"""Promotion's shell on a real registry: races, redeliveries, drift."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.errors import Conflict
from actors.promoted import Holds, config_or
from schemas.config import DEFAULT_CONFIG, HnswConfig, LanceConfig
from schemas.documents.base import Document
from schemas.documents.index import IndexDocument
from schemas.documents.promotion import MAX_HISTORY, PromotionDocument
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.base import Message, Refusal
from schemas.events.index import GenerationSwapped, IndexDropped, LiveRecall, RecallDrifted
from schemas.events.promotion import (
    ConfigPromoted,
    GetPromoted,
    Promote,
    PromotionCleared,
    PromotionState,
    Rollback,
    Why,
)
from tests.unit.promotion_setting import INDEX, Setting, only, origin, point


@pytest.fixture
async def here(tmp_path: Path) -> Setting:
    setting = Setting(tmp_path)
    await setting.registry.save("docs", INDEX, expected=None)
    return setting


# --- races -------------------------------------------------------------------------------------

WRITERS, OPERATIONS = 8, 200


@pytest.mark.slow
async def test_eight_writers_never_tear_the_history(here: Setting) -> None:
    answers: dict[str, Message] = {}

    async def write(writer: int) -> None:
        rng = random.Random(writer)
        for operation in range(OPERATIONS):
            id = f"w{writer}-{operation}"
            if rng.random() < 0.6:
                command = Promote("docs", f"t{writer + 1}", note=id)
                answers[id] = only(await here.actor.on_promote(command, origin(id)))
            else:
                answers[id] = only(await here.actor.on_rollback(Rollback("docs", id), origin(id)))
            if rng.random() < 0.5:
                await asyncio.sleep(0)

    async def serve() -> None:
        """A searcher that serves whatever is current, and is told nothing twice."""
        for generation in range(1, 200):
            found = await here.registry.load(PromotionDocument, "docs")
            current = found[0].current if found else None
            if current is not None:
                event = GenerationSwapped("docs", generation, current.config, "s1", 1.0, current.trial)
                with suppress(Conflict):  # the runtime would deliver it again
                    await here.actor.on_swapped(event)
            await asyncio.sleep(0)

    await asyncio.gather(serve(), *(write(writer) for writer in range(WRITERS)))

    assert len(answers) == WRITERS * OPERATIONS
    refused = {id for id, answer in answers.items() if isinstance(answer, Refusal)}
    statuses = {answer.status for answer in answers.values() if isinstance(answer, Refusal)}
    assert statuses <= {"conflict", "not_found"}
    assert 0 < len(refused) < len(answers)

    changed = {id for id in set(answers) - refused if not is_no_op(id, answers[id])}
    applied = check_history([here.registry.heads[revision] for revision in sorted(here.registry.heads)])
    assert sorted(applied) == sorted(changed), "what was granted happened once, what was refused never"


def is_no_op(id: str, answer: Message) -> bool:
    """A promotion of what was current already: the answer is the entry of another command."""
    return isinstance(answer, ConfigPromoted) and not answer.rolled_back and answer.entry.cause != id


def check_history(heads: list[PromotionDocument]) -> list[str]:
    """Every head follows from the one before by one whole operation. Returns the operations."""
    applied = []
    before = PromotionDocument(index="docs")
    for after in heads:
        was, now = key(before), key(after)
        if was == now:  # a generation was noted: nothing else changed
            assert before.rolled_back == after.rolled_back
        elif len(after.rolled_back) and after.rolled_back[:1] != before.rolled_back[:1]:
            assert now == was[1:], "a rollback pops exactly one entry"
            assert after.rolled_back[0].cause == was[0]
            assert after.rolled_back[1:] == before.rolled_back[: MAX_HISTORY - 1]
            applied.append(str(after.rolled_back[0].ended_by))
        else:
            assert now[1:] == was[:MAX_HISTORY], "a promotion pushes exactly one entry"
            assert after.rolled_back == before.rolled_back
            applied.append(now[0])
        before = after
    return applied


def key(document: PromotionDocument) -> list[str]:
    return [entry.cause for entry in [*([document.current] if document.current else []), *document.history]]


async def test_of_two_promotions_at_once_one_wins(here: Setting) -> None:
    said = await asyncio.gather(
        here.actor.on_promote(Promote("docs", "t1"), origin("a")),
        here.actor.on_promote(Promote("docs", "t2"), origin("b")),
    )
    kinds = sorted(type(only(one)).__name__ for one in said)
    assert kinds == ["ConfigPromoted", "Refusal"]
    document = await here.document()
    assert document.current is not None
    assert document.history == []


async def test_a_rollback_that_the_decider_did_not_know_of_overtakes_its_promotion(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1", rollback_known=""), origin("a"))
    await here.actor.on_rollback(Rollback("docs", reason="too slow"), origin("back"))
    refused = only(await here.actor.on_promote(Promote("docs", "t2", rollback_known=""), origin("b")))
    assert isinstance(refused, Refusal)
    assert "too slow" in refused.reason
    assert (await here.document()).current is None
    promoted = only(await here.actor.on_promote(Promote("docs", "t2", rollback_known="back"), origin("c")))
    assert isinstance(promoted, ConfigPromoted)


async def test_a_noted_generation_is_no_rival(here: Setting) -> None:
    """The head moves between a promotion's load and its save, yet nobody else promoted."""
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    moved = False
    save = here.registry.save

    async def save_late(name: str, document: Document, **more: Any) -> int:
        nonlocal moved
        if not moved:
            moved = True
            await here.actor.on_swapped(GenerationSwapped("docs", 3, HnswConfig(24, 120, 11), "s1", 1.0, "t1"))
        return await save(name, document, **more)

    here.registry.save = save_late  # type: ignore[method-assign]
    promoted = only(await here.actor.on_promote(Promote("docs", "t2"), origin("b")))
    assert isinstance(promoted, ConfigPromoted)
    assert (await here.document()).history[0].generation == 3, "the note is kept"


# --- redelivery --------------------------------------------------------------------------------


async def test_a_promotion_delivered_twice_happens_once_and_answers_the_same(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    first = only(await here.actor.on_promote(Promote("docs", "t2", note="n"), origin("b")))
    again = only(await here.actor.on_promote(Promote("docs", "t2", note="n"), origin("b", delivery=2)))
    assert first == again
    assert [entry.trial for entry in (await here.document()).history] == ["t1"]


async def test_promoting_what_is_current_already_answers_with_it_and_changes_nothing(here: Setting) -> None:
    first = only(await here.actor.on_promote(Promote("docs", "t1", note="n"), origin("a")))
    await here.actor.on_promote(Promote("docs", "t2"), origin("b"))
    second = only(await here.actor.on_promote(Promote("docs", "t2", note="ordered again"), origin("c")))
    assert (second.entry.cause, second.previous) == ("b", first.entry.config)
    assert key(await here.document()) == ["b", "a"]
    here.journal.rows += [point(2, ef_search=40, chosen=False)]
    await here.actor.on_promote(Promote("docs", "t2", ef_search=40), origin("d"))
    assert key(await here.document()) == ["d", "b", "a"], "another point of the trial is another configuration"


async def test_a_late_redelivery_does_not_bring_back_what_was_superseded(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    await here.actor.on_promote(Promote("docs", "t2"), origin("b"))
    late = only(await here.actor.on_promote(Promote("docs", "t1"), origin("a", delivery=2)))
    assert isinstance(late, Refusal)
    assert (late.status, "replaced by trial t2" in late.reason) == ("conflict", True)
    assert key(await here.document()) == ["b", "a"]


async def test_a_rollback_delivered_twice_pops_once(here: Setting) -> None:
    for id, trial in (("a", "t1"), ("b", "t2"), ("c", "t3")):
        await here.actor.on_promote(Promote("docs", trial), origin(id))
    first = only(await here.actor.on_rollback(Rollback("docs", "slow"), origin("r")))
    again = only(await here.actor.on_rollback(Rollback("docs", "slow"), origin("r", delivery=2)))
    assert first == again
    assert (first.entry.trial, first.previous.ef_search, first.rolled_back) == ("t2", 13, True)
    assert key(await here.document()) == ["b", "a"]


# --- rollback, drift, generations --------------------------------------------------------------


async def test_rolling_back_the_only_promotion_clears_it(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    assert await config_or(here.registry, "docs", DEFAULT_CONFIG) == Holds(HnswConfig(24, 120, 11), "t1")
    cleared = only(await here.actor.on_rollback(Rollback("docs", "slow"), origin("r")))
    assert isinstance(cleared, PromotionCleared)
    assert cleared.config == INDEX.config
    assert await config_or(here.registry, "docs", DEFAULT_CONFIG) == Holds(DEFAULT_CONFIG)
    nothing = only(await here.actor.on_rollback(Rollback("docs"), origin("r2")))
    assert nothing.status == "not_found"


LANCE = LanceConfig("IVF_RQ", 64, 0, 9, 4)


def lance(number: int, **more: Any) -> TrialPoint:
    nothing = {"M": None, "ef_construction": None, "ef_search": None, "seed": None}
    return point(number, **{**nothing, **columns_of(LANCE), **more})


async def test_back_from_lance_to_a_graph_and_forth_again(here: Setting) -> None:
    here.journal.rows += [lance(20), lance(20, nprobes=4, chosen=False)]
    graph = HnswConfig(24, 120, 11)
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    promoted = only(await here.actor.on_promote(Promote("docs", "t20"), origin("b")))
    assert (promoted.entry.config, promoted.previous) == (LANCE, graph)
    assert await config_or(here.registry, "docs", DEFAULT_CONFIG) == Holds(LANCE, "t20")
    assert await config_or(here.registry, "docs", DEFAULT_CONFIG, "hnsw") == Holds(graph, "t1"), "still its best graph"
    await here.actor.on_swapped(GenerationSwapped("docs", 5, LANCE, "s1", 1.0, "t20"))
    back = only(await here.actor.on_rollback(Rollback("docs", "slow", generation=5), origin("r")))
    assert (back.entry.config, back.previous, back.rolled_back) == (graph, LANCE, True)
    assert await config_or(here.registry, "docs", LANCE, "lance") == Holds(LANCE), "what was taken back isn't promoted"
    again = only(await here.actor.on_promote(Promote("docs", "t20", nprobes=4, refine_factor=4), origin("c")))
    assert again.entry.config == LanceConfig("IVF_RQ", 64, 0, 4, 4)
    assert [entry.trial for entry in (await here.document()).history] == ["t1"]


async def test_an_index_of_lance_that_loses_its_only_promotion_has_its_own_configuration(here: Setting) -> None:
    own = LanceConfig("IVF_FLAT", 9, 0, 5)
    index, revision = await here.registry.load(IndexDocument, "docs") or (INDEX, None)
    changed = msgspec.structs.replace(index, backend="lance", lance=own)
    await here.registry.save("docs", changed, expected=revision)
    here.journal.rows += [lance(20)]
    await here.actor.on_promote(Promote("docs", "t20"), origin("a"))
    cleared = only(await here.actor.on_rollback(Rollback("docs"), origin("r")))
    assert isinstance(cleared, PromotionCleared)
    assert cleared.config == own
    assert await config_or(here.registry, "docs", own, "lance") == Holds(own)


async def swap(here: Setting, generation: int, trial: int) -> None:
    config = HnswConfig(24, 120, 10 + trial)
    await here.actor.on_swapped(GenerationSwapped("docs", generation, config, "s1", 1.0, f"t{trial}"))


def drift(generation: int) -> RecallDrifted:
    return RecallDrifted("docs", generation, 0.95, LiveRecall(812, 0.913, 0.901, 0.925, 1.0), "t2")


async def test_a_drift_of_the_current_promotion_rolls_it_back_with_its_figures(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    await swap(here, 2, 1)
    await here.actor.on_promote(Promote("docs", "t2"), origin("b"))
    await swap(here, 3, 2)
    back = only(await here.actor.on_drift(drift(3), origin("d")))
    assert (back.entry.trial, back.rolled_back) == ("t1", True)
    state = only(await here.actor.on_get(GetPromoted("docs")))
    assert isinstance(state, PromotionState)
    assert "0.9130" in state.rolled_back[0].ended_reason
    assert only(await here.actor.on_drift(drift(3), origin("d", delivery=2))) == back
    assert key(await here.document()) == ["a"]


async def test_a_drift_of_another_generation_is_left_to_the_agent(here: Setting) -> None:
    assert list(await here.actor.on_drift(drift(3), origin("d0"))) == []
    await here.actor.on_promote(Promote("docs", "t2"), origin("b"))
    assert list(await here.actor.on_drift(drift(3), origin("d1"))) == [], "not served yet"
    await swap(here, 4, 2)
    assert list(await here.actor.on_drift(drift(3), origin("d2"))) == []
    assert key(await here.document()) == ["b"]


async def test_a_rollback_for_a_generation_that_is_gone_is_refused(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    await swap(here, 2, 1)
    refused = only(await here.actor.on_rollback(Rollback("docs", generation=1), origin("r")))
    assert (refused.status, "(2)" in refused.reason) == ("conflict", True)
    assert isinstance(
        only(await here.actor.on_rollback(Rollback("docs", generation=2), origin("r2"))), PromotionCleared
    )


async def test_a_dropped_index_leaves_no_promotion_to_its_successor(here: Setting) -> None:
    await here.actor.on_promote(Promote("docs", "t1"), origin("a"))
    await here.actor.on_index_dropped(IndexDropped("docs"), origin("early", time=1.0))
    assert key(await here.document()) == ["a"], "an old event about an older index of that name"
    await here.registry.delete(IndexDocument, "docs")
    await here.actor.on_index_dropped(IndexDropped("docs"), origin("late", time=20.0))
    assert await here.registry.load(PromotionDocument, "docs") is None


async def test_what_is_unknown_is_not_found(here: Setting) -> None:
    for said in (
        await here.actor.on_promote(Promote("other", "t1"), origin("a")),
        await here.actor.on_promote(Promote("docs", "t99"), origin("b")),
        await here.actor.on_rollback(Rollback("other"), origin("c")),
        await here.actor.on_get(GetPromoted("other")),
        await here.actor.on_why(Why("other")),
    ):
        assert only(said).status == "not_found"
    assert only(await here.actor.on_get(GetPromoted("docs"))).current is None


async def test_a_trial_is_held_to_the_target_that_it_was_asked_for(here: Setting) -> None:
    here.journal.rows += [point(20, recall_lower=0.92), point(21, recall_lower=0.92, target_recall=0.9)]
    assert only(await here.actor.on_promote(Promote("docs", "t20"), origin("a"))).status == "invalid"
    assert isinstance(only(await here.actor.on_promote(Promote("docs", "t21"), origin("b"))), ConfigPromoted)
