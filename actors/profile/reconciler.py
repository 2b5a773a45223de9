"""Brings the slot back in line with what the model servers report. A change is believed when two
looks, further apart than a server's list lags, say the same.
"""

from collections.abc import Sequence

import anyio

from actors.profile.core import Happened, member
from actors.profile.core_eviction import unshared
from actors.profile.core_reconcile import Presence, decide, is_stopping, presence, why
from actors.profile.core_settle import owed
from actors.profile.core_vram import changed, report
from actors.profile.desk import MB, Desk, deactivated
from actors.profile.look import LAG_S, View
from schemas.documents.profile import ProfileDocument
from schemas.events.profile import (
    GpuReading,
    LoadedModel,
    ModelRef,
    ModelUnloaded,
    ProfileDeactivated,
    SlotChanged,
    SlotFailed,
    SlotInfo,
    VramChanged,
    VramReport,
)
from schemas.names import ProfileName

AGAIN_S = LAG_S
"""Between two looks."""

SURE_S = 10.0
"""How long a model that is listed may take to answer that it is loaded."""

GIVEN_UP_S = 600.0
"""Memory that hasn't come free for so long, with nothing of it listed, is somebody else's: what can
be loaded is then decided by what is free."""

Said = SlotChanged | SlotFailed | ProfileDeactivated | ModelUnloaded


