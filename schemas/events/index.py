"""Indexes: made, kept in step with their dataset, searched, swapped generation by generation.

Three shells share them. The catalog (control) decides which generation must exist, the builder
(work) builds it, every searcher (serve) loads it and swaps the pointer under its readers.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.codec import ArtifactName
from schemas.config import DEFAULT_CONFIG, Effort, HnswConfig, IndexConfig, LanceConfig
from schemas.events.base import Command, Event, Query, Reply, Request
from schemas.names import (
    Backend,
    BucketName,
    Bytes,
    DatasetName,
    IndexName,
    MessageId,
    Metric,
    Micros,
    Rows,
    Seconds,
    Sha256,
    Share,
    Timestamp,
    TrialId,
    VectorBackend,
)
from schemas.planner import PlannerExplanation

Target = Annotated[float, Meta(gt=0, lt=1, description="recall@10 to hold")]

EmbedderKind = Literal["lexical", "ollama", "openai", "none"]


class EmbedderSpec(msgspec.Struct, frozen=True):
    """Which embedder turns a text column into vectors, and where it is reached."""

    kind: EmbedderKind = "lexical"
    model: str = ""  # ollama, openai: the server's model name
    url: str = ""  # ollama, openai: base URL; default from lakehouse.toml
    dim: int | None = None  # lexical: 384; others: found at the first call


class CreateIndex(Request["IndexInfo"], tag="index.create"):
    """Make an index over a column. Text is embedded, a vector column is taken as it is."""

    name: IndexName
    dataset: DatasetName
    column: str
    metric: Metric = "cosine"
    backend: VectorBackend = "hnsw"
    bucket: BucketName | None = None  # home of its artifacts; default the dataset's
    target_recall: Target | None = None  # default from [agent]
    embedder: EmbedderSpec | None = None  # default from [embedding]; "none" for vectors
    config: HnswConfig = DEFAULT_CONFIG  # on HNSW, where nothing is promoted
    lance: LanceConfig | None = None  # on Lance; default by rule, from its rows and dimensions
    text_column: str | None = None  # that full-text search reads; default `column` where it is text


class DropIndex(Request["IndexDropped"], tag="index.drop"):
    name: IndexName


class IndexCreated(Event, tag="index.created"):
    """An index is known; its first generation is being built."""

    index: IndexName
    dataset: DatasetName
    column: str


class IndexDropped(Event, tag="index.dropped"):
    """An index, its generations and its eval sets are gone; its trials stay in the journal."""

    index: IndexName


class IndexAppended(Event, tag="index.appended"):
    """The index's vectors now cover a dataset version: searchers add what is new."""

    index: IndexName
    dataset: DatasetName
    version: int  # dataset version covered
    rows: Rows  # vectors added since the version covered before
    total_rows: Rows
    deleted: Rows = 0  # rows that left


class BuildGeneration(Command, tag="index.build"):
    """Build (or take from the graph cache) a graph over the index's vectors, or an index in its Lance store."""

    index: IndexName
    generation: int
    config: IndexConfig
    reason: str  # "created", "promoted", "rolled back", "rebuild" …
    trial: TrialId | None = None
    companion: bool = False  # beside the one that serves


class GenerationBuilt(Event, tag="index.built"):
    """A generation's artifact is durable in the index's bucket; it is not live yet."""

    index: IndexName
    generation: int
    config: IndexConfig
    version: int  # dataset version that it covers
    rows: Rows
    bytes: Bytes
    sha256: Sha256
    key: str  # in the index's bucket: the graph's object, or the folder of the Lance store
    build_s: Seconds  # 0 when it was there already
    reason: str
    library: str = ""  # "hnswlib 0.8.0 native": index files of other builds don't interchange
    trial: TrialId | None = None
    vector_index: str = ""  # its name in the Lance store
    lance_version: int = 0  # of the store, that has it
    companion: bool = False


class GenerationFailed(Event, tag="index.failed"):
    """A build failed. The live generation goes on serving."""

    index: IndexName
    generation: int
    reason: str


class GenerationReady(Event, tag="index.ready"):
    """The head moved: this generation is the one to serve."""

    index: IndexName
    generation: int
    config: IndexConfig
    reason: str
    trial: TrialId | None = None
    companion: bool = False


class GenerationSwapped(Event, tag="index.swapped"):
    """A searcher put the generation under its readers; no query failed or waited."""

    index: IndexName
    generation: int
    config: IndexConfig
    searcher: str  # which process
    load_ms: float
    trial: TrialId | None = None


class Hit(msgspec.Struct, frozen=True):
    id: str | int
    distance: float | None  # None: found by its text alone
    columns: dict[str, Any] = {}
    score: float | None = None  # of text (BM25) and hybrid search (reciprocal rank): higher is better


Strategy = Literal["graph", "filtered_graph", "codes", "lance", "exact", "text"]
SearchMode = Literal["vector", "text", "hybrid"]


class Step(msgspec.Struct, frozen=True):
    """One step of a query and its time."""

    name: str  # embed, filter, graph, lance, exact, text, fuse, fetch
    us: Micros
    note: str = ""


