"""Stand-ins for the owners of profiles and of the slot, for tests of the HTTP side. They keep
what they are given in memory and do something checkable; no model server is behind them."""

import asyncio
from collections.abc import Sequence

from actors.base import Actor, handles
from actors.ports import Bus, Clock
from schemas.events.base import Progress, Refusal
from schemas.events.index import Hit, SearchResult
from schemas.events.profile import (
    ActivatedIndex,
    ActivateProfile,
    CreateProfile,
    DeactivateProfile,
    DeleteProfile,
    GetProfile,
    GetSlot,
    GetVram,
    Gpu,
    GpuProcess,
    ListProfiles,
    LoadedModel,
    ModelLoaded,
    ModelReport,
    ModelUnloaded,
    PreloadModel,
    ProfileActivated,
    ProfileDeactivated,
    ProfileDeleted,
    ProfileInfo,
    ProfileList,
    ProfileSaved,
    ReplaceProfile,
    SearchProfile,
    ServerReport,
    SlotChanged,
    SlotInfo,
    SlotState,
    UnloadModel,
    VramChanged,
    VramReport,
)
from schemas.profile import ModelProfile

GIB = 1 << 30
TOTAL = 24 * GIB
SIZE = 5 * GIB
"""Of every model there is, but for those whose name begins with `huge`."""


