"""The slot order by order, on virtual time, against model servers that keep the truth."""

import asyncio
import math
from typing import Any

import msgspec
import pytest

from actors.errors import ModelServerError, Transient, UnknownAdapter
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Message, Refusal
from schemas.events.index import EmbedderSpec, ServeIndex
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
    VramChanged,
)
from schemas.profile import Adapter
from tests.unit.model_play import GIB, HANG_S
from tests.unit.simulation import EPOCH
from tests.unit.slot_setting import (
    BIG,
    CHAT,
    CODE,
    EMB,
    GGUF_PROFILE,
    SIDE,
    WIDE,
    CountedServer,
    Setting,
    index,
    on,
    one,
)

# --- swaps -------------------------------------------------------------------------------------


def test_a_first_activation() -> None:
    async def story(here: Setting) -> None:
        said = await here.do(ActivateProfile("chat"))
        assert [type(each) for each in said] == [ModelLoaded, ModelLoaded, SlotChanged, ProfileActivated]
        activated = one(ProfileActivated, said)
        assert (activated.profile, activated.previous, activated.bucket_made) == ("chat", None, True)
        assert (activated.loaded, activated.unloaded, activated.kept) == ([BIG, EMB], [], [])
        assert {model.ref: model.size_vram for model in activated.models} == {BIG: 10 * GIB, EMB: GIB}
        (docs,) = activated.indexes
        assert (docs.index, docs.generation, docs.building, docs.reason) == ("docs", 3, 4, "")
        assert here.held == {BIG, EMB}
        assert (here.stored.state, here.stored.profile, here.stored.models) == ("ready", "chat", [BIG, EMB])
        assert {(each.model, each.size) for each in here.stored.measured} == {
            ("big:latest", 10 * GIB),
            ("emb:latest", GIB),
        }
        loaded = [fact for fact in said if isinstance(fact, ModelLoaded)]
        assert [round(fact.load_s, 1) for fact in loaded] == [2.0, 0.3]
        assert one(SlotChanged, said).before == "empty"
        assert [each.phase for each in here.bus.said] == ["load big:latest", "load emb:latest"]

    on(story)


def test_a_swap_unloads_the_old_model_and_keeps_the_shared_embedder() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        before = len(here.registry.saves)
        said = await here.do(ActivateProfile("code"))
        activated = one(ProfileActivated, said)
        assert (activated.previous, activated.loaded) == ("chat", [WIDE])
        assert (activated.unloaded, activated.kept) == ([BIG], [EMB])
        out = one(ModelUnloaded, said)
        assert (out.model, out.reason) == ("big:latest", "profile code")
        assert out.freed == pytest.approx(10 * GIB, rel=0.1)
        gone = one(ProfileDeactivated, said)
        assert (gone.profile, gone.reason, gone.unloaded) == ("chat", "replaced by code", [BIG])
        assert here.held == {WIDE, EMB}
        assert ("unload", "emb:latest") not in here.calls
        assert [each.state for each in here.registry.saves[before:]] == ["unloading", "loading", "ready"]
        unloading = here.registry.saves[before]
        assert (unloading.profile, unloading.target, unloading.models) == ("chat", "code", [BIG, EMB])
        never_both = [moment for moment in here.gpu.history if {BIG, WIDE} <= moment.held]
        assert never_both == []

    on(story)


@pytest.mark.parametrize("readable", [True, False])
def test_what_a_swap_costs_beside_the_servers_is_little(readable: bool) -> None:
    async def story(here: Setting) -> list[float]:
        beside = []
        for n in range(9):
            activated = one(ProfileActivated, await here.do(ActivateProfile(("chat", "code")[n % 2])))
            beside.append(activated.took_ms - activated.servers_ms)
        return beside

    assert sorted(on(story, readable=readable))[4] <= 20


def test_the_same_model_is_neither_unloaded_nor_loaded() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        calls, saves = list(here.calls), len(here.registry.saves)
        again = one(ProfileActivated, await here.do(ActivateProfile("chat")))
        assert (again.kept, again.loaded, again.unloaded, again.bucket_made) == ([BIG, EMB], [], [], False)
        assert here.calls == calls
        assert len(here.registry.saves) == saves + 1
        assert again.took_ms - again.servers_ms <= 5
        said = await here.do(ActivateProfile("talk"))  # the same model, no embedder, exclusive
        assert one(ProfileActivated, said).kept == [BIG]
        assert here.calls == [*calls, ("unload", "emb:latest")]

    on(story)


