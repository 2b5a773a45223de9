"""The slot when what it stands on fails: a registry that is damaged, away or hangs, a server that is a black
hole, an unload that comes about by half. On virtual time; what it does on a good day is in test_profile_slot.py."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from actors.errors import Transient
from schemas.documents.profile import ProfileDocument, SlotDocument
from schemas.events.base import Message, Refusal
from schemas.events.profile import (
    ActivateProfile,
    DeactivateProfile,
    GetSlot,
    GetVram,
    ModelLoaded,
    ModelRef,
    ModelReport,
    ModelUnloaded,
    PreloadModel,
    ProfileActivated,
    ProfileDeactivated,
    SlotChanged,
    SlotFailed,
    SlotInfo,
    UnloadModel,
)
from tests.unit.model_play import GIB, Recipe
from tests.unit.simulation import EPOCH
from tests.unit.slot_setting import BIG, EMB, PROFILES, TALK, Setting, on, one

GGUF = ModelRef("llamacpp", "gguf")


async def info(here: Setting) -> SlotInfo:
    (found,) = await here.actor.on_get(GetSlot(look=True))
    return found


def kinds(said: Sequence[Message]) -> list[type[Message]]:
    return [type(each) for each in said]


def only(here: Setting, *ids: str) -> None:
    """Of the profiles, only these."""
    for profile in PROFILES:
        if profile.id not in ids:
            here.registry.stored.pop(("profile", profile.id))


# --- a damaged document --------------------------------------------------------------------------


def damage(here: Setting) -> SlotDocument:
    here.registry.damaged.add(("slot", "gpu"))
    document: SlotDocument = here.registry.stored["slot", "gpu"][0]
    return document


async def restart(here: Setting) -> list[Message]:
    here.actor = here.daemon()
    return list(await here.actor.start())


def test_a_damaged_document_is_set_aside_and_the_slot_asks_the_servers() -> None:
    async def story(here: Setting) -> None:
        only(here, "chat", "code")
        await here.do(ActivateProfile("chat"))
        lost = damage(here)
        said = await restart(here)
        assert one(SlotFailed, said).state == one(SlotChanged, said).slot.state == "unknown"
        assert "run `lakehouse repair`" in (await info(here)).reason
        assert here.registry.set_aside == [lost]
        assert here.stored.state == "unknown", "also for another process that starts now"
        said = list(await here.actor.reconcile())
        assert one(SlotChanged, said).slot.profile == "chat", "its models are there, and nobody else's"
        assert (here.stored.state, here.stored.models, here.held) == ("ready", [BIG, EMB], {BIG, EMB})
        one(ProfileActivated, await here.do(ActivateProfile("code")))

    on(story)


@pytest.mark.parametrize("there", ["nothing", "two profiles", "an exclusive one beside another model"])
def test_whose_the_slot_was_isnt_guessed(there: str) -> None:
    async def story(here: Setting) -> None:
        if there == "two profiles":
            only(here, "talk", "twin", "gguf")
            twin = msgspec.structs.replace(TALK, id="twin")
            here.registry.put("twin", ProfileDocument(profile=twin, created=EPOCH, changed=EPOCH))
        else:
            only(here, "talk")
        await here.do(ActivateProfile("talk"))
        if there == "nothing":
            await here.do(DeactivateProfile("talk"))
        if there == "an exclusive one beside another model":
            await here.ollama.load("side", math.inf)
        damage(here)
        await restart(here)
        held = here.held
        await here.actor.reconcile()
        assert ((await info(here)).state, here.stored.state, here.held) == ("empty", "empty", held)
        one(ProfileActivated, await here.do(ActivateProfile("talk")))
        assert here.held == {BIG}

    on(story)


def test_a_lost_slot_waits_for_the_servers_that_profiles_are_on_but_not_for_ever() -> None:
    async def story(here: Setting) -> None:
        only(here, "gguf")
        await here.do(ActivateProfile("gguf"))
        damage(here)
        here.llamacpp.away.set()
        await restart(here)
        await here.actor.reconcile()
        assert here.stored.state == "unknown", "the server that doesn't answer may have its model"
        await asyncio.sleep(60)
        await here.actor.reconcile()
        assert here.stored.state == "empty"

    on(story)


def test_a_document_that_is_damaged_while_the_daemon_runs_is_written_again() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("talk"))
        revision = here.registry.stored["slot", "gpu"][1]
        here.registry.put("gpu", here.registry.saves[0], revision + 7)  # the next save loses its race, and reads
        damage(here)
        one(ProfileDeactivated, await here.do(DeactivateProfile("talk")))
        assert (here.stored.state, len(here.registry.set_aside)) == ("empty", 1)

    on(story)


# --- the registry is away, or hangs --------------------------------------------------------------


def test_what_couldnt_be_saved_is_said_when_it_is() -> None:
    async def story(here: Setting) -> None:
        here.registry.load = _as_stored(here)  # type: ignore[method-assign]
        here.registry.away = True
        here.registry.stored["index", "docs"] = here.registry.stored["index", "docs"]
        with pytest.raises(Transient):
            await here.do(ActivateProfile("talk"))
        assert [each for each in await here.actor.reconcile() if not _memory(each)] == []
        here.registry.away = False
        said = list(await here.actor.reconcile())
        assert kinds(said) == [ModelLoaded, SlotChanged, ProfileActivated]
        assert (one(ProfileActivated, said).loaded, here.stored.state) == ([BIG], "ready")
        assert [each for each in await here.actor.reconcile() if not _memory(each)] == [], "once"

    on(story)


def test_what_waits_to_be_said_comes_before_what_happened_later() -> None:
    async def story(here: Setting) -> None:
        here.registry.load = _as_stored(here)  # type: ignore[method-assign]
        here.registry.away = True
        with pytest.raises(Transient):
            await here.do(ActivateProfile("talk"))
        here.registry.away = False
        said = await here.do(ActivateProfile("aside"))
        assert kinds(said) == [
            ModelLoaded, SlotChanged,  # talk's; that it was activated would be taken for the answer
            ModelUnloaded, ModelLoaded, SlotChanged, ProfileDeactivated, ProfileActivated,
        ]  # fmt: skip
        assert one(ProfileActivated, said).profile == "aside"
        assert [each for each in await here.actor.reconcile() if not _memory(each)] == []

    on(story)


def test_a_registry_that_is_away_doesnt_blind_the_slot() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.registry.away = True
        await here.ollama.unload("big")
        await asyncio.sleep(1)
        with pytest.raises(Transient):
            await here.actor.reconcile()
        (found,) = await here.actor.on_get(GetSlot())
        assert (found.state, "left the memory" in found.reason) == ("unknown", True)
        here.registry.away = False
        said = list(await here.actor.reconcile())
        assert one(SlotChanged, said).slot.state == "unknown"
        said = list(await here.actor.reconcile())
        assert one(ProfileDeactivated, said).profile == "chat"
        assert (here.stored.state, here.held) == ("empty", set())

    on(story)


def test_a_registry_that_hangs_doesnt_keep_the_slot_unloading() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.weather.chances = {"stuck_unload": 1.0}
        here.registry.hangs = True
        task = asyncio.create_task(here.do(DeactivateProfile("chat")))
        await asyncio.sleep(15.1)
        (found,) = await here.actor.on_get(GetSlot())
        assert found.state == "unknown"
        with pytest.raises(Transient, match="couldn't be saved within 5 s"):
            await task

    on(story)


def test_an_intent_that_couldnt_be_saved_is_tried_again_while_it_goes_on() -> None:
    """llama.cpp lists no model while it loads: a daemon that dies meanwhile has nothing but the document."""

    async def story(here: Setting) -> None:
        here.registry.load = _as_stored(here)  # type: ignore[method-assign]
        here.registry.away = True
        task = asyncio.create_task(here.do(ActivateProfile("chat")))
        await asyncio.sleep(0.5)
        here.registry.away = False
        await asyncio.sleep(1)
        assert (here.stored.state, here.stored.profile) == ("loading", "chat")
        one(ProfileActivated, await task)

    on(story)


def _as_stored(here: Setting) -> object:
    """Reading goes on while saving fails."""

    async def load(kind: type, name: str) -> object:
        return here.registry.stored.get((str(kind.__struct_config__.tag), name))  # type: ignore[attr-defined]

    return load


def _memory(message: Message) -> bool:
    return type(message).__name__ == "VramChanged"


# --- the line ------------------------------------------------------------------------------------


def test_who_wont_wait_is_told_when_a_reconcile_unloads() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("gguf"))
        here.weather.chances = {"stuck_unload": 1.0}
        await asyncio.sleep(301)
        round = asyncio.create_task(here.actor.reconcile())  # type: ignore[arg-type]
        await asyncio.sleep(1)
        at = here.clock.monotonic()
        refusal = one(Refusal, await here.do(ActivateProfile("chat", wait=False)))
        assert (refusal.status, here.clock.monotonic() - at) == ("conflict", 0)
        assert "unloading gguf, unused for its keep-alive, is under way" in refusal.reason
        await round

    on(story)


def test_who_wont_wait_is_told_when_what_is_left_of_a_profile_leaves() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        await here.ollama.unload("big")
        await asyncio.sleep(1)
        here.weather.chances = {"stuck_unload": 1.0}
        round = asyncio.create_task(here.actor.reconcile())  # type: ignore[arg-type]
        await asyncio.sleep(3)
        refusal = one(Refusal, await here.do(DeactivateProfile("chat", wait=False)))
        assert "unloading what is left of chat is under way" in refusal.reason
        await round

    on(story)


def test_a_look_holds_nobody_up_and_gives_way() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("talk"))
        await here.ollama.unload("big")
        await asyncio.sleep(1)
        round = asyncio.create_task(here.actor.reconcile())  # type: ignore[arg-type]
        await asyncio.sleep(0.5)  # between its two looks
        said = await here.do(ActivateProfile("talk", wait=False))
        assert one(ProfileActivated, said).loaded == [BIG]
        assert [each for each in await round if not _memory(each)] == [], "what it saw is long past"
        assert (here.stored.state, here.held) == ("ready", {BIG})

    on(story)


# --- a black hole --------------------------------------------------------------------------------


def test_a_black_hole_that_isnt_needed_costs_little() -> None:
    async def story(here: Setting) -> None:
        here.llamacpp.hole = True
        await here.actor.reconcile()
        known = here.ollama.recipes.items()
        here.ollama.recipes = {name: msgspec.structs.replace(recipe, load_s=0.0) for name, recipe in known}
        twice = ActivateProfile("code")
        for order in (ActivateProfile("chat"), twice, twice, DeactivateProfile("code")):
            at = here.clock.monotonic()
            assert not [each for each in await here.do(order) if isinstance(each, Refusal)]
            assert here.clock.monotonic() - at < 1.5, order
        at = here.clock.monotonic()
        await here.do(PreloadModel("side"))
        await here.do(UnloadModel("side"))
        assert here.clock.monotonic() - at < 3

    on(story)


def test_a_silent_server_that_is_needed_has_its_time() -> None:
    async def story(here: Setting) -> None:
        here.llamacpp.hole = True
        await here.actor.reconcile()
        at = here.clock.monotonic()
        refusal = one(Refusal, await here.do(ActivateProfile("gguf")))
        assert (refusal.status, 5 <= here.clock.monotonic() - at < 6) == ("unavailable", True)
        refusal = one(Refusal, await here.do(PreloadModel("gguf")))
        assert "no answer" in refusal.reason
        slow = here.llamacpp.loaded
        here.llamacpp.hole = False

        async def loaded() -> list[object]:
            here.llamacpp.loaded = slow  # type: ignore[method-assign]
            await asyncio.sleep(3)
            return list(await slow())

        here.llamacpp.loaded = loaded  # type: ignore[assignment,method-assign]
        one(ProfileActivated, await here.do(ActivateProfile("gguf")))

    on(story)


def test_a_black_hole_may_still_hold_what_it_listed() -> None:
    async def story(here: Setting) -> None:
        await here.llamacpp.load("gguf", math.inf)
        await here.actor.reconcile()
        here.llamacpp.hole = True
        refusal = one(Refusal, await here.do(ActivateProfile("chat")))
        assert (refusal.status, "it had gguf in memory" in refusal.reason) == ("unavailable", True)
        await asyncio.sleep(61)
        one(ProfileActivated, await here.do(ActivateProfile("chat")))

    on(story)


# --- away for good -------------------------------------------------------------------------------


async def unanswered(here: Setting, seconds: float) -> None:
    for _ in range(int(seconds / 10)):
        await here.actor.reconcile()
        await asyncio.sleep(10)


def test_a_server_that_stays_away_doesnt_keep_its_profile_for_ever() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("gguf"))
        await here.llamacpp.crash(0.0)
        here.llamacpp.away.set()
        await unanswered(here, 30)
        for order in (DeactivateProfile("gguf"), ActivateProfile("chat")):
            refusal = one(Refusal, await here.do(order))
            assert refusal.status == "unavailable"
            assert " s it is taken to have ended" in refusal.hint
            assert 0 < (refusal.retry_after_s or 0) <= 30
        assert (await info(here)).state == "unknown"
        await asyncio.sleep(30)
        said = await here.do(DeactivateProfile("gguf"))
        gone = one(ProfileDeactivated, said)
        assert (gone.profile, gone.unloaded) == ("gguf", [])
        assert "llamacpp at play://llamacpp is away, for 60 s or more" in gone.reason
        assert ModelUnloaded not in kinds(said), "nobody saw it leave"
        slot = await info(here)
        assert (slot.state, slot.profile) == ("empty", None)
        assert "llamacpp at play://llamacpp is away" in slot.reason
        one(ModelReport, list(await here.actor.on_preload(PreloadModel("side"))))

    on(story)


def test_a_server_that_stays_away_keeps_no_other_servers_profile_out() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("gguf"))
        await here.llamacpp.crash(0.0)
        here.llamacpp.away.set()
        await unanswered(here, 60)
        activated = one(ProfileActivated, await here.do(ActivateProfile("chat")))
        assert (activated.previous, activated.unloaded) == ("gguf", [])
        assert (here.stored.state, here.stored.profile) == ("ready", "chat")
        assert one(Refusal, await here.do(ActivateProfile("gguf"))).status == "unavailable"

    on(story)


def test_a_server_that_never_answered_a_daemon_is_waited_for_from_its_start_on() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("gguf"))
        await here.llamacpp.crash(0.0)
        here.llamacpp.away.set()
        await restart(here)
        await asyncio.sleep(50)
        assert one(Refusal, await here.do(DeactivateProfile("gguf"))).status == "unavailable"
        await asyncio.sleep(11)
        one(ProfileDeactivated, await here.do(DeactivateProfile("gguf")))
        assert here.stored.state == "empty"

    on(story)


def test_memory_that_an_ended_server_still_holds_keeps_the_slot_unknown() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))

        async def unload(model: str) -> None:
            pass

        here.ollama.unload = unload  # type: ignore[method-assign]
        assert one(Refusal, await here.do(DeactivateProfile("chat"))).status == "conflict"
        here.ollama.away.set()
        await unanswered(here, 70)
        refusal = one(Refusal, await here.do(DeactivateProfile("chat")))
        assert (refusal.status, "of GPU memory are free" in refusal.reason) == ("conflict", True)
        assert (here.stored.state, here.stored.profile) == ("unknown", "chat")

    on(story)


# --- what is shown -------------------------------------------------------------------------------


def test_a_report_on_memory_calls_no_slot_ready_whose_server_it_shows_away() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.ollama.away.set()
        (report,) = await here.actor.on_vram(GetVram())
        assert not next(each for each in report.servers if each.server == "ollama").reachable
        assert (report.slot.state, report.slot.profile) == ("unknown", "chat")
        assert "is away" in report.slot.reason
        here.ollama.away.clear()
        (report,) = await here.actor.on_vram(GetVram())
        assert report.slot.state == "ready"

    on(story)


def test_a_slot_in_doubt_tells_what_is_seen_now() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.ollama.away.set()
        await here.actor.reconcile()
        assert "is away" in (await info(here)).reason
        here.ollama.away.clear()
        slot = await info(here)
        assert slot.state == "unknown"
        assert slot.reason == f"{here.stored.reason}; now its models are listed"
        assert {model.ref for model in slot.models} == {BIG, EMB}
        assert (await here.actor.on_get(GetSlot()))[0].reason == here.stored.reason, "without a look: as it was"
        await here.actor.reconcile()
        assert (await info(here)).state == "ready"

    on(story)


# --- by half -------------------------------------------------------------------------------------


def test_with_one_model_of_the_active_profile_the_others_leave_too() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        said = await here.do(UnloadModel("emb"))
        report = one(ModelReport, said)
        assert (report.model, report.changed, report.deactivated) == ("emb:latest", True, "chat")
        assert set(one(ProfileDeactivated, said).unloaded) == {BIG, EMB}
        await asyncio.sleep(2)  # the smaller one's memory is within what readings vary by
        assert (here.held, here.stored.state) == (set(), "empty")
        again = one(ModelReport, await here.do(UnloadModel("emb")))
        assert (again.changed, again.deactivated) == (False, None)

    on(story)


def test_what_left_of_two_is_said_though_the_other_is_stuck() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        asked = here.ollama.unload

        async def unload(model: str) -> None:
            if model != "big:latest":
                await asked(model)

        here.ollama.unload = unload  # type: ignore[method-assign]
        said = await here.do(DeactivateProfile("chat"))
        assert one(Refusal, said).status == "conflict"
        gone = one(ModelUnloaded, said)
        assert (gone.model, gone.freed) == ("emb:latest", pytest.approx(1 << 30, rel=0.1))
        assert (here.stored.state, here.held) == ("unknown", {BIG})
        here.ollama.unload = asked  # type: ignore[method-assign]
        assert one(ModelUnloaded, list(await here.actor.reconcile())).model == "big:latest"
        assert (here.stored.state, here.held) == ("empty", set())

    on(story)


def test_what_a_start_unloads_is_said() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        await here.ollama.unload("big")
        await asyncio.sleep(1)
        here.actor = here.daemon()
        said = list(await here.actor.start())
        assert one(ModelUnloaded, said).model == "emb:latest"
        assert one(ProfileDeactivated, said).profile == "chat"
        assert here.held == set()

    on(story)


def test_an_unload_that_comes_again_tells_what_is_there() -> None:
    async def story(here: Setting) -> None:
        queued = {"id": "q1", "asked": False}
        await here.do(ActivateProfile("gguf"))
        await here.do(UnloadModel("gguf"), **queued)
        again = one(ModelReport, await here.do(UnloadModel("gguf"), **queued, delivery=2))
        assert (again.server, again.loaded, again.changed) == ("llamacpp", False, False)
        await here.do(ActivateProfile("gguf"))
        again = one(ModelReport, await here.do(UnloadModel("gguf"), **queued, delivery=3))
        assert (again.server, again.loaded, again.changed, here.held) == ("llamacpp", True, False, {GGUF})

    on(story)


# --- sizes ---------------------------------------------------------------------------------------


def test_a_tag_that_was_pulled_again_may_have_grown() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("talk"))
        await here.do(DeactivateProfile("talk"))
        here.ollama.recipes = {"big:latest": Recipe(30 * GIB, 30 * GIB, 2.0)}
        for order in (ActivateProfile("talk"), PreloadModel("big")):
            refusal = one(Refusal, await here.do(order))
            assert (refusal.status, "30.0 GiB" in refusal.reason) == ("invalid", True)

    on(story)


@pytest.mark.parametrize("order", [ActivateProfile("talk"), PreloadModel("big")])
def test_that_a_size_isnt_known_is_logged(order: Message) -> None:
    async def story(here: Setting) -> None:
        async def size(_: str) -> None:
            return None

        here.ollama.size = size  # type: ignore[assignment,method-assign]
        with capture_logs() as logs:
            assert not [each for each in await here.do(order) if isinstance(each, Refusal)]
        (line,) = [line for line in logs if line["event"] == "loading without knowing that it fits"]
        assert line["why"] == "how much memory ollama/big:latest will take isn't known"

    on(story)


# --- a model that is listed, and still loads -----------------------------------------------------


@pytest.mark.parametrize("state", ["loading", "unknown"])
def test_a_model_that_is_listed_while_it_loads_isnt_ready(state: Any) -> None:
    """As Ollama lists it, to a daemon that starts in the middle; somebody else loads it on."""

    async def story(here: Setting) -> None:
        here.ollama.recipes = {"big:latest": Recipe(10 * GIB, 10 * GIB, 6.0)}
        load = asyncio.create_task(here.ollama.load("big", math.inf))
        await asyncio.sleep(0.1)
        (listed,) = await here.ollama.loaded()
        assert listed.size == listed.size_vram, "it looks whole"
        here.registry.put("gpu", SlotDocument(state=state, profile="talk", models=[BIG], since=EPOCH))
        here.actor = here.daemon()
        said = list(await here.actor.start())
        assert one(SlotChanged, said).slot.state == "ready"
        assert load.done()
        assert here.clock.now() - EPOCH >= 6, "it was waited for"
        assert here.calls.count(("load", "big:latest")) == 1
        assert here.gpu.history[-1].whole == {BIG}

    on(story)


@pytest.mark.parametrize("state", ["loading", "unknown"])
def test_a_load_that_takes_longer_leaves_the_slot_unknown(state: Any) -> None:
    async def story(here: Setting) -> None:
        here.ollama.recipes = {"big:latest": Recipe(10 * GIB, 10 * GIB, 60.0)}
        waiting = here.ollama.load

        async def load(*_: Any) -> None:
            await asyncio.sleep(30)  # Ollama gives a load up whose first client leaves; the others wait

        task = asyncio.create_task(waiting("big", math.inf))
        await asyncio.sleep(0.1)
        here.ollama.load = load  # type: ignore[method-assign,assignment]
        here.registry.put("gpu", SlotDocument(state=state, profile="talk", models=[BIG], since=EPOCH))
        here.actor = here.daemon()
        await here.actor.start()
        found = await info(here)
        assert found.state == "unknown"
        if state == "loading":
            assert "may still be loading" in found.reason
        here.ollama.load = waiting  # type: ignore[method-assign]
        await task
        await here.actor.reconcile()
        assert (await info(here)).state == "ready"

    on(story)
