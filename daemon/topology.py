"""The wiring, read off the handlers' type hints: a flowchart and an AsyncAPI document.

Nothing here is written by hand, so nothing here can be out of date.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from actors.base import Actor, Route
from daemon.bus.streams import STREAMS, durable_of
from schemas.events.base import (
    KIND_TOKEN,
    Command,
    Message,
    Query,
    Refusal,
    Reply,
    Request,
    ask_subject_of,
    kind_of,
    replies_of,
    subject_of,
    tag_of,
)
from schemas.secret import schema_hook

SCHEMAS = "#/components/schemas/{name}"


def mermaid(actors: Sequence[type[Actor]]) -> str:
    """A mermaid flowchart: actors are boxes, grouped by role; an edge carries what one says and
    the other hears. Events are thin, commands thick, queries dotted. What actors ask each other
    isn't in their signatures and isn't drawn."""
    speakers: dict[type[Message], set[str]] = defaultdict(set)
    for actor in actors:
        for said in _said_by(actor):
            speakers[said].add(actor.name())
    edges: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for route in (route for actor in actors for route in actor.routes()):
        heard = route.takes
        arrow = "-.->" if issubclass(heard, Query) else "==>" if issubclass(heard, Command) else "-->"
        by_users = {"user"} if issubclass(heard, Request) else set()
        for by in speakers[heard] | by_users:
            edges[by, route.actor, arrow].append(tag_of(heard))

    lines = ["flowchart LR", "    user((users))"]
    for role in sorted({actor.role for actor in actors}):
        lines.append(f"    subgraph {role}")
        lines += [f'        {actor.name()}["{actor.__name__}"]' for actor in actors if actor.role == role]
        lines.append("    end")
    for (by, to, arrow), tags in sorted(edges.items()):
        lines.append(f'    {by} {arrow}|"{"<br>".join(sorted(tags))}"| {to}')
    return "\n".join(lines) + "\n"


def outline(actors: Sequence[type[Actor]]) -> list[dict[str, Any]]:
    """The same as plain data: every actor with the tags that it hears, by kind, and says."""
    return [
        {
            "actor": actor.name(),
            "role": actor.role,
            "hears": [
                {"tag": tag_of(route.takes), "kind": KIND_TOKEN[kind_of(route.takes)]} for route in actor.routes()
            ],
            "says": sorted(map(tag_of, _said_by(actor))),
        }
        for actor in actors
    ]


def asyncapi(actors: Sequence[type[Actor]], *, version: str = "0.1.0") -> dict[str, Any]:
    """An AsyncAPI 3.0 document of all that the actors take and say; ready for JSON.

    Operations are seen from the daemon: it receives what it handles and sends what it says.
    """
    routes = [(actor, route) for actor in actors for route in actor.routes()]
    said: set[type[Message]] = {message for actor in actors for message in _said_by(actor)}
    taken: set[type[Message]] = {route.takes for _, route in routes}
    answers: set[type[Message]] = {Refusal}
    for kind in taken:
        answers.update(replies_of(kind))
    messages = sorted(said | taken | answers, key=tag_of)
    _, schemas = msgspec.json.schema_components(messages, ref_template=SCHEMAS, schema_hook=schema_hook)

    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for message in messages:
        if kind_of(message) is not Query and message not in answers - taken - said:
            channels[tag_of(message)] = _channel(subject_of(message), [message])
    for actor, route in routes:
        if issubclass(route.takes, Request):
            asked = f"ask.{tag_of(route.takes)}"
            channels[asked] = _channel(ask_subject_of(route.takes), [route.takes])
            channels[f"{asked}.reply"] = _channel(None, [*replies_of(route.takes), Refusal])
            operations[f"{route.actor}.{route.method}.ask"] = _asked(route, asked)
        if (durable := durable_of(actor, route)) is not None:
            operations[f"{route.actor}.{route.method}"] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{tag_of(route.takes)}"},
                "summary": _summary(route.takes),
                "x-durable": durable.name,
                "x-stream": durable.stream,
            }
    for message in sorted(said, key=tag_of):
        operations[f"send.{tag_of(message)}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{tag_of(message)}"},
            "summary": _summary(message),
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "lakehouse",
            "version": version,
            "description": "Everything that happens is a message on NATS. Bodies are JSON; unknown fields are "
            "tolerated; `type` may be left out. Headers: Nats-Msg-Id, Lakehouse-Cause, Lakehouse-Time, all optional.",
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {tag_of(message): _message(message) for message in messages},
            "schemas": schemas,
        },
        "x-streams": {
            stream.name: {
                "subject": stream.subject,
                "retention": "workqueue" if stream.work_queue else "limits",
                "max_age_s": stream.max_age_s,
            }
            for stream in STREAMS
        },
    }


def _said_by(actor: type[Actor]) -> set[type[Message]]:
    """What its handlers and periodic methods publish or signal: their returns but replies."""
    given = [kind for route in actor.routes() for kind in route.gives]
    given += [kind for period in actor.periods() for kind in period.gives]
    return {kind for kind in given if kind_of(kind) is not Reply and kind.__struct_config__.tag}


def _channel(address: str | None, messages: Sequence[type[Message]]) -> dict[str, Any]:
    return {
        "address": address,
        "messages": {tag_of(message): {"$ref": f"#/components/messages/{tag_of(message)}"} for message in messages},
    }


def _asked(route: Route, channel: str) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": _summary(route.takes),
        "reply": {
            "address": {"location": "$message.header#/reply"},
            "channel": {"$ref": f"#/channels/{channel}.reply"},
        },
    }


def _message(message: type[Message]) -> dict[str, Any]:
    return {
        "name": tag_of(message),
        "title": message.__name__,
        "summary": _summary(message),
        "payload": {"$ref": SCHEMAS.format(name=message.__name__)},
    }


def _summary(message: type[Message]) -> str:
    """The first sentence of its docstring."""
    text = (message.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())