def test_another_keep_alive_only_renews() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("talk"))
        profile = msgspec.structs.replace(CHAT, id="talk", embedder=None, indexes=[], keep_alive="5m")
        here.registry.put("talk", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH), 2)
        activated = one(ProfileActivated, await here.do(ActivateProfile("talk")))
        assert here.calls == [("load", "big:latest"), ("load", "big:latest")]
        (model,) = activated.models
        assert model.expires_at == pytest.approx(here.clock.now() + 300, abs=0.1)
        assert (activated.kept, activated.loaded) == ([BIG], [])

    on(story)


def test_an_index_that_cant_be_served_is_a_reason_not_a_failure() -> None:
    async def story(here: Setting) -> None:
        here.bus.refusing = True
        (docs,) = one(ProfileActivated, await here.do(ActivateProfile("chat"))).indexes
        assert (docs.generation, docs.reason) == (0, "its dataset is being written")

    on(story)


def test_models_of_both_servers_take_turns() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        activated = one(ProfileActivated, await here.do(ActivateProfile("gguf")))
        assert set(activated.unloaded) == {BIG, EMB}
        assert here.held == {ModelRef("llamacpp", "gguf")}

    on(story)


# --- refused before anything is touched --------------------------------------------------------


def refused(said: list[Message], status: str, *words: str) -> None:
    refusal = one(Refusal, said)
    assert refusal.status == status
    assert [word for word in words if word not in refusal.reason + refusal.hint] == []


def test_what_cant_fit_is_refused_with_the_arithmetic_and_nothing_is_unloaded() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        calls, saves = list(here.calls), len(here.registry.saves)
        said = await here.do(ActivateProfile("huge"))
        refused(said, "invalid", "needs 40.2 GiB", "huge:latest 40.0 GiB + headroom 256 MiB", "12.6 GiB free", "11.0")
        assert (here.calls, len(here.registry.saves), here.held) == (calls, saves, {BIG, EMB})

    on(story)


def test_everything_that_is_missing_is_said_before_anything_is_touched() -> None:
    async def story(here: Setting) -> None:
        def put(**change: Any) -> None:
            profile = msgspec.structs.replace(CODE, **change)
            here.registry.put("code", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))

        refused(await here.do(ActivateProfile("nobody")), "not_found", "no profile 'nobody'")
        put(indexes=["nowhere"])
        refused(await here.do(ActivateProfile("code")), "not_found", "index 'nowhere'")
        here.registry.put("other", index("other", EmbedderSpec("ollama", "side")))
        put(indexes=["other"])
        refused(await here.do(ActivateProfile("code")), "invalid", "embeds its texts with ollama/side:latest")
        put(model="unheard")
        refused(await here.do(ActivateProfile("code")), "not_found", "ollama pull unheard:latest")
        put(adapters=[Adapter("a")])
        refused(await here.do(ActivateProfile("code")), "invalid", "adapters")
        put()
        here.ollama.away.set()
        refused(await here.do(ActivateProfile("code")), "unavailable", "ollama at play://ollama is away")
        assert here.calls == []
        assert here.buckets.made == []

    on(story)


@pytest.mark.parametrize(("own", "asked"), [("auto", None), ("hnsw", "hnsw"), ("lance", "lance")])
def test_the_indexes_get_the_backend_that_the_profile_searches(own: Any, asked: Any) -> None:
    async def story(here: Setting) -> None:
        profile = msgspec.structs.replace(CODE, indexes=["docs"], vector_backend=own)
        here.registry.put("code", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        activated = one(ProfileActivated, await here.do(ActivateProfile("code")))
        assert here.bus.asked == [ServeIndex("docs", None, asked)]
        assert (activated.indexes[0].generation, activated.indexes[0].building) == (3, 4)

    on(story)


def test_a_server_that_is_not_there_is_no_obstacle_for_the_others_profiles() -> None:
    async def story(here: Setting) -> None:
        here.llamacpp.away.set()
        one(ProfileActivated, await here.do(ActivateProfile("chat")))

    on(story)


def test_a_silent_server_that_had_a_model_a_moment_ago_is_one() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("gguf"))
        here.llamacpp.away.set()
        await here.actor.reconcile()
        refused(await here.do(ActivateProfile("chat")), "unavailable", "llamacpp")
        assert here.stored.state == "unknown"

    on(story)


