"""Brings the slot back in line with what the model servers report. A change is believed when two
looks, further apart than a server's list lags, say the same.
"""

from collections.abc import Sequence

import anyio

from actors.errors import CorruptState, Transient, Unavailable
from actors.profile.core import Happened, member
from actors.profile.core_eviction import unshared
from actors.profile.core_reconcile import GIVEN_UP_S, Presence, decide, holder, is_stopping, presence, why
from actors.profile.core_settle import owed
from actors.profile.core_vram import changed, report
from actors.profile.desk import MB, Desk, Fact, deactivated
from actors.profile.look import BELIEVED_S, LAG_S, LOOK_S, View
from schemas.documents.profile import ProfileDocument, SlotDocument
from schemas.events.profile import (
    GpuReading,
    LoadedModel,
    ModelRef,
    SlotChanged,
    SlotFailed,
    SlotInfo,
    VramChanged,
    VramReport,
)
from schemas.names import ProfileName, ServerName

AGAIN_S = LAG_S
"""Between two looks."""

SURE_S = 10.0
"""How long a model that is listed may take to answer that it is loaded."""


class Reconciler:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._told: VramReport | None = None

    async def begin(self, damaged: str) -> Sequence[Fact]:
        """The slot as the last process left it, by what the servers list. `damaged`: why its document couldn't be
        read; then it is `unknown` until the next round."""
        desk, slot = self._desk, self._desk.slot
        if damaged:
            return [SlotChanged(desk.info(), "unknown"), SlotFailed(None, slot.state, slot.reason)]
        if slot.state == "empty":
            return []
        turns = desk.line.turns
        return await self._resolve(await desk.lookout.look(needed=self._servers()), None, turns)

    async def reconcile(self) -> Sequence[Fact | VramChanged]:
        """One round, when no order is under way. Looking holds nobody up: what has happened is acted upon in a
        turn of its own, unless somebody else had one since. No server is contacted for a slot that nobody uses."""
        desk, line = self._desk, self._desk.line
        if line.taken:
            return []
        if await desk.store.announce() and desk.unsaid:  # what an order could not save, nor say
            return desk.late()
        if not await self._used():
            return []
        turns = line.turns
        view, gpus = await desk.lookout.both(within_s=LOOK_S, needed=self._servers())
        said = await self._expire(view, gpus, turns) or await self._resolve(view, gpus, turns)
        if said:
            view, gpus = await desk.lookout.both(within_s=LOOK_S, needed=self._servers())
        elif not line.still(turns):
            return []
        return [*said, *self._vram(view, gpus)]

    def report(self, view: View, gpus: GpuReading) -> VramReport:
        desk = self._desk
        return report(gpus, desk.lookout.reports(view), self.seen(view), desk.clock.now())

    def seen(self, view: View) -> SlotInfo:
        """The slot as one look shows it; nothing is changed by it."""
        desk, info = self._desk, self._desk.info(view)
        if desk.slot.state not in ("ready", "unknown") or not desk.slot.models:
            return info
        found = self._find(desk.slot.models, view)
        kinds, reason = set(found.values()), why(found, view.seen, view.reasons)
        if desk.slot.state == "ready" and kinds == {"whole"}:
            return info
        if desk.slot.state == "unknown" and "unseen" not in kinds:
            if desk.slot.awaits_free is not None:
                return info  # lists say nothing about the memory that it waits for
            now = "its models are listed" if kinds == {"whole"} else reason
            reason = info.reason if now in info.reason else f"{info.reason}; now {now}"
        return SlotInfo("unknown", info.profile, info.target, info.since, reason, info.models, info.waiting)

    async def _resolve(self, view: View, gpus: GpuReading | None, turns: int) -> Sequence[Fact]:
        """What has happened to the slot since, by this look and another."""
        desk, before = self._desk, self._desk.slot
        judged = await self._judge(view, gpus)
        happened, profile, models = judged
        if happened is None:
            return []
        await desk.clock.sleep(AGAIN_S)
        servers = set(desk.servers) if _lost(before) else {ref.server for ref in (*models, *before.models)}
        view = await desk.lookout.look(servers)
        again = await self._judge(view, None)
        if again[0] != happened or (_lost(before) and again != judged):
            if before.state in ("ready", "unknown"):
                return []
            happened, profile, models = "in doubt", before.profile, before.models
        if not desk.line.still(turns):
            return []  # an order that came meanwhile has looked for itself
        async with desk.line.turn(_named(happened, profile)):
            return await self._act(happened, profile, models, view)

    async def _act(
        self, happened: Happened, profile: ProfileName | None, models: list[ModelRef], view: View
    ) -> Sequence[Fact]:
        before = self._desk.slot
        reason = why(self._find(models, view), view.seen, view.reasons)
        if happened in ("model lost", "seen empty"):
            return await self._clear(view, reason or "its models are gone")
        if happened == "seen ready" and (doubt := await self._doubt(profile, models)):
            if before.state == "unknown":
                return []
            happened, profile, models, reason = "in doubt", before.profile, before.models, doubt
        return await self._accept(happened, profile, models, reason)

    async def _clear(self, view: View, reason: str) -> Sequence[Fact]:
        """The profile is no longer as it should be: what is left of it leaves, so that an empty slot
        is one. After an order that was cut short everything is told to leave once more: a load may
        go on that no server lists."""
        desk, before = self._desk, self._desk.slot
        try:
            members = await desk.members()
        except (Transient, Unavailable) as error:  # who needs what is left can't be told
            if before.state == "unknown":
                return []
            return await self._accept("in doubt", None, [], f"{reason}; {error}")
        gpus = await desk.lookout.gpus()
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
        said: list[Fact] = [*effects.facts, *desk.changed(before), *deactivated(before, desk.slot, reason)]
        if stuck is not None and before.state != "unknown":
            said.append(SlotFailed(before.profile, desk.slot.state, stuck.reason))
        return await desk.conclude(said)

    async def _doubt(self, name: ProfileName | None, models: Sequence[ModelRef]) -> str:
        """Why listed models may not be in memory: Ollama lists one while it loads, and only answers a
        load, which renews what is there, when it is loaded."""
        desk = self._desk
        try:
            terms = desk.terms(await desk.profile(name), "")
        except (Transient, Unavailable, CorruptState) as error:
            return str(error)
        with anyio.move_on_after(SURE_S):
            trouble = await desk.effects(name or "").load([], models, models, terms)
            return trouble.reason if trouble is not None else ""
        return "its models are listed, and don't answer: they may still be loading"

    async def _accept(
        self, happened: Happened, profile: ProfileName | None, models: list[ModelRef], reason: str
    ) -> Sequence[Fact]:
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
        said: list[Fact] = [*desk.changed(before), *deactivated(before, desk.slot, reason or "its models are gone")]
        if happened == "in doubt":
            said.append(SlotFailed(before.profile, "unknown", desk.slot.reason))
        return await desk.conclude(said)

    async def _judge(
        self, view: View, gpus: GpuReading | None
    ) -> tuple[Happened | None, ProfileName | None, list[ModelRef]]:
        """By one look: what has happened, and whose models it is about. A daemon that ended during a
        swap may find the old profile's models gone and those of the one that it swapped to."""
        slot = self._desk.slot
        if _lost(slot):
            return await self._holder(view)
        found = self._find(slot.models, view)
        if slot.state == "unloading" and slot.target is not None and set(found.values()) != {"whole"}:
            needs = list(await self._needs(slot.target))
            left = {kind for ref, kind in found.items() if ref not in needs} <= {"gone"}
            if left and set(self._find(needs, view).values()) == {"whole"} and await self._freed(gpus, view):
                return "seen ready", slot.target, needs
        happened = decide(slot.state, slot.profile, found, freed=await self._freed(gpus, view))
        return happened, slot.profile, slot.models

    async def _holder(self, view: View) -> tuple[Happened | None, ProfileName | None, list[ModelRef]]:
        """Whose models are in memory, for a slot that has lost its document."""
        desk, slot = self._desk, self._desk.slot
        members = await desk.members()
        needed = {ref.server for each in members for ref in each.needs}
        silent = any(view.seen.get(server) is None for server in needed)
        if silent and desk.clock.now() - slot.since <= BELIEVED_S:
            return None, None, []
        found = holder(members, view.running, desk.clock.now(), allow_partial=desk.config.allow_partial)
        return ("seen ready", found.profile, list(found.needs)) if found is not None else ("seen empty", None, [])

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
        """A profile's models; none when it is gone, or can't be read: then less is known to be free."""
        try:
            profile = await self._desk.profile(name)
        except (Transient, Unavailable, CorruptState):
            return ()
        known = profile is not None and profile.server in self._desk.servers
        return member(profile, self._desk.servers).needs if profile is not None and known else ()

    def _find(self, refs: Sequence[ModelRef], view: View) -> dict[ModelRef, Presence]:
        desk = self._desk
        now = desk.clock.now()
        return {ref: presence(ref, view.seen, now, allow_partial=desk.config.allow_partial) for ref in refs}

    async def _expire(self, view: View, gpus: GpuReading, turns: int) -> Sequence[Fact]:
        """llama.cpp's server has no keep-alive of its own: what is past its time is unloaded here."""
        desk, now = self._desk, self._desk.clock.now()
        expired = [model for model in view.seen.get("llamacpp") or () if is_stopping(model, now)]
        if not expired or not desk.line.still(turns):
            return []
        names = ", ".join(model.model for model in expired)
        async with desk.line.turn(f"unloading {names}, unused for its keep-alive,"):
            return await self._out(expired, gpus, names)

    async def _out(self, expired: Sequence[LoadedModel], gpus: GpuReading, names: str) -> Sequence[Fact]:
        desk, before = self._desk, self._desk.slot
        effects = desk.effects(before.profile or names)
        gone = [model.ref for model in expired]
        debt = owed(gpus, expired)
        if before.state == "ready" and set(gone) & set(before.models):
            stuck = await desk.depart(effects, expired, debt, "unused", profile=before.profile, models=before.models)
        else:
            stuck = await effects.unload(expired, debt, "unused")
        said: list[Fact] = [*effects.facts, *desk.changed(before)]
        said += deactivated(before, desk.slot, f"unused for its keep-alive: {names}", gone)
        if stuck is not None:
            said.append(SlotFailed(before.profile, desk.slot.state, stuck.reason))
        return await desk.conclude(said)

    def _servers(self) -> set[ServerName]:
        """That the slot's own models are on."""
        return {ref.server for ref in self._desk.slot.models}

    async def _used(self) -> bool:
        """Whether there is anything to look for: while the registry is away there may be."""
        desk = self._desk
        if desk.slot.state != "empty" or desk.lookout.anything:
            return True
        try:
            return bool(await desk.registry.all(ProfileDocument))
        except (Transient, Unavailable):
            return True

    def _vram(self, view: View, gpus: GpuReading) -> list[VramChanged]:
        vram = self.report(view, gpus)
        if not changed(self._told, vram):
            return []
        self._told = vram
        return [VramChanged(vram)]


def _lost(slot: SlotDocument) -> bool:
    """Its document is gone: what it had isn't known, and it waits for nothing."""
    return slot.state == "unknown" and slot.profile is None and not slot.models and slot.awaits_free is None


def _named(happened: Happened, profile: ProfileName | None) -> str:
    """What is done about it, for those who would have to wait."""
    if happened in ("model lost", "seen empty"):
        return f"unloading what is left of {profile or 'what was unloaded'}"
    if happened == "seen ready":
        return f"making sure that the models of {profile} are loaded"
    return "a comparison with the model servers"
