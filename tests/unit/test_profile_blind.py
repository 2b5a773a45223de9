"""Swaps where GPU memory can't be read, and a server gives it back after it has stopped listing a model."""

from collections.abc import Callable
from typing import Any

import pytest

from schemas.events.base import Refusal
from schemas.events.profile import (
    ActivateProfile,
    LoadedModel,
    ModelLoaded,
    ModelUnloaded,
    PreloadModel,
    ProfileActivated,
    SlotFailed,
)
from tests.unit.model_play import GIB, Recipe
from tests.unit.slot_setting import BIG, EMB, WIDE, Setting, on, one


def frees_late(here: Setting, seconds: float) -> None:
    """Models' memory comes free in steps (four at most), each so long after the one before, once they are unlisted."""
    free: Callable[..., Any] = here.ollama._free

    async def later(resident: Any, _: float) -> None:
        await free(resident, seconds)

    here.ollama._free = later  # type: ignore[method-assign]


def loads(here: Setting, model: str) -> int:
    return here.calls.count(("load", model))


@pytest.mark.parametrize("late_s", [0.1, 0.2])
def test_a_model_that_came_before_the_memory_was_free_comes_once_more(late_s: float) -> None:
    async def story(here: Setting) -> None:
        frees_late(here, late_s)
        await here.do(ActivateProfile("chat"))
        said = await here.do(ActivateProfile("code"))
        assert one(ProfileActivated, said).loaded == [WIDE]
        assert here.gpu.history[-1].whole == {WIDE, EMB}
        assert (loads(here, "wide:latest"), loads(here, "emb:latest")) == (2, 1)
        assert [each.model for each in said if isinstance(each, ModelLoaded)] == ["wide:latest"]
        assert one(ModelLoaded, said).load_s < 4, "the second time alone"

    on(story, readable=False)


def test_a_model_that_is_too_large_comes_no_third_time_and_the_old_one_is_put_back_whole() -> None:
    async def story(here: Setting) -> None:
        frees_late(here, 0.2)
        await here.do(ActivateProfile("chat"))
        said = await here.do(ActivateProfile("liar"))
        assert one(Refusal, said).reason.endswith("profile 'chat' is back")
        assert one(SlotFailed, said).restored == "chat"
        assert loads(here, "liar:latest") == 2
        assert here.gpu.history[-1].whole == {BIG, EMB}
        assert here.stored.profile == "chat"
        unloads = [each.reason for each in said if isinstance(each, ModelUnloaded) and each.model == "liar:latest"]
        assert unloads == ["came too early", "could not be used"]

    on(story, readable=False)


@pytest.mark.parametrize("readable", [True, False])
def test_nothing_is_tried_again_when_nothing_has_left(readable: bool) -> None:
    """And not where memory can be read: it was free."""

    async def story(here: Setting) -> None:
        if readable:
            await here.do(ActivateProfile("talk"))
        one(Refusal, await here.do(ActivateProfile("liar")))
        one(Refusal, await here.do(PreloadModel("liar")))
        assert loads(here, "liar:latest") == (1 if readable else 2), "one for each order"

    on(story, readable=readable)


def test_without_a_gpu_the_setting_for_that_is_named_first() -> None:
    async def story(here: Setting) -> None:
        listing = here.ollama.loaded

        async def on_the_cpu() -> list[LoadedModel]:
            return [LoadedModel(each.server, each.model, each.size, 0, each.expires_at) for each in await listing()]

        here.ollama.loaded = on_the_cpu  # type: ignore[method-assign]
        refusal = one(Refusal, await here.do(ActivateProfile("talk")))
        assert refusal.hint.startswith("set `[slot] allow_partial = true`")
        assert loads(here, "big:latest") == 1

    on(story, readable=False)


def test_a_server_that_cant_load_has_a_log() -> None:
    async def story(here: Setting) -> None:
        here.ollama.weather.chances = {"failed_load": 1.0}
        refusal = one(Refusal, await here.do(ActivateProfile("talk")))
        assert refusal.hint == "the log of Ollama says why it can't load big:latest"

    on(story, readable=False)


def test_a_model_that_never_appears_isnt_said_to_have_left() -> None:
    async def story(here: Setting) -> None:
        async def nothing() -> list[LoadedModel]:
            return []

        here.ollama.loaded = nothing  # type: ignore[method-assign]
        here.ollama.recipes = {"big:latest": Recipe(10 * GIB, 10 * GIB, 0.1)}
        reason = one(Refusal, await here.do(ActivateProfile("talk"))).reason
        assert "said to be loaded, but ollama/big:latest isn't listed" in reason

    on(story)
