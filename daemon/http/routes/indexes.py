"""Indexes: made, shown, dropped, searched."""

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
from schemas.events.profile import SearchProfile
from schemas.events.storage import IndexMoved, MoveIndex
from schemas.http import CreateIndexBody, HomeBody, IndexParams, NoParams, QueryBody, RebuildParams, SearchBody
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


async def search(call: Call[NoParams, SearchBody]) -> SearchResult:
    body = call.body  # field by field by hand: `message` would check 384 numbers a second time
    if body.profile is not None:
        return await call.ask(scoped(body.profile, body.index, body))
    return await call.ask(
        Search(
            index=body.index,
            text=body.text,
            vector=body.vector,
            vectors=body.vectors,
            k=body.k,
            ef_search=body.ef_search,
            filter=body.filter,
            columns=body.columns,
            explain=body.explain,
        )
    )


def scoped(profile: ProfileName, index: IndexName | None, body: QueryBody) -> SearchProfile:
    """A search with a profile's rights."""
    return SearchProfile(
        profile=profile,
        index=index,
        text=body.text,
        vector=body.vector,
        vectors=body.vectors,
        k=body.k,
        ef_search=body.ef_search,
        filter=body.filter,
        columns=body.columns,
        explain=body.explain,
    )


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
    Route("POST", "/vectors/search", search, "The k nearest rows; with a profile's rights when one is named"),
]
