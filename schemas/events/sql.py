"""SQL over what the lakehouse holds. Owned by the sql actor."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from schemas.events.base import Query, Reply
from schemas.names import DatasetName, Seconds

MOST_ROWS = 100_000
SqlLimit = Annotated[int, Meta(ge=1, le=MOST_ROWS, description="rows of an answer: 1 to 100000")]


class SqlColumn(msgspec.Struct, frozen=True):
    name: str
    type: str  # Arrow type


class SqlRows(Reply, tag="sql.rows"):
    """An answer's first rows."""

    columns: list[SqlColumn]
    rows: list[list[Any]]  # values as JSON: decimals and moments as text, bytes as base64, NaN as null
    truncated: bool  # there are more than `limit`
    seconds: Seconds


class RunSql(Query[SqlRows], tag="sql.run"):
    """A SELECT over datasets and the system's tables. `versions`: the version of a dataset that is
    meant, instead of its newest; `"docs@3"` in the query means one, too."""

    query: Annotated[str, Meta(max_length=100_000)]
    limit: SqlLimit = 1000
    versions: dict[DatasetName, int] = {}
