"""The slot driven directly, on virtual time: a GPU of 24 GiB, both model servers without any faults but
those that a test asks for, a registry whose documents can be looked at."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from actors.base import Origin
from actors.errors import Conflict, CorruptState, ModelServerError, Refused, Transient, Unavailable
from actors.profile.config import SlotConfig
from actors.profile.slot import VramSlot
from schemas.config import HnswConfig
from schemas.documents.base import Document, kind_of_document
from schemas.documents.index import IndexDocument
from schemas.documents.profile import ProfileDocument, SlotDocument
from schemas.events.base import Message, Progress, Refusal
from schemas.events.index import EmbedderSpec, IndexServed, ServeIndex
from schemas.events.profile import (
    ActivateProfile,
    DeactivateProfile,
    LoadedModel,
    ModelRef,
    PreloadModel,
    UnloadModel,
)
from schemas.names import BucketName
from schemas.profile import Adapter, ModelProfile
from tests.unit.model_play import GIB, HANG_S, PlayGpu, PlayServer, Recipe, Weather
from tests.unit.simulation import EPOCH, VirtualClock, simulate

T = TypeVar("T")
D = TypeVar("D", bound=Document)

SAVE_S = 0.003

RECIPES = {
    "big:latest": Recipe(10 * GIB, 10 * GIB, 2.0),
    "wide:latest": Recipe(14 * GIB, 14 * GIB, 3.0),
    "liar:latest": Recipe(12 * GIB, 30 * GIB, 2.5),  # takes more than its weights tell
    "huge:latest": Recipe(40 * GIB, 41 * GIB, 9.0),
    "emb:latest": Recipe(1 * GIB, 1 * GIB, 0.3),
    "side:latest": Recipe(3 * GIB, 3 * GIB, 0.5),
}
GGUF = {"gguf": Recipe(9 * GIB, 9 * GIB, 1.5)}

EMBEDDER = EmbedderSpec("ollama", "emb")
CHAT = ModelProfile(id="chat", model="big", embedder=EMBEDDER, indexes=["docs"], bucket="chats")
CODE = ModelProfile(id="code", model="wide", embedder=EMBEDDER)
TALK = ModelProfile(id="talk", model="big:latest")
LIAR = ModelProfile(id="liar", model="liar")
HUGE = ModelProfile(id="huge", model="huge")
GGUF_PROFILE = ModelProfile(id="gguf", model="gguf", server="llamacpp", keep_alive="5m")
ASIDE = ModelProfile(id="aside", model="side", group="aside", exclusive=False)
PROFILES = (CHAT, CODE, TALK, LIAR, HUGE, GGUF_PROFILE, ASIDE)

BIG, WIDE, EMB, SIDE = (ModelRef("ollama", f"{name}:latest") for name in ("big", "wide", "emb", "side"))


class CountedServer(PlayServer):
    """Notes what it is asked to do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[tuple[str, str]] = []
        self.adapters: dict[str, list[Adapter]] = {}  # of each model since it was loaded last
        self.single = False  # llama.cpp's single mode: what it has stays
        self.hole = False  # nothing comes back from it
        self.looks = 0

    async def loaded(self) -> list[LoadedModel]:
        self.looks += 1
        if self.hole:
            await asyncio.sleep(HANG_S)
            raise Unavailable(f"{self.name}: no answer within {HANG_S:g} s")
        return [msgspec.structs.replace(model, fixed=self.single) for model in await super().loaded()]

    async def load(self, model: str, keep_alive_s: float, adapters: Sequence[Adapter] = ()) -> None:
        self.calls.append(("load", model))
        await super().load(model, keep_alive_s, adapters)
        self.adapters[model] = list(adapters)

    async def unload(self, model: str) -> None:
        self.calls.append(("unload", model))
        if self.single:
            raise ModelServerError(f"it can't unload {model}: it runs in single mode")
        await super().unload(model)


