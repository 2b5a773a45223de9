"""Who plays in the slot's world: the models, the profiles that may need them, and the orders that
people send. What becomes of them is in slot_world.py, what must hold in slot_witness.py.
"""

import random
from typing import Any

from schemas.events.base import Message, Request
from schemas.events.index import EmbedderSpec
from schemas.events.profile import (
    ActivateProfile,
    DeactivateProfile,
    GetSlot,
    ModelRef,
    PreloadModel,
    UnloadModel,
)
from schemas.profile import ModelProfile
from tests.unit.model_play import GIB, MIB, Recipe

TOTAL = 24 * GIB

OLLAMA = {
    "big:latest": Recipe(10 * GIB, 10 * GIB + 300 * MIB, 2.0),
    "wide:latest": Recipe(14 * GIB, 15 * GIB, 3.0),
    "mid:latest": Recipe(8 * GIB, 8 * GIB, 1.2),
    "small:latest": Recipe(5 * GIB, 5 * GIB, 0.8),
    "side:latest": Recipe(3 * GIB, 3 * GIB, 0.5),
    "emb:latest": Recipe(1 * GIB, 1 * GIB, 0.3),
    "pin:latest": Recipe(2 * GIB, 2 * GIB, 0.4),
    "tight:latest": Recipe(19 * GIB, 27 * GIB, 2.5),  # takes more than its weights tell: never whole
    "huge:latest": Recipe(40 * GIB, 41 * GIB, 9.0),
}
LLAMACPP = {"gguf": Recipe(9 * GIB, 9 * GIB, 1.5), "mini": Recipe(4 * GIB, 4 * GIB, 0.6)}

EMBEDDER = EmbedderSpec("ollama", "emb")
EXCLUSIVE = [
    ModelProfile(id="chat", model="big", embedder=EMBEDDER, indexes=["docs"]),
    ModelProfile(id="code", model="wide", embedder=EMBEDDER, indexes=["docs", "code"]),
    ModelProfile(id="gguf", model="gguf", server="llamacpp", indexes=["code"]),
]
OTHERS = [
    ModelProfile(id="talk", model="big:latest", keep_alive="1h"),
    ModelProfile(id="brief", model="mid", keep_alive="10s"),
    ModelProfile(id="tight", model="tight"),
    ModelProfile(id="huge", model="huge"),
    ModelProfile(id="fort", model="mid", persistent=True),
    ModelProfile(id="left", model="mid", group="turns", exclusive=False),
    ModelProfile(id="right", model="small", group="turns", exclusive=False, embedder=EMBEDDER),
    ModelProfile(id="aside", model="side", group="aside", exclusive=False, embedder=EMBEDDER),
    ModelProfile(id="mini", model="mini", server="llamacpp", group="mini", exclusive=False),
    ModelProfile(id="pin", model="pin", group="pin", exclusive=False, persistent=True),
]
LOOSE = ("side", "emb", "small", "pin")
"""Models that people load by hand; no exclusive profile has one of them for its own."""


def main_of(profile: ModelProfile) -> ModelRef:
    tagged = profile.server != "ollama" or ":" in profile.model
    return ModelRef(profile.server, profile.model if tagged else f"{profile.model}:latest")


def needs_of(profile: ModelProfile) -> frozenset[ModelRef]:
    embedder = {ModelRef("ollama", "emb:latest")} if profile.embedder else set()
    return frozenset({main_of(profile)} | embedder)


def cast_of(rng: random.Random) -> dict[str, ModelProfile]:
    """Five profiles, at least two of them exclusive with models that can't be in memory together."""
    return {profile.id: profile for profile in [*rng.sample(EXCLUSIVE, 2), *rng.sample(OTHERS, 3)]}


class Order:
    """One order as its sender knows it, and what the daemon did to the model servers for it."""

    def __init__(self, request: Request[Any], asked_at: float, process: object) -> None:
        self.request, self.asked_at, self.process = request, asked_at, process
        self.answered_at: float | None = None
        self.answer: Message | None = None  # None: lost with the daemon, or nobody was there
        self.calls: list[tuple[float, str, ModelRef]] = []  # (time, load or unload, model)

    def touched(self, what: str) -> set[ModelRef]:
        return {ref for _, call, ref in self.calls if call == what}

    def __repr__(self) -> str:
        calls = [f"{time:.3f} {what} {ref}" for time, what, ref in self.calls]
        return f"[{self.asked_at:.3f}-{self.answered_at or 0:.3f}: {self.request} -> {self.answer}; {calls}]"


def draw_request(rng: random.Random, profiles: dict[str, ModelProfile]) -> Request[Any]:
    profile, wait = rng.choice(list(profiles)), rng.random() < 0.8
    draw = rng.random()
    if draw < 0.6:
        return ActivateProfile(profile, wait)
    if draw < 0.72:
        return DeactivateProfile(profile, wait)
    if draw < 0.8:
        return PreloadModel(rng.choice(LOOSE), rng.choice(("-1", "5m", "4s")))
    if draw < 0.88:
        return UnloadModel(rng.choice((*LOOSE, profiles[profile].model)))
    return GetSlot(look=True)