# --- failures ----------------------------------------------------------------------------------


def test_a_model_that_is_partly_on_the_cpu_is_refused_and_the_old_profile_restored() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        said = await here.do(ActivateProfile("liar"))
        refused(said, "conflict", "GiB of its 30.0 GiB are on the GPU", "profile 'chat' is back", "allow_partial")
        failed = one(SlotFailed, said)
        assert (failed.profile, failed.state, failed.restored) == ("liar", "ready", "chat")
        assert [each for each in said if isinstance(each, SlotChanged | ProfileDeactivated)] == []
        assert here.held == {BIG, EMB}
        assert (here.stored.state, here.stored.profile, here.stored.models) == ("ready", "chat", [BIG, EMB])

    on(story)


def test_with_nothing_to_restore_the_slot_is_empty_again() -> None:
    async def story(here: Setting) -> None:
        said = await here.do(ActivateProfile("liar"))
        refused(said, "conflict", "the slot is empty")
        assert here.held == set()
        assert (here.stored.state, here.stored.profile) == ("empty", None)

    on(story)


def test_a_machine_without_a_gpu_may_allow_it() -> None:
    async def story(here: Setting) -> None:
        one(ProfileActivated, await here.do(ActivateProfile("liar")))

    on(story, allow_partial=True)


def test_an_unload_that_never_completes_leaves_the_slot_unknown_in_15_s() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.weather.chances = {"stuck_unload": 1.0}
        began = here.clock.monotonic()
        said = await here.do(ActivateProfile("code"))
        assert 15 <= here.clock.monotonic() - began <= 15.1
        refused(
            said,
            "conflict",
            "models haven't left the memory after 15 s: ollama/big:latest is still listed",
            "the slot is unknown",
        )
        assert one(SlotFailed, said).state == "unknown"
        assert (here.stored.state, here.stored.profile, here.stored.target) == ("unknown", "chat", "code")
        (info,) = await here.actor.on_get(GetSlot(look=True))
        assert (info.state, [model.ref for model in info.models]) == ("unknown", [BIG, EMB])
        assert WIDE not in here.held
        refused(await here.do(PreloadModel("side")), "conflict", "isn't known")
        here.weather.chances = {}
        here.ollama.clear()
        await asyncio.sleep(3)
        said = list(await here.actor.reconcile())
        assert one(SlotChanged, said).slot.state == "empty"
        assert one(ProfileDeactivated, said).profile == "chat"
        assert here.held == set(), "what is left of it has left"

    on(story)


def test_an_unload_whose_answer_hangs_keeps_the_deadline() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))

        async def hang(_: str) -> None:
            await asyncio.sleep(math.inf)

        here.ollama.unload = hang  # type: ignore[method-assign]
        began = here.clock.monotonic()
        refused(await here.do(DeactivateProfile("chat")), "conflict", "still listed")
        assert 15 <= here.clock.monotonic() - began <= 15.1
        assert here.stored.state == "unknown"
        (changed,) = [each for each in await here.actor.reconcile() if isinstance(each, SlotChanged)]
        assert changed.slot.state == "ready", "nobody heard it: the models are whole and stay"

    on(story)


def test_memory_that_stays_taken_is_not_free() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("talk"))
        here.weather.chances = {"leak": 1.0}
        refused(await here.do(DeactivateProfile("talk")), "conflict", "only 0 MiB of 10.0 GiB came free")
        await here.actor.reconcile()
        assert here.stored.state == "unknown"
        here.actor = here.daemon()  # also not after a restart
        await here.actor.start()
        await here.actor.reconcile()
        assert here.stored.state == "unknown"
        here.ollama.clear()
        await asyncio.sleep(1)
        await here.actor.reconcile()
        assert here.stored.state == "empty"

    on(story)


def test_a_registry_that_is_away_is_told_and_mended_later() -> None:
    async def story(here: Setting) -> None:
        save = here.registry.save

        async def away(*_: Any, **__: Any) -> int:
            raise Transient("the registry can't be reached")

        here.registry.save = away  # type: ignore[method-assign]
        with pytest.raises(Transient):
            await here.do(ActivateProfile("talk"))
        assert here.registry.saves == []
        here.registry.save = save  # type: ignore[method-assign]
        await here.actor.reconcile()
        assert (here.stored.state, here.stored.profile) == ("ready", "talk")

    on(story)


