"""Codecs: artifacts calibrated tensor by tensor, points of a sweep measured, functions certified, artifacts put to use.

Two shells share them. Codecs (control) refuses what can't be right, keeps artifacts, certificates and what is in use,
and answers questions; the calibrator (work) does the measuring. A long job is a chain of commands, one a tensor or a
group of points, so that a killed worker loses one step: each step's command orders the next when it is done.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.certificate import Certificate, Control, Gate
from schemas.codec import (
    ArtifactName,
    CodecJobId,
    CodecParams,
    CodecTarget,
    Manifest,
    Override,
    Seed,
    TensorRow,
)
from schemas.documents.codec_trial import CodecTrial
from schemas.events.base import Command, Event, Query, Reply, Request
from schemas.names import BucketName, Bytes, IndexName, ProfileName, Sha256, Timestamp

JobKind = Literal["calibrate", "sweep", "probe", "certify"]
Measure = Literal["icc_3_1", "icc_1_1", "relative_l2", "row_cosine", "norm_error"]

MOST_POINTS = 10_000
"""Of a sweep; more are refused with their number, which is told before any is made."""


# --- orders -------------------------------------------------------------------------------------


class CodecJobStarted(Reply, tag="codec.job_started"):
    """Steps to come may be as many as `steps`; the facts of the job carry its id."""

    job: CodecJobId
    kind: JobKind
    steps: int
    artifact: ArtifactName | None = None


class CalibrateCodec(Request[CodecJobStarted], tag="codec.calibrate"):
    """Make an artifact: quantise what should be, copy the rest. Refused (conflict) when there is one of that name."""

    target: CodecTarget
    params: CodecParams
    artifact: ArtifactName | None = None  # default: the job's id
    overrides: list[Override] = []
    activations: str | None = None  # gptq: safetensors with (m, columns) inputs by the tensors' names, or a text to run
    bucket: BucketName = "primary"
    asked_by: str = "bus"


class SweepCodec(Request[CodecJobStarted], tag="codec.sweep"):
    """Measure many codecs on tensors of a target; nothing is kept but the rows of `codec_trials`.

    Points are the cross product of `axes` (names of CodecParams' fields; `residual` takes objects or null) over
    `base`, and those of `points` as they are. A point that can't be right for a tensor is reported and skipped.
    """

    target: CodecTarget
    tensors: list[str] = []  # globs over lower-cased names; empty: all that calibration would quantise
    base: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = []
    controls: bool = False  # measure also what would be refused as overfitted, marked as such
    activations: str | None = None
    asked_by: str = "bus"


class ProbeRowcount(Request[CodecJobStarted], tag="codec.probe"):
    """The overfit demonstration: one codec on one tensor as the rows that it is calibrated on grow, measured on those,
    on unseen ones and on all."""

    target: CodecTarget
    tensor: str | None = None  # default: the largest that calibration would quantise
    params: CodecParams = CodecParams(family="pq", subspaces=6)
    rows: tuple[Annotated[int, Meta(ge=3)], ...] = (128, 256, 512, 1024, 2048, 4096)  # those that the tensor has
    asked_by: str = "bus"


class CertifyCodec(Request[CodecJobStarted], tag="codec.certify"):
    """Measure what an artifact does to its target's function. A model needs held-out text (and the `cert` extra)."""

    artifact: ArtifactName
    text: str | None = None  # models: a file of the work machine, prompts apart by blank lines; or bucket://NAME/KEY
    gate: Gate | None = None  # default: of the target's kind, from [codec]
    prompts: Annotated[int, Meta(ge=2, le=100_000)] = 200  # texts or queries at most
    tokens: Annotated[int, Meta(ge=8, le=8192)] = 64  # of a prompt at most
    seed: Seed = 42
    asked_by: str = "bus"


class GraduateCodec(Request["CodecGraduated"], tag="codec.graduate"):
    """Put a certified artifact to use: of an index (its vectors are then searched by their codes) or of a profile.
    Refused (conflict) without a passed certificate for exactly its hashes."""

    artifact: ArtifactName
    index: IndexName | None = None
    profile: ProfileName | None = None
    asked_by: str = "bus"


class WithdrawCodec(Request["CodecWithdrawn"], tag="codec.withdraw"):
    """Take a codec out of use again: the index goes back to its graph."""

    index: IndexName | None = None
    profile: ProfileName | None = None
    asked_by: str = "bus"


class DecodeCodec(Request["CodecDecoded"], tag="codec.decode"):
    """Write the checkpoint that an artifact stands for, as a folder that a loader takes. Refused (forbidden) outside of
    [codec] allowed_roots, (conflict) when the folder is there."""

    artifact: ArtifactName
    folder: str


class CodecDecoded(Reply, tag="codec.decoded"):
    artifact: ArtifactName
    folder: str
    files: int
    bytes: Bytes


class DropCodec(Request["CodecDropped"], tag="codec.drop"):
    """Remove an artifact and its files. Refused (conflict) while it is in use."""

    artifact: ArtifactName


class CancelCodecJob(Request["CodecJobFailed"], tag="codec.cancel"):
    """End a job after the step that runs. What it measured stays; an artifact that isn't whole goes."""

    job: CodecJobId
    asked_by: str = "bus"


# --- questions ----------------------------------------------------------------------------------


class CodecUse(msgspec.Struct, frozen=True):
    index: IndexName | None
    profile: ProfileName | None
    since: Timestamp
    asked_by: str


class CodecInfo(Reply, tag="codec.info"):
    """An artifact without its tensors."""

    artifact: ArtifactName
    bucket: BucketName
    target: CodecTarget
    params: CodecParams
    tensors: int
    quantised: int
    problems: int  # tensors that couldn't be used
    bits_per_weight: float
    total_bits_per_weight: float
    manifest_sha256: Sha256
    created: Timestamp
    certificate: Certificate | None
    uses: list[CodecUse]


class CodecList(Reply, tag="codec.list"):
    codecs: list[CodecInfo]


class ListCodecs(Query[CodecList], tag="codec.list_all"):
    pass


class GetCodec(Query[CodecInfo], tag="codec.get"):
    artifact: ArtifactName


class GetManifest(Query["ManifestReply"], tag="codec.manifest"):
    artifact: ArtifactName


class ManifestReply(Reply, tag="codec.manifest_reply"):
    manifest: Manifest


class CodecJob(msgspec.Struct, frozen=True):
    job: CodecJobId
    kind: JobKind
    about: str
    artifact: ArtifactName | None
    steps: int
    started: Timestamp
    asked_by: str


class CodecJobs(Reply, tag="codec.jobs"):
    jobs: list[CodecJob]  # under way, oldest first


class ListCodecJobs(Query[CodecJobs], tag="codec.list_jobs"):
    pass


class CodecTrials(Reply, tag="codec.trials"):
    trials: list[CodecTrial]
    total: int


class ListCodecTrials(Query[CodecTrials], tag="codec.list_trials"):
    """Rows of the `codec_trials` table, newest first."""

    job: CodecJobId | None = None
    target: str | None = None  # as `describe` names it
    tensor: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST_POINTS)] = 1000


