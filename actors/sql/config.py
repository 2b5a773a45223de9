"""[sql] of lakehouse.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta


class SqlConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """A query is stopped after so long."""
    memory_mb: Annotated[int, Meta(ge=64)] = 1024
    """What all queries together may hold in memory; one that needs more is refused."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    """Threads of all queries together."""
    concurrent: Annotated[int, Meta(ge=1, le=256)] = 4
    """Queries that run at a time; as many may wait, more are told to come again."""
