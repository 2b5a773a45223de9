"""Lance stores: made beside an index, indexed, kept in step with its dataset, optimised.

The catalog (control) decides which store must exist, the builder (work) makes it and indexes it,
the stores' own shell (control) keeps it in step. The dataset stays the truth: rows are appended
and deleted there, and the store follows.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.config import LanceBuild, LanceConfig, LanceType, Partitions
from schemas.documents.store import StoreVersion
from schemas.events.base import Command, Event, Query, Reply, Request
from schemas.events.index import EmbedderSpec, IndexInfo, Target
from schemas.names import (
    BucketName,
    Bytes,
    DatasetName,
    IndexName,
    MessageId,
    Metric,
    Rows,
    Seconds,
    Share,
    VectorBackend,
)

# --- made ---------------------------------------------------------------------------------------


class StoreQueued(Reply, tag="lance.queued"):
    """The builder does it next; the index goes on serving what it serves."""

    index: IndexName
    generation: int
    config: LanceConfig
    cause: MessageId | None = None


class MigrateIndex(Request[StoreQueued], tag="lance.migrate"):
    """Copy an index's rows, ids, columns and vectors into a Lance store, and index them. The index
    goes on being served as it is, and by Lance for those who ask for it. An index that isn't there
    is made, over `column` of `dataset`, with Lance to serve it."""

    index: IndexName
    dataset: DatasetName | None = None  # these four only for an index that isn't there
    column: str | None = None
    metric: Metric = "cosine"
    embedder: EmbedderSpec | None = None
    target_recall: Target | None = None
    index_type: LanceType | Literal["auto"] = "auto"
    partitions: Partitions | None = None  # default by rule, from rows and dimensions
    sub_vectors: Annotated[int, Meta(ge=1, le=4096)] | None = None  # of IVF_PQ


class IndexStore(Request[StoreQueued], tag="lance.index"):
    """Build a vector index in an index's store; it is searched when it is done."""

    index: IndexName
    index_type: LanceType | Literal["auto"] = "auto"
    partitions: Partitions | None = None
    sub_vectors: Annotated[int, Meta(ge=1, le=4096)] | None = None


class DropStore(Request["StoreDropped"], tag="lance.drop"):
    """Remove an index's store. Refused while Lance serves the index."""

    index: IndexName


class StoreDropped(Event, tag="lance.dropped"):
    index: IndexName


class SetBackend(Request[IndexInfo], tag="index.backend"):
    """Which backend serves an index from now on; it changes over when what it needs is built."""

    index: IndexName
    backend: VectorBackend


class BuildTexts(Command, tag="lance.build_texts"):
    """Make a store of texts only, for full-text search beside a graph."""

    index: IndexName


class StoreBuilt(Event, tag="lance.built"):
    """A store is there, and may lag behind its dataset."""

    index: IndexName
    version: int  # dataset version that it covers
    vectors: bool


# --- in step ------------------------------------------------------------------------------------


class StoreAdvanced(Event, tag="lance.advanced"):
    """The store covers a later dataset version: its rows are searchable, indexed or not."""

    index: IndexName
    version: int
    lance_version: int
    rows: Rows  # added
    deleted: Rows


class StoreChanged(Reply, tag="lance.changed"):
    """Rows were appended or deleted, in the dataset and in the store."""

    index: IndexName
    version: int  # of the dataset
    lance_version: int
    rows: Rows  # appended or deleted


class AppendDocuments(Request[StoreChanged], tag="lance.append"):
    """Append rows to the index's dataset, or replace those of the same id; the answer comes when
    they are searchable."""

    index: IndexName
    rows: list[dict[str, Any]]


class DeleteDocuments(Request[StoreChanged], tag="lance.delete"):
    index: IndexName
    ids: list[str | int]


class OptimizeStore(Request["OptimizeQueued"], tag="lance.optimize"):
    """Take rows that came since into the indexes, and merge small files. `retrain`: train the
    indexes' cells again, over today's rows."""

    index: IndexName
    retrain: bool = False
    reason: str = "asked"


class OptimizeQueued(Reply, tag="lance.optimize_queued"):
    index: IndexName
    unindexed_rows: Rows


class RunOptimize(Command, tag="lance.run_optimize"):
    """For the builder."""

    index: IndexName
    retrain: bool
    reason: str


class StoreOptimized(Event, tag="lance.optimized"):
    index: IndexName
    lance_version: int
    indexed_rows: Rows  # taken into the indexes
    retrained: bool
    reason: str
    seconds: Seconds


# --- asked --------------------------------------------------------------------------------------


class StoredDocument(Reply, tag="lance.document"):
    index: IndexName
    id: str | int
    columns: dict[str, Any]
    vector: list[float]


class GetDocument(Query[StoredDocument], tag="lance.doc"):
    index: IndexName
    id: str | int


class IndexedBy(msgspec.Struct, frozen=True):
    """A vector index, and how much of the store it covers."""

    name: str
    build: LanceBuild
    trained_version: int
    indexed_rows: Rows
    unindexed_rows: Rows
    serves: bool


class StoreStats(Reply, tag="lance.stats_reply"):
    index: IndexName
    bucket: BucketName
    key: str
    vectors: bool
    rows: Rows
    deleted: Rows  # marked, until they are compacted away
    fragments: int
    bytes: Bytes
    lance_version: int
    version: int  # dataset version that it covers
    indexes: list[IndexedBy]
    text_column: str | None
    unindexed_share: Share  # of the index that serves
    versions: list[StoreVersion]  # that can be searched, newest first
    library: str


class GetStoreStats(Query[StoreStats], tag="lance.stats"):
    index: IndexName
