"""An index, and the generation that serves it."""

from schemas.config import HnswConfig, IndexConfig, LanceConfig
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
    VectorBackend,
)


class IndexDocument(Document, frozen=True, kw_only=True, tag="index"):
    """What the user asked for, and what the catalog has allotted since."""

    index: IndexName
    dataset: DatasetName
    column: str
    metric: Metric
    backend: VectorBackend  # as asked for; what serves is the generation's
    bucket: BucketName = "primary"  # its home
    target_recall: Share
    embedder: EmbedderSpec
    embedder_key: str | None  # fitted model of the lexical embedder, an object of the bucket
    dim: int
    config: HnswConfig  # what holds when nothing is promoted: the index's own, or the active profile's
    own: HnswConfig | None = None  # as created, while a profile's has its place
    lance: LanceConfig | None = None  # its own on Lance; None: by rule, from its rows and dimensions
    text_column: str | None = None  # that full-text search reads; None: it has none
    companions: list[Backend] = []  # kept ready beside the one that serves, for those who ask for them
    created: Timestamp
    next_generation: int = 1  # numbers are allotted once and never used again
    failure: str = ""  # why the newest build failed; empty when it didn't
    building: BuildGeneration | None = None  # ordered and not answered yet
    companion_building: BuildGeneration | None = None
    why_backend: str = ""  # of `auto`: what it was decided from, with the figures


class GenerationDocument(Document, frozen=True, kw_only=True, tag="generation"):
    """The live generation of an index (registry name: the index's). Its build may be one that an
    earlier generation made: then only the effort differs. A companion, which the other backend keeps
    ready for those who ask for it, has the registry name `<index>=<backend>`."""

    index: IndexName
    generation: int
    config: IndexConfig
    key: str  # in the index's bucket: a graph's object, or the folder of the Lance store
    sha256: Sha256  # of the graph's object; of a Lance index, of its name in the store
    bytes: Bytes
    version: int  # dataset version that the graph file covers
    rows: Rows
    build_s: Seconds
    reason: str
    library: str  # "hnswlib 0.8.0 native"
    built: Timestamp
    trial: TrialId | None = None
    vector_index: str = ""  # its name in the Lance store
