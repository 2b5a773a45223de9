"""One activation: everything that can be refused is refused before anything is touched; then the old
models leave, the new ones come, and when they can't, the old profile is put back.
"""

from collections.abc import Sequence

import structlog

from actors.base import Origin
from actors.errors import CorruptState, Refused, Transient, Unavailable
from actors.profile.checks import Checks, Grounds
from actors.profile.core import Member
from actors.profile.core_eviction import Plan
from actors.profile.core_profiles import backend_of
from actors.profile.core_settle import awaited, owed, taken
from actors.profile.desk import Desk, Fact, deactivated
from actors.profile.swap import Effects, Trouble
from actors.profile.together import together
from schemas.documents.profile import SlotDocument
from schemas.events.base import Refusal
from schemas.events.index import ServeIndex
from schemas.events.profile import (
    ActivatedIndex,
    ActivateProfile,
    LoadedModel,
    ModelRef,
    ProfileActivated,
    SlotFailed,
)
from schemas.names import IndexName, ProfileName
from schemas.profile import ModelProfile

log = structlog.get_logger("lakehouse.slot")

Said = Fact | Refusal


class Activation:
    """Carries out orders to activate, one at a time."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._checks = Checks(desk)

    async def carry_out(self, command: ActivateProfile, origin: Origin) -> Sequence[Said]:
        desk, began = self._desk, self._desk.clock.monotonic()
        if origin.delivery > 1 and origin.id in desk.slot.done and desk.slot.profile != command.profile:
            return [_overtaken(command.profile, desk.slot)]
        effects = desk.effects(command.profile)
        async with together() as group:
            asked = group.create_task(desk.profile(command.profile))
            group.create_task(effects.look({ref.server for ref in desk.slot.models}))
        profile = asked.result()
        if profile is None:
            return [Refusal("not_found", f"there is no profile {command.profile!r}", "lakehouse profile list")]
        desk.doubt()
        grounds = await self._checks.examine(profile, effects)
        if isinstance(grounds, Refusal):
            return [grounds]
        made = False
        if profile.bucket is not None:
            try:
                made = await desk.buckets.provision(profile.bucket)
            except ValueError as error:
                return [Refusal("invalid", str(error), "set storage.profile_root in lakehouse.toml")]
        order = _Order(desk, effects, profile, grounds, origin)
        failed = await order.swap()
        if failed is not None:
            return failed
        desk.store.note(effects.measured, origin)
        async with together() as group:
            saving = group.create_task(desk.finish())
            serving = [group.create_task(self._serve(index, profile, origin)) for index in profile.indexes]
        plan, before = grounds.plan, order.before
        activated = ProfileActivated(
            profile=profile.id,
            previous=before.profile if before.profile != profile.id else None,
            models=effects.view.of(grounds.target.needs),
            loaded=list(plan.load),
            unloaded=[model.ref for model in plan.evict],
            kept=list(plan.keep),
            indexes=[task.result() for task in serving],
            bucket_made=made,
            took_ms=(desk.clock.monotonic() - began) * 1000,
            servers_ms=effects.watch.seconds * 1000,
        )
        gone = deactivated(before, desk.slot, f"replaced by {profile.id}", activated.unloaded)
        return desk.say([*effects.facts, *desk.changed(before), *gone, activated], saving.result(), ProfileActivated)

    async def _serve(self, index: IndexName, profile: ModelProfile, origin: Origin) -> ActivatedIndex:
        """What the index is to serve now; a failure is a reason, the models are in memory anyway."""
        try:
            asked = ServeIndex(index, profile.hnsw, backend_of(profile))
            served = await self._desk.bus.ask(asked, cause=origin)
        except Refused as error:
            return ActivatedIndex(index, None, 0, reason=error.refusal.reason)
        except Unavailable as error:
            return ActivatedIndex(index, None, 0, reason=str(error))
        return ActivatedIndex(index, served.config, served.generation, served.building)


class _Order:
    """The swap of one activation."""

    def __init__(self, desk: Desk, effects: Effects, profile: ModelProfile, grounds: Grounds, origin: Origin) -> None:
        self._desk = desk
        self._effects = effects
        self._profile = profile
        self._target: Member = grounds.target
        self._plan: Plan = grounds.plan
        self._grounds = grounds
        self._origin = origin
        self.before = desk.slot

    async def swap(self) -> Sequence[Said] | None:
        """None when the target's models are in memory and seen so; else what is to be said instead."""
        desk, plan, before = self._desk, self._plan, self.before
        if plan.evict or before.awaits_free is not None or before.state == "unknown":
            doubtful = before.models if before.profile is not None else [model.ref for model in plan.evict]
            listed = {model.ref for model in self._grounds.view.running}
            unlisted = any(model.ref not in listed for model in plan.evict)
            stuck = await desk.depart(
                self._effects,
                plan.evict,
                owed(self._grounds.gpus, plan.evict, unlisted=unlisted),
                f"profile {self._profile.id}",
                profile=before.profile,
                models=doubtful,
                target=self._profile.id,
            )
            if stuck is not None:
                desk.store.note([], self._origin)
                failed = SlotFailed(self._profile.id, "unknown", stuck.reason)
                said = [*self._effects.facts, *desk.changed(before), failed, desk.stuck(stuck)]
                return await desk.conclude(said, ProfileActivated)
        self._effects.baseline = self._effects.baseline or self._grounds.gpus
        trouble = await self._come(self._profile, list(self._target.needs), plan.load, self._renewals())
        if trouble is None:
            return None
        return await self._put_back(trouble)

    async def _come(
        self, profile: ModelProfile | None, needs: list[ModelRef], load: Sequence[ModelRef], renew: Sequence[ModelRef]
    ) -> Trouble | None:
        """Through `loading` to `ready`; on failure the slot is left `loading`."""
        desk, name = self._desk, self._profile.id if profile is self._profile else self.before.profile
        desk.store.happen("load begun", profile=name, models=needs)
        effect = self._effects.load(load, renew, needs, desk.terms(profile, f"profile {name}"))
        # Nothing to load is done in no time: the answer's save is the only one then.
        trouble = await (desk.announcing(effect) if load else effect)
        if trouble is None:
            desk.store.happen("loaded", profile=name, models=needs)
        elif self.before.state not in ("ready", "empty"):
            self._effects.touched += renew  # listed, in doubt before, and still: they leave with the others
        return trouble

    def _renewals(self) -> list[ModelRef]:
        """Models that are there, but whose keep-alive or adapters are another profile's, or that this
        slot hasn't seen loaded: a server may list a model that it still loads."""
        terms = self._desk.terms(self._profile, "")
        kept = self._grounds.view.of(self._plan.keep)
        forever = terms.keep_alive_s == float("inf")
        return [
            model.ref
            for model in kept
            if not (forever and model.expires_at is None)
            or self.before.state != "ready"
            or model.ref not in self.before.models
            or (model.ref == terms.adapted and model.server == "llamacpp")  # what scales it has isn't known
        ]

    async def _put_back(self, trouble: Trouble) -> Sequence[Said]:
        """The target's models leave again and the old profile's come back."""
        desk, before = self._desk, self.before
        name = self._profile.id
        old = before.profile if before.state == "ready" else None
        stuck = await self._withdraw(trouble, name, list(self._target.needs), old)
        restored, why = None, "nothing was in the slot before"
        if stuck is not None:
            why = stuck.reason
        elif old is not None:
            restored, why = await self._restore(old)
        desk.store.note(self._effects.measured, self._origin)
        told = [
            *self._effects.facts,
            *desk.changed(before),
            *deactivated(before, desk.slot, f"replaced by {name}, which failed"),
            SlotFailed(name, desk.slot.state, trouble.reason, restored),
        ]
        where = f"profile {restored!r} is back" if restored else f"the slot is {desk.slot.state}: {why}"
        refusal = trouble.refusal(f"profile {name!r}: {trouble.reason}; {where}")
        return await desk.conclude([*told, refusal], ProfileActivated)

    async def _restore(self, old: ProfileName) -> tuple[ProfileName | None, str]:
        """The old profile's models, those that it really had: its document may have changed since."""
        desk, refs = self._desk, self.before.models
        try:
            profile = await desk.profile(old)
        except (Transient, Unavailable, CorruptState) as error:  # its models can be put back without it
            log.warning("a profile is put back without its document", profile=old, reason=str(error))
            profile = None
        view = await self._effects.look({ref.server for ref in refs})
        found = self._effects.presences(refs, view)
        missing = [ref for ref in refs if found[ref] != "whole"]
        altered = [ref for ref in refs if ref in self._effects.renewed and ref not in missing]
        trouble = await self._come(profile, refs, missing, altered)
        if trouble is None:
            return old, ""
        stuck = await self._withdraw(trouble, old, refs, None)
        return None, f"profile {old!r} could not be put back: {(stuck or trouble).reason}"

    async def _withdraw(
        self, trouble: Trouble, name: ProfileName, needs: list[ModelRef], target: ProfileName | None
    ) -> Trouble | None:
        """What was loaded in vain leaves: `loading` through `unloading` to `empty`, or `unknown`."""
        desk, effects = self._desk, self._effects
        touched, effects.touched = list(dict.fromkeys(effects.touched)), []
        view, gpus = await effects.both({ref.server for ref in touched})
        listed = {model.ref: model for model in view.of(touched)}
        leaving: list[LoadedModel] = [
            listed.get(ref) or LoadedModel(ref.server, ref.model)
            for ref in touched  # a load may go on unlisted
        ]
        debt = taken(effects.baseline, gpus, leaving)
        awaits = awaited(debt)  # also for whoever finds the slot like this: what isn't listed may still hold memory
        desk.store.happen(
            "load failed", profile=name, models=needs, target=target, reason=trouble.reason, awaits_free=awaits
        )
        stuck = await desk.announcing(effects.unload(leaving, debt, "could not be used"))
        if stuck is not None:
            awaits = effects.awaited(debt)
            desk.store.happen("unload stuck", profile=name, models=needs, reason=stuck.reason, awaits_free=awaits)
        else:
            desk.store.happen("unloaded", profile=None, models=[])
        return stuck


def _overtaken(profile: ProfileName, slot: SlotDocument) -> Refusal:
    return Refusal(
        "conflict",
        f"this activation of {profile!r} was carried out, and since then the slot is {slot.state}"
        + (f" with {slot.profile}" if slot.profile else ""),
        f"lakehouse profile activate {profile}",
    )
