"""A dataset: where its table is and what its columns mean."""

from schemas.documents.base import Document
from schemas.events.dataset import ColumnInfo
from schemas.names import BucketName, DatasetName, Timestamp


class DatasetDocument(Document, frozen=True, kw_only=True, tag="dataset"):
    """Versions and rows aren't here: the table itself is the truth about them."""

    dataset: DatasetName
    bucket: BucketName = "primary"  # its home
    path: str  # of the table in its bucket
    id_column: str
    generated_id: bool  # the id is a content hash that ingest made
    columns: list[ColumnInfo]
    created: Timestamp
