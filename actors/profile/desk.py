"""What every order of the slot works with: the document, the looks, the profiles that there are; and
the one way in which models leave while the slot's state tells of it.
"""

from collections.abc import Awaitable, Mapping, Sequence
from math import ceil
from typing import TypeVar

import anyio

from actors.errors import Conflict, Transient, Unavailable
from actors.ports import Buckets, Bus, Clock, Gpus, ModelServer, Registry
from actors.profile.config import SlotConfig
from actors.profile.core import Member, keep_alive_s, member
from actors.profile.core_settle import Owed, awaited
from actors.profile.line import Line
from actors.profile.look import Lookout, View
from actors.profile.store import SlotStore
from actors.profile.swap import Effects, Terms, Trouble
from actors.profile.together import together
from schemas.documents.profile import ProfileDocument, SlotDocument
from schemas.events.base import Message, Refusal
from schemas.events.profile import (
    LoadedModel,
    ModelLoaded,
    ModelRef,
    ModelUnloaded,
    ProfileActivated,
    ProfileDeactivated,
    SlotChanged,
    SlotFailed,
    SlotInfo,
)
from schemas.names import Bytes, ProfileName, ServerName
from schemas.profile import ModelProfile

T = TypeVar("T")
M = TypeVar("M", bound=Message)

Fact = ProfileActivated | ProfileDeactivated | ModelLoaded | ModelUnloaded | SlotChanged | SlotFailed
"""What becomes of the slot, for all who listen."""

MB = 1 << 20
AGAIN_S = 1.0
"""Between two attempts to save what is under way."""

SAVE_S = 5.0
"""A shutdown waits so long for what an order has come to."""


