"""Lineage: where a dataset or an index came from, and what came of it."""

from daemon.http.route import Call, Route
from schemas.events.lineage import GetLineage, LineageGraph
from schemas.http import LineageParams


async def lineage(call: Call[LineageParams, None]) -> LineageGraph:
    return await call.ask(GetLineage(call.params.name, call.params.limit))


ROUTES = [Route("GET", "/lineage/{name}", lineage, "What a dataset or index came from, and what came of it")]
