"""The Lance store of an index: its rows as one Lance dataset, beside the index in its bucket."""

import msgspec

from schemas.config import LanceBuild
from schemas.documents.base import Document
from schemas.names import IndexName, Rows, Timestamp

MAX_HISTORY = 200


class VectorIndex(msgspec.Struct, frozen=True):
    """A vector index in a store. Several lie side by side over the same rows; a search names one."""

    name: str  # `IVF_RQ-p64-v17`: what was built, and over which dataset version
    build: LanceBuild
    version: int  # dataset version that it was trained on
    rows: Rows
    built: Timestamp


class StoreVersion(msgspec.Struct, frozen=True):
    """Which version of the store holds a version of the dataset."""

    version: int  # of the dataset
    lance_version: int


class StoreDocument(Document, frozen=True, kw_only=True, tag="store"):
    """Registry name: the index's. The head of the store: what no head names was never finished."""

    index: IndexName
    key: str  # folder of the Lance dataset in the index's bucket
    lance_version: int  # of the store, to be read
    version: int  # dataset version that it covers
    rows: Rows
    unindexed_rows: Rows = 0  # that came since the indexes last took rows in
    vectors: bool  # False: it holds texts only, for full-text search beside a graph
    text_column: str | None = None
    indexes: list[VectorIndex] = []  # newest first
    history: list[StoreVersion] = []  # newest first, at most MAX_HISTORY
    created: Timestamp

    def at(self, version: int) -> int | None:
        """The store's version that holds a dataset version; None: none that is known."""
        if self.version == version:
            return self.lance_version
        return next((one.lance_version for one in self.history if one.version == version), None)
