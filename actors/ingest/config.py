"""[ingest] of lakehouse.toml."""

import msgspec

from schemas.events.dataset import PiiPolicy


class IngestConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allowed_roots: list[str] = []
    """Folders that `POST /ingest/file` and the bus may read by path. Uploads need none."""
    batch_rows: int = 8192
    """Rows read and written at a time."""
    batch_bytes: int = 16 * 1024 * 1024
    """Upper bound of such a batch in memory, whatever the row width."""
    max_rejected_share: float = 0.5
    """A file with a larger share of bad rows is refused as a whole."""
    pii: PiiPolicy = "flag"
    """What becomes of columns with personal data in new datasets: flag (told, kept), mask (their
    values are masked for good), drop (left out) or refuse (the file is refused)."""
