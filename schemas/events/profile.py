"""Model profiles and the slot: who has the GPU, what is in its memory, and how that changed.

Profiles (control) keeps the documents and answers scoped searches; the slot (control) loads and
unloads models, one activation after another, and compares what it believes with what the model
servers report.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.codec import ArtifactName
from schemas.config import IndexConfig
from schemas.events.base import Event, Query, Reply, Request
from schemas.events.index import SearchMode, SearchResult
from schemas.names import (
    Backend,
    Bytes,
    IndexName,
    KeepAlive,
    ModelName,
    ProfileName,
    Seconds,
    ServerName,
    Timestamp,
)
from schemas.profile import ModelProfile

SlotState = Literal["empty", "loading", "ready", "unloading", "unknown"]


class ModelRef(msgspec.Struct, frozen=True, order=True):
    """A model at a server, by the server's full name for it (`llama3:latest`)."""

    server: ServerName
    model: ModelName

    def __str__(self) -> str:
        return f"{self.server}/{self.model}"


class LoadedModel(msgspec.Struct, frozen=True):
    """A model in memory, as its server reports it. None where the server doesn't say."""

    server: ServerName
    model: ModelName
    size: Bytes | None = None  # in all
    size_vram: Bytes | None = None  # of it on the GPU
    expires_at: Timestamp | None = None  # leaves when unused until then; None: stays
    context_length: int | None = None
    fixed: bool = False  # its server can't unload it: it leaves when the server ends

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.server, self.model)


# --- profiles -----------------------------------------------------------------------------------


class ProfileInfo(Reply, tag="profile.info"):
    profile: ModelProfile
    active: bool
    created: Timestamp
    changed: Timestamp
    codec: ArtifactName | None = None  # the certified artifact that its model is to be served from


class ProfileList(Reply, tag="profile.list"):
    profiles: list[ProfileInfo]


class CreateProfile(Request[ProfileInfo], tag="profile.create"):
    """Refused (conflict) when there is one of that id."""

    profile: ModelProfile


class ReplaceProfile(Request[ProfileInfo], tag="profile.replace"):
    """The active profile keeps its model, server and embedder; the rest holds from the next
    activation on."""

    profile: ModelProfile


class DeleteProfile(Request["ProfileDeleted"], tag="profile.delete"):
    """Refused (conflict) while it is active. Its bucket and indexes stay."""

    profile: ProfileName


class GetProfile(Query[ProfileInfo], tag="profile.get"):
    profile: ProfileName


class ListProfiles(Query[ProfileList], tag="profile.list_all"):
    pass


class ProfileSaved(Event, tag="profile.saved"):
    profile: ModelProfile
    created: bool


class ProfileDeleted(Event, tag="profile.deleted"):
    profile: ProfileName


class SearchProfile(Query[SearchResult], tag="profile.search"):
    """A search with a profile's rights. Refused (forbidden) on an index that isn't the profile's,
    (conflict) when it takes the profile's embedding model and the profile isn't active, (invalid) on
    another backend than the profile's."""

    profile: ProfileName
    index: IndexName | None = None  # may be left out when the profile has one
    text: str | None = None
    vector: list[float] | None = None
    vectors: list[list[float]] | None = None
    k: Annotated[int, Meta(ge=1, le=1000)] = 10
    ef_search: Annotated[int, Meta(ge=1, le=4000)] | None = None
    filter: str | None = None
    columns: list[str] | None = None
    explain: bool = False
    mode: SearchMode = "vector"
    backend: Backend | None = None  # the profile's, where it has one; another one is refused
    nprobes: Annotated[int, Meta(ge=1, le=32_768)] | None = None
    refine_factor: Annotated[int, Meta(ge=1, le=100)] | None = None
    version: int | None = None


# --- the slot -----------------------------------------------------------------------------------


class SlotInfo(Reply, tag="slot.info"):
    """The slot, for programs and consoles."""

    state: SlotState
    profile: ProfileName | None
    target: ProfileName | None  # what it unloads for
    since: Timestamp
    reason: str = ""
    models: list[LoadedModel] = []  # the profile's, as far as they are in memory
    waiting: int = 0  # orders in line behind the one that runs


class GetSlot(Query[SlotInfo], tag="slot.get"):
    look: bool = False  # ask the model servers first, so that `ready` was true a moment ago


class SlotChanged(Event, tag="slot.changed"):
    """The slot is in another state, or another profile holds it."""

    slot: SlotInfo
    before: SlotState


class SlotFailed(Event, tag="slot.failed"):
    """A swap went wrong, or the truth about the GPU can't be established."""

    profile: ProfileName | None  # that was to be loaded or unloaded
    state: SlotState  # what the slot is now
    reason: str
    restored: ProfileName | None = None  # the profile that was put back


class ModelLoaded(Event, tag="model.loaded"):
    """In memory, and checked: the server lists it."""

    server: ServerName
    model: ModelName
    size: Bytes | None
    size_vram: Bytes | None
    load_s: Seconds
    reason: str  # "profile coder", "preload" …