def test_a_document_that_somebody_else_changed_is_written_again() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("talk"))
        revision = max(revision for _, revision in here.registry.stored.values())
        here.registry.put("gpu", here.registry.saves[0], revision + 7)
        await here.do(DeactivateProfile("talk"))
        assert here.stored.state == "empty"

    on(story)


# --- the line ----------------------------------------------------------------------------------


def test_orders_are_carried_out_in_order_and_the_hasty_are_refused_at_once() -> None:
    async def story(here: Setting) -> None:
        ended: list[str] = []

        async def order(profile: str) -> None:
            one(ProfileActivated, await here.do(ActivateProfile(profile)))
            ended.append(profile)

        tasks = []
        for profile in ("chat", "code", "talk", "gguf"):
            tasks.append(asyncio.create_task(order(profile)))
            await asyncio.sleep(0.01)
        (info,) = await here.actor.on_get(GetSlot())
        assert (info.state, info.waiting) == ("loading", 3)
        at = here.clock.monotonic()
        refused(await here.do(ActivateProfile("aside", wait=False)), "conflict", "the activation of chat is under way")
        refused(await here.do(DeactivateProfile("chat", wait=False)), "conflict", "3 more wait")
        assert here.clock.monotonic() == at
        assert await here.actor.reconcile() == [], "a reconcile doesn't stand in line"
        await asyncio.gather(*tasks)
        assert ended == ["chat", "code", "talk", "gguf"]
        one(ProfileActivated, await here.do(ActivateProfile("gguf", wait=False)))

    on(story)


def test_an_order_that_comes_again_does_nothing_twice() -> None:
    async def story(here: Setting) -> None:
        queued = {"id": "q1", "asked": False}
        await here.do(ActivateProfile("chat"), **queued)
        calls = list(here.calls)
        again = one(ProfileActivated, await here.do(ActivateProfile("chat"), **queued, delivery=2))
        assert (again.loaded, here.calls) == ([], calls)
        await here.do(ActivateProfile("code"))
        calls = list(here.calls)
        refused(await here.do(ActivateProfile("chat"), **queued, delivery=3), "conflict", "was carried out")
        out = {"id": "q2", "asked": False}
        await here.do(DeactivateProfile("code"), **out)
        await here.do(ActivateProfile("code"))
        calls = list(here.calls)
        info = one(SlotInfo, await here.do(DeactivateProfile("code"), **out, delivery=2))
        assert (info.profile, here.calls) == ("code", calls)

    on(story)


# --- restarts and reconciling ------------------------------------------------------------------


def test_a_restart_finds_its_slot() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.actor = here.daemon()
        assert await here.actor.start() == []
        (info,) = await here.actor.on_get(GetSlot())
        assert (info.state, info.profile, len(info.models)) == ("ready", "chat", 2)

    on(story)


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.5, 1.5, 3.1, 3.5, 4.2])
def test_a_daemon_that_ends_during_a_swap_finds_the_truth(after_s: float) -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        swap = asyncio.create_task(here.do(ActivateProfile("code")))
        await asyncio.sleep(after_s)
        swap.cancel()
        await asyncio.wait([swap])
        here.actor = here.daemon()
        await here.actor.start()
        await asyncio.sleep(6)
        await here.actor.reconcile()
        (info,) = await here.actor.on_get(GetSlot(look=True))
        if info.state == "ready":
            assert here.held == {"chat": {BIG, EMB}, "code": {WIDE, EMB}}[str(info.profile)]
        else:
            assert (info.state, here.held) == ("empty", set())
        assert here.stored.state == info.state
        one(ProfileActivated, await here.do(ActivateProfile("code")))

    on(story)


def test_a_model_that_leaves_by_itself_deactivates_the_profile() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        await here.ollama.unload("big")
        await asyncio.sleep(1)
        (info,) = await here.actor.on_get(GetSlot(look=True))
        assert (info.state, "left the memory" in info.reason) == ("unknown", True)
        said = list(await here.actor.reconcile())
        gone = one(ProfileDeactivated, said)
        assert "ollama/big:latest left the memory" in gone.reason
        assert (one(SlotChanged, said).slot.state, here.stored.state) == ("empty", "empty")
        assert here.held == set()

    on(story)


