"""A job that is streamed: asked for, then told line by line until its last fact. It goes on when the client leaves; a
refusal comes before the stream begins."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from time import monotonic, time
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from aiohttp import web

from actors.base import Origin
from actors.errors import Transient, Unavailable
from daemon.http import errors
from daemon.http.route import Call, Services
from daemon.http.streams import HEARTBEAT_S, Ended, Feed, open_stream, write_line
from daemon.unheard import unheard
from schemas.events.base import Message, Progress, Request
from schemas.names import MessageId

S = TypeVar("S")

PROGRESS = "lakehouse.sig.job.progress"
LONGEST_S = 30 * 86400.0
"""An answer is waited for while the job tells how far it is."""
LATE_S = 0.1
"""What was said before an answer is heard within so long after it."""


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


async def stream_asked(
    call: Call[Any, Any], order: Request[Any], about: str, job_of: Callable[[MessageId], str], *, wait: bool
) -> web.StreamResponse:
    """A job whose answer is its end: of what is told of it every line, then the answer. Refused before it began, it is
    an answer like any other; later, its last line is the refusal. With `wait` false, all that is waited for is that it
    has begun. One that is silent for `long_timeout_s` is followed no longer. For work whose order may be larger than
    what the bus stores. Who left, or didn't wait, finds a refusal among the facts: `command.refused`."""
    services, id = call.services, uuid4().hex
    waiting = Progress(job_of(id), about, "waiting", 0)
    async with Feed(services.bus, services.closing, PROGRESS) as feed:
        asked = asyncio.create_task(services.bus.ask(order, timeout_s=LONGEST_S, id=id))
        response: web.StreamResponse | None = None
        try:
            try:
                async with aclosing(_progress(feed, waiting, asked, services.config.long_timeout_s)) as told:
                    async for said in told:
                        if not wait:
                            return accepted(said)
                        response = response or await open_stream(call.request, "application/x-ndjson")
                        await write_line(response, said)
                last = asked.result()
            except (Ended, ConnectionError):
                raise
            except Exception as error:
                if response is None:
                    raise
                last = errors.told(error)
            response = response or await open_stream(call.request, "application/x-ndjson")
            await write_line(response, last)
        except (Ended, ConnectionError):
            if response is None:
                raise Unavailable("the daemon stops") from None
            return response
        finally:
            if services.closing.begun:
                _let_go(asked)
            elif not asked.done():  # it goes on without its asker
                _follow(services, asked, order, id)
        await response.write_eof()
        return response


async def _progress(feed: Feed, last: Progress, asked: asyncio.Task[Any], silent_s: float) -> AsyncGenerator[Progress]:
    """What is told of a job until what was asked is answered; the `last` again after silence. Raises Ended, and
    Unavailable when nothing was told for `silent_s`."""
    deadline, ends = monotonic() + silent_s, float("inf")
    heard = asyncio.create_task(feed.next(HEARTBEAT_S))
    try:
        while monotonic() < ends:
            if asked.done():  # what was said before the answer is on its way
                ends = min(ends, monotonic() + LATE_S)
                await asyncio.wait({heard}, timeout=LATE_S)
            else:
                await asyncio.wait({heard, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                continue
            envelope, heard = heard.result(), asyncio.create_task(feed.next(HEARTBEAT_S))
            if envelope is not None and isinstance(envelope.message, Progress) and envelope.message.job == last.job:
                last, deadline = envelope.message, monotonic() + silent_s
                yield last
            elif asked.done():
                continue
            elif monotonic() > deadline:
                raise Unavailable(f"nothing was told of job {last.job} for {silent_s:g} s; it may go on")
            elif envelope is None:
                yield last
    finally:
        _let_go(heard)


def _follow(services: Services, asked: asyncio.Task[Any], order: Request[Any], id: MessageId) -> None:
    """Until it is done, or the server stops."""

    async def to_its_end() -> None:
        try:
            await asked
        except Exception as error:
            with suppress(Unavailable, Transient):
                await services.bus.publish(unheard(order, errors.told(error)), cause=Origin(id, id, time()))

    def stop() -> None:
        follower.cancel()

    follower = asyncio.create_task(to_its_end())
    services.closing.add(stop)
    follower.add_done_callback(lambda _: services.closing.remove(stop))


def _let_go(task: asyncio.Task[Any]) -> None:
    """Whatever came of it, nobody waits for it any more."""
    task.cancel()
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
