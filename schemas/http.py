"""What travels over HTTP where the bus's own messages don't: request bodies, which refuse
unknown fields where the bus tolerates them, path and query parameters, and a few answers.

A body is turned into its message field by field (same names, same types), so nothing here
decides anything. Answers are the bus's replies themselves wherever there is one.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.config import HnswConfig, LanceConfig
from schemas.events.autotune import GridPoint, LancePoint
from schemas.events.dataset import FileFormat, IngestMode, PiiPolicy
from schemas.events.index import EmbedderSpec, SearchMode, Target
from schemas.events.profile import SlotState
from schemas.events.sql import SqlLimit
from schemas.events.storage import Url
from schemas.names import (
    Backend,
    BucketName,
    DatasetName,
    HarnessName,
    IndexName,
    MessageId,
    Metric,
    Objective,
    ProfileName,
    Seconds,
    Timestamp,
    TrialId,
    VectorBackend,
)
from schemas.planner import PlannerMode
from schemas.secret import Secret


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Path and query parameters of a route."""


# --- shared parts, strict ----------------------------------------------------------------------


class ConfigBody(HnswConfig, frozen=True, forbid_unknown_fields=True):
    """A configuration on HNSW."""


class LanceConfigBody(LanceConfig, frozen=True, forbid_unknown_fields=True):
    """A configuration on Lance."""


class EmbedderBody(EmbedderSpec, frozen=True, forbid_unknown_fields=True):
    """Which embedder turns text into vectors."""


class GridPointBody(GridPoint, frozen=True, forbid_unknown_fields=True):
    """One point of an explicit grid."""


class LancePointBody(LancePoint, frozen=True, forbid_unknown_fields=True):
    """One build of an explicit grid on Lance."""


# --- parameters --------------------------------------------------------------------------------


class NoParams(Params, frozen=True):
    """A route without parameters."""


class DatasetParams(Params, frozen=True):
    dataset: DatasetName


class LineageParams(Params, frozen=True):
    name: DatasetName
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class BucketParams(Params, frozen=True):
    bucket: BucketName


class IndexParams(Params, frozen=True):
    index: IndexName


class RebuildParams(Params, frozen=True):
    index: IndexName
    reason: Annotated[str, Meta(max_length=500)] = "asked"


class HarnessParams(Params, frozen=True):
    index: IndexName | None = None


class TrialsParams(Params, frozen=True):
    index: IndexName
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100


class EnqueueParams(Params, frozen=True):
    index: IndexName
    reason: Annotated[str, Meta(max_length=500)] = "asked"


class PromoteParams(Params, frozen=True):
    index: IndexName
    trial_id: TrialId
    promoted_by: Annotated[str, Meta(max_length=200)] = "http"
    note: Annotated[str, Meta(max_length=2000)] = ""
    ef_search: int | None = None
    nprobes: int | None = None
    refine_factor: int | None = None
    ef: int | None = None
    force: bool = False


class RollbackParams(Params, frozen=True):
    index: IndexName
    reason: Annotated[str, Meta(max_length=2000)] = ""
    promoted_by: Annotated[str, Meta(max_length=200)] = "http"
    generation: int | None = None


class EventParams(Params, frozen=True):
    match: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_.*>,-]{1,512}$",
            description="tags or subjects of facts with * and >, comma-separated: slot.*,vram.*; none: no facts",
        ),
    ] = ">"
    progress: bool = False


class DeadParams(Params, frozen=True):
    seq: Annotated[int, Meta(ge=1)]


