"""Bodies and parameters of the routes under /codec. What a codec, a target and a gate are, strictly: the bus tolerates
unknown fields, HTTP names them."""

from typing import Annotated, Any

from msgspec import Meta

from schemas.certificate import CausalLmGate, ColumnGate, EncoderGate
from schemas.codec import (
    ArtifactName,
    Checkpoint,
    CodecJobId,
    CodecParams,
    Override,
    Residual,
    Seed,
    VectorColumn,
)
from schemas.events.codec import MOST_POINTS, Measure
from schemas.http import Body, Params
from schemas.names import BucketName, IndexName, ProfileName

# --- shared parts, strict ----------------------------------------------------------------------


class ResidualBody(Residual, frozen=True, forbid_unknown_fields=True):
    """More stages of product quantisation on what is left."""


class CodecBody(CodecParams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A codec's parameters."""

    residual: ResidualBody | None = None


class CheckpointBody(Checkpoint, frozen=True, forbid_unknown_fields=True, tag="checkpoint", tag_field="kind"):
    """safetensors of one or many shards: a path of the machine that does the work, or bucket://NAME/PREFIX."""


class ColumnBody(VectorColumn, frozen=True, forbid_unknown_fields=True, tag="column", tag_field="kind"):
    """The vectors of a dataset's column."""


TargetBody = CheckpointBody | ColumnBody


class OverrideBody(Override, frozen=True, forbid_unknown_fields=True):
    """The caller's word on tensors whose names match a glob."""


class CausalLmGateBody(CausalLmGate, frozen=True, forbid_unknown_fields=True, tag="causal_lm", tag_field="function"):
    """What is demanded of a language model."""


class EncoderGateBody(EncoderGate, frozen=True, forbid_unknown_fields=True, tag="encoder", tag_field="function"):
    """What is demanded of an encoder."""


class ColumnGateBody(ColumnGate, frozen=True, forbid_unknown_fields=True, tag="column", tag_field="function"):
    """What is demanded of a column of vectors."""


GateBody = CausalLmGateBody | EncoderGateBody | ColumnGateBody


# --- bodies ------------------------------------------------------------------------------------


class CalibrateBody(Body, frozen=True):
    target: TargetBody
    params: CodecBody
    artifact: ArtifactName | None = None
    overrides: list[OverrideBody] = []
    activations: str | None = None
    bucket: BucketName = "primary"
    asked_by: str = "http"


class SweepBody(Body, frozen=True):
    target: TargetBody
    tensors: list[str] = []
    base: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = []
    controls: bool = False
    activations: str | None = None
    asked_by: str = "http"


class ProbeBody(Body, frozen=True):
    target: TargetBody
    tensor: str | None = None
    params: CodecBody = CodecBody(family="pq", subspaces=6)
    rows: tuple[Annotated[int, Meta(ge=3)], ...] = (128, 256, 512, 1024, 2048, 4096)
    asked_by: str = "http"


class CertifyBody(Body, frozen=True):
    artifact: ArtifactName
    text: str | None = None
    gate: GateBody | None = None
    prompts: Annotated[int, Meta(ge=2, le=100_000)] = 200
    tokens: Annotated[int, Meta(ge=8, le=8192)] = 64
    seed: Seed = 42
    asked_by: str = "http"


class GraduateBody(Body, frozen=True):
    artifact: ArtifactName
    index: IndexName | None = None
    profile: ProfileName | None = None
    asked_by: str = "http"


class WithdrawBody(Body, frozen=True):
    index: IndexName | None = None
    profile: ProfileName | None = None
    asked_by: str = "http"


class DecodeBody(Body, frozen=True):
    artifact: ArtifactName
    folder: str


# --- parameters --------------------------------------------------------------------------------


class WaitParams(Params, frozen=True):
    wait: bool = True  # false: the answer is that it has started, and nothing is streamed


class ArtifactParams(Params, frozen=True):
    artifact: ArtifactName


class CodecJobParams(Params, frozen=True):
    job: CodecJobId
    asked_by: str = "http"


class CodecTrialsParams(Params, frozen=True):
    job: CodecJobId | None = None
    target: str | None = None
    tensor: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST_POINTS)] = 1000


class FrontierParams(Params, frozen=True):
    measure: Measure = "icc_3_1"
    target: str | None = None
    tensor: str | None = None
    job: CodecJobId | None = None
