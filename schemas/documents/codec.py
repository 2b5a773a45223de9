"""What is kept of codecs: artifacts with their certificates, and which of them are in use."""

from schemas.certificate import Certificate
from schemas.codec import ArtifactName, CodecJobId, CodecParams, CodecTarget
from schemas.documents.base import Document
from schemas.events.codec import CodecUse, JobKind
from schemas.names import BucketName, IndexName, Metric, ProfileName, Sha256, Timestamp


class CodecDocument(Document, frozen=True, kw_only=True, tag="codec"):
    """An artifact (registry name: its own). Its files are below `codecs/<artifact>/` in its bucket."""

    artifact: ArtifactName
    bucket: BucketName = "primary"  # its home
    target: CodecTarget
    target_sha256: Sha256
    manifest_sha256: Sha256
    params: CodecParams
    tensors: int
    quantised: int
    problems: int
    bits_per_weight: float
    total_bits_per_weight: float
    metric: Metric | None = None  # of the index whose vectors it is of; None: there was none, or it is of a model
    job: CodecJobId
    created: Timestamp
    certificate: Certificate | None = None  # the newest
    certified_by: CodecJobId | None = None
    uses: list[CodecUse] = []


class CodecJobDocument(Document, frozen=True, kw_only=True, tag="codec_job"):
    """A job under way (registry name: its id). Gone when it has ended: a step of a job that has none does nothing."""

    job: CodecJobId
    kind: JobKind
    about: str  # the target, or the artifact
    artifact: ArtifactName | None  # that it makes or certifies
    bucket: BucketName | None  # where it makes one
    steps: int
    started: Timestamp
    asked_by: str


class IndexCodecDocument(Document, frozen=True, kw_only=True, tag="index_codec"):
    """The artifact by whose codes an index is searched (registry name: the index's)."""

    index: IndexName
    artifact: ArtifactName
    bucket: BucketName = "primary"  # its home
    manifest_sha256: Sha256
    oversample: int  # candidates per hit that are rescored exactly, as certified
    candidates: int  # so many at least: a certificate for ten hits says nothing of one by fewer
    since: Timestamp


class ProfileCodecDocument(Document, frozen=True, kw_only=True, tag="profile_codec"):
    """The artifact that a profile's model is to be served from (registry name: the profile's)."""

    profile: ProfileName
    artifact: ArtifactName
    bucket: BucketName = "primary"  # its home
    manifest_sha256: Sha256
    since: Timestamp