class Reconciler:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._told: VramReport | None = None

    async def reconcile(self) -> Sequence[Said | VramChanged]:
        """One round, when no order is under way. No server is contacted for a slot that nobody uses."""
        desk = self._desk
        await desk.store.save()  # what an order could not save
        idle = desk.slot.state == "empty" and not desk.lookout.anything
        if idle and not await desk.registry.all(ProfileDocument):
            return []
        view, gpus = await desk.lookout.both()
        said = [*await self._expire(view, gpus), *await self.resolve(view, gpus)]
        if said:
            view, gpus = await desk.lookout.both()
        return [*said, *self._vram(view, gpus)]

    def report(self, view: View, gpus: GpuReading) -> VramReport:
        desk = self._desk
        return report(gpus, desk.lookout.reports(view), desk.info(view), desk.clock.now())

    def seen(self, view: View) -> SlotInfo:
        """The slot as one look shows it; nothing is changed by it."""
        desk, info = self._desk, self._desk.info(view)
        if desk.slot.state != "ready":
            return info
        found = self._find(desk.slot.models, view)
        if set(found.values()) == {"whole"}:
            return info
        reason = why(found, view.seen, view.reasons)
        return SlotInfo("unknown", info.profile, info.target, info.since, reason, info.models, info.waiting)

    async def resolve(self, view: View, gpus: GpuReading | None = None) -> Sequence[Said]:
        """What has happened to the slot since, by this look and another."""
        desk, before = self._desk, self._desk.slot
        happened, profile, models = await self._judge(view, gpus)
        if happened is None:
            return []
        await desk.clock.sleep(AGAIN_S)
        servers = {ref.server for ref in (*models, *before.models)}
        view = await desk.lookout.look(servers)
        again, profile, models = await self._judge(view, None)
        if again != happened:
            if before.state in ("ready", "unknown"):
                return []
            happened, profile, models = "in doubt", before.profile, before.models
        reason = why(self._find(models, view), view.seen, view.reasons)
        if happened in ("model lost", "seen empty"):
            return await self._clear(view, reason or "its models are gone")
        if happened == "seen ready" and (doubt := await self._doubt(profile, models)):
            if before.state == "unknown":
                return []
            happened, profile, models, reason = "in doubt", before.profile, before.models, doubt
        return await self._accept(happened, profile, models, reason)

    async def _clear(self, view: View, reason: str) -> Sequence[Said]:
        """The profile is no longer as it should be: what is left of it leaves, so that an empty slot
        is one. After an order that was cut short everything is told to leave once more: a load may
        go on that no server lists."""
        desk, before = self._desk, self._desk.slot
        gpus, members = await desk.lookout.gpus(), await desk.members()
        others = [each for each in members if each.profile != before.profile]
        out = list(unshared(before.models, view.running, others, None))
        unlisted: list[LoadedModel] = []
        if before.state != "ready":
            here = {model.ref for model in view.running}
            unlisted = [LoadedModel(ref.server, ref.model) for ref in before.models if ref not in here]
            out += unlisted
        if not out:
            return await self._accept("model lost" if before.state == "ready" else "seen empty", None, [], reason)
        effects = desk.effects(before.profile or out[0].model)
        if before.state in ("loading", "unloading"):
            desk.store.happen(
                "in doubt",
                profile=before.profile,
                models=before.models,
                reason=reason,
                awaits_free=before.awaits_free,
            )
        debt = owed(gpus, out, unlisted=bool(unlisted))
        stuck = await desk.depart(effects, out, debt, reason, profile=before.profile, models=before.models)
        await desk.finish()
        said: list[Said] = [*effects.departed, *desk.changed(before), *deactivated(before, desk.slot, reason)]
        if stuck is not None and before.state != "unknown":
            said.append(SlotFailed(before.profile, desk.slot.state, stuck.reason))
        return said

    async def _doubt(self, name: ProfileName | None, models: Sequence[ModelRef]) -> str:
        """Why listed models may not be in memory: Ollama lists one while it loads, and only answers a
        load, which renews what is there, when it is loaded."""
        desk = self._desk
        terms = desk.terms(await desk.profile(name), "")
        with anyio.move_on_after(SURE_S):
            trouble = await desk.effects(name or "").load([], models, models, terms)
            return trouble.reason if trouble is not None else ""
        return "its models are listed, and don't answer: they may still be loading"

    async def _accept(
        self, happened: Happened, profile: ProfileName | None, models: list[ModelRef], reason: str
    ) -> Sequence[Said]:
        desk, before = self._desk, self._desk.slot
        if happened in ("model lost", "seen empty"):
            desk.store.happen(happened, profile=None, models=[])
        elif happened == "seen ready":
            desk.store.happen(happened, profile=profile, models=models)
        else:
            desk.store.happen(
                happened,
                profile=before.profile,
                target=before.target,
                models=before.models,
                reason=reason or "what was under way was cut short",
                awaits_free=before.awaits_free,
            )
        await desk.finish()
        said: list[Said] = [*desk.changed(before), *deactivated(before, desk.slot, reason or "its models are gone")]
        if happened == "in doubt":
            said.append(SlotFailed(before.profile, "unknown", desk.slot.reason))
        return said

    async def _judge(
        self, view: View, gpus: GpuReading | None
    ) -> tuple[Happened | None, ProfileName | None, list[ModelRef]]:
        """By one look: what has happened, and whose models it is about. A daemon that ended during a
        swap may find the old profile's models gone and those of the one that it swapped to."""
        slot = self._desk.slot
        found = self._find(slot.models, view)
        if slot.state == "unloading" and slot.target is not None and set(found.values()) != {"whole"}:
            needs = list(await self._needs(slot.target))
            left = {kind for ref, kind in found.items() if ref not in needs} <= {"gone"}
            if left and set(self._find(needs, view).values()) == {"whole"} and await self._freed(gpus, view):
                return "seen ready", slot.target, needs
        happened = decide(slot.state, slot.profile, found, freed=await self._freed(gpus, view))
        return happened, slot.profile, slot.models

    async def _freed(self, gpus: GpuReading | None, view: View) -> bool:
        desk, slot = self._desk, self._desk.slot
        if slot.awaits_free is None:
            return True
        free = (gpus or await desk.lookout.gpus()).free
        if free is None or desk.clock.now() - slot.since > GIVEN_UP_S:
            return True
        # A process that ended at once after it began to load may have written only that it unloads.
        come = view.of([ref for ref in await self._needs(slot.target) if ref not in slot.models])
        there = sum((model.size or 0) if model.size_vram is None else model.size_vram for model in come)
        return free + there >= slot.awaits_free - desk.config.settle_tolerance_mb * MB

    async def _needs(self, name: ProfileName | None) -> tuple[ModelRef, ...]:
        """A profile's models; none when it is gone."""
        profile = await self._desk.profile(name)
        known = profile is not None and profile.server in self._desk.servers
        return member(profile, self._desk.servers).needs if profile is not None and known else ()

    def _find(self, refs: Sequence[ModelRef], view: View) -> dict[ModelRef, Presence]:
        desk = self._desk
        now = desk.clock.now()
        return {ref: presence(ref, view.seen, now, allow_partial=desk.config.allow_partial) for ref in refs}

    async def _expire(self, view: View, gpus: GpuReading) -> Sequence[Said]:
        """llama.cpp's server has no keep-alive of its own: what is past its time is unloaded here."""
        desk, before = self._desk, self._desk.slot
        now = desk.clock.now()
        expired = [model for model in view.seen.get("llamacpp") or () if is_stopping(model, now)]
        if not expired:
            return []
        names = ", ".join(model.model for model in expired)
        effects = desk.effects(before.profile or names)
        gone = [model.ref for model in expired]
        if before.state == "ready" and set(gone) & set(before.models):
            stuck = await desk.depart(
                effects, expired, owed(gpus, expired), "unused", profile=before.profile, models=before.models
            )
            await desk.finish()
        else:
            stuck = await effects.unload(expired, owed(gpus, expired), "unused")
        said: list[Said] = [*effects.departed, *desk.changed(before)]
        said += deactivated(before, desk.slot, f"unused for its keep-alive: {names}", gone)
        if stuck is not None:
            said.append(SlotFailed(before.profile, desk.slot.state, stuck.reason))
        return said

    def _vram(self, view: View, gpus: GpuReading) -> list[VramChanged]:
        vram = self.report(view, gpus)
        if not changed(self._told, vram):
            return []
        self._told = vram
        return [VramChanged(vram)]
