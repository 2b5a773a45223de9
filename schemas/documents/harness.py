"""An eval set: queries and their exact nearest rows."""

from typing import Literal

from schemas.documents.base import Document
from schemas.names import BucketName, HarnessName, IndexName, Rows, Sha256, Timestamp


class HarnessDocument(Document, frozen=True, kw_only=True, tag="harness"):
    """Registry name: the harness's. The arrays (.npz: query_rows, queries, truth_rows,
    truth_distances) lie beside it in the index's bucket."""

    harness: HarnessName
    index: IndexName
    bucket: BucketName = "primary"  # its home
    key: str
    sha256: Sha256
    queries: int
    k: int  # neighbours kept per query; more than is scored, so that deletes don't force a recomputation
    source: Literal["rows", "logged", "given"]
    version: int  # dataset version that the ground truth covers
    rows: Rows
    seed: int
    created: Timestamp
    merged: Timestamp  # when ground truth was last brought up to `version`