class FrontierPoint(msgspec.Struct, frozen=True):
    """One signature over all tensors that it was measured on (newest row each), weighted by their weights."""

    signature: str
    params: CodecParams
    bits_per_weight: float
    value: float  # of the measure, on held-out rows
    tensors: int
    weights: int
    worst: float  # tensor
    memorised: int  # tensors on which it is
    frontier: bool  # of those measured on the most weights, nothing is at once cheaper and better


class Frontier(Reply, tag="codec.frontier"):
    measure: Measure
    target: str | None
    points: list[FrontierPoint]  # by bits, then value
    sql: str  # that found it


class GetFrontier(Query[Frontier], tag="codec.get_frontier"):
    """Pareto of bits per weight against a measure, over the `codec_trials` of a target (or of all)."""

    measure: Measure = "icc_3_1"
    target: str | None = None
    tensor: str | None = None
    job: CodecJobId | None = None


# --- steps of the work --------------------------------------------------------------------------


class CalibrateTensor(Command, tag="codec.calibrate_tensor"):
    """The next tensor of a calibration."""

    job: CodecJobId
    order: CalibrateCodec
    artifact: ArtifactName
    number: int  # of the tensor
    tensors: int


class MeasurePoints(Command, tag="codec.measure_points"):
    """The next group of a sweep's points, those that share what was learnt."""

    job: CodecJobId
    order: SweepCodec
    kind: Literal["sweep", "probe"]
    group: int
    groups: int


class RunCertification(Command, tag="codec.run_certification"):
    job: CodecJobId
    order: CertifyCodec
    manifest_sha256: Sha256  # as it was when the order was given


# --- facts --------------------------------------------------------------------------------------


class TensorCalibrated(Event, tag="codec.tensor_calibrated"):
    job: CodecJobId
    artifact: ArtifactName
    tensors: int
    tensor: TensorRow


class CodecCalibrated(Event, tag="codec.calibrated"):
    """An artifact is whole: its manifest is written."""

    job: CodecJobId
    artifact: ArtifactName
    bucket: BucketName
    target: CodecTarget
    target_sha256: Sha256
    manifest_sha256: Sha256
    params: CodecParams
    tensors: int
    quantised: int
    problems: int
    bits_per_weight: float
    total_bits_per_weight: float
    asked_by: str


class SweepPointMeasured(Event, tag="codec.point_measured"):
    """A row of `codec_trials` was written."""

    job: CodecJobId
    trial: CodecTrial


class SweepPointSkipped(Event, tag="codec.point_skipped"):
    job: CodecJobId
    tensor: str
    params: dict[str, Any]  # as asked for: they may not even be parameters
    reason: str


class SweepFinished(Event, tag="codec.sweep_finished"):
    job: CodecJobId
    kind: Literal["sweep", "probe"]
    asked_by: str


class CodecCertified(Event, tag="codec.certified"):
    """An artifact's function was measured; whether the gate passed it is in the certificate."""

    job: CodecJobId
    certificate: Certificate


class CodecSelfTestFailed(Event, tag="codec.self_test_failed"):
    """A destroyed target passed the gate: the measurement can't tell, so there is no certificate."""

    job: CodecJobId
    artifact: ArtifactName
    controls: list[Control]
    reason: str


class CodecJobFailed(Event, tag="codec.job_failed"):
    """A job came to nothing; what its steps measured stays."""

    job: CodecJobId
    kind: JobKind
    reason: str
    hint: str = ""
    artifact: ArtifactName | None = None


class CodecGraduated(Event, tag="codec.graduated"):
    artifact: ArtifactName
    bucket: BucketName
    manifest_sha256: Sha256
    index: IndexName | None
    profile: ProfileName | None
    asked_by: str


class CodecWithdrawn(Event, tag="codec.withdrawn"):
    artifact: ArtifactName
    index: IndexName | None
    profile: ProfileName | None
    reason: str


class CodecDropped(Event, tag="codec.dropped"):
    artifact: ArtifactName
