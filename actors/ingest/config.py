"""[ingest], [[sources]] and [[watch]] of lakehouse.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.events.dataset import FileFormat, IngestMode, PiiPolicy
from schemas.names import BucketName, DatasetName
from schemas.secret import Secret


class IngestConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allowed_roots: list[str] = []
    """Folders that `POST /ingest/file` and the bus may read by path. Uploads need none."""
    batch_rows: int = 8192
    """Rows read and written at a time."""
    batch_bytes: int = 16 * 1024 * 1024
    """Upper bound of such a batch in memory, whatever the row width."""
    max_rejected_share: float = 0.5
    """A file with a larger share of bad rows is refused as a whole."""
    database_hosts: list[str] = []
    """Loopback and private database servers that a request may name: host names, addresses, networks
    such as 10.0.0.0/8, folders of sockets. Public ones need none, link-local ones are never asked."""
    pii: PiiPolicy = "flag"
    """What becomes of columns with personal data in new datasets: flag (told, kept), mask (their
    values are masked for good), drop (left out) or refuse (the file is refused)."""


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A database from which a dataset is filled."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """How `lakehouse ingest --source` and requests refer to it."""
    dsn: Secret | None = None
    """`postgresql://user:password@host:5432/database` or `mysql://…`; or one of the next two."""
    dsn_file: str = ""
    """File whose content is the DSN."""
    dsn_env: str = ""
    """Environment variable whose value is the DSN."""
    table: str | None = None
    """What is read: a table …"""
    query: str | None = None
    """… or a query."""
    dataset: DatasetName
    """Where its rows go."""
    bucket: BucketName | None = None
    """Home of a new dataset; default primary."""
    id_column: str | None = None
    """Column that identifies a row; default a hash of its content."""
    vector_column: str | None = None
    """Column of vectors; default every list of floats."""
    mode: IngestMode = "append"
    """append, upsert (the same id replaces) or replace."""
    cursor: str | None = None
    """A column that only grows: each run reads what came after the last one's newest row. A row that is
    committed later with a smaller value is passed by: where writers overlap, name a column that is set at commit."""
    pii: PiiPolicy | None = None
    """What becomes of columns with personal data: flag, mask, drop or refuse; default [ingest] pii."""
    every: Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,5}(s|m|h|d))?$")] = ""
    """Read it this often: 30s, 15m, 2h, 1d. Empty: when asked."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.dsn, self.dsn_file, self.dsn_env))) != 1:
            raise ValueError("dsn, dsn_file and dsn_env: exactly one of them is needed")
        if (self.table is None) == (self.query is None):
            raise ValueError("table and query: exactly one of them is needed")

    @property
    def every_s(self) -> float:
        """Seconds; 0 for when asked."""
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
        return int(self.every[:-1]) * unit[self.every[-1]] if self.every else 0.0


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder whose files are ingested as they come."""

    path: str
    """The folder, and what is below it; its files may then be named in `POST /ingest/file`, too."""
    dataset: DatasetName
    """Where their rows go."""
    pattern: str = "*"
    """Names that are wanted, as *.jsonl; with a / it is matched with the path below the folder."""
    settle_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """A file is read when it didn't change for so long."""
    bucket: BucketName | None = None
    """Home of a new dataset; default primary."""
    format: FileFormat | None = None
    """What the files are; default by their names."""
    id_column: str | None = None
    """Column that identifies a row; default a hash of its content."""
    vector_column: str | None = None
    """Column of vectors; default every list of floats."""
    mode: IngestMode = "upsert"
    """A file that grew is read again as a whole: upsert stores its rows once."""
    pii: PiiPolicy | None = None
    """What becomes of columns with personal data: flag, mask, drop or refuse; default [ingest] pii."""
