"""An index, and the generation that serves it."""

from schemas.config import HnswConfig
from schemas.documents.base import Document
from schemas.events.index import BuildGeneration, EmbedderSpec
from schemas.names import (
    Backend,
    BucketName,
    Bytes,
    DatasetName,
    IndexName,
    Metric,
    Rows,
    Seconds,
    Sha256,
    Share,
    Timestamp,
    TrialId,
)


class IndexDocument(Document, frozen=True, kw_only=True, tag="index"):
    """What the user asked for, and what the catalog has allotted since."""

    index: IndexName
    dataset: DatasetName
    column: str
    metric: Metric
    backend: Backend
    bucket: BucketName = "primary"  # its home
    target_recall: Share
    embedder: EmbedderSpec
    embedder_key: str | None  # fitted model of the lexical embedder, an object of the bucket
    dim: int
    config: HnswConfig  # what holds when nothing is promoted: the index's own, or the active profile's
    own: HnswConfig | None = None  # as created, while a profile's has its place
    created: Timestamp
    next_generation: int = 1  # numbers are allotted once and never used again
    failure: str = ""  # why the newest build failed; empty when it didn't
    building: BuildGeneration | None = None  # ordered and not answered yet


class GenerationDocument(Document, frozen=True, kw_only=True, tag="generation"):
    """The live generation of an index (registry name: the index's). Its graph may be one that
    an earlier generation built: then only ef_search differs."""

    index: IndexName
    generation: int
    config: HnswConfig
    key: str  # graph object in the index's bucket
    sha256: Sha256
    bytes: Bytes
    version: int  # dataset version that the graph file covers
    rows: Rows
    build_s: Seconds
    reason: str
    library: str  # "hnswlib 0.8.0 native"
    built: Timestamp
    trial: TrialId | None = None
