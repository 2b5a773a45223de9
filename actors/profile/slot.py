"""The slot's shell: one order after another, and what is true about the GPU.

Which models leave and what a report means is decided in the cores; unloading, loading and looking
are in swap.py and look.py; the document is kept by store.py.
"""

from collections.abc import Mapping, Sequence

from actors.base import Actor, Origin, concurrent, every, handles
from actors.ports import Buckets, Bus, Clock, Gpus, ModelServer, Registry
from actors.profile.config import SlotConfig
from schemas.events.base import Message, Refusal
from schemas.events.profile import (
    ActivateProfile,
    DeactivateProfile,
    GetSlot,
    GetVram,
    ModelLoaded,
    ModelReport,
    ModelUnloaded,
    PreloadModel,
    ProfileActivated,
    ProfileDeactivated,
    SlotChanged,
    SlotFailed,
    SlotInfo,
    UnloadModel,
    VramChanged,
    VramReport,
)
from schemas.names import ServerName

AT_ONCE = 64


class VramSlot(Actor):
    """Has the active profile's models in the GPU's memory, and nobody's word for it but the servers'."""

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

    async def start(self) -> Sequence[Message]:
        raise NotImplementedError

    @handles
    @concurrent(AT_ONCE)
    async def on_activate(
        self, command: ActivateProfile, origin: Origin
    ) -> Sequence[
        ProfileActivated | ProfileDeactivated | ModelLoaded | ModelUnloaded | SlotChanged | SlotFailed | Refusal
    ]:
        raise NotImplementedError

    @handles
    @concurrent(AT_ONCE)
    async def on_deactivate(
        self, command: DeactivateProfile, origin: Origin
    ) -> Sequence[ProfileDeactivated | SlotInfo | ModelUnloaded | SlotChanged | SlotFailed | Refusal]:
        raise NotImplementedError

    @handles
    @concurrent(AT_ONCE)
    async def on_preload(
        self, command: PreloadModel, origin: Origin
    ) -> Sequence[ModelReport | ModelLoaded | SlotFailed | Refusal]:
        raise NotImplementedError

    @handles
    @concurrent(AT_ONCE)
    async def on_unload(
        self, command: UnloadModel, origin: Origin
    ) -> Sequence[ModelReport | ModelUnloaded | ProfileDeactivated | SlotChanged | SlotFailed | Refusal]:
        raise NotImplementedError

    @handles
    @concurrent(AT_ONCE)
    async def on_get(self, query: GetSlot) -> Sequence[SlotInfo]:
        raise NotImplementedError

    @handles
    @concurrent(AT_ONCE)
    async def on_vram(self, query: GetVram) -> Sequence[VramReport]:
        raise NotImplementedError

    @every("reconcile_s")
    async def reconcile(
        self,
    ) -> Sequence[VramChanged | SlotChanged | SlotFailed | ProfileDeactivated | ModelUnloaded]:
        raise NotImplementedError
