"""What is asked before an activation touches anything: does everything exist that the profile names,
do its servers answer and know its models, and is there room.
"""

from collections.abc import Sequence

import msgspec
import structlog

from actors.errors import ModelServerError, Transient, Unavailable
from actors.profile.core import Member, embedder_ref, member
from actors.profile.core_eviction import Memory, Plan, known_sizes, plan
from actors.profile.core_profiles import check_adapters
from actors.profile.core_reconcile import find
from actors.profile.desk import Desk
from actors.profile.look import View
from actors.profile.swap import UNREAD, Effects, unknown_hint
from actors.profile.together import together
from schemas.documents.index import IndexDocument
from schemas.events.base import Refusal
from schemas.events.profile import GpuReading, LoadedModel, ModelRef
from schemas.names import Bytes, IndexName
from schemas.profile import ModelProfile

log = structlog.get_logger("lakehouse.slot")


class Grounds(msgspec.Struct, frozen=True):
    """What an activation that wasn't refused goes by."""

    target: Member
    plan: Plan
    view: View
    gpus: GpuReading


class Checks:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def examine(self, profile: ModelProfile, effects: Effects) -> Grounds | Refusal:
        """The plan, or why not. `effects.view` is a fresh look. Raises Transient when the registry is away."""
        desk = self._desk
        if profile.server not in desk.servers:
            return Refusal("unavailable", f"no server {profile.server} is configured", "see [models] in lakehouse.toml")
        target = member(profile, desk.servers)
        view = await effects.insist({ref.server for ref in target.needs})
        silent = desk.silent(view, target.needs) or desk.withheld(view) or self._holding(target, view)
        if silent is not None:
            return silent
        if unserved := check_adapters(profile):
            return unserved
        now = desk.clock.now()
        found = effects.presences(target.needs, view)
        missing = [ref for ref in target.needs if found[ref] != "whole"]
        others = [model for model in view.running if model.ref not in target.needs]
        others += [model for model in desk.lookout.recent(view) if model.ref not in target.needs]
        doubtful = [*missing, *others] or desk.slot.awaits_free is not None
        async with together() as group:
            indexes = [group.create_task(self._index(name, profile, target)) for name in profile.indexes]
            sizing = [group.create_task(self._size(ref, effects)) for ref in missing]
            reading = group.create_task(self._gpus(effects)) if doubtful else None
            listing = group.create_task(desk.members()) if others else None
        sizes = dict(zip(missing, (task.result() for task in sizing), strict=True))
        for refusal in [*(task.result() for task in indexes), *sizes.values()]:
            if isinstance(refusal, Refusal):
                return refusal
        gpus = reading.result() if reading is not None else UNREAD
        told = {ref: size for ref, size in sizes.items() if not isinstance(size, Refusal)}
        memory = Memory(gpus.free, desk.headroom, known_sizes(told, desk.store.sizes), desk.store.load_s)
        decided = plan(
            target,
            [*view.of(target.needs), *others],
            listing.result() if listing is not None else [target],
            desk.slot.profile,
            memory,
            now,
            allow_partial=desk.config.allow_partial,
        )
        if isinstance(decided, Refusal):
            return decided
        if decided.blind:
            log.info("loading without knowing that it fits", why=decided.blind, gpus=gpus.reason)
        if desk.slot.state == "unknown":
            ended = desk.lookout.ended(view)
            decided = _doubts_leave(decided, [ref for ref in desk.slot.models if ref.server not in ended], view)
        return Grounds(target, decided, view, gpus)

    def _holding(self, target: Member, view: View) -> Refusal | None:
        """A silent server, which the target doesn't need, that had models a moment ago."""
        for server, models in view.seen.items():
            held = self._desk.lookout.may_hold(server) if models is None else ()
            if held:
                return Refusal(
                    "unavailable",
                    f"{view.reasons[server]}; it had {held[0].model} in memory when it last answered",
                    f"see that {server} runs, or wait a minute when it was ended on purpose",
                    retry_after_s=self._desk.config.reconcile_s,
                )
        return None

    async def _index(self, name: IndexName, profile: ModelProfile, target: Member) -> Refusal | None:
        found = await self._desk.registry.load(IndexDocument, name)
        if found is None:
            return Refusal(
                "not_found", f"profile {profile.id!r} names index {name!r}, and there is none", "lakehouse indexes"
            )
        index = found[0]
        embeds = embedder_ref(index.embedder, self._desk.servers)
        if embeds is not None and embeds not in target.needs:
            return Refusal(
                "invalid",
                f"index {name!r} embeds its texts with {embeds}, which profile {profile.id!r} doesn't have in memory",
                f"give the profile the embedder {embeds.model}, or take the index out of it",
            )
        return None

    async def _size(self, ref: ModelRef, effects: Effects) -> Bytes | Refusal | None:
        """What its server says that it takes; None when that isn't told."""
        try:
            with effects.watch:
                return await self._desk.servers[ref.server].size(ref.model)
        except LookupError as error:
            return Refusal("not_found", str(error.args[0]) if error.args else f"no model {ref}", unknown_hint(ref))
        except (Unavailable, ModelServerError) as error:
            return Refusal("unavailable", str(error), f"see that {ref.server} runs")
        except Transient as error:
            return Refusal("unavailable", str(error), retry_after_s=error.delay_s)

    async def _gpus(self, effects: Effects) -> GpuReading:
        with effects.watch:
            return await self._desk.lookout.gpus()


def _doubts_leave(decided: Plan, doubtful: Sequence[ModelRef], view: View) -> Plan:
    """What is in doubt isn't left beside a target, even where there would be room; nor is it believed
    to be gone: what isn't listed may still be loading, and is told to leave once more."""
    settled = {model.ref for model in decided.evict} | set(decided.keep)
    more = [find(ref, view.seen) or LoadedModel(ref.server, ref.model) for ref in doubtful if ref not in settled]
    return Plan((*decided.evict, *more), decided.load, decided.keep, decided.blind)
