"""The slot's shell: one order after another, and what is true about the GPU's memory.

    activation.py, unloading.py, preloading.py   the orders; checks.py: what an activation asks first
    reconciler.py                                what has happened when nobody ordered anything
    desk.py, line.py                             what all of those work with, and whose turn it is
    swap.py, unload_watch.py                     effects on the servers, and seeing them come about
    look.py, store.py                            what the servers list; what the document says
    core*.py                                     what is decided, without effects

Profiles as documents, and searches with their rights, are another actor's: profiles.py.
"""

from collections.abc import Mapping, Sequence

from actors.base import Actor, Origin, concurrent, every, handles
from actors.ports import Buckets, Bus, Clock, Gpus, ModelServer, Registry
from actors.profile.activation import Activation
from actors.profile.config import SlotConfig
from actors.profile.desk import Desk, Fact
from actors.profile.preloading import Preloading
from actors.profile.reconciler import Reconciler
from actors.profile.unloading import Unloading
from schemas.events.base import Refusal
from schemas.events.profile import (
    ActivateProfile,
    DeactivateProfile,
    GetSlot,
    GetVram,
    ModelLoaded,
    ModelReport,
    ModelUnloaded,
    PreloadModel,
    SlotInfo,
    UnloadModel,
    VramChanged,
    VramReport,
)
from schemas.names import ServerName

AT_ONCE = 64
"""Orders that wait in line; more stay in the queue."""

VRAM_S = 2.0
"""A report on memory doesn't wait longer for a server: it says that it doesn't answer."""


class VramSlot(Actor):
    """Has the active profile's models in the GPU's memory, on nobody's word but the servers'."""

    role = "control"

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
        self.reconcile_s = config.reconcile_s
        self._desk = Desk(registry, servers, gpus, buckets, bus, clock, config)
        self._reconciler = Reconciler(self._desk)
        self._activation = Activation(self._desk)
        self._unloading = Unloading(self._desk)
        self._preloading = Preloading(self._desk)
        self._line = self._desk.line

    async def start(self) -> Sequence[Fact]:
        """Finds the slot as the last process left it, by what the servers list."""
        self._desk.unsaid.clear()  # a start that failed is tried again from what is stored
        return await self._reconciler.begin(await self._desk.store.open())

    @handles
    @concurrent(AT_ONCE)
    async def on_activate(self, command: ActivateProfile, origin: Origin) -> Sequence[Fact | Refusal]:
        if not command.wait and self._line.taken:
            return [self._line.busy()]
        async with self._line.turn(f"the activation of {command.profile}"):
            return await self._activation.carry_out(command, origin)

    @handles
    @concurrent(AT_ONCE)
    async def on_deactivate(self, command: DeactivateProfile, origin: Origin) -> Sequence[Fact | SlotInfo | Refusal]:
        if not command.wait and self._line.taken:
            return [self._line.busy()]
        async with self._line.turn(f"the deactivation of {command.profile}"):
            return await self._unloading.deactivate(command, origin)

    @handles
    @concurrent(AT_ONCE)
    async def on_preload(self, command: PreloadModel) -> Sequence[ModelReport | ModelLoaded | ModelUnloaded | Refusal]:
        async with self._line.turn(f"preloading {command.model}"):
            return await self._preloading.carry_out(command)

    @handles
    @concurrent(AT_ONCE)
    async def on_unload(self, command: UnloadModel, origin: Origin) -> Sequence[Fact | ModelReport | Refusal]:
        async with self._line.turn(f"unloading {command.model}"):
            return await self._unloading.unload(command, origin)

    @handles
    @concurrent(AT_ONCE)
    async def on_get(self, query: GetSlot) -> Sequence[SlotInfo]:
        """While an order runs, the slot is what the order has made of it so far."""
        servers = {ref.server for ref in self._desk.slot.models}
        if query.look and servers and self._desk.slot.state in ("ready", "unknown"):
            view = await self._desk.lookout.look(servers, VRAM_S)
            return [self._reconciler.seen(view)]
        return [self._desk.info()]

    @handles
    @concurrent(AT_ONCE)
    async def on_vram(self, query: GetVram) -> Sequence[VramReport]:
        return [self._reconciler.report(*await self._desk.lookout.both(within_s=VRAM_S))]

    @every("reconcile_s")
    async def reconcile(
        self,
    ) -> Sequence[Fact | VramChanged]:
        return await self._reconciler.reconcile()
