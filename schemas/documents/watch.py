"""What the folder watcher remembers: a row a file that it has dealt with."""

import msgspec

from schemas.names import DatasetName, MessageId, Sha256, Timestamp


class SeenFile(msgspec.Struct, frozen=True):
    """A path with this content was ingested or rejected. A file that grows has another content."""

    dataset: DatasetName
    path: str
    sha256: Sha256
    rows: int  # that it added
    ingest: MessageId
    rejected: str  # why; empty when it was ingested
    time: Timestamp