class Slot(Actor):
    """Answers for the slot: one GPU of 24 GiB, models of 5 GiB, everything at once unless `pace_s`."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self.profiles: dict[str, ModelProfile] = {}
        self.state: SlotState = "empty"
        self.profile: str | None = None
        self.models: dict[str, LoadedModel] = {}
        self.looked: list[bool] = []
        self.busy = False
        self.pace_s = 0.0
        self.gpu = True

    def info(self) -> SlotInfo:
        held = self.profiles[self.profile].model if self.profile else ""
        models = [model for name, model in self.models.items() if name == held]
        return SlotInfo(self.state, self.profile, None, 1_700_000_000.0, models=models)

    def report(self) -> VramReport:
        models = list(self.models.values())
        accounted = sum(model.size_vram or 0 for model in models)
        used = accounted + GIB // 2
        process = GpuProcess(4711, "ollama", used)
        gpus = [Gpu(0, "NVIDIA Test", "GPU-1", TOTAL, used, TOTAL - used, [process])] if self.gpu else []
        servers = [
            ServerReport("ollama", "http://127.0.0.1:11434", True, models=models),
            ServerReport("llamacpp", "http://127.0.0.1:8080", False, "connection refused"),
        ]
        amounts = (TOTAL, used, TOTAL - used) if self.gpu else (None, None, None)
        return VramReport(
            gpus,
            "nvml" if self.gpu else "none",
            "" if self.gpu else "no NVIDIA driver is installed",
            servers,
            self.info(),
            self._clock.now(),
            *amounts,
            accounted,
            used - accounted if self.gpu else None,
        )

    @handles
    async def on_get(self, query: GetSlot) -> Sequence[SlotInfo]:
        self.looked.append(query.look)
        return [self.info()]

    @handles
    async def on_vram(self, query: GetVram) -> Sequence[VramReport]:
        return [self.report()]

    @handles
    async def on_activate(
        self, command: ActivateProfile
    ) -> Sequence[ProfileActivated | ModelLoaded | ModelUnloaded | SlotChanged | VramChanged | Refusal]:
        profile = self.profiles.get(command.profile)
        if profile is None:
            return [Refusal("not_found", f"there is no profile {command.profile}", "lakehouse profile list")]
        if self.busy and not command.wait:
            return [Refusal("conflict", "another order is being carried out", "ask with wait=true")]
        if profile.model.startswith("huge"):
            return [Refusal("invalid", f"{profile.model} needs 80.0 GiB, 24.0 GiB can be had", "a smaller model")]
        if profile.server == "llamacpp":
            return [Refusal("unavailable", "llamacpp is away: connection refused", "[models] llamacpp_url", 2)]
        before, previous = self.state, self.profile
        kept = [model.ref for model in self.models.values() if model.model == profile.model]
        left = [] if kept else list(self.models.values())
        for model in left:
            await self._step(profile.id, f"unload {model.model}")
            del self.models[model.model]
        if not kept:
            await self._step(profile.id, f"load {profile.model}")
            self._load(profile.model, profile.keep_alive)
        self.state, self.profile = "ready", profile.id
        here = self.models[profile.model]
        indexes = [
            ActivatedIndex(name, profile.hnsw, 3, None if number % 2 == 0 else 4)
            for number, name in enumerate(profile.indexes)
        ]
        activated = ProfileActivated(
            profile.id, previous, [here], [] if kept else [here.ref], [model.ref for model in left], kept, indexes,
            took_ms=12.5 + 2000 * self.pace_s, servers_ms=2000 * self.pace_s,
        )  # fmt: skip
        facts: list[ModelLoaded | ModelUnloaded] = [
            ModelUnloaded("ollama", model.model, SIZE, self.pace_s, f"profile {profile.id}") for model in left
        ]
        if not kept:
            facts.append(ModelLoaded("ollama", here.model, SIZE, SIZE, self.pace_s, f"profile {profile.id}"))
        return [*facts, SlotChanged(self.info(), before), VramChanged(self.report()), activated]

    @handles
    async def on_deactivate(
        self, command: DeactivateProfile
    ) -> Sequence[ProfileDeactivated | SlotInfo | SlotChanged | Refusal]:
        if self.busy and not command.wait:
            return [Refusal("conflict", "another order is being carried out", "ask with wait=true")]
        if command.profile != self.profile:
            return [self.info()]
        model = self.models.pop(self.profiles[command.profile].model)
        self.state, self.profile = "empty", None
        return [SlotChanged(self.info(), "ready"), ProfileDeactivated(command.profile, "asked", [model.ref])]

    @handles
    async def on_preload(self, command: PreloadModel) -> Sequence[ModelReport | Refusal]:
        if command.model == "unknown":
            return [Refusal("not_found", "no model server knows unknown", "ollama pull unknown")]
        changed = command.model not in self.models
        if changed:
            await self._step(command.model, f"load {command.model}")
        model = self._load(command.model, command.keep_alive)
        return [ModelReport("ollama", model.model, True, changed, model.size, model.size_vram, model.expires_at, 7.0)]

    @handles
    async def on_unload(self, command: UnloadModel) -> Sequence[ModelReport]:
        gone = self.models.pop(command.model, None)
        return [ModelReport(command.server or "ollama", command.model, False, gone is not None, took_ms=3.0)]

    def _load(self, name: str, keep_alive: str) -> LoadedModel:
        minutes = {"5m": 300.0, "10m": 600.0}.get(keep_alive)
        expires = None if minutes is None else self._clock.now() + minutes
        self.models[name] = LoadedModel("ollama", name, SIZE, SIZE, expires, 4096)
        return self.models[name]

    async def _step(self, about: str, phase: str) -> None:
        await self._bus.signal(Progress("slot", about, phase, 0, 1, "models"))
        await asyncio.sleep(self.pace_s)
        await self._bus.signal(Progress("slot", about, phase, 1, 1, "models"))


class Profiles(Actor):
    """Answers for the profiles, which the slot shares."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.searched: list[SearchProfile] = []

    @handles
    async def on_create(self, command: CreateProfile) -> Sequence[ProfileSaved | ProfileInfo | Refusal]:
        if command.profile.id in self._slot.profiles:
            return [Refusal("conflict", f"there is a profile {command.profile.id} already", "replace it")]
        return self._save(command.profile, created=True)

    @handles
    async def on_replace(self, command: ReplaceProfile) -> Sequence[ProfileSaved | ProfileInfo | Refusal]:
        if command.profile.id not in self._slot.profiles:
            return [self._unknown(command.profile.id)]
        return self._save(command.profile, created=False)

    @handles
    async def on_delete(self, command: DeleteProfile) -> Sequence[ProfileDeleted | Refusal]:
        if command.profile == self._slot.profile:
            return [Refusal("conflict", f"{command.profile} is active", "deactivate it first")]
        if self._slot.profiles.pop(command.profile, None) is None:
            return [self._unknown(command.profile)]
        return [ProfileDeleted(command.profile)]

    @handles
    async def on_get(self, query: GetProfile) -> Sequence[ProfileInfo | Refusal]:
        profile = self._slot.profiles.get(query.profile)
        return [self._info(profile) if profile else self._unknown(query.profile)]

    @handles
    async def on_list(self, query: ListProfiles) -> Sequence[ProfileList]:
        return [ProfileList([self._info(profile) for profile in self._slot.profiles.values()])]

    @handles
    async def on_search(self, query: SearchProfile) -> Sequence[SearchResult | Refusal]:
        profile = self._slot.profiles.get(query.profile)
        if profile is None:
            return [self._unknown(query.profile)]
        index = query.index or profile.indexes[0]
        if index not in profile.indexes:
            return [Refusal("forbidden", f"index {index} isn't {profile.id}'s", f"it has {profile.indexes}")]
        if query.text is not None and self._slot.profile != profile.id:
            return [Refusal("conflict", f"{profile.id} isn't active", f"lakehouse profile activate {profile.id}")]
        self.searched.append(query)
        return [SearchResult(index, 3, [[Hit(f"{profile.id}-{n}", n / 10) for n in range(query.k)]], 9.0)]

    def _save(self, profile: ModelProfile, *, created: bool) -> list[ProfileSaved | ProfileInfo | Refusal]:
        self._slot.profiles[profile.id] = profile
        return [ProfileSaved(profile, created), self._info(profile)]

    def _info(self, profile: ModelProfile) -> ProfileInfo:
        return ProfileInfo(profile, profile.id == self._slot.profile, 1_700_000_000.0, 1_700_000_060.0)

    @staticmethod
    def _unknown(name: str) -> Refusal:
        return Refusal("not_found", f"there is no profile {name}", "lakehouse profile list")