class DeadListParams(Params, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100


# --- bodies ------------------------------------------------------------------------------------


class IngestFileBody(Body, frozen=True):
    """A file on the server. A multipart upload sends these fields (but `path`) beside `file`."""

    path: str
    dataset: DatasetName
    bucket: BucketName | None = None
    format: FileFormat | None = None
    mode: IngestMode = "append"
    id_column: str | None = None
    vector_column: str | None = None
    source: str | None = None
    pii: PiiPolicy | None = None


class IngestDatabaseBody(Body, frozen=True):
    """A table or query of a database: of `dsn`, or of a `source` that lakehouse.toml names."""

    dsn: Secret | None = None
    source: str | None = None
    table: str | None = None
    query: str | None = None
    dataset: DatasetName | None = None
    bucket: BucketName | None = None
    id_column: str | None = None
    vector_column: str | None = None
    mode: IngestMode | None = None
    cursor: str | None = None
    pii: PiiPolicy | None = None


class SqlBody(Body, frozen=True):
    """A SELECT. `versions`: of datasets that aren't meant at their newest."""

    query: Annotated[str, Meta(max_length=100_000)]
    limit: SqlLimit = 1000
    format: Literal["json", "arrow", "csv"] = "json"
    versions: dict[DatasetName, int] = {}


class UpsertBody(Body, frozen=True):
    dataset: DatasetName
    rows: list[dict[str, Any]]


class DeleteRowsBody(Body, frozen=True):
    ids: list[str | int]


class CreateIndexBody(Body, frozen=True):
    name: IndexName
    dataset: DatasetName
    column: str
    metric: Metric = "cosine"
    backend: VectorBackend = "hnsw"
    bucket: BucketName | None = None
    target_recall: Target | None = None
    embedder: EmbedderBody | None = None
    config: ConfigBody = ConfigBody()
    lance: LanceConfigBody | None = None
    text_column: str | None = None


class BucketBody(Body, frozen=True):
    """A new bucket. Without a URL it is a folder below [storage] profile_root."""

    name: BucketName
    url: Url = ""
    options: dict[str, str] = {}


class HomeBody(Body, frozen=True):
    """Another home for a dataset or an index."""

    bucket: BucketName


class BackendBody(Body, frozen=True):
    """Which backend an index is to be served by."""

    backend: VectorBackend


class PlannerBody(Body, frozen=True):
    """What the query planner may do on an index."""

    mode: PlannerMode


class PlannerStateBody(Body, frozen=True):
    """What was exported of a planner."""

    state: Annotated[bytes, Meta(max_length=8 << 20, description="as it was exported, base64")]


Vector = Annotated[list[float], Meta(description="a list of numbers, as many as the index has dimensions")]


class QueryBody(Body, frozen=True):
    """Exactly one of text, vector, vectors; `mode: hybrid` takes text, and a vector with it where the
    index has no embedder."""

    text: str | None = None
    vector: Vector | None = None
    vectors: list[Vector] | None = None
    k: Annotated[int, Meta(ge=1, le=1000)] = 10
    ef_search: Annotated[int, Meta(ge=1, le=4000)] | None = None
    filter: Annotated[str, Meta(max_length=16_384)] | None = None  # 20,000 terms take the engine 9 s
    columns: list[str] | None = None
    explain: bool = False
    mode: SearchMode = "vector"
    backend: Backend | None = None
    nprobes: Annotated[int, Meta(ge=1, le=32_768)] | None = None
    refine_factor: Annotated[int, Meta(ge=1, le=100)] | None = None
    version: Annotated[int, Meta(ge=0, description="a version of the dataset, from 0")] | None = None


class SearchBody(QueryBody, frozen=True, kw_only=True):
    """A query of an index; with a profile's rights when one is named."""

    index: IndexName
    profile: ProfileName | None = None


class HarnessBody(Body, frozen=True):
    index: IndexName
    harness: HarnessName | None = None
    queries: Annotated[int, Meta(ge=10, le=10_000)] = 500
    source: Literal["rows", "logged", "given"] = "rows"
    vectors: list[list[float]] | None = None
    texts: list[str] | None = None
    seed: int = 42


class AutotuneBody(Body, frozen=True):
    index_name: IndexName
    harness: HarnessName | None = None
    min_recall: Annotated[float, Meta(gt=0, lt=1)] | None = None
    grid: list[GridPointBody] | None = None
    lance: list[LancePointBody] | None = None
    objective: Objective = "cost_first"
    agent: bool = False


# --- answers -----------------------------------------------------------------------------------


class ErrorBody(msgspec.Struct, frozen=True):
    """Every answer that isn't a success."""

    error: str  # a word for programs: malformed, unauthorized, not_found …
    reason: str  # what was wrong
    hint: str = ""  # how to mend it
    id: str | msgspec.UnsetType = msgspec.UNSET  # of an internal error: the same as in the log


class Enqueued(msgspec.Struct, frozen=True):
    """The command is durable on the bus; its owner will come to it."""

    index: IndexName
    message: MessageId


class StreamedEvent(msgspec.Struct, frozen=True):
    """One server-sent event's data."""

    id: MessageId
    cause: MessageId
    time: Timestamp
    message: Any


class Health(msgspec.Struct, frozen=True):
    status: Literal["live"] = "live"


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    down: dict[str, str] = {}  # what is down, and why


class AgentSummary(msgspec.Struct, frozen=True):
    enabled: bool
    queued: int
    running: int
    trials_this_hour: int


class SlotSummary(msgspec.Struct, frozen=True):
    state: SlotState
    profile: ProfileName | None


class StatusReport(msgspec.Struct, frozen=True):
    version: str
    uptime_s: Seconds
    roles: list[str]
    nats: dict[str, Any]
    datasets: int | None  # None when their owner doesn't answer
    indexes: int | None
    agent: AgentSummary | None
    slot: SlotSummary | None
    down: dict[str, str] = {}


class Links(msgspec.Struct, frozen=True):
    """What there is to see."""

    name: str
    version: str
    links: dict[str, str]
