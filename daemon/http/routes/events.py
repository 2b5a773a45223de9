"""What happens and what went wrong: the stream of facts, and the dead letters."""

import difflib

import msgspec
from aiohttp import web

from daemon.bus import wire
from daemon.bus.letters import DeadLetter
from daemon.http.errors import HttpError
from daemon.http.route import Call, Route
from daemon.http.streams import HEARTBEAT_S, Ended, Feed, open_stream, write_event
from schemas.events.base import Event, Progress, concrete, subject_of, tag_of
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
    subjects = facts(call.params.match) + ([subject_of(Progress)] if call.params.progress else [])
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


def facts(match: str) -> list[str]:
    """The subjects of the facts that any of the comma-separated patterns names: tags (`slot.*`) or
    whole subjects below `lakehouse.evt.`; `>` is all of them, `none` no one. Raises HttpError
    for a pattern that no fact there is will ever match.

    Several patterns become the subjects themselves: NATS delivers once for each that matches."""
    if match == "none":
        return []
    known = [subject_of(kind) for kind in concrete(Event)]
    patterns = [one if one.startswith("lakehouse.") else FACTS + one for one in match.split(",")]
    for pattern in patterns:
        if ">" in pattern.split(".")[:-1] or not any(wire.matches(pattern, subject) for subject in known):
            raise _matches_nothing(pattern.removeprefix(FACTS), [subject.removeprefix(FACTS) for subject in known])
    if len(patterns) == 1:
        return patterns
    return [subject for subject in known if any(wire.matches(pattern, subject) for pattern in patterns)]


def _matches_nothing(pattern: str, tags: list[str]) -> HttpError:
    likely = [*tags, *{tag.rpartition(".")[0] + ".*" for tag in tags}]
    near = difflib.get_close_matches(pattern, likely, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else "such as dataset.> or slot.*,vram.*"
    return HttpError("invalid", f"{pattern!r} matches no facts", hint)


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
    Route(
        "GET",
        "/events",
        events,
        "Facts as they happen, such as match=slot.*,vram.*; progress=true adds that of long jobs",
        media="text/event-stream",
        items=StreamedEvent,
    ),
    Route("GET", "/dead", dead_list, "Messages that could not be handled"),
    Route("GET", "/dead/{seq}", dead_show, "One of them, with its body and reason"),
    Route("POST", "/dead/{seq}/retry", dead_retry, "Publish it again"),
    Route("DELETE", "/dead/{seq}", dead_drop, "Give it up"),
]