class Explanation(msgspec.Struct, frozen=True):
    generation: int
    config: IndexConfig
    strategy: Strategy
    ef_search: int  # 0 where no graph was searched
    rows: Rows
    matching_rows: Rows | None  # of the filter
    steps: list[Step]
    version: int = -1  # dataset version that was searched
    effort: Effort | None = None  # that it took; None: an exact search
    planner: PlannerExplanation | None = None  # what the query planner chose; None: it had no say


class SearchResult(Reply, tag="search.result"):
    """Per query: hits by ascending distance, or by descending score where they have one. `queries`
    has one entry per vector asked."""

    index: IndexName
    generation: int
    queries: list[list[Hit]]
    took_us: Micros
    explain: Explanation | None = None


class Search(Query[SearchResult], tag="search.query"):
    """k nearest rows. Exactly one of text, vector, vectors; `hybrid` takes text, and a vector with it
    where the index has no embedder."""

    index: IndexName
    text: str | None = None
    vector: list[float] | None = None
    vectors: list[list[float]] | None = None
    k: Annotated[int, Meta(ge=1, le=1000)] = 10
    ef_search: Annotated[int, Meta(ge=1, le=4000)] | None = None  # default: the live configuration's
    filter: str | None = None  # SQL predicate over the dataset's columns
    columns: list[str] | None = None  # default: every column but vectors
    explain: bool = False
    mode: SearchMode = "vector"
    backend: Backend | None = None  # default: what serves the index
    nprobes: Annotated[int, Meta(ge=1, le=32_768)] | None = None  # on Lance, as ef_search is on HNSW
    refine_factor: Annotated[int, Meta(ge=1, le=100)] | None = None
    version: int | None = None  # of the dataset: as it was then; default the newest


class LiveRecall(msgspec.Struct, frozen=True):
    """Recall@10 of sampled live queries against exact search on the same rows."""

    samples: int
    mean: Share
    lower: Share  # one-sided 95 % bounds on the mean
    upper: Share
    since: Timestamp


class IndexInfo(Reply, tag="index.info"):
    index: IndexName
    dataset: DatasetName
    column: str
    metric: Metric
    backend: VectorBackend  # as asked for; `config` tells what serves
    bucket: BucketName
    target_recall: Share
    embedder: EmbedderSpec
    dim: int
    state: Literal["building", "ready", "failed"]
    generation: int  # 0 while the first is being built
    config: IndexConfig
    version: int  # dataset version its vectors cover
    rows: Rows
    reason: str = ""  # of "failed"
    why_backend: str = ""  # of `auto`: what the backend was decided from
    companions: list[Backend] = []  # kept ready beside the one that serves
    text_column: str | None = None


class IndexList(Reply, tag="index.list"):
    indexes: list[IndexInfo]


class GetIndex(Query[IndexInfo], tag="index.get"):
    name: IndexName


class ListIndexes(Query[IndexList], tag="index.list_all"):
    pass


class IndexStats(Reply, tag="index.stats_reply"):
    """What the searcher knows of an index now. `loaded` is False after a memory eviction."""

    index: IndexName
    loaded: bool
    generation: int
    config: IndexConfig
    rows: Rows
    fresh_rows: Rows  # searched exactly until the graph, or the index, has taken them in
    deleted: Rows  # marked in the graph
    bytes: Bytes  # in memory
    queries: int  # since start
    live_recall: LiveRecall | None = None
    codec: ArtifactName | None = None  # by whose codes it is searched, in place of its graph
    backend: Backend = "hnsw"  # that serves it
    why_backend: str = ""  # of `auto`: what that was decided from
    stored_bytes: Bytes = 0  # its graph's file, or its store's rows and indexes


class GetIndexStats(Query[IndexStats], tag="search.stats"):
    name: IndexName


class RecallDrifted(Event, tag="recall.drifted"):
    """Live recall is below target with confidence: its upper bound is under the target."""

    index: IndexName
    generation: int
    target: Share
    recall: LiveRecall
    trial: TrialId | None = None  # the promotion that was live


class RebuildIndex(Request["RebuildQueued"], tag="index.rebuild"):
    """Build the live configuration again over today's rows."""

    index: IndexName
    reason: str = "asked"


class RebuildQueued(Reply, tag="index.rebuild_queued"):
    index: IndexName
    generation: int
    cause: MessageId | None = None  # id of the order, which the new generation names as its cause


class IndexServed(Reply, tag="index.served"):
    """Where an index stands after `ServeIndex`."""

    index: IndexName
    config: IndexConfig  # that it is to serve
    generation: int  # of the head; 0: none yet
    building: int | None = None  # generation ordered for `config`, swapped in when it is built


class ServeIndex(Request[IndexServed], tag="index.serve"):
    """See to it that the promoted configuration is served, else `default`, which holds where
    nothing is promoted until another is given, or none."""

    index: IndexName
    default: HnswConfig | None = None  # None: the index's own, as created
    backend: Backend | None = None  # that must be ready too; None: whatever serves
