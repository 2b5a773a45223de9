"""What is kept of codecs: artifacts with their certificates, and which of them are in use."""

from schemas.certificate import Certificate
from schemas.codec import ArtifactName, CodecJobId, CodecParams, CodecTarget
from schemas.documents.base import Document
from schemas.events.codec import CodecUse, JobKind
from schemas.names import BucketName, MessageId, Sha256, Timestamp


class CodecDocument(Document, frozen=True, kw_only=True, tag="codec"):
    """An artifact (registry name: its own). Its files are below `codecs/<artifact>/` in its bucket."""

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
    job: CodecJobId
    created: Timestamp
    certificate: Certificate | None = None  # the newest
    certified_by: MessageId | None = None
    uses: list[CodecUse] = []


class CodecJobDocument(Document, frozen=True, kw_only=True, tag="codec_job"):
    """A calibration under way (registry name: the artifact's): its name is taken until it ends."""

    artifact: ArtifactName
    job: CodecJobId
    kind: JobKind
    started: Timestamp