class QuickRegistry:
    """The port `Registry` over a dict, with a disk's delay for every save. `away`: it can't be reached; `hangs`:
    it doesn't answer a save; what is in `damaged` can be neither read nor saved over until it is deleted."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], tuple[Any, int]] = {}
        self.saves: list[SlotDocument] = []
        self.away = self.hangs = False
        self.damaged: set[tuple[str, str]] = set()
        self.set_aside: list[Any] = []

    async def load(self, kind: type[D], name: str) -> tuple[D, int] | None:
        self._reach()
        if (kind_of_document(kind), name) in self.damaged:
            raise CorruptState(f"{name} fails its checksum; run `lakehouse repair`")
        return self.stored.get((kind_of_document(kind), name))

    async def delete(self, kind: type[D], name: str, *, expected: int | None = None) -> None:
        self._reach()
        self.damaged.discard((kind_of_document(kind), name))
        self.set_aside.append(self.stored.pop((kind_of_document(kind), name), (None, 0))[0])

    async def save(self, name: str, document: Document, *, expected: int | None) -> int:
        self._reach()
        await asyncio.sleep(math.inf if self.hangs else SAVE_S)
        key = (kind_of_document(type(document)), name)
        current = self.stored[key][1] if key in self.stored else None
        if current != expected:
            raise Conflict(f"{name} is at revision {current}, not {expected}")
        self.put(name, document, (current or 0) + 1)
        if isinstance(document, SlotDocument):
            self.saves.append(document)
        return (current or 0) + 1

    async def all(self, kind: type[D]) -> list[tuple[str, D, int]]:
        self._reach()
        return [(name, *value) for (tag, name), value in self.stored.items() if tag == kind_of_document(kind)]

    def _reach(self) -> None:
        if self.away:
            raise Transient("the registry can't be reached")

    def put(self, name: str, document: Document, revision: int = 1) -> None:
        self.stored[kind_of_document(type(document)), name] = (document, revision)


class QuietBus:
    """Answers for the indexes and keeps the signals."""

    def __init__(self) -> None:
        self.said: list[Progress] = []
        self.asked: list[ServeIndex] = []
        self.refusing = False

    async def signal(self, message: Progress) -> None:
        self.said.append(message)

    async def ask(self, request: ServeIndex, **more: Any) -> IndexServed:
        self.asked.append(request)
        if self.refusing:
            raise Refused(Refusal("unavailable", "its dataset is being written"))
        return IndexServed(request.index, request.default or HnswConfig(), 3, 4)


class ListBuckets:
    def __init__(self) -> None:
        self.made: list[str] = []

    async def provision(self, bucket: BucketName) -> bool:
        if bucket in self.made:
            return False
        self.made.append(bucket)
        return True


class Setting:
    def __init__(self, clock: VirtualClock, rng: random.Random, readable: bool = True, **config: Any) -> None:
        self.clock = clock
        self.weather = Weather(rng, {})
        self.gpu = PlayGpu(24 * GIB, rng, readable=readable)
        self.ollama = CountedServer("ollama", self.gpu, RECIPES, self.weather)
        self.llamacpp = CountedServer("llamacpp", self.gpu, GGUF, self.weather)
        self.registry = QuickRegistry()
        self.bus, self.buckets = QuietBus(), ListBuckets()
        self.config = SlotConfig(**config)
        self.number = 0
        for profile in PROFILES:
            self.registry.put(profile.id, ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))
        self.registry.put("docs", index("docs", EMBEDDER))
        self.actor = self.daemon()

    def daemon(self) -> VramSlot:
        """A process: another one knows what is stored, and nothing else."""
        servers: Any = {"ollama": self.ollama, "llamacpp": self.llamacpp}
        ports: Any = (self.registry, servers, self.gpu, self.buckets, self.bus, self.clock)
        return VramSlot(*ports, self.config)

    async def open(self) -> "Setting":
        await self.actor.start()
        return self

    async def do(self, command: Any, **origin: Any) -> list[Message]:
        self.number += 1
        given = {"id": f"m{self.number}", "cause": "c", "time": self.clock.now(), "asked": True} | origin
        handler = {
            ActivateProfile: self.actor.on_activate,
            DeactivateProfile: self.actor.on_deactivate,
            UnloadModel: self.actor.on_unload,
        }.get(type(command))
        if isinstance(command, PreloadModel):
            return list(await self.actor.on_preload(command))
        assert handler is not None
        return list(await handler(command, Origin(**given)))

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [*self.ollama.calls, *self.llamacpp.calls]

    @property
    def held(self) -> set[ModelRef]:
        """The truth."""
        return set(self.gpu.history[-1].held)

    @property
    def stored(self) -> SlotDocument:
        return self.registry.saves[-1]


def index(name: str, embedder: EmbedderSpec) -> IndexDocument:
    return IndexDocument(
        index=name, dataset="notes", column="text", metric="cosine", backend="hnsw", bucket="primary",
        target_recall=0.95, embedder=embedder, embedder_key=None, dim=8, config=HnswConfig(), created=EPOCH,
    )  # fmt: skip


def on(story: Callable[[Setting], Awaitable[T]], **setting: Any) -> T:
    """Play a story on virtual time, in a setting whose slot has started."""

    async def main(clock: VirtualClock, rng: random.Random) -> T:
        return await story(await Setting(clock, rng, **setting).open())

    return simulate(main, 7)


def one(kind: type[T], said: list[Message]) -> T:
    (found,) = [message for message in said if isinstance(message, kind)]
    return found
