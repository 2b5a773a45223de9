"""A GPU and its model servers in memory, on virtual time, that keep the truth.

`PlayGpu` is the memory: what holds how much of it, at every moment. `PlayServer` is the port
`ModelServer` with Ollama's manners or llama.cpp's, and with whatever `Weather` sends: slow and stuck
unloads, memory that stays taken, loads that fail or don't fit, answers that are late, old or missing.
What the slot believes is not known here; tests compare it with `PlayGpu.history`.
"""

import asyncio
import contextlib
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.errors import ModelServerError, Transient, Unavailable
from schemas.events.index import EmbedderKind
from schemas.events.profile import Gpu, GpuReading, LoadedModel, ModelRef
from schemas.names import ServerName
from schemas.profile import Adapter
from tests.unit.simulation import EPOCH
from tests.unit.weather import Weather

MIB, GIB = 1024**2, 1024**3
FOREVER = float("inf")

Phase = Literal["loading", "loaded", "stopping", "freeing"]


class Recipe(msgspec.Struct, frozen=True):
    """A model as a server keeps it."""

    weights: int  # what the server tells before it is loaded
    memory: int  # what it takes when it is
    load_s: float


STALE_S = 0.8
HANG_S = 5.0
"""A question that isn't answered ends with its client's time limit."""


class Resident:
    """A model's hold on the memory, from the first byte of its load to the last one freed."""

    def __init__(self, ref: ModelRef, size: int, room: int) -> None:
        self.ref, self.size, self.room = ref, size, room
        self.vram = 0
        self.phase: Phase = "loading"
        self.expires_at: float | None = None
        self.settled = asyncio.Event()  # its load is over, one way or the other
        self.ended = asyncio.Event()  # unlisted
        self.given_up = asyncio.Event()  # its load is to end at once
        self.stop_asked = self.told = self.stuck = False
        self.renewed = 0

    @property
    def whole(self) -> bool:
        return self.phase == "loaded" and self.vram >= self.size


class Moment(msgspec.Struct, frozen=True):
    """The truth from `time` to the next moment."""

    time: float  # of the loop
    held: frozenset[ModelRef]  # have any byte of the GPU's memory
    whole: frozenset[ModelRef]  # loaded, and nothing of them elsewhere
    leaving: frozenset[ModelRef] = frozenset()  # on their way out, and still holding memory
    unlisted: frozenset[ModelRef] = frozenset()  # of those, what no list shows any more
    adrift: frozenset[ModelRef] = frozenset()  # of those, what nobody told to leave


class PlayGpu:
    """The GPU's memory. `on_change` is called after every change of what holds it."""

    def __init__(self, total: int, rng: random.Random, *, readable: bool = True) -> None:
        self.total, self.rng, self.readable = total, rng, readable
        self.base = 400 * MIB  # other programs, with some noise
        self.residents: list[Resident] = []
        self.sizes: dict[ModelRef, int] = {}  # of all that ever were
        self.stops: list[tuple[float, Resident]] = []
        self.history = [Moment(-1.0, frozenset(), frozenset())]
        self.on_change: Callable[[Moment], None] = lambda _: None

    @property
    def free(self) -> int:
        return self.total - self.base - sum(resident.vram for resident in self.residents)

    def changed(self) -> None:
        now = asyncio.get_running_loop().time()
        held = frozenset(resident.ref for resident in self.residents if resident.vram)
        whole = frozenset(resident.ref for resident in self.residents if resident.whole)
        staying = {resident.ref for resident in self.residents if not resident.stop_asked}
        shown = {resident.ref for resident in self.residents if resident.phase != "freeing"}
        told = {resident.ref for resident in self.residents if resident.told}
        moment = Moment(now, held, whole, held - staying, held - shown, held - shown - told)
        if moment != msgspec.structs.replace(self.history[-1], time=now):
            self.history.append(moment)
            self.on_change(moment)

    def between(self, since: float, until: float) -> Iterable[Moment]:
        """The moments that fall into an interval, with the one that it begins in."""
        first = bisect_right(self.history, since, key=lambda moment: moment.time) - 1
        return (moment for moment in self.history[max(first, 0) :] if moment.time <= until)

    async def read(self) -> GpuReading:
        if not self.readable:
            return GpuReading([], "none", "no NVIDIA driver on this machine")
        await asyncio.sleep(self.rng.uniform(0.0005, 0.004))
        free = self.free + self.rng.randrange(0, 4 * MIB)
        return GpuReading([Gpu(0, "play", "GPU-0", self.total, self.total - free, free)], "nvml")