def test_a_server_out_of_reach_is_unknown_and_comes_back_as_it_was() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.ollama.away.set()
        said = list(await here.actor.reconcile())
        assert one(SlotFailed, said).state == "unknown"
        assert one(SlotChanged, said).before == "ready"
        assert not [each for each in await here.actor.reconcile() if isinstance(each, SlotFailed)], "told once"
        here.ollama.away.clear()
        said = list(await here.actor.reconcile())
        assert one(SlotChanged, said).slot.state == "ready"

    on(story)


def test_llamacpps_models_leave_when_their_time_is_over() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("gguf"))
        await asyncio.sleep(299)
        await here.actor.reconcile()
        assert here.stored.state == "ready"
        await asyncio.sleep(2)
        said = list(await here.actor.reconcile())
        assert one(ProfileDeactivated, said).reason == "unused for its keep-alive: gguf"
        assert one(ModelUnloaded, said).reason == "unused"
        assert (here.stored.state, here.held) == ("empty", set())

    on(story)


def test_nobody_is_asked_when_nobody_uses_the_slot() -> None:
    async def story(here: Setting) -> None:
        here.registry.stored.clear()
        here.actor = here.daemon()
        await here.actor.start()
        here.ollama.loaded = here.llamacpp.loaded = None  # type: ignore[method-assign,assignment]
        assert await here.actor.reconcile() == []

    on(story)


def test_changes_of_memory_are_told_and_noise_isnt() -> None:
    async def story(here: Setting) -> None:
        (first,) = await here.actor.reconcile()
        assert isinstance(first, VramChanged)
        assert await here.actor.reconcile() == []
        await here.ollama.load("side", math.inf)
        (changed,) = await here.actor.reconcile()
        assert isinstance(changed, VramChanged)
        assert changed.vram.accounted == 3 * GIB
        here.gpu.base += GIB
        (changed,) = await here.actor.reconcile()
        assert isinstance(changed, VramChanged)
        assert changed.vram.unaccounted == pytest.approx(1.4 * GIB, rel=0.05)

    on(story)


# --- deactivate, preload, unload ---------------------------------------------------------------


def test_a_deactivation_and_one_that_has_nothing_to_do() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        said = await here.do(DeactivateProfile("chat"))
        assert one(ProfileDeactivated, said) == ProfileDeactivated("chat", "asked", [BIG, EMB])
        assert (here.held, here.stored.state) == (set(), "empty")
        assert one(SlotInfo, await here.do(DeactivateProfile("chat"))).state == "empty"
        refused(await here.do(DeactivateProfile("nobody")), "not_found")

    on(story)


