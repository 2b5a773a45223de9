"""Answers that go on: a feed of the bus's messages, and the two ways to write one out
(newline-delimited JSON, server-sent events).

A feed ends when the server stops, and drops the oldest messages when its client reads slowly.
"""

import asyncio
import uuid
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from aiohttp import web

from actors.errors import Unavailable
from actors.ports import Bus, Envelope
from daemon.http.route import Closing
from schemas.events.base import Listening, subject_of

log = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0
"""A silent stream says something this often, so that a client that is gone is noticed."""


class Ended(Exception):
    """The server stops, or the bus went away: the stream is over."""


class Feed:
    """Messages from now on: entering returns once the subscription is known to hear.

    It says `Listening` on the bus until it hears itself; what is asked or published after that
    can't be missed."""

    def __init__(self, bus: Bus, closing: Closing, *subjects: str) -> None:
        self._bus = bus
        self._closing = closing
        self._subjects = subjects
        self._id = uuid.uuid4().hex
        # One place: what the client doesn't take stays with `listen`, which drops the oldest.
        self._queue: asyncio.Queue[Envelope] = asyncio.Queue(1)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._hears = asyncio.Event()
        self._pump = asyncio.create_task(self._run())
        self._closing.add(self._end)
        try:
            await self._until_hearing()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def next(self, timeout_s: float) -> Envelope | None:
        """The next message, or None when none came in time. Raises Ended."""
        getting = asyncio.create_task(self._queue.get())
        try:
            waiting: set[asyncio.Future[Any]] = {getting, self._ended}
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not getting.done():
                getting.cancel()  # nothing is lost: the item stays in the queue
        if getting.done() and not getting.cancelled():
            return getting.result()
        if self._ended.done():
            raise Ended
        return None

    async def _run(self) -> None:
        heard: Any = self._bus.listen(subject_of(Listening), *self._subjects)
        try:
            async with aclosing(heard):
                async for envelope in heard:
                    if isinstance(envelope.message, Listening):
                        if envelope.message.listener == self._id:
                            self._hears.set()
                    elif self._hears.is_set():  # before that nobody takes from the queue
                        await self._queue.put(envelope)
        finally:
            self._end()

    async def _until_hearing(self) -> None:
        for _ in range(100):
            if self._closing.begun or self._pump.done():
                break
            await self._bus.signal(Listening(self._id))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._hears.wait()
                    return
        raise Unavailable("the bus can't be listened to now")

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def _stop(self) -> None:
        self._closing.remove(self._end)
        self._pump.cancel()
        await asyncio.wait({self._pump})
        error = None if self._pump.cancelled() else self._pump.exception()
        if error is not None and not isinstance(error, Unavailable):  # a bus that went away has said so
            log.error("a feed broke", exc_info=error)


async def open_stream(request: web.Request, media: str) -> web.StreamResponse:
    """Headers are sent; what follows can only be written or broken off."""
    headers = {"Content-Type": media, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def write_line(response: web.StreamResponse, value: Any) -> None:
    """One line of newline-delimited JSON. Raises ConnectionError when the client is gone."""
    await response.write(msgspec.json.encode(value) + b"\n")


async def write_event(response: web.StreamResponse, id: str, event: str, data: Any) -> None:
    """One server-sent event. JSON has no raw line breaks, so one data line is enough."""
    head = f"id: {_one_line(id)}\nevent: {_one_line(event)}\ndata: ".encode()
    await response.write(head + msgspec.json.encode(data) + b"\n\n")


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")
