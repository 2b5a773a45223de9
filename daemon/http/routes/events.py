"""What happens and what went wrong: the stream of facts, and the dead letters."""

import msgspec
from aiohttp import web

from daemon.bus.letters import DeadLetter
from daemon.http.errors import HttpError
from daemon.http.route import Call, Route
from daemon.http.streams import HEARTBEAT_S, Ended, Feed, open_stream, write_event
from schemas.events.base import Progress, subject_of, tag_of
from schemas.http import DeadListParams, DeadParams, EventParams, StreamedEvent

FACTS = "lakehouse.evt."


class DeadList(msgspec.Struct, frozen=True):
    letters: list[DeadLetter]  # newest first
    total: int


class Retried(msgspec.Struct, frozen=True):
    seq: int
    message: str  # its new id


class Dropped(msgspec.Struct, frozen=True):
    seq: int


async def events(call: Call[EventParams, None]) -> web.StreamResponse:
    """Server-sent events: `id` is the message's, `event` its tag, `data` a StreamedEvent."""
    services = call.services
    subjects = [_subject(call.params.match)] + ([subject_of(Progress)] if call.params.progress else [])
    async with Feed(services.bus, services.closing, *subjects) as feed:
        response = await open_stream(call.request, "text/event-stream")
        try:
            await response.write(b": listening\n\n")
            while True:
                envelope = await feed.next(HEARTBEAT_S)
                if envelope is None:
                    await response.write(b": still here\n\n")
                    continue
                origin, message = envelope.origin, envelope.message
                data = StreamedEvent(origin.id, origin.cause, origin.time, message)
                await write_event(response, origin.id, tag_of(type(message)), data)
        except (Ended, ConnectionError):
            return response


def _subject(match: str) -> str:
    """A tag pattern (`dataset.>`) or a whole subject below `lakehouse.evt.`."""
    if not match.startswith("lakehouse."):
        match = FACTS + match
    tokens = match.split(".")
    if not match.startswith(FACTS) or "" in tokens or ">" in tokens[:-1]:
        raise HttpError("invalid", f"{match!r} matches no facts", "such as dataset.> or lakehouse.evt.trial.*")
    return match


async def dead_list(call: Call[DeadListParams, None]) -> DeadList:
    letters = await call.services.dead.dead_list()
    return DeadList(letters[::-1][: call.params.limit], len(letters))


async def dead_show(call: Call[DeadParams, None]) -> DeadLetter:
    return await _letter(call)


async def dead_retry(call: Call[DeadParams, None]) -> Retried:
    await _letter(call)
    try:
        return Retried(call.params.seq, await call.services.dead.dead_retry(call.params.seq))
    except ValueError as error:
        raise HttpError("invalid", str(error)) from error


async def dead_drop(call: Call[DeadParams, None]) -> Dropped:
    await _letter(call)
    await call.services.dead.dead_drop(call.params.seq)
    return Dropped(call.params.seq)


async def _letter(call: Call[DeadParams, None]) -> DeadLetter:
    try:
        return await call.services.dead.dead_show(call.params.seq)
    except KeyError as error:
        raise HttpError(
            "not_found", f"there is no dead letter {call.params.seq}", "lakehouse dead lists them, or GET /dead"
        ) from error


ROUTES = [
    Route("GET", "/events", events, "Facts as they happen", media="text/event-stream", items=StreamedEvent),
    Route("GET", "/dead", dead_list, "Messages that could not be handled"),
    Route("GET", "/dead/{seq}", dead_show, "One of them, with its body and reason"),
    Route("POST", "/dead/{seq}/retry", dead_retry, "Publish it again"),
    Route("DELETE", "/dead/{seq}", dead_drop, "Give it up"),
]
