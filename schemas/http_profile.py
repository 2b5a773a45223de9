"""What travels over HTTP about model profiles and models: parameters and request bodies. See schemas/http.py."""

from schemas.http import Body, ConfigBody, EmbedderBody, Params, QueryBody
from schemas.names import (
    BucketName,
    GroupName,
    IndexName,
    KeepAlive,
    ModelName,
    ProfileName,
    ServerName,
    VectorBackend,
)
from schemas.profile import Adapter


class AdapterBody(Adapter, frozen=True, forbid_unknown_fields=True):
    """A LoRA adapter and how strongly it counts."""


class ProfileParams(Params, frozen=True):
    profile: ProfileName


class SlotParams(Params, frozen=True):
    profile: ProfileName
    wait: bool = True  # false: 409 at once when another order is being carried out


class ProfileFields(Body, frozen=True):
    """What a profile is, but for its id."""

    model: ModelName
    server: ServerName = "ollama"
    embedder: EmbedderBody | None = None
    indexes: list[IndexName] = []
    bucket: BucketName | None = None
    vector_backend: VectorBackend = "auto"
    hnsw: ConfigBody | None = None
    adapters: list[AdapterBody] = []
    keep_alive: KeepAlive = "-1"
    group: GroupName = "default"
    exclusive: bool = True
    persistent: bool = False


class ProfileBody(ProfileFields, frozen=True, kw_only=True):
    """A new model profile."""

    id: ProfileName


class ReplaceProfileBody(ProfileFields, frozen=True):
    """A model profile as it is to be; what is left out gets its default."""

    id: ProfileName | None = None  # the path's


class PreloadBody(Body, frozen=True):
    model: ModelName
    keep_alive: KeepAlive = "5m"
    server: ServerName | None = None  # the one that has the model


class UnloadBody(Body, frozen=True):
    model: ModelName
    server: ServerName | None = None  # the one that has it loaded


class ProfileSearchBody(QueryBody, frozen=True):
    """A query with a profile's rights."""

    index: IndexName | None = None  # may be left out when the profile has one
