"""The gate's actors on a real registry, tables and buckets, with the lexical embedder, a slot and model servers that
are only words; adapters and a base in folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.base import Origin
from actors.gate.config import GateConfig
from actors.gate.embedding import PromptEmbedders
from actors.gate.gates import Gates
from actors.gate.lab import GateLab
from daemon.bus.heads import MemoryHeads
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.factory import EmbedderFactory
from daemon.models.config import ModelsConfig
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.gate_journal import TableGateJournal
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.documents.gate import GateDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Message, Refusal
from schemas.events.gate import GateTrained, TrainGate
from schemas.events.index import EmbedderSpec
from schemas.events.profile import GetSlot, SlotInfo
from schemas.gate import Example
from schemas.profile import Adapter, ModelProfile
from tests.unit.gate_adapters import write_adapter_folder, write_base_folder
from tests.unit.inline_compute import InlineCompute
from tests.unit.tuning_play import HandClock

CODE = ["def", "class", "return", "import", "lambda", "async", "yield", "raise"]
PROSE = ["river", "autumn", "morning", "letter", "garden", "winter", "evening", "window"]


def examples(each: int, words: dict[str, list[str]] | None = None) -> list[Example]:
    """So many prompts an adapter, made of its words."""
    of = words or {"code": CODE, "prose": PROSE}
    return [
        Example(" ".join(own[(n + k) % len(own)] for k in range(4)) + f" {n}", name)
        for n in range(each)
        for name, own in of.items()
    ]


class SlotBus:
    """Answers who holds the slot, and hears what jobs tell."""

    def __init__(self) -> None:
        self.active: str | None = None
        self.told: list[Message] = []

    async def ask(self, request: Any, **_: Any) -> Any:
        assert isinstance(request, GetSlot)
        return SlotInfo("ready" if self.active else "empty", self.active, None, 1.0)

    async def signal(self, message: Message) -> None:
        self.told.append(message)


class WordServer:
    """Says which adapters it was asked to speak with."""

    default_for: frozenset[str] = frozenset()

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url
        if name == "ollama":
            self.default_for = frozenset({"ollama"})

    async def generate(
        self, model: str, prompt: str, *, max_tokens: int = 128, adapters: Sequence[Adapter] | None = None
    ) -> str:
        spoken = "as it is" if adapters is None else ",".join(f"{one.name}:{one.scale:g}" for one in adapters)
        return f"{model} {spoken}"


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bucket", "profiles", "work"):
            (folder / name).mkdir()
        self.work = folder / "work"  # below allowed_roots
        self.buckets = ObjectBuckets(
            {"primary": (folder / "bucket").as_uri()}, folder / "cache", profile_root=(folder / "profiles").as_uri()
        )
        self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        self.tables = DeltaTables(self.buckets, folder / "cache")
        self.journal = TableGateJournal(self.tables)
        self.bus: Any = SlotBus()
        compute: Any = InlineCompute()
        servers: Any = {
            "ollama": WordServer("ollama", "http://127.0.0.1:11434"),
            "llamacpp": WordServer("llamacpp", "http://127.0.0.1:8080"),
        }
        self.embedders = EmbedderFactory(EmbeddingConfig(), ModelsConfig(), compute)
        prompts = PromptEmbedders(self.embedders, EmbedderSpec(), servers)
        config = GateConfig(allowed_roots=[str(self.work)])
        self.lab = GateLab(
            self.registry, self.tables, self.buckets, prompts, self.journal, compute, self.bus, HandClock(), config,
            folder / "cache" / "gate",
        )  # fmt: skip
        self.gates = Gates(self.registry, self.buckets, prompts, self.journal, servers, self.bus)

    async def with_profile(self, name: str = "p", **more: Any) -> ModelProfile:
        """Adapters code and prose, in folders that are there."""
        given: dict[str, Any] = {
            "id": name, "model": "tiny", "server": "llamacpp", "bucket": "mine",
            "adapters": [Adapter(each, 1.0, str(self.work / each)) for each in ("code", "prose")],
        }  # fmt: skip
        profile = ModelProfile(**{**given, **more})
        found = await self.registry.load(ProfileDocument, name)
        document = ProfileDocument(profile=profile, created=1.0, changed=1.0)
        await self.registry.save(name, document, expected=found[1] if found else None)
        return profile

    def with_adapters(self, **more: Any) -> None:
        for seed, name in enumerate(("code", "prose")):
            write_adapter_folder(self.work / name, seed, **more)

    def with_base(self) -> str:
        write_base_folder(self.work / "base", shards=2)
        return str(self.work / "base")

    async def ask(self, message: Any, id: str = "m1", delivery: int = 1) -> Message:
        """The one answer."""
        origin = Origin(id, id, 1.0, delivery)
        for actor in (self.lab, self.gates):
            for route in type(actor).routes():
                if route.takes is type(message):
                    method = getattr(actor, route.method)
                    said = await (method(message, origin) if route.wants_origin else method(message))
                    assert len(said) <= 1
                    return said[0] if said else Refusal("not_found", "nothing was said")
        raise AssertionError(f"nobody takes {message}")

    async def document(self, name: str = "p") -> GateDocument:
        found = await self.registry.load(GateDocument, name)
        assert found is not None
        return found[0]


def of(kind: Any, said: Message) -> Any:
    assert isinstance(said, kind), said
    return said


async def trained(house: Setting, each: int = 20, id: str = "m1", **more: Any) -> GateTrained:
    return of(GateTrained, await house.ask(TrainGate("p", examples(each), **more), id))
