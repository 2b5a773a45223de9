"""SQL: rows as JSON, or streamed as Arrow or CSV. The engine is this process's own, so that a query
ends when its client goes."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec
import pyarrow as pa
import pyarrow.csv
from aiohttp import web

from daemon.http.route import Call, Route
from daemon.sql.engine import Answer
from schemas.events.sql import SqlRows
from schemas.http import NoParams, SqlBody

T = TypeVar("T")

LOOK_S = 0.1
"""How often it is seen whether the client is still there."""
MEDIA = {"arrow": "application/vnd.apache.arrow.stream", "csv": "text/csv; charset=utf-8"}


async def run_sql(call: Call[NoParams, SqlBody]) -> SqlRows:
    body, engine = call.body, call.services.sql
    if body.format == "json":
        return await while_there(call.request, engine.rows(body.query, body.limit, body.versions))
    # Written out already; the document tells of the JSON that everybody gets who names no format.
    return cast(SqlRows, await while_there(call.request, _stream(call)))


async def _stream(call: Call[NoParams, SqlBody]) -> web.StreamResponse:
    body = call.body
    async with call.services.sql.answer(body.query, body.versions) as answer:
        response = web.StreamResponse(headers={"Content-Type": MEDIA[body.format], "Cache-Control": "no-store"})
        written = _arrow(answer, body.limit) if body.format == "arrow" else _csv(answer, body.limit)
        first = await anext(written, b"")  # an error before it is an answer with a status
        await response.prepare(call.request)
        await response.write(first)
        async for piece in written:
            await response.write(piece)
        await response.write_eof()
        return response


async def while_there(request: web.Request, work: Awaitable[T]) -> T:
    """The work's result; it is cancelled when the client goes away. Raises ConnectionError then."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            await asyncio.wait({task}, timeout=LOOK_S)
            if task.done():
                return task.result()
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client went away")
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _limited(answer: Answer, limit: int) -> AsyncIterator[pa.RecordBatch]:
    left = limit
    async for batch in answer.batches():
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


async def _arrow(answer: Answer, limit: int) -> AsyncIterator[bytes]:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, answer.schema) as writer:
        async for batch in _limited(answer, limit):
            writer.write_batch(batch)
            yield _taken(out)
    yield _taken(out)


async def _csv(answer: Answer, limit: int) -> AsyncIterator[bytes]:
    out = io.BytesIO()
    schema = pa.schema([pa.field(field.name, _flat(field.type)) for field in answer.schema])
    with pyarrow.csv.CSVWriter(out, schema) as writer:
        async for batch in _limited(answer, limit):
            writer.write_batch(pa.RecordBatch.from_arrays([_plain(column) for column in batch.columns], schema=schema))
            yield _taken(out)
    yield _taken(out)


def _taken(out: io.BytesIO) -> bytes:
    piece = out.getvalue()
    out.seek(0)
    out.truncate()
    return piece


def _flat(type_: pa.DataType) -> pa.DataType:
    """CSV has no lists and no structs: they are written as JSON."""
    return pa.string() if pa.types.is_nested(type_) or pa.types.is_dictionary(type_) else type_


def _plain(values: Any) -> Any:
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode().cast(pa.string())
    if not pa.types.is_nested(values.type):
        return values
    texts = [
        None if value is None else msgspec.json.encode(value, enc_hook=str).decode() for value in values.to_pylist()
    ]
    return pa.array(texts, pa.string())


ROUTES = [Route("POST", "/sql", run_sql, "Ask in SQL over datasets, trials, promotions, rejects, lineage …")]
