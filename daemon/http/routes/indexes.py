"""Indexes: made, shown, dropped, searched."""

from typing import Any

from daemon.http.route import Call, Route, message
from schemas.events.index import (
    CreateIndex,
    DropIndex,
    GetIndex,
    GetIndexStats,
    IndexDropped,
    IndexInfo,
    IndexList,
    IndexStats,
    ListIndexes,
    RebuildIndex,
    RebuildQueued,
    Search,
    SearchResult,
)
from schemas.events.lance import SetBackend
from schemas.events.profile import SearchProfile
from schemas.events.storage import IndexMoved, MoveIndex
from schemas.http import (
    BackendBody,
    CreateIndexBody,
    HomeBody,
    IndexParams,
    NoParams,
    QueryBody,
    RebuildParams,
    SearchBody,
)
from schemas.names import IndexName, ProfileName


async def create_index(call: Call[NoParams, CreateIndexBody]) -> IndexInfo:
    return await call.ask(message(CreateIndex, call.body), long=True)


async def list_indexes(call: Call[NoParams, None]) -> IndexList:
    return await call.ask(ListIndexes())


async def get_index(call: Call[IndexParams, None]) -> IndexInfo:
    return await call.ask(GetIndex(call.params.index))


async def drop_index(call: Call[IndexParams, None]) -> IndexDropped:
    return await call.ask(DropIndex(call.params.index))


async def index_stats(call: Call[IndexParams, None]) -> IndexStats:
    return await call.ask(GetIndexStats(call.params.index))


async def set_backend(call: Call[IndexParams, BackendBody]) -> IndexInfo:
    return await call.ask(SetBackend(call.params.index, call.body.backend))


async def search(call: Call[NoParams, SearchBody]) -> SearchResult:
    body = call.body
    if body.profile is not None:
        return await call.ask(scoped(body.profile, body.index, body))
    return await call.ask(Search(index=body.index, **asked(body)))


def scoped(profile: ProfileName, index: IndexName | None, body: QueryBody) -> SearchProfile:
    """A search with a profile's rights."""
    return SearchProfile(profile=profile, index=index, **asked(body))


def asked(body: QueryBody) -> dict[str, Any]:
    """What a query asks for, as it is: `message` would check 384 numbers a second time."""
    return {name: getattr(body, name) for name in QueryBody.__struct_fields__}


async def rebuild(call: Call[RebuildParams, None]) -> RebuildQueued:
    return await call.ask(RebuildIndex(call.params.index, call.params.reason))


async def move_index(call: Call[IndexParams, HomeBody]) -> IndexMoved:
    return await call.ask(MoveIndex(call.params.index, call.body.bucket), long=True)


ROUTES = [
    Route("POST", "/vectors/indexes", create_index, "Make an index over a column", status=201),
    Route("GET", "/vectors/indexes", list_indexes, "Every index"),
    Route("GET", "/vectors/indexes/{index}", get_index, "One index"),
    Route("PATCH", "/vectors/indexes/{index}", move_index, "Move an index to another bucket; searches go on"),
    Route("DELETE", "/vectors/indexes/{index}", drop_index, "Drop an index; its trials stay in the journal"),
    Route("GET", "/vectors/indexes/{index}/stats", index_stats, "Rows, memory, generation, live recall"),
    Route("POST", "/vectors/indexes/{index}/rebuild", rebuild, "Build the live configuration over today's rows", 202),
    Route("PUT", "/vectors/indexes/{index}/backend", set_backend, "Have it served by HNSW, by Lance, or by the better"),
    Route("POST", "/vectors/search", search, "The k nearest rows; with a profile's rights when one is named"),
]
