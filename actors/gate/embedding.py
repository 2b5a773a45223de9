"""How prompts become vectors: by the embedder of a profile, and never by another than the gate was trained with."""

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.gate import core
from actors.gate.store import GateStore
from actors.ports import Embedder, Embedders, ModelServer
from actors.urls import address
from schemas.events.base import Refusal
from schemas.events.index import EmbedderSpec
from schemas.events.profile import SlotInfo
from schemas.gate import GateFiles, GateRun
from schemas.names import ServerName
from schemas.profile import ModelProfile

BATCH = 256


class PromptEmbedders:
    def __init__(self, embedders: Embedders, default: EmbedderSpec, servers: Mapping[ServerName, ModelServer]) -> None:
        """default: of profiles that have none."""
        self._embedders = embedders
        self._default = default
        self._servers = servers

    def spec(self, profile: ModelProfile) -> EmbedderSpec:
        return profile.embedder or self._default

    def settled(self, profile: ModelProfile) -> ModelProfile:
        """The profile with the embedder that it has in the end."""
        return msgspec.structs.replace(profile, embedder=self.spec(profile))

    def unready(self, profile: ModelProfile, slot: SlotInfo) -> Refusal | None:
        """Asking a model server for embeddings would load the model behind the slot's back."""
        spec = self.spec(profile)
        ours = spec.kind in ("ollama", "openai") and any(
            address(spec.url) == address(server.url) if spec.url else spec.kind in server.default_for
            for server in self._servers.values()
        )
        if not ours or (slot.state, slot.profile) == ("ready", profile.id):
            return None
        return Refusal(
            "conflict",
            f"prompts of profile {profile.id!r} are embedded by {spec.model}, and the profile isn't active",
            f"lakehouse profile activate {profile.id}",
        )

    async def fit(self, profile: ModelProfile, prompts: Sequence[str]) -> tuple[Embedder, bytes | None]:
        """For a new gate; the lexical embedder learns its weights from the prompts. Raises ValueError."""
        return await self._embedders.fit(self.spec(profile), _batches(prompts))

    async def load(self, profile: ModelProfile, run: GateRun, files: GateFiles, store: GateStore) -> Embedder:
        """For a gate that is there; `check` says whether it is the gate's. Raises NoMix where it can't be used."""
        model = await store.local(files.embedder) if files.embedder is not None else None
        spec = self.spec(profile)
        if spec.kind == "lexical" and model is None:
            raise core.NoMix(core.other_embedder(run, "the lexical embedder", 384))
        try:
            embedder = await self._embedders.load(spec, model)
        except ValueError as error:
            raise core.NoMix(f"the profile's embedder can't be used: {error}") from None
        return embedder


async def check(embedder: Embedder, run: GateRun) -> None:
    """Raises NoMix for another embedder than the gate's, or a model that its server has replaced."""
    try:
        revision = await embedder.revision()
    except ValueError as error:
        raise core.NoMix(f"the profile's embedder can't be used: {error}") from None
    if other := core.other_embedder(run, embedder.identity, embedder.dim, revision):
        raise core.NoMix(other)


async def embed_all(embedder: Embedder, prompts: Sequence[str]) -> AsyncIterator[NDArray[np.float32]]:
    """(k, d) float32 each, in their order."""
    async for batch in _batches(prompts):
        yield await embedder.embed(batch)


async def _batches(prompts: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    for start in range(0, len(prompts), BATCH):
        yield prompts[start : start + BATCH]