def test_a_resident_profile_that_isnt_active_can_be_deactivated() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("aside"))
        profile = msgspec.structs.replace(CODE, id="left", exclusive=False)
        here.registry.put("left", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        await here.do(ActivateProfile("left"))
        assert here.held == {SIDE, WIDE, EMB}
        said = await here.do(DeactivateProfile("aside"))
        assert one(ProfileDeactivated, said).unloaded == [SIDE]
        assert (here.stored.state, here.stored.profile, here.held) == ("ready", "left", {WIDE, EMB})

    on(story)


def test_preload_and_unload_are_idempotent() -> None:
    async def story(here: Setting) -> None:
        first = one(ModelReport, await here.do(PreloadModel("side")))
        assert (first.server, first.model, first.loaded, first.changed) == ("ollama", "side:latest", True, True)
        assert first.expires_at == pytest.approx(here.clock.now() + 300, abs=0.1)
        await asyncio.sleep(5)
        again = one(ModelReport, await here.do(PreloadModel("side")))
        assert (again.loaded, again.changed) == (True, False)
        assert again.expires_at == pytest.approx(here.clock.now() + 300, abs=0.1)
        forever = one(ModelReport, await here.do(PreloadModel("side", "-1")))
        assert forever.expires_at is None
        assert one(ModelReport, await here.do(PreloadModel("side", "1m"))).expires_at is None, "never cut short"
        said = await here.do(UnloadModel("side"))
        assert (one(ModelReport, said).changed, one(ModelUnloaded, said).model) == (True, "side:latest")
        assert one(ModelReport, await here.do(UnloadModel("side"))).changed is False
        assert here.held == set()

    on(story)


def test_a_preload_never_evicts() -> None:
    async def story(here: Setting) -> None:
        refused(await here.do(PreloadModel("huge")), "invalid", "40.0 GiB + 256 MiB headroom", "23.6 GiB")
        refused(await here.do(PreloadModel("nowhere")), "not_found", "ollama pull nowhere")
        await here.do(ActivateProfile("chat"))
        refused(await here.do(PreloadModel("side")), "conflict", "exclusive profile 'chat'")
        assert one(ModelReport, await here.do(PreloadModel("emb"))).changed is False
        assert here.held == {BIG, EMB}

    on(story)


def test_a_preload_of_the_active_profiles_model_leaves_it_as_the_profile_has_it() -> None:
    """A load that names no adapters turns them all off."""
    style = [Adapter("style", 0.5)]
    profile = msgspec.structs.replace(GGUF_PROFILE, adapters=style)

    async def story(here: Setting) -> None:
        here.registry.put("gguf", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        await here.do(ActivateProfile("gguf"))
        assert here.llamacpp.adapters == {"gguf": style}
        longer = one(ModelReport, await here.do(PreloadModel("gguf", "2h")))
        assert (longer.changed, here.llamacpp.calls) == (False, [("load", "gguf"), ("load", "gguf")])
        assert longer.expires_at == pytest.approx(here.clock.now() + 7200, abs=0.1)
        assert here.llamacpp.adapters == {"gguf": style}
        await here.llamacpp.unload("gguf")  # by somebody else, and no reconcile has seen it yet
        await asyncio.sleep(2)
        assert here.held == set()
        again = one(ModelReport, await here.do(PreloadModel("gguf", "1m")))
        assert (again.changed, here.llamacpp.adapters) == (True, {"gguf": style})
        assert again.expires_at == pytest.approx(here.clock.now() + 300, abs=0.1), "what the profile keeps it for"

    on(story)


def test_adapters_that_are_merged_into_an_ollama_model_are_nobody_s_to_load() -> None:
    profile = msgspec.structs.replace(CODE, adapters=[Adapter("style", 0.5, "/adapters/style")])

    async def story(here: Setting) -> None:
        here.registry.put("code", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        activated = one(ProfileActivated, await here.do(ActivateProfile("code")))
        assert [ref.model for ref in activated.loaded] == list(here.ollama.adapters)
        assert not any(here.ollama.adapters.values())

    on(story)


def test_a_profile_that_is_put_back_has_its_own_adapters_again() -> None:
    style = msgspec.structs.replace(
        GGUF_PROFILE, adapters=[Adapter("style", 0.5)], embedder=EmbedderSpec("ollama", "emb")
    )
    loud = msgspec.structs.replace(style, id="loud", adapters=[Adapter("style", 3)])

    async def story(here: Setting) -> None:
        for profile in (style, loud):
            here.registry.put(profile.id, ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        await here.do(ActivateProfile("gguf"))

        async def load(*_: Any) -> None:
            here.ollama.load = CountedServer.load.__get__(here.ollama)  # type: ignore[method-assign]
            raise ModelServerError("out of memory")

        here.ollama.load = load  # type: ignore[method-assign]
        refused(await here.do(ActivateProfile("loud")), "conflict", "out of memory", "profile 'gguf' is back")
        assert here.llamacpp.adapters == {"gguf": [Adapter("style", 0.5)]}

    on(story)


def test_what_a_single_mode_server_has_is_in_everybodys_way_at_once() -> None:
    async def story(here: Setting) -> None:
        await here.llamacpp.load("gguf", math.inf)
        here.llamacpp.single = True
        await here.do(ActivateProfile("gguf"))
        began = here.clock.now()
        refused(await here.do(ActivateProfile("chat")), "conflict", "llamacpp/gguf", "single mode")
        assert here.clock.now() - began < 1
        assert (here.stored.state, here.stored.profile) == ("ready", "gguf")

    on(story)


def test_a_preload_for_no_profile_has_no_adapters() -> None:
    async def story(here: Setting) -> None:
        profile = msgspec.structs.replace(GGUF_PROFILE, adapters=[Adapter("style", 0.5)])
        here.registry.put("gguf", ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        assert one(ModelReport, await here.do(PreloadModel("gguf"))).changed is True
        assert here.llamacpp.adapters == {"gguf": []}
        await here.do(ActivateProfile("gguf"))
        assert here.llamacpp.adapters == {"gguf": [Adapter("style", 0.5)]}

    on(story)


def test_a_preload_that_isnt_whole_is_taken_back() -> None:
    async def story(here: Setting) -> None:
        refused(await here.do(PreloadModel("liar")), "conflict", "of its 30.0 GiB are on the GPU")
        assert here.held == set()

    on(story)


def test_what_a_single_mode_server_has_is_refused_to_leave_at_once() -> None:
    async def story(here: Setting) -> None:
        await here.llamacpp.load("gguf", math.inf)
        here.llamacpp.single = True
        assert one(ProfileActivated, await here.do(ActivateProfile("gguf"))).kept == [ModelRef("llamacpp", "gguf")]
        began, calls = here.clock.now(), list(here.calls)
        for order in (DeactivateProfile("gguf"), UnloadModel("gguf"), UnloadModel("gguf", "llamacpp")):
            refused(await here.do(order), "conflict", "llamacpp/gguf can't be unloaded", "single mode", "router mode")
        assert here.clock.now() - began < 1
        assert here.calls == calls, "nobody was asked in vain"
        assert (here.stored.state, here.stored.profile) == ("ready", "gguf")

    on(story)


def test_unloading_the_active_profiles_model_deactivates_it() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        said = await here.do(UnloadModel("big"))
        assert one(ModelReport, said).changed is True
        gone = one(ProfileDeactivated, said)
        assert (gone.profile, gone.unloaded) == ("chat", [BIG, EMB])
        assert (here.stored.state, BIG in here.held) == ("empty", False)

    on(story)


def test_the_report_on_memory_and_a_server_that_is_away() -> None:
    async def story(here: Setting) -> None:
        await here.do(ActivateProfile("chat"))
        here.llamacpp.away.set()
        (vram,) = await here.actor.on_vram(GetVram())
        assert (vram.accounted, vram.slot.state) == (11 * GIB, "ready")
        assert {server.server: server.reachable for server in vram.servers} == {"ollama": True, "llamacpp": False}
        assert vram.unaccounted == pytest.approx(400 << 20, rel=0.05)

    on(story)


# --- hints ---------------------------------------------------------------------------------------


def test_a_hint_is_for_who_asked() -> None:
    async def story(here: Setting) -> None:
        preload = one(Refusal, await here.do(PreloadModel("nope")))
        unload = one(Refusal, await here.do(UnloadModel("nope")))
        assert "ollama pull nope" in preload.hint
        assert unload.hint == "lakehouse vram shows what is loaded"
        assert preload.reason == unload.reason

        async def load(*_: Any) -> None:
            raise UnknownAdapter("there is no adapter style; the server was started with none")

        here.llamacpp.load = load  # type: ignore[method-assign]
        missing = one(Refusal, await here.do(ActivateProfile("gguf")))
        assert missing.hint == "start llama-server with --lora FILE, or take the adapter out of the profile"

    on(story)


@pytest.mark.parametrize(("behind", "said"), [(0, "is under way"), (1, ", and 1 more waits"), (2, ", and 2 more wait")])
def test_how_many_wait_is_said_in_english(behind: int, said: str) -> None:
    async def story(here: Setting) -> None:
        orders = [asyncio.create_task(here.do(ActivateProfile("chat"))) for _ in range(1 + behind)]
        await asyncio.sleep(0.1)
        reason = one(Refusal, await here.do(ActivateProfile("chat", wait=False))).reason
        assert reason.endswith(said), reason
        await asyncio.gather(*orders)

    on(story)


@pytest.mark.parametrize("before", ["talk", "gguf", ""])
def test_a_server_that_hangs_is_waited_for_its_time_and_little_more(before: str) -> None:
    async def story(here: Setting) -> None:
        if before:
            await here.do(ActivateProfile(before))
        here.ollama.hole = True
        began, looks = here.clock.monotonic(), here.ollama.looks
        assert one(Refusal, await here.do(ActivateProfile("code"))).status == "unavailable"
        assert here.clock.monotonic() - began < HANG_S + 2.1, "it wasn't known to be needed for the first two"
        assert here.ollama.looks - looks == (1 if before == "talk" else 2)

    on(story)
