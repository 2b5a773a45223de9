"""The wiring read off signatures: who hears whom, and a document whose references all resolve."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from actors.base import Actor, every, handles
from daemon.bus.streams import durables_of
from daemon.topology import asyncapi, mermaid
from schemas.events.base import Command, Event, Query, Refusal, Reply, Request


class Rung(Event, tag="topotest.rung"):
    """A bell rang. And more."""

    times: int


class Bells(Reply, tag="topotest.bells"):
    names: list[str]


class Ring(Request[Rung], tag="topotest.ring"):
    times: int = 1


class ListBells(Query[Bells], tag="topotest.list"):
    pass


class Oil(Command, tag="topotest.oil"):
    bell: str


class Belfry(Actor):
    @handles
    async def on_ring(self, command: Ring) -> Sequence[Rung | Oil | Refusal]:
        return []

    @handles
    async def on_list(self, query: ListBells) -> Sequence[Bells]:
        return []


class Verger(Actor):
    role = "work"
    period_s = 1.0

    @handles
    async def on_oil(self, command: Oil) -> Sequence[Event]:
        return []

    @every("period_s")
    async def on_hour(self) -> Sequence[Ring]:
        return []


class Village(Actor):
    role = "serve"
    fanout = True

    @handles
    async def on_rung(self, event: Rung) -> Sequence[Event]:
        return []


ALL = [Belfry, Verger, Village]


def test_the_flowchart_shows_roles_actors_and_who_hears_whom() -> None:
    lines = [line.strip() for line in mermaid(ALL).splitlines()]
    assert lines[0] == "flowchart LR"
    assert {'belfry["Belfry"]', 'verger["Verger"]', 'village["Village"]'} <= set(lines)
    assert {"subgraph control", "subgraph serve", "subgraph work"} <= set(lines)
    edges = {line for line in lines if "|" in line}
    assert edges == {
        'belfry -->|"topotest.rung"| village',
        'belfry ==>|"topotest.oil"| verger',
        'verger ==>|"topotest.ring"| belfry',
        'user ==>|"topotest.ring"| belfry',
        'user -.->|"topotest.list"| belfry',
    }


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_of_the_asyncapi_document_resolves() -> None:
    document = json.loads(json.dumps(asyncapi(ALL)))
    found = list(references(document))
    assert len(found) > 10
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in node, reference
            node = node[step]


def test_the_asyncapi_document_says_what_is_received_sent_and_asked() -> None:
    document = asyncapi(ALL)
    operations = document["operations"]
    assert document["asyncapi"] == "3.0.0"
    assert operations["belfry.on_ring"]["action"] == "receive"
    assert operations["belfry.on_ring"]["x-durable"] == "belfry__topotest_ring"
    assert operations["send.topotest.rung"]["action"] == "send"
    assert document["channels"]["topotest.ring"]["address"] == "lakehouse.cmd.topotest.ring"
    assert "belfry.on_list" not in operations, "a query has no stream"
    reply = document["channels"]["ask.topotest.list.reply"]["messages"]
    assert set(reply) == {"topotest.bells", "refusal"}
    assert document["components"]["messages"]["topotest.rung"]["summary"] == "A bell rang. And more."
    assert document["components"]["schemas"]["Rung"]["properties"]["times"] == {"type": "integer"}


def test_durables_keep_order_for_control_and_share_for_work() -> None:
    durables = {durable.name: durable for durable in durables_of(ALL)}
    assert set(durables) == {"belfry__topotest_ring", "verger__topotest_oil", "village__topotest_rung"}
    assert durables["belfry__topotest_ring"].max_ack_pending == 1
    assert durables["verger__topotest_oil"].max_ack_pending > 1
    assert durables["village__topotest_rung"].new_only
    assert durables["belfry__topotest_ring"].stream == "LAKEHOUSE_CMD"
    assert durables["village__topotest_rung"].stream == "LAKEHOUSE_EVT"
