"""The slot as a state machine, declared as a table; and what a profile needs in memory.

Values in, values out. What leaves for a target is decided in core_eviction.py, what the servers'
reports mean in core_reconcile.py, when memory counts as free in core_settle.py; deploy/slot.md is
drawn from the table (core_diagram.py). Effects are in swap.py, the shell's map in slot.py.
"""

import math
from collections.abc import Collection, Mapping
from typing import Literal, Protocol

import msgspec

from actors.urls import address
from schemas.events.index import EmbedderKind, EmbedderSpec
from schemas.events.profile import LoadedModel, ModelRef, SlotState
from schemas.names import Bytes, GroupName, KeepAlive, ModelName, ProfileName, Seconds, ServerName
from schemas.profile import ModelProfile

SLOT = "gpu"
"""Name of the slot's document: there is one slot."""

Happened = Literal[
    "unload begun", "unloaded", "unload stuck",
    "load begun", "loaded", "load failed",
    "model lost", "in doubt", "seen ready", "seen empty",
]  # fmt: skip

TRANSITIONS: dict[SlotState, dict[Happened, SlotState]] = {
    "empty": {"load begun": "loading", "unload begun": "unloading"},
    "loading": {
        "loaded": "ready", "load failed": "unloading",
        "in doubt": "unknown", "seen ready": "ready", "seen empty": "empty",
    },
    "ready": {
        "load begun": "loading", "unload begun": "unloading",
        "model lost": "empty", "in doubt": "unknown",
    },
    "unloading": {
        "unloaded": "empty", "unload stuck": "unknown",
        "in doubt": "unknown", "seen ready": "ready", "seen empty": "empty",
    },
    "unknown": {"unload begun": "unloading", "seen ready": "ready", "seen empty": "empty"},
}  # fmt: skip
"""What can happen to the slot in each state, and the state that follows. `unknown` is left by what
the servers report, or by unloading what is in doubt: never straight into loading."""

MEANING: dict[Happened, str] = {
    "unload begun": "models are told to leave: for another profile, or because it was asked",
    "unloaded": "no server lists them any more and free memory has settled",
    "unload stuck": "still listed, or their memory isn't free, when the deadline passed",
    "load begun": "the profile's models are being loaded, or those in memory are taken over",
    "loaded": "listed, and on the GPU as a whole",
    "load failed": "refused, too slow, or partly on the CPU: what was loaded leaves again",
    "model lost": "a model of the profile left the memory by itself",
    "in doubt": "a server doesn't answer, or a model is being stopped",
    "seen ready": "all models of the profile were seen whole, twice in a row",
    "seen empty": "models of the profile were seen to be gone, twice in a row, and their memory is free",
}


class Undefined(Exception):
    """Something happened that can't happen in this state: a bug, never a way out."""


def step(state: SlotState, happened: Happened) -> SlotState:
    """The state that follows. Raises Undefined."""
    try:
        return TRANSITIONS[state][happened]
    except KeyError:
        raise Undefined(f"the slot is {state}: {happened!r} can't happen to it") from None


# --- what a profile needs -----------------------------------------------------------------------


class Named(Protocol):
    """What a core may know of a model server."""

    url: str
    default_for: Collection[EmbedderKind]

    def canonical(self, model: ModelName) -> ModelName: ...


class Member(msgspec.Struct, frozen=True):
    """A profile as eviction sees it. `needs[0]` is its own model; whoever has that one in memory
    is resident."""

    profile: ProfileName
    needs: tuple[ModelRef, ...]
    group: GroupName = "default"
    exclusive: bool = True
    persistent: bool = False


def member(profile: ModelProfile, servers: Mapping[ServerName, Named]) -> Member:
    """Raises KeyError when its server isn't among `servers`."""
    needs = [ModelRef(profile.server, servers[profile.server].canonical(profile.model))]
    if profile.embedder is not None:
        embedder = embedder_ref(profile.embedder, servers)
        if embedder is not None and embedder not in needs:
            needs.append(embedder)
    return Member(profile.id, tuple(needs), profile.group, profile.exclusive, profile.persistent)


def embedder_ref(spec: EmbedderSpec, servers: Mapping[ServerName, Named]) -> ModelRef | None:
    """The model that embeds, when the URL that the embedder really uses is one of our servers'; None for the
    lexical embedder and for servers elsewhere. Ollama answers OpenAI's API too."""
    if spec.kind not in ("ollama", "openai") or not spec.model:
        return None
    for name, server in servers.items():
        speaks = spec.kind == "openai" or name == "ollama"
        here = address(spec.url) == address(server.url) if spec.url else spec.kind in server.default_for
        if speaks and here:
            return ModelRef(name, server.canonical(spec.model))
    return None


def keep_alive_s(text: KeepAlive) -> Seconds:
    """Seconds that a model stays unused: `5m` is 300, `-1` inf. Raises ValueError."""
    if text == "-1":
        return math.inf
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if unit is None or not text[:-1].isdecimal():
        raise ValueError(f"{text!r} is no keep-alive: give 30s, 5m, 2h or -1")
    return float(int(text[:-1]) * unit)


# --- words --------------------------------------------------------------------------------------


def gib(size: Bytes) -> str:
    """`5.2 GiB`; less than one in MiB, `256 MiB`, so that sums add up for who reads them."""
    return f"{size / 2**30:.1f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.0f} MiB"


def called(server: ServerName) -> str:
    """A model server as its own messages name it."""
    return {"ollama": "Ollama", "llamacpp": "llama.cpp"}.get(server, server)


def placed(model: LoadedModel) -> str:
    """How much of a model is on the GPU: `3.1 GiB of its 5.2 GiB are on the GPU`."""
    if model.size is None or model.size_vram is None:
        return "its server doesn't say how much of it is on the GPU"
    return f"{gib(model.size_vram)} of its {gib(model.size)} are on the GPU"
