"""A job that is streamed: asked for, then told line by line until its last fact. It goes on when the client leaves; a
refusal comes before the stream begins."""

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from daemon.http.route import Call
from daemon.http.streams import HEARTBEAT_S, Ended, Feed, open_stream, write_line
from schemas.events.base import Message, Progress, Request

S = TypeVar("S")

PROGRESS = "lakehouse.sig.job.progress"


def accepted(started: Any) -> web.Response:
    """For who doesn't wait: that it has started, and no more."""
    return web.Response(status=202, body=msgspec.json.encode(started), content_type="application/json")


async def stream_job(
    call: Call[Any, Any],
    start: Request[S],
    subjects: tuple[str, ...],
    belongs: Callable[[Message, S], bool],
    ends: Callable[[Message, S], bool],
    waiting: Callable[[S], Progress],
) -> web.StreamResponse:
    """`start`'s answer is the first line; of what is said on `subjects`, what belongs to it, until what ends it.
    `waiting` is said when nothing was for a while; a job that is silent for `long_timeout_s` is followed no longer."""
    services = call.services
    async with Feed(services.bus, services.closing, *subjects, PROGRESS) as feed:
        started = await call.ask(start, long=True)
        response = await open_stream(call.request, "application/x-ndjson")
        deadline = monotonic() + services.config.long_timeout_s
        try:
            await write_line(response, started)
            while monotonic() < deadline:
                envelope = await feed.next(HEARTBEAT_S)
                if envelope is None:
                    await write_line(response, waiting(started))
                    continue
                if belongs(envelope.message, started):
                    deadline = monotonic() + services.config.long_timeout_s
                    await write_line(response, envelope.message)
                    if ends(envelope.message, started):
                        break
        except (Ended, ConnectionError):
            return response
        await response.write_eof()
        return response
