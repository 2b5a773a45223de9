"""Orders to preload: one model comes beside what is there, or doesn't come at all."""

from collections.abc import Sequence

import structlog

from actors.errors import ModelServerError, Transient, Unavailable
from actors.profile.core import keep_alive_s
from actors.profile.core_eviction import Memory, known_sizes, no_room, unsized, unwelcome
from actors.profile.core_settle import taken
from actors.profile.desk import Desk
from actors.profile.swap import Effects, Terms
from actors.profile.together import together
from actors.profile.unloading import find_model
from schemas.events.base import Refusal
from schemas.events.profile import LoadedModel, ModelLoaded, ModelRef, ModelReport, ModelUnloaded, PreloadModel
from schemas.names import Seconds

log = structlog.get_logger("lakehouse.slot")

Preloaded = ModelReport | ModelLoaded | ModelUnloaded | Refusal


class Preloading:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def carry_out(self, command: PreloadModel) -> Sequence[Preloaded]:
        desk, began = self._desk, self._desk.clock.monotonic()
        if desk.slot.state not in ("empty", "ready"):
            return [
                Refusal(
                    "conflict",
                    f"what is in the GPU's memory isn't known: {desk.slot.reason or f'the slot is {desk.slot.state}'}",
                    "lakehouse profile active says when it is",
                )
            ]
        effects = desk.effects(command.model)
        _, gpus = await effects.both({command.server} if command.server is not None else ())
        ref = await find_model(desk, effects, command.model, command.server)
        if isinstance(ref, Refusal):
            return [ref]
        view = effects.view
        seconds = keep_alive_s(command.keep_alive)
        here = view.of([ref])
        if here and effects.presences([ref], view)[ref] == "whole":
            return [await self._there(effects, here[0], seconds, began)]
        running = [model for model in (*view.running, *desk.lookout.recent(view)) if model.ref != ref]
        if here:
            return [_half_there(here[0])]
        async with together() as group:
            listing = group.create_task(desk.members())
            sizing = group.create_task(self._size(ref, effects))
        size = sizing.result()
        if isinstance(size, Refusal):
            return [size]
        memory = Memory(gpus.free, desk.headroom, known_sizes({ref: size}, desk.store.sizes))
        refused = unwelcome(ref, running, listing.result(), desk.slot.profile) or no_room(ref, memory)
        if refused is not None:
            return [refused]
        if blind := unsized([ref], memory):
            log.info("loading without knowing that it fits", why=blind, gpus=gpus.reason)
        effects.baseline = gpus
        return await self._load(effects, ref, seconds, began)

    async def _load(self, effects: Effects, ref: ModelRef, seconds: Seconds, began: float) -> Sequence[Preloaded]:
        desk = self._desk
        needs = [ref, *(own for own in desk.slot.models if own != ref)]  # it must not push out the profile's
        trouble = await effects.load([ref], [], needs, await self._terms(ref, seconds))
        if trouble is None:
            desk.store.note(effects.measured)
            await desk.store.announce()
            return [*effects.facts, self._report(effects.view.of([ref])[0], True, began)]
        view, gpus = await effects.both({ref.server})
        leaving = view.of([ref]) or [LoadedModel(ref.server, ref.model)]
        stuck = await effects.unload(leaving, taken(effects.baseline, gpus, leaving), "could not be used")
        left = f"; it is still there: {stuck.reason}" if stuck is not None else ""
        return [*effects.facts, trouble.refusal(f"model {ref}: {trouble.reason}{left}")]

    async def _there(
        self, effects: Effects, model: LoadedModel, seconds: Seconds, began: float
    ) -> ModelReport | Refusal:
        """Loaded already: its time is prolonged, never cut short."""
        now = self._desk.clock.now()
        if model.expires_at is not None and now + seconds > model.expires_at:
            trouble = await effects.load([], [model.ref], [model.ref], await self._terms(model.ref, seconds))
            if trouble is not None:
                return trouble.refusal()
            model = effects.view.of([model.ref])[0]
        return self._report(model, False, began)

    async def _terms(self, ref: ModelRef, seconds: Seconds) -> Terms:
        """The active profile's models stay as it has them: with its adapters, which a load without any
        would turn off, and for as long as it keeps them at least."""
        desk, slot = self._desk, self._desk.slot
        holder = await desk.profile(slot.profile) if ref in slot.models else None
        if holder is None:
            return Terms(seconds, reason="preload")
        own = desk.terms(holder, "preload")
        return Terms(max(seconds, own.keep_alive_s), own.adapters, own.adapted, "preload")

    async def _size(self, ref: ModelRef, effects: Effects) -> int | Refusal | None:
        try:
            with effects.watch:
                return await self._desk.servers[ref.server].size(ref.model)
        except LookupError:
            return None  # known a moment ago; loading it says the rest
        except (Unavailable, Transient, ModelServerError) as error:
            return Refusal("unavailable", str(error), f"see that {ref.server} runs")

    def _report(self, model: LoadedModel, changed: bool, began: float) -> ModelReport:
        return ModelReport(
            model.server,
            model.model,
            loaded=True,
            changed=changed,
            size=model.size,
            size_vram=model.size_vram,
            expires_at=model.expires_at,
            took_ms=(self._desk.clock.monotonic() - began) * 1000,
        )


def _half_there(model: LoadedModel) -> Refusal:
    return Refusal(
        "conflict",
        f"model {model.ref} is in memory, but is being stopped or is partly on the CPU",
        f"lakehouse unload {model.model}, then preload it again",
    )
