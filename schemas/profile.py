"""A model profile: what a user wants on the GPU, and which indexes go with it."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.config import HnswConfig
from schemas.events.index import EmbedderSpec
from schemas.names import BucketName, GroupName, IndexName, KeepAlive, ModelName, ProfileName, ServerName, VectorBackend


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA adapter that llama.cpp's server was started with, by the name of its file. With a folder its weights
    can be merged, which is the only way to Ollama."""

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    scale: Annotated[float, Meta(ge=0, le=100)] = 1.0
    folder: str | None = None  # in PEFT's format, on the machine that does the work


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One way to use the GPU. Its model, and its embedder's where a model server runs it, are in
    the GPU's memory while the profile is active.

    Members of one group take turns. An exclusive profile shares the GPU with nobody but
    persistent members; a persistent one is never evicted for another, only deactivated.
    """

    id: ProfileName
    model: ModelName
    server: ServerName = "ollama"
    embedder: EmbedderSpec | None = None  # of text searches; None: its indexes need no model server
    indexes: list[IndexName] = []  # what it may search
    bucket: BucketName | None = None  # made under storage.profile_root at activation when there is none
    vector_backend: VectorBackend = "auto"  # of its searches; `auto`: whatever serves the index
    hnsw: HnswConfig | None = None  # what its indexes serve where nothing is promoted; None: their own
    adapters: list[Adapter] = []  # ollama: each with a folder, to be merged by the gate
    keep_alive: KeepAlive = "-1"
    group: GroupName = "default"
    exclusive: bool = True
    persistent: bool = False
