"""What travels over HTTP about Lance stores: parameters and request bodies. See schemas/http.py."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.config import LanceType, Partitions
from schemas.events.index import Target
from schemas.http import Body, EmbedderBody, Params
from schemas.names import DatasetName, IndexName, Metric

SubVectors = Annotated[int, Meta(ge=1, le=4096)]


class DocumentParams(Params, frozen=True):
    index: IndexName
    doc_id: str  # percent-encoded; of a column of numbers its digits


class OptimizeParams(Params, frozen=True):
    index: IndexName
    retrain: bool = False
    reason: Annotated[str, Meta(max_length=500)] = "asked"


class IndexStoreBody(Body, frozen=True):
    """What is to be built in the store; by rule, from rows and dimensions, where it isn't said."""

    index_type: LanceType | Literal["auto"] = "auto"
    partitions: Partitions | None = None
    sub_vectors: SubVectors | None = None


class MigrateBody(IndexStoreBody, frozen=True):
    """The first five only for an index that isn't there: it is made, with Lance to serve it."""

    dataset: DatasetName | None = None
    column: str | None = None
    metric: Metric = "cosine"
    embedder: EmbedderBody | None = None
    target_recall: Target | None = None


class AppendBody(Body, frozen=True):
    rows: Annotated[list[dict[str, Any]], Meta(min_length=1, description="objects, one a row, at least one")]


class DeleteDocumentsBody(Body, frozen=True):
    ids: Annotated[list[str | int], Meta(min_length=1, description="texts or whole numbers, at least one")]
