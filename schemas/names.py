"""Validated names and units.

Every name that becomes a path, a subject or a key is checked here once, at the border, by
msgspec; no other module escapes or sanitises names.
"""

from typing import Annotated, Literal

from msgspec import Meta

_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"

BucketName = Annotated[str, Meta(pattern=_NAME, description="bucket: a-z 0-9 _ -, at most 63")]
DatasetName = Annotated[str, Meta(pattern=_NAME, description="dataset: a-z 0-9 _ -, at most 63")]
IndexName = Annotated[str, Meta(pattern=_NAME, description="index: a-z 0-9 _ -, at most 63")]
HarnessName = Annotated[str, Meta(pattern=_NAME, description="eval set: a-z 0-9 _ -, at most 63")]
TrialId = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$", description="one trial, one build")]
CampaignId = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$", description="one tuning run")]
ProfileName = Annotated[str, Meta(pattern=_NAME, description="model profile: a-z 0-9 _ -, at most 63")]
AdapterName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="adapter of a gate: a-z 0-9 _, at most 32")
]
GroupName = Annotated[str, Meta(pattern=_NAME, description="group of profiles: a-z 0-9 _ -, at most 63")]
ModelName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}$", description="a model, as its server names it")
]
KeepAlive = Annotated[
    str,
    Meta(
        pattern=r"^(-1|[1-9][0-9]{0,5}(s|m|h))$", description="how long a model stays unused: 30s, 5m, 2h; -1: for ever"
    ),
]
MessageId = Annotated[str, Meta(min_length=1, max_length=128, description="id of a bus message")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]

Micros = Annotated[float, Meta(ge=0, description="microseconds")]
Seconds = Annotated[float, Meta(ge=0, description="seconds")]
Bytes = Annotated[int, Meta(ge=0, description="bytes")]
Rows = Annotated[int, Meta(ge=0, description="number of rows")]
Share = Annotated[float, Meta(ge=0, le=1, description="a share of one: recall, selectivity")]
Timestamp = Annotated[float, Meta(ge=0, description="seconds since the Unix epoch, UTC")]

Metric = Literal["cosine", "ip", "l2"]
Backend = Literal["hnsw", "lance"]
VectorBackend = Literal["hnsw", "lance", "auto"]
"""What a user may ask for; `auto` is decided from memory and measurement."""
ServerName = Literal["ollama", "llamacpp"]
Objective = Literal["cost_first", "recall_first"]
