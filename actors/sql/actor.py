"""The sql actor: questions in SQL, from the bus. HTTP asks the same engine, which streams there."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from actors.base import Actor, Role, concurrent, handles
from actors.errors import Refused
from schemas.events.base import Refusal
from schemas.events.sql import RunSql, SqlRows


class SqlEngine(Protocol):
    async def rows(self, query: str, limit: int, versions: Mapping[str, int]) -> SqlRows:
        """Raises Refused with the engine's words."""
        ...


class Sql(Actor):
    """Answers in rows."""

    role: ClassVar[Role] = "serve"

    def __init__(self, engine: SqlEngine) -> None:
        self._engine = engine

    @handles
    @concurrent(8)
    async def on_run(self, query: RunSql) -> Sequence[SqlRows | Refusal]:
        try:
            return [await self._engine.rows(query.query, query.limit, query.versions)]
        except Refused as error:
            return [error.refusal]