class ModelUnloaded(Event, tag="model.unloaded"):
    """Out of memory, and checked: the server lists it no longer and free memory has settled."""

    server: ServerName
    model: ModelName
    freed: Bytes | None  # by the GPU's own reading; None where it can't be read
    unload_s: Seconds
    reason: str


class ActivatedIndex(msgspec.Struct, frozen=True):
    """Where an index of the profile stands."""

    index: IndexName
    config: IndexConfig | None  # that it is to serve
    generation: int  # that serves it; 0: none yet
    building: int | None = None  # generation ordered, swapped in when it is built
    reason: str = ""  # why it couldn't be said


class ProfileActivated(Event, tag="profile.activated"):
    """The profile's models are in memory and it holds the slot."""

    profile: ProfileName
    previous: ProfileName | None
    models: list[LoadedModel]
    loaded: list[ModelRef] = []  # for it
    unloaded: list[ModelRef] = []  # for it
    kept: list[ModelRef] = []  # of its models, those that were there already
    indexes: list[ActivatedIndex] = []
    bucket_made: bool = False
    took_ms: float = 0.0
    servers_ms: float = 0.0  # of that, spent waiting for model servers and for memory to settle


class ProfileDeactivated(Event, tag="profile.deactivated"):
    """The profile no longer holds the slot."""

    profile: ProfileName
    reason: str  # "asked", "replaced by coder", "its model left the memory …"
    unloaded: list[ModelRef] = []


class ActivateProfile(Request[ProfileActivated], tag="profile.activate"):
    """Put the profile's models into the GPU's memory. Orders are carried out one after another.

    Refused: not_found (profile, index or model), invalid (can't fit: the arithmetic; nothing was
    unloaded), conflict (busy and not `wait`; loaded but not wholly on the GPU: the old profile
    is restored), unavailable (server away)."""

    profile: ProfileName
    wait: bool = True


class DeactivateProfile(Request[ProfileDeactivated | SlotInfo], tag="profile.deactivate"):
    """Take the profile's models out of memory. A profile that isn't active stays so: the answer
    is the slot."""

    profile: ProfileName
    wait: bool = True


# --- models and memory --------------------------------------------------------------------------


class ModelReport(Reply, tag="model.report"):
    """What was done about one model. `changed` is False when there was nothing to do."""

    server: ServerName
    model: ModelName
    loaded: bool
    changed: bool
    size: Bytes | None = None
    size_vram: Bytes | None = None
    expires_at: Timestamp | None = None
    took_ms: float = 0.0
    deactivated: ProfileName | None = None  # that needed it, and held the slot


class PreloadModel(Request[ModelReport], tag="model.preload"):
    """Load a model beside what is there. Never evicts: refused when it doesn't fit or when an
    exclusive profile is active."""

    model: ModelName
    keep_alive: KeepAlive = "5m"
    server: ServerName | None = None  # default: the one that has the model


class UnloadModel(Request[ModelReport], tag="model.unload"):
    """Take a model out of memory. The profile that needs it is deactivated."""

    model: ModelName
    server: ServerName | None = None


class GpuProcess(msgspec.Struct, frozen=True):
    pid: int
    name: str  # empty where it can't be read
    used: Bytes | None


class Gpu(msgspec.Struct, frozen=True):
    index: int
    name: str
    uuid: str
    total: Bytes
    used: Bytes
    free: Bytes
    processes: list[GpuProcess] | None = None  # None where they can't be read


class GpuReading(msgspec.Struct, frozen=True):
    """The GPUs of this machine at a moment. Without any, `reason` says why."""

    gpus: list[Gpu]
    source: Literal["nvml", "nvidia-smi", "none"]
    reason: str = ""

    @property
    def free(self) -> Bytes | None:
        """Over all GPUs; None where nothing can be read."""
        return sum(gpu.free for gpu in self.gpus) if self.gpus else None

    @property
    def used(self) -> Bytes | None:
        return sum(gpu.used for gpu in self.gpus) if self.gpus else None

    @property
    def total(self) -> Bytes | None:
        return sum(gpu.total for gpu in self.gpus) if self.gpus else None


class ServerReport(msgspec.Struct, frozen=True):
    """A model server and what it has in memory."""

    server: ServerName
    url: str
    reachable: bool
    reason: str = ""  # why it isn't
    models: list[LoadedModel] = []


class VramReport(Reply, tag="vram.report"):
    """The GPU's memory: what the driver says, joined with what the model servers say."""

    gpus: list[Gpu]
    source: Literal["nvml", "nvidia-smi", "none"]
    reason: str  # why there are no GPUs
    servers: list[ServerReport]
    slot: SlotInfo
    time: Timestamp
    total: Bytes | None
    used: Bytes | None
    free: Bytes | None
    accounted: Bytes  # on the GPU by the servers' reports
    unaccounted: Bytes | None  # used and in no report: other programs, contexts, leaks


class GetVram(Query[VramReport], tag="vram.get"):
    pass


class VramChanged(Event, tag="vram.changed"):
    """Another model is loaded, or the used memory moved by more than the reading's noise."""

    vram: VramReport