class PlayServer:
    """The port `ModelServer`. As Ollama: a model that loads is listed, an unload waits for a
    load, a load whose client has left is given up, memory is freed after the model is unlisted.
    As llama.cpp: a loading model isn't listed, an unload ends a load, a load goes on without its
    client, what is unlisted is free, and nothing is said about where a model is."""

    def __init__(self, name: ServerName, gpu: PlayGpu, recipes: Mapping[str, Recipe], weather: Weather) -> None:
        self.name, self.url = name, f"play://{name}"
        self.default_for: Collection[EmbedderKind] = ["ollama" if name == "ollama" else "openai"]
        self.gpu, self.recipes, self.weather = gpu, recipes, weather
        self.rng = weather.rng
        self.away = asyncio.Event()  # set: nobody answers
        self.mine: list[Resident] = []
        self.cleared = asyncio.Event()  # what was stuck comes loose
        self._lists: list[tuple[float, list[LoadedModel]]] = [(-1.0, [])]
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the port ------------------------------------------------------------------------------

    def canonical(self, model: str) -> str:
        return model if ":" in model or self.name != "ollama" else f"{model}:latest"

    async def loaded(self) -> list[LoadedModel]:
        async with self._answered():
            listed = self._lists[-1][1]
            if not self.weather.strikes("stale"):
                return listed
            at = asyncio.get_running_loop().time() - self.rng.uniform(0, STALE_S)
            old = self._lists[bisect_right(self._lists, at, key=lambda entry: entry[0]) - 1][1]
            known = {model.model for model in old}
            told = {resident.ref.model for resident in self.mine if resident.told}
            return [*old, *(model for model in listed if model.model in told and model.model not in known)]

    async def size(self, model: str) -> int | None:
        async with self._answered():
            return self._recipe(model).weights

    async def load(self, model: str, keep_alive_s: float, adapters: Sequence[Adapter] = ()) -> None:
        async with self._answered(hangs=False):
            recipe = self._recipe(model)
            while True:
                resident = self._find(model)
                if resident is None:
                    resident = self._begin_load(self.canonical(model), recipe)
                if not resident.stop_asked:
                    break
                await self._while_here(resident.ended.wait())
            try:
                await self._while_here(resident.settled.wait())
            except asyncio.CancelledError:
                if self.name == "ollama" and resident.phase == "loading":  # it goes with its client
                    self._stop(resident)
                    resident.given_up.set()
                raise
            if resident.phase != "loaded":
                raise ModelServerError(f"{model}: the runner ended before the model was loaded")
            self._renew(resident, keep_alive_s)

    async def unload(self, model: str) -> None:
        async with self._answered(model):
            resident = self._find(model)
            if resident is not None:
                resident.told = True
                self._stop(resident)
                if self.name == "ollama":  # which answers once the load is over
                    await self._while_here(resident.settled.wait(), HANG_S)

    async def embed(self, model: str, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError

    async def generate(
        self, model: str, prompt: str, *, max_tokens: int = 128, adapters: Sequence[Adapter] | None = None
    ) -> str:
        raise NotImplementedError

    # --- what befalls it -----------------------------------------------------------------------

    async def crash(self, away_s: float) -> None:
        """The process is gone, its memory moments later; it comes back empty."""
        self.away.set()
        for task in list(self._tasks):
            task.cancel()
        for resident in [each for each in self.gpu.residents if each.ref.server == self.name]:
            self._unlist(resident)
            self._spawn(self._free(resident, 0.3 if self.gpu.readable else 0.0))
        await asyncio.sleep(max(away_s, 1.5))  # its memory is free before it is back
        self.away.clear()

    async def cut(self, away_s: float) -> None:
        """Out of reach for a while, and as it was."""
        self.away.set()
        await asyncio.sleep(away_s)
        self.away.clear()

    def clear(self) -> None:
        """What is stuck comes loose, for good."""
        self.weather.clear = True
        self.cleared.set()
        for resident in self.mine:
            if resident.stuck:
                resident.given_up.set()

    # --- requests ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _answered(self, unloading: str = "", *, hangs: bool = True) -> AsyncIterator[None]:
        await asyncio.sleep(self.rng.uniform(0.0005, 0.005))
        if self.away.is_set():
            raise Unavailable(f"{self.name} at {self.url} is away")
        if self.weather.strikes("busy"):
            raise Transient(f"{self.name} is busy", 1.0)
        if hangs and self.weather.strikes("hang"):
            resident = self._find(unloading) if unloading else None
            if resident is not None and self.rng.random() < 0.5:
                resident.told = True
                self._stop(resident)  # heard, but the answer is lost
            await asyncio.sleep(self.rng.choice((HANG_S, 20.0)) if unloading else HANG_S)
            raise Unavailable(f"{self.name} at {self.url} doesn't answer")
        yield
        if self.rng.random() < 0.25:  # others may act between what is said and what is heard
            await asyncio.sleep(self.rng.uniform(0.0005, 0.005))
        if self.away.is_set():
            raise Unavailable(f"{self.name} at {self.url} is away")

    async def _while_here(self, wait: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
        """Raises Unavailable when the server goes away meanwhile, or when it takes too long."""
        tasks = [asyncio.ensure_future(wait), asyncio.ensure_future(self.away.wait())]
        try:
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if self.away.is_set() or not done:
            raise Unavailable(f"{self.name} at {self.url} doesn't answer")

    def _recipe(self, model: str) -> Recipe:
        try:
            return self.recipes[self.canonical(model)]
        except KeyError:
            raise LookupError(f"{self.name} has no model {model}") from None

    # --- its inside ----------------------------------------------------------------------------

    def _find(self, model: str) -> Resident | None:
        ref = ModelRef(self.name, self.canonical(model))
        return next((resident for resident in self.mine if resident.ref == ref), None)

    def _begin_load(self, model: str, recipe: Recipe) -> Resident:
        resident = Resident(ModelRef(self.name, model), recipe.memory, 0)
        self.mine.append(resident)
        self.gpu.sizes[resident.ref] = recipe.memory
        self._spawn(self._load(resident, recipe))
        return resident

    async def _load(self, resident: Resident, recipe: Recipe) -> None:
        seconds = recipe.load_s * (self.rng.uniform(2, 8) if self.weather.strikes("slow_load") else 1)
        room = self.gpu.free - 64 * MIB
        fails = self.weather.strikes("failed_load") or (self.name != "ollama" and room < recipe.memory)
        resident.room = min(recipe.memory, max(0, room))  # a whole number of layers would be less still
        resident.stuck = self.weather.strikes("stuck_load")
        for share in (0.4, 0.8, 1.0):
            resident.vram = max(1, int(resident.room * share))
            self._changed()
            if share > 0.5 and (fails or resident.given_up.is_set()):
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if resident.stuck and share > 0.5 else seconds / 3):
                    await resident.given_up.wait()
        if fails or resident.given_up.is_set():
            self._unlist(resident)
            await self._free(resident, 0.1 if self.gpu.readable else 0.0)
            return
        resident.phase = "loaded"
        resident.settled.set()
        self._changed()
        if resident.stop_asked:
            await self._end(resident)

    def _renew(self, resident: Resident, keep_alive_s: float) -> None:
        resident.renewed += 1
        resident.expires_at = None if keep_alive_s == FOREVER else _now() + keep_alive_s
        if resident.expires_at is not None and self.name == "ollama":  # llama.cpp has no keep-alive of its own
            self._spawn(self._expire(resident, keep_alive_s, resident.renewed))
        self._changed()

    async def _expire(self, resident: Resident, seconds: float, renewed: int) -> None:
        await asyncio.sleep(seconds)
        if resident.renewed == renewed and resident.phase == "loaded":
            self._stop(resident)

    def _stop(self, resident: Resident) -> None:
        """The model leaves: after its load, if that is under way."""
        if resident.stop_asked:
            return
        resident.stop_asked = True
        self.gpu.stops.append((_now(), resident))
        if resident.phase == "loaded":
            self._spawn(self._end(resident))
        elif self.name != "ollama":
            resident.given_up.set()

    async def _end(self, resident: Resident) -> None:
        resident.phase = "stopping"
        resident.expires_at = _now()
        self._changed()
        if self.weather.strikes("stuck_unload"):
            resident.stuck = True
            await self.cleared.wait()
        if self.weather.strikes("slow_unload"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.rng.choice((self.rng.uniform(1, 12), self.rng.uniform(12, 40)))):
                    await self.cleared.wait()
        await asyncio.sleep(self.rng.uniform(0.02, 0.3))
        if self.name == "ollama":
            self._unlist(resident)
            if resident.told and self.gpu.readable and self._outweighs(resident) and self.weather.strikes("leak"):
                await self.cleared.wait()
            # Memory that is freed late can't be seen where the GPU can't be read.
            await self._free(resident, self.rng.uniform(0, 0.5) if self.gpu.readable else 0.0)
        else:
            await self._free(resident, 0.1)
            self._unlist(resident)

    def _outweighs(self, resident: Resident) -> bool:
        """What leaves with it, or may yet, is smaller: else nobody could tell a leak from a wrong estimate."""
        now = _now()
        others = {id(each): each.size for each in self.gpu.residents}
        others |= {id(each): each.size for at, each in self.gpu.stops if now - at < 20}
        return resident.size > 2 * (sum(others.values()) - others.get(id(resident), 0))

    def _unlist(self, resident: Resident) -> None:
        resident.phase = "freeing"
        if resident in self.mine:
            self.mine.remove(resident)
        resident.settled.set()
        resident.ended.set()
        self._changed()

    async def _free(self, resident: Resident, pause_s: float) -> None:
        """In steps, after a pause each."""
        steps = self.rng.randint(1, 4)
        for left in reversed(range(steps)):
            if pause_s:
                await asyncio.sleep(self.rng.uniform(0.3, 1) * pause_s)
            resident.vram = resident.vram * left // (left + 1)
            if not left and resident in self.gpu.residents:
                self.gpu.residents.remove(resident)
            self._changed()

    def _changed(self) -> None:
        for resident in self.mine:
            if resident not in self.gpu.residents:
                self.gpu.residents.append(resident)
        self.gpu.changed()
        hides = "loading" if self.name != "ollama" else None
        listed = [self._report(resident) for resident in self.mine if resident.phase != hides]
        if listed != self._lists[-1][1]:
            self._lists.append((asyncio.get_running_loop().time(), listed))

    def _report(self, resident: Resident) -> LoadedModel:
        ref = resident.ref
        if self.name != "ollama":
            return LoadedModel(ref.server, ref.model, resident.size, None, resident.expires_at)
        return LoadedModel(ref.server, ref.model, resident.size, resident.room, resident.expires_at, 4096)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now() -> float:
    return EPOCH + asyncio.get_running_loop().time()
