"""The GPU that the slot's simulation plays on behaves as Ollama and llama.cpp were seen to."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from actors.errors import ModelServerError, Transient, Unavailable
from schemas.events.profile import ModelRef
from tests.unit.model_play import FOREVER, GIB, HANG_S, PlayGpu, PlayServer, Recipe
from tests.unit.simulation import EPOCH, VirtualClock, simulate
from tests.unit.weather import Weather

RECIPES = {"a:latest": Recipe(4 * GIB, 5 * GIB, 1.0), "b:latest": Recipe(6 * GIB, 6 * GIB, 1.0)}
A = ModelRef("ollama", "a:latest")


def play(
    scene: Callable[[PlayServer, PlayGpu], Awaitable[None]], *, server: str = "ollama", seed: int = 1, **chances: float
) -> None:
    async def main(_: VirtualClock, rng: random.Random) -> None:
        gpu = PlayGpu(10 * GIB, rng)
        recipes = RECIPES if server == "ollama" else {name.split(":")[0]: r for name, r in RECIPES.items()}
        await scene(PlayServer(server, gpu, recipes, Weather(rng, chances)), gpu)  # type: ignore[arg-type]

    simulate(main, seed)


async def after(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_an_unload_is_answered_before_the_memory_is_free() -> None:
    async def scene(server: PlayServer, gpu: PlayGpu) -> None:
        await server.load("a", FOREVER)
        full = gpu.free
        await server.unload("a")
        assert gpu.free == full
        (leaving,) = await server.loaded()
        assert leaving.expires_at is not None
        assert leaving.expires_at <= EPOCH + asyncio.get_running_loop().time()
        while await server.loaded():
            await after(0.01)
        assert gpu.free < full + 5 * GIB, "unlisted, and not free yet"
        await after(3)
        assert gpu.free == full + 5 * GIB
        assert gpu.history[-1].held == frozenset()

    play(scene)


def test_a_model_that_loads_is_listed_and_holds_memory_but_is_not_whole() -> None:
    async def scene(server: PlayServer, gpu: PlayGpu) -> None:
        loading = asyncio.create_task(server.load("a", FOREVER))
        await after(0.5)
        assert [model.ref for model in await server.loaded()] == [A]
        assert gpu.history[-1].held == {A}
        assert gpu.history[-1].whole == frozenset()
        await loading
        assert gpu.history[-1].whole == {A}

    play(scene)


def test_what_does_not_fit_is_partly_on_the_cpu() -> None:
    async def scene(server: PlayServer, gpu: PlayGpu) -> None:
        await server.load("a", FOREVER)
        await server.load("b", FOREVER)
        whole, part = sorted(await server.loaded(), key=lambda model: model.model)
        assert whole.size_vram == whole.size
        assert part.size_vram is not None
        assert part.size is not None
        assert 0 < part.size_vram < part.size
        assert gpu.history[-1].whole == {A}

    play(scene)


def test_llama_cpp_refuses_what_does_not_fit() -> None:
    async def scene(server: PlayServer, _: PlayGpu) -> None:
        await server.load("a", FOREVER)
        with pytest.raises(ModelServerError):
            await server.load("b", FOREVER)
        assert [(model.model, model.size_vram) for model in await server.loaded()] == [("a", None)]

    play(scene, server="llamacpp")


def test_a_keep_alive_ends_and_is_renewed() -> None:
    async def scene(server: PlayServer, gpu: PlayGpu) -> None:
        await server.load("a", 5)
        await after(4)
        await server.load("a", 5)
        await after(4)
        assert gpu.history[-1].whole == {A}
        await after(4)
        assert gpu.history[-1].held == frozenset()

    play(scene)


def test_a_load_goes_with_its_client_at_ollama_and_stays_at_llama_cpp() -> None:
    async def scene(server: PlayServer, gpu: PlayGpu) -> None:
        loading = asyncio.create_task(server.load("a", FOREVER))
        await after(0.5)
        loading.cancel()
        await after(5)
        assert len(gpu.history[-1].held) == (0 if server.name == "ollama" else 1)

    play(scene)
    play(scene, server="llamacpp")


def test_a_crash_empties_the_memory_and_the_server_comes_back() -> None:
    async def scene(server: PlayServer, gpu: PlayGpu) -> None:
        await server.load("a", FOREVER)
        crash = asyncio.create_task(server.crash(3))
        await after(0.01)
        with pytest.raises(Unavailable):
            await server.loaded()
        await crash
        assert gpu.history[-1].held == frozenset()
        assert await server.loaded() == []

    play(scene)


def test_faults() -> None:
    async def stuck(server: PlayServer, gpu: PlayGpu) -> None:
        await server.load("a", FOREVER)
        await server.unload("a")
        await after(1000)
        assert [model.ref for model in await server.loaded()] == [A]
        server.clear()
        await after(60)
        assert gpu.history[-1].held == frozenset()

    async def leaked(server: PlayServer, gpu: PlayGpu) -> None:
        await server.load("a", FOREVER)
        await server.unload("a")
        await after(1000)
        assert await server.loaded() == []
        assert gpu.history[-1].held == {A}

    async def failed(server: PlayServer, gpu: PlayGpu) -> None:
        with pytest.raises(ModelServerError):
            await server.load("a", FOREVER)
        await after(1)
        assert gpu.history[-1].held == frozenset()

    async def busy(server: PlayServer, _: PlayGpu) -> None:
        with pytest.raises(Transient):
            await server.loaded()

    async def hung(server: PlayServer, _: PlayGpu) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await server.loaded()
        assert asyncio.get_running_loop().time() - began >= HANG_S

    async def stale(server: PlayServer, _: PlayGpu) -> None:
        await server.load("a", FOREVER)
        await server.unload("a")
        while server.mine:
            await after(0.01)
        assert any([await server.loaded() for _ in range(20)])
        await after(1)
        assert not any([await server.loaded() for _ in range(20)])

    play(stuck, stuck_unload=1.0)
    play(leaked, leak=1.0)
    play(failed, failed_load=1.0)
    play(busy, busy=1.0)
    play(hung, hang=1.0)
    play(stale, stale=1.0)
