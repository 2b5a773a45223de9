"""A move from one bucket to another that is under way."""

from typing import Literal

from schemas.documents.base import Document
from schemas.names import BucketName, Timestamp


class MoveDocument(Document, frozen=True, kw_only=True, tag="move"):
    """Registry name: `<what>.<name>.<begun, ms>`, so that what a kill has left of one that never
    began is in nobody's way. Gone when nothing is left of the move in `source`."""

    what: Literal["dataset", "index"]
    name: str
    source: BucketName
    bucket: BucketName
    state: Literal["copying", "switched"] = "copying"  # switched: `bucket` is home, `source` holds leftovers
    begun: Timestamp
    since: Timestamp  # of the state
