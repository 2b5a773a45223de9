"""Datasets: rows come, change and go. Owned by the ingest actor."""

from typing import Any, Literal

import msgspec

from schemas.events.base import Event, Query, Reply, Request
from schemas.names import BucketName, Bytes, DatasetName, MessageId, Rows, Sha256, Share, Timestamp
from schemas.secret import Secret

FileFormat = Literal["csv", "jsonl", "parquet", "arrow"]
IngestMode = Literal["append", "upsert", "replace"]
PiiPolicy = Literal["flag", "mask", "drop", "refuse"]
"""What becomes of columns with personal data: told and kept; kept with their values masked; left
out; the file is refused."""
PiiKind = Literal[
    "email",
    "phone",
    "credit_card",
    "iban",
    "national_id",
    "ip_address",
    "person_name",
    "street_address",
    "date_of_birth",
]


class PiiFinding(msgspec.Struct, frozen=True):
    """Personal data in a column, told from a sample of its values."""

    column: str
    kind: PiiKind
    confidence: Share  # that the column holds this kind
    share: Share  # of the sampled values that matched
    sampled: Rows  # values looked at, nulls not among them
    matched: Rows
    detail: str = ""  # which national id, whose phone numbers, where within a nested value


class RejectedRow(msgspec.Struct, frozen=True):
    """A row that was set aside, and why."""

    file: str
    line: int  # 1-based line of a text file, 1-based row of a columnar one
    column: str
    reason: str


class IngestReport(Reply, tag="ingest.report"):
    """What an ingest did. `rows == 0` when everything was there already or was refused."""

    ingest: MessageId
    dataset: DatasetName
    version: int
    rows: Rows
    total_rows: Rows
    rejected: Rows
    rejects: list[RejectedRow] = []  # the first 20; all of them lie in the rejects table
    warnings: list[str] = []  # what was changed on the way: zero dates, decimals that don't fit
    pii: list[PiiFinding] = []  # personal data in the dataset, as known after this ingest
    pii_policy: PiiPolicy = "flag"


class IngestFile(Request[IngestReport], tag="ingest.file"):
    """Read a file under an allowed root into a dataset, making the dataset if it is new."""

    path: str
    dataset: DatasetName
    bucket: BucketName | None = None  # home of a new dataset; default primary
    format: FileFormat | None = None  # default: by file name
    mode: IngestMode = "append"
    id_column: str | None = None  # default: a hash of the row's content
    vector_column: str | None = None  # default: every list-of-float column is a vector column
    source: str | None = None  # what to call the file in lineage; default its path
    pii: PiiPolicy | None = None  # of a new or replaced dataset; default ingest.pii, then the dataset's own


class IngestDatabase(Request[IngestReport], tag="ingest.database"):
    """Read a table or query of a database server into a dataset. What is unset is as the source
    says. A DSN with a password may only be asked with, not published: streams are stored."""

    dsn: Secret | None = None
    source: str | None = None  # one that lakehouse.toml names, instead of the DSN
    server: Literal["postgresql", "mysql"] | None = None  # that the server must be of
    table: str | None = None
    query: str | None = None
    dataset: DatasetName | None = None
    bucket: BucketName | None = None
    id_column: str | None = None
    vector_column: str | None = None
    mode: IngestMode | None = None
    cursor: str | None = None  # a column that only grows: read what came after the last run
    pii: PiiPolicy | None = None  # of a new or replaced dataset; default ingest.pii, then the dataset's own


class UpsertRows(Request[IngestReport], tag="ingest.upsert"):
    """Write rows by id: the same id replaces, a new one appends."""

    dataset: DatasetName
    rows: list[dict[str, Any]]


class RowsDeleted(Event, tag="dataset.deleted"):
    """Rows left a dataset. Emitted once per committed delete."""

    dataset: DatasetName
    bucket: BucketName
    version: int
    rows: Rows  # how many went
    total_rows: Rows  # how many remain


class DeleteRows(Request[RowsDeleted], tag="ingest.delete"):
    """Delete rows by id. Ids that aren't there are no error."""

    dataset: DatasetName
    ids: list[str | int]


class DatasetAppended(Event, tag="dataset.appended"):
    """Rows became readable in a dataset. Emitted once per committed append or upsert."""

    dataset: DatasetName
    bucket: BucketName
    version: int  # table version that first contains the rows
    rows: Rows  # rows added by this commit
    total_rows: Rows
    replaced: Rows = 0  # rows of the same id that an upsert or replace took out
    ingest: MessageId | None = None  # the ingest that committed them
    source: str = ""
    started: Timestamp = 0  # when it was ordered


class IngestRejected(Event, tag="ingest.rejected"):
    """A file was refused as a whole, or rows of it were set aside."""

    ingest: MessageId
    dataset: DatasetName
    source: str
    rejected: Rows
    reason: str
    refused: bool = False  # as a whole: nothing of it became readable
    started: Timestamp = 0  # when it was ordered


class DatasetDropped(Event, tag="dataset.dropped"):
    """A dataset and its files are gone."""

    dataset: DatasetName


class DropDataset(Request[DatasetDropped], tag="ingest.drop"):
    """Drop a dataset. Refused while an index stands on it."""

    dataset: DatasetName


class ColumnInfo(msgspec.Struct, frozen=True):
    """A column as users see it."""

    name: str
    type: str  # Arrow type
    role: Literal["id", "text", "vector", "value"]
    dim: int | None = None  # of a vector column


class CommitInfo(msgspec.Struct, frozen=True):
    """Where one table version came from."""

    version: int
    time: Timestamp
    operation: str  # append, upsert, replace, delete
    rows: Rows
    message: MessageId  # the command that caused it
    source: str = ""
    sha256: Sha256 | None = None  # of the source file
    rejected: Rows = 0
    marks: dict[str, str] = {}  # how far every cursor over a source has come, by source


class DatasetInfo(Reply, tag="dataset.info"):
    """A dataset as it is now."""

    dataset: DatasetName
    bucket: BucketName
    version: int
    rows: Rows
    bytes: Bytes
    id_column: str
    columns: list[ColumnInfo]
    commits: list[CommitInfo] = []  # newest first; filled for one dataset, empty in lists
    pii: list[PiiFinding] = []  # personal data by column, the dropped columns' too
    pii_policy: PiiPolicy = "flag"
    dropped: list[str] = []  # columns that are left out for their personal data


class DatasetList(Reply, tag="dataset.list"):
    datasets: list[DatasetInfo]


class GetDataset(Query[DatasetInfo], tag="ingest.get"):
    dataset: DatasetName


class ListDatasets(Query[DatasetList], tag="ingest.list"):
    pass