class Desk:
    """Used by one order at a time; looking is free for all."""

    def __init__(
        self,
        registry: Registry,
        servers: Mapping[ServerName, ModelServer],
        gpus: Gpus,
        buckets: Buckets,
        bus: Bus,
        clock: Clock,
        config: SlotConfig,
    ) -> None:
        self.registry = registry
        self.servers = servers
        self.buckets = buckets
        self.bus = bus
        self.clock = clock
        self.config = config
        self.lookout = Lookout(servers, gpus, clock)
        self.store = SlotStore(registry, clock)
        self.line = Line()
        self.unsaid: list[Fact] = []  # of orders that couldn't be saved

    @property
    def slot(self) -> SlotDocument:
        return self.store.document

    @property
    def headroom(self) -> Bytes:
        return self.config.headroom_mb * MB

    def effects(self, about: str) -> Effects:
        return Effects(self.servers, self.lookout, self.bus, self.clock, self.config, about)

    def info(self, view: View | None = None) -> SlotInfo:
        slot = self.slot
        models = self.lookout.last(slot.models) if view is None else view.of(slot.models)
        return SlotInfo(slot.state, slot.profile, slot.target, slot.since, slot.reason, models, self.line.waiting)

    def changed(self, before: SlotDocument) -> list[SlotChanged]:
        """The fact that the slot isn't what it was before an order."""
        after = self.slot
        if (before.state, before.profile) == (after.state, after.profile):
            return []
        return [SlotChanged(self.info(), before.state)]

    def doubt(self) -> None:
        """An order that was cut short has left the slot in the middle of something."""
        slot = self.slot
        if slot.state in ("loading", "unloading"):
            self.store.happen(
                "in doubt",
                profile=slot.profile,
                target=slot.target,
                models=slot.models,
                reason=slot.reason or "an order was cut short",
                awaits_free=slot.awaits_free,
            )

    async def profile(self, name: ProfileName | None) -> ModelProfile | None:
        found = None if name is None else await self.registry.load(ProfileDocument, name)
        return None if found is None else found[0].profile

    async def members(self) -> list[Member]:
        """All profiles whose server is configured."""
        every = [document.profile for _, document, _ in await self.registry.all(ProfileDocument)]
        return [member(each, self.servers) for each in every if each.server in self.servers]

    def terms(self, profile: ModelProfile | None, reason: str) -> Terms:
        """How a profile's models are loaded; those of one that is gone stay for ever, as before."""
        if profile is None:
            return Terms(float("inf"), reason=reason)
        own = member(profile, self.servers).needs[0]
        # Another server's model was merged with them, if with any.
        adapters = profile.adapters if profile.server == "llamacpp" else ()
        return Terms(keep_alive_s(profile.keep_alive), adapters, own, reason)

    def stuck(self, trouble: Trouble) -> Refusal:
        """Models didn't leave: why, and what the slot is because of it."""
        return trouble.refusal(f"{trouble.reason}; the slot is {self.slot.state}")

    def silent(self, view: View, refs: Sequence[ModelRef]) -> Refusal | None:
        """A server that these models are on doesn't answer."""
        for server in dict.fromkeys(ref.server for ref in refs):
            if view.seen.get(server) is None:
                return Refusal(
                    "unavailable",
                    view.reasons.get(server) or f"the model server {server} isn't configured",
                    f"see that {server} runs, and that [models] in lakehouse.toml has its address",
                )
        return None

    def withheld(self, view: View) -> Refusal | None:
        """A server that has models of the slot doesn't answer, and hasn't been away for so long yet that it is taken
        to have ended."""
        ended = self.lookout.ended(view)
        silent = self.silent(view, [ref for ref in self.slot.models if ref.server not in ended])
        if silent is None:
            return None
        left = max((self.lookout.ends_in(ref.server) or 0.0 for ref in self.slot.models), default=0.0)
        if left == 0:
            return silent
        hint = f"{silent.hint}; in {ceil(left)} s it is taken to have ended, and needs no longer be waited for"
        return Refusal(silent.status, silent.reason, hint, left)

    async def announcing(self, effect: Awaitable[T]) -> T:
        """Carry out an effect while what the document says about it is being saved: again and again if need be,
        for whoever finds the slot after a crash can't see a load that no server lists."""
        retrying = anyio.CancelScope()

        async def run() -> T:
            try:
                return await effect
            finally:
                retrying.cancel()

        async def announce() -> None:
            saved = await self.store.announce()
            with retrying:
                while not saved:
                    await self.clock.sleep(AGAIN_S)
                    saved = await self.store.announce()

        async with together() as group:
            result = group.create_task(run())
            group.create_task(announce())
        return result.result()

    async def finish(self) -> Transient | None:
        """Save what an order has come to; or why that can't be done now."""
        with anyio.move_on_after(SAVE_S, shield=True):
            try:
                await self.store.save()
            except Transient as error:
                return error
            except Unavailable as error:
                return Transient(f"the slot is {self.slot.state}, which can't be saved: {error}")
            except Conflict as error:
                return Transient(f"the slot's document is being changed by somebody else: {error}")
            return None
        return Transient(f"the slot is {self.slot.state}, which couldn't be saved within {SAVE_S:g} s")

    def say(self, said: Sequence[M], unsaved: Transient | None, answer: type[Message] | None = None) -> list[M | Fact]:
        """What an order has come to, once it is saved. While it isn't, whoever asked is told so by the error that
        is raised, and the facts wait for the next save, be it a reconcile's. Facts that waited come first, but
        for those of the kind that is the order's own `answer`: they would be taken for it."""
        if unsaved is not None:
            self.unsaid += [each for each in said if isinstance(each, Fact)]
            raise unsaved
        return [*(each for each in self.late() if answer is None or not isinstance(each, answer)), *said]

    async def conclude(self, said: Sequence[M], answer: type[Message] | None = None) -> list[M | Fact]:
        """As `say`, after saving. Raises Transient."""
        return self.say(said, await self.finish(), answer)

    def late(self) -> list[Fact]:
        """What couldn't be said at its time, to be said now."""
        late, self.unsaid = self.unsaid, []
        return late

    async def depart(
        self,
        effects: Effects,
        leaving: Sequence[LoadedModel],
        debt: Owed,
        reason: str,
        *,
        profile: ProfileName | None,
        models: list[ModelRef],
        target: ProfileName | None = None,
        note: str = "",
    ) -> Trouble | None:
        """Through `unloading` to `empty`, or to `unknown`. `profile` and its `models` are what is in
        doubt meanwhile. Whatever an earlier order waits for is waited for too. `note`: what is to be
        known of the empty slot."""
        owes = [amount for amount in (self.slot.awaits_free, awaited(debt)) if amount is not None]
        awaits = max(owes, default=None)
        earlier = self.slot.awaits_free
        self.store.happen("unload begun", profile=profile, target=target, models=models, awaits_free=awaits)
        stuck = await self.announcing(effects.unload(leaving, debt, reason, earlier))
        if stuck is not None:
            owes = [amount for amount in (earlier, effects.awaited(debt)) if amount is not None]
            awaits = max(owes, default=None)
            self.store.happen(
                "unload stuck", profile=profile, target=target, models=models, reason=stuck.reason, awaits_free=awaits
            )
        else:
            self.store.happen("unloaded", profile=None, models=[], reason=note)
        return stuck


def deactivated(
    before: SlotDocument, after: SlotDocument, reason: str, gone: Sequence[ModelRef] = ()
) -> list[ProfileDeactivated]:
    """The fact that the profile which held the slot no longer does."""
    if before.profile is None or before.profile == after.profile or before.state == "empty":
        return []
    return [ProfileDeactivated(before.profile, reason, [ref for ref in before.models if ref in gone])]
