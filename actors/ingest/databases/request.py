"""What is asked of a database, whichever it is."""

import hashlib

import msgspec

from actors.ingest.core import BadFile
from actors.ingest.databases.dsn import Dsn


class DatabaseRequest(msgspec.Struct, frozen=True):
    dsn: Dsn
    address: str  # that was judged: an IP address, or the folder of a socket
    table: str | None = None
    query: str | None = None  # one of the two
    cursor: str | None = None  # a column that only grows
    after: str | None = None  # the high-water mark of the run before, as the server writes it
    batch_bytes: int = 16 * 1024 * 1024

    @property
    def shown(self) -> str:
        """What lineage and rejects call it."""
        return f"{self.dsn.shown}#{self.table or 'query'}"

    @property
    def mark_key(self) -> str:
        """Under which the mark is kept: another query or cursor begins anew."""
        what = "\n".join([self.dsn.shown, self.table or "", self.query or "", self.cursor or ""])
        return hashlib.sha256(what.encode()).hexdigest()[:24]


def check(table: str | None, query: str | None, cursor: str | None, mode: str) -> None:
    """Raises BadFile for what can't be asked."""
    if (table is None) == (query is None):
        raise BadFile("a table or a query is needed, and not both", "name one of `table` and `query`")
    if query is not None and not query.strip().strip(";").strip():
        raise BadFile("the query is empty")
    if cursor is not None and mode == "replace":
        raise BadFile("a cursor pulls what is new, and replace takes out what is there", "use append or upsert")
