"""Lance stores: made beside an index or with one, indexed, searched, changed row by row, optimised."""

from daemon.http.errors import HttpError
from daemon.http.route import Call, Route, message
from daemon.http.routes.indexes import asked
from schemas.events.index import Search, SearchResult
from schemas.events.lance import (
    AppendDocuments,
    DeleteDocuments,
    DropStore,
    GetDocument,
    GetStoreStats,
    IndexStore,
    MigrateIndex,
    OptimizeQueued,
    OptimizeStore,
    StoreChanged,
    StoredDocument,
    StoreDropped,
    StoreQueued,
    StoreStats,
)
from schemas.http import IndexParams, QueryBody
from schemas.http_lance import (
    AppendBody,
    DeleteDocumentsBody,
    DocumentParams,
    IndexStoreBody,
    MigrateBody,
    OptimizeParams,
)


async def migrate_index(call: Call[IndexParams, MigrateBody]) -> StoreQueued:
    return await call.ask(message(MigrateIndex, call.body, index=call.params.index), long=True)


async def index_store(call: Call[IndexParams, IndexStoreBody]) -> StoreQueued:
    return await call.ask(message(IndexStore, call.body, index=call.params.index))


async def search_store(call: Call[IndexParams, QueryBody]) -> SearchResult:
    if call.body.backend not in (None, "lance"):
        reason = f"the path names Lance, the body the backend {call.body.backend}"
        raise HttpError("invalid", reason, "leave the body's `backend` out, or POST /vectors/search")
    return await call.ask(Search(index=call.params.index, **asked(call.body) | {"backend": "lance"}))


async def get_document(call: Call[DocumentParams, None]) -> StoredDocument:
    return await call.ask(GetDocument(call.params.index, call.params.doc_id))


async def append_documents(call: Call[IndexParams, AppendBody]) -> StoreChanged:
    return await call.ask(AppendDocuments(call.params.index, call.body.rows), long=True)


async def delete_documents(call: Call[IndexParams, DeleteDocumentsBody]) -> StoreChanged:
    return await call.ask(DeleteDocuments(call.params.index, call.body.ids), long=True)


async def optimize_store(call: Call[OptimizeParams, None]) -> OptimizeQueued:
    p = call.params
    return await call.ask(OptimizeStore(p.index, p.retrain, p.reason))


async def store_stats(call: Call[IndexParams, None]) -> StoreStats:
    return await call.ask(GetStoreStats(call.params.index))


async def drop_store(call: Call[IndexParams, None]) -> StoreDropped:
    return await call.ask(DropStore(call.params.index))


ROUTES = [
    Route(
        "POST",
        "/vectors/lance/migrate/{index}",
        migrate_index,
        "Copy an index, or a dataset's column, into a Lance store and index it; the index goes on being served",
        202,
    ),
    Route("POST", "/vectors/lance/index/{index}", index_store, "Build a vector index in an index's Lance store", 202),
    Route("POST", "/vectors/lance/search/{index}", search_store, "The k nearest rows by its Lance store"),
    Route("GET", "/vectors/lance/doc/{index}/{doc_id}", get_document, "One row by its id, with its vector"),
    Route("POST", "/vectors/lance/append/{index}", append_documents, "Write rows by id; searchable when it answers"),
    Route("POST", "/vectors/lance/delete/{index}", delete_documents, "Delete rows by id"),
    Route(
        "POST",
        "/vectors/lance/optimize/{index}",
        optimize_store,
        "Take in what came since, merge small files; retrain=true: train the indexes again",
        202,
    ),
    Route("GET", "/vectors/lance/stats/{index}", store_stats, "Rows, files, indexes and versions of a Lance store"),
    Route("DELETE", "/vectors/lance/{index}", drop_store, "Remove a Lance store that doesn't serve its index"),
]
