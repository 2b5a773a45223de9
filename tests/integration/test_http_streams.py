"""Streams: an autotune as lines of JSON, facts as server-sent events, and how both end."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actors.errors import Transient
from daemon.http import jobs
from schemas.events.base import Progress, Refusal
from schemas.events.codec import SweepFinished, SweepPointSkipped
from schemas.events.dataset import DatasetAppended, DatasetDropped
from tests.integration.http_house import House, house, until
from tests.unit.test_cli_gate import exported


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


async def test_an_autotune_streams_everything_of_its_campaign_and_nothing_else(here: House) -> None:
    body = {"index_name": "docs", "min_recall": 0.9, "grid": [{"ef_construction": 20, "ef_search": 30}]}
    async with here.client.post("/vectors/hnsw/autotune", json=body) as response, asyncio.timeout(10):
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        lines = [json.loads(line) async for line in response.content]
    assert [line["type"] for line in lines] == [
        "autotune.started",
        "job.progress",
        "trial.completed",
        "autotune.finished",
    ]
    assert lines[-1]["outcome"] == "kept"
    assert lines[2]["best"]["recall_lower"] == 0.96
    (command,) = here.tuner.started
    assert (command.min_recall, command.objective, command.asked_by) == (0.9, "cost_first", "http")
    assert command.grid is not None
    assert type(command.grid[0]).__name__ == "GridPoint"


async def test_a_busy_index_is_a_409_and_no_stream(here: House) -> None:
    here.tuner.busy = True
    status, body = await here.call("POST", "/vectors/hnsw/autotune", json={"index_name": "docs"})
    assert (status, body["error"]) == (409, "busy")


SWEEP = {"target": {"kind": "checkpoint", "path": "/model"}, "axes": {"bits": [3, 4]}}


async def test_a_codec_job_streams_everything_of_its_own_until_its_last_fact(here: House) -> None:
    async with here.client.post("/codec/sweep", json=SWEEP) as response, asyncio.timeout(10):
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        lines = [json.loads(line) async for line in response.content]
    kinds = ["codec.job_started", "codec.point_skipped", "job.progress", "codec.sweep_finished"]
    assert [(line["type"], line["job"]) for line in lines] == [(kind, "c9") for kind in kinds]
    assert here.codecs.sweeps[0].axes == {"bits": [3, 4]}


async def test_a_job_is_followed_for_as_long_as_it_says_something(tmp_path: Path) -> None:
    async with house(tmp_path, long_timeout_s=0.8) as here:
        here.codecs.goes_on = True
        async with here.client.post("/codec/sweep", json=SWEEP) as response, asyncio.timeout(10):
            for n in range(5):
                await asyncio.sleep(0.3)
                await here.bus.publish(SweepPointSkipped("c9", f"{n}.weight", {}, "no such"))
            await here.bus.publish(SweepFinished("c9", "sweep", "http"))
            lines = [json.loads(line) async for line in response.content]
    assert [line.get("tensor") for line in lines] == [None, *(f"{n}.weight" for n in range(5)), None]
    assert lines[-1]["type"] == "codec.sweep_finished"


async def test_who_doesn_t_wait_for_a_codec_job_learns_that_it_began(here: House) -> None:
    status, body = await here.call("POST", "/codec/sweep?wait=false", json=SWEEP)
    assert (status, body["type"], body["job"], body["steps"]) == (202, "codec.job_started", "c9", 1)


STEPS = [Progress("", "p", "loss", 1, 4, "passes"), Progress("", "p", "merge", 0, 2, "shards")]
TOLD_S = 0.5
"""A job goes on for so long after its last step: what is told right before its answer may be lost."""


async def test_a_job_whose_answer_is_its_end_streams_what_is_told_of_it(here: House) -> None:
    here.lab.says, here.lab.lasts_s, here.lab.end = STEPS, TOLD_S, exported()
    async with here.client.post("/gate/p/export", json={"target": "peft"}) as response, asyncio.timeout(10):
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        *told, last = [json.loads(line) async for line in response.content]
    assert [(line["type"], line["phase"], line["done"]) for line in told] == [
        ("job.progress", "loss", 1),
        ("job.progress", "merge", 0),
    ]
    assert len({line["job"] for line in told}) == 1
    assert (last["type"], last["export"]["place"]) == ("gate.exported", "/out")


async def test_refused_before_it_began_it_is_no_stream(here: House) -> None:
    status, body = await here.call("POST", "/gate/p/export", json={"target": "peft"})
    assert (status, body["error"], body["hint"]) == (409, "conflict", "train one")


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        (Refusal("invalid", "rank 1 loses 0.9", "a higher rank"), "invalid", "rank 1 loses"),
        (Transient("the worker died", 5), "unavailable", "the worker died"),
        (RuntimeError("secret detail of the inside"), "unavailable", "inside the daemon"),
    ],
)
async def test_what_ends_otherwise_after_it_began_says_so_in_its_last_line(
    here: House, end: Any, status: str, says: str
) -> None:
    here.lab.says, here.lab.lasts_s, here.lab.end = STEPS, TOLD_S, end
    async with here.client.post("/gate/p/export", json={"target": "peft"}) as response, asyncio.timeout(10):
        *told, last = [json.loads(line) async for line in response.content]
    assert (response.status, len(told)) == (200, 2)
    assert (last["type"], last["status"], says in last["reason"]) == ("refusal", status, True), last


async def test_it_goes_on_when_its_client_leaves(here: House) -> None:
    here.lab.says, here.lab.lasts_s, here.lab.end = STEPS, 0.3, exported()
    async with here.client.post("/gate/p/export", json={"target": "peft"}) as response:
        assert json.loads(await response.content.readline())["phase"] == "loss"
    assert (await here.call("POST", "/gate/p/export?wait=false", json={"target": "peft"}))[0] == 202
    assert here.lab.ended < 2
    await until(lambda: here.lab.ended == 2)


async def test_other_jobs_don_t_keep_it_from_its_end(here: House) -> None:
    async def busy() -> None:
        while True:
            await here.bus.signal(Progress("another", "q", "build", 1))
            await asyncio.sleep(0.001)

    traffic = asyncio.create_task(busy())
    here.lab.says, here.lab.end = STEPS, exported()
    try:
        async with here.client.post("/gate/p/export", json={"target": "peft"}) as response, asyncio.timeout(10):
            *told, last = [json.loads(line) async for line in response.content]
    finally:
        traffic.cancel()
    assert ([line["phase"] for line in told], last["type"]) == (["loss", "merge"], "gate.exported")


async def test_it_is_followed_for_as_long_as_it_says_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_S", 0.1)
    async with house(tmp_path, long_timeout_s=0.8) as here:
        here.lab.says, here.lab.pace_s, here.lab.end = STEPS * 2, 0.4, exported()
        async with here.client.post("/gate/p/export", json={"target": "peft"}) as response, asyncio.timeout(10):
            *_, last = [json.loads(line) async for line in response.content]
        assert last["type"] == "gate.exported"
        here.lab.lasts_s = 1.5
        async with here.client.post("/gate/p/export", json={"target": "peft"}) as response, asyncio.timeout(10):
            *told, last = [json.loads(line) async for line in response.content]
        assert told[-1]["phase"] == "merge"  # the last is told again
        assert (last["status"], "0.8 s; it may go on" in last["reason"]) == ("unavailable", True)


async def test_who_doesn_t_wait_for_it_learns_that_it_began(here: House) -> None:
    here.lab.says, here.lab.end = STEPS, exported()
    status, body = await here.call("POST", "/gate/p/export?wait=false", json={"target": "peft"})
    assert (status, body["type"], body["phase"]) == (202, "job.progress", "loss")


async def test_who_doesn_t_wait_for_it_finds_its_refusal_among_the_facts(here: House) -> None:
    here.lab.says, here.lab.lasts_s, here.lab.end = STEPS, 0.2, Refusal("invalid", "rank 1 loses 0.9", "a higher rank")
    async with here.client.get("/events?match=command.refused") as facts:
        await opened(facts)
        assert (await here.call("POST", "/gate/p/export?wait=false", json={"target": "peft"}))[0] == 202
        without = await read_event(facts)
        async with here.client.post("/gate/p/export", json={"target": "peft"}) as left:
            await left.content.readline()
        after = await read_event(facts)
    wanted = {
        "type": "command.refused", "command": "gate.export", "status": "invalid", "reason": "rank 1 loses 0.9",
        "hint": "a higher rank", "about": "p",
    }  # fmt: skip
    assert without["data"]["message"] == after["data"]["message"] == wanted
    assert without["data"]["cause"] != without["data"]["id"], "what was asked is its cause"


async def test_a_silent_job_is_told_to_wait(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_S", 0.05)
    here.lab.end, here.lab.lasts_s = exported(), 0.3
    async with here.client.post("/gate/p/export", json={"target": "peft"}) as response, asyncio.timeout(10):
        *told, last = [json.loads(line) async for line in response.content]
    assert {(line["phase"], line["about"]) for line in told} == {("waiting", "p")}
    assert last["type"] == "gate.exported"


async def read_event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event; comments are skipped."""
    event: dict[str, Any] = {}
    async with asyncio.timeout(5):
        async for raw in response.content:
            line = raw.decode().rstrip("\n")
            if not line and event:
                return event
            if line and not line.startswith(":"):
                key, _, value = line.partition(": ")
                event[key] = json.loads(value) if key == "data" else value
    raise AssertionError("the stream ended")


async def opened(response: aiohttp.ClientResponse) -> None:
    async with asyncio.timeout(5):
        assert await response.content.readuntil(b"\n\n") == b": listening\n\n"


async def test_facts_come_as_server_sent_events(here: House) -> None:
    async with here.client.get("/events") as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        await opened(response)
        id = await here.bus.publish(DatasetAppended("notes", "primary", 1, 5, 5, ingest="i1", source="a\r\nb.csv"))
        event = await read_event(response)
    assert (event["id"], event["event"]) == (id, "dataset.appended")
    assert event["data"]["id"] == event["data"]["cause"] == id
    assert event["data"]["time"] > 1e9
    assert (event["data"]["message"]["rows"], event["data"]["message"]["source"]) == (5, "a\r\nb.csv")


async def test_facts_are_filtered_and_progress_is_asked_for(here: House) -> None:
    async with (
        here.client.get("/events?match=dataset.dropped") as dropped,
        here.client.get("/events?match=dataset.*&progress=1") as both,
    ):
        await opened(dropped)
        await opened(both)
        await here.bus.publish(DatasetAppended("notes", "primary", 1, 5, 5, ingest="i1"))
        await here.bus.signal(Progress("i1", "notes", "read", 5, 10))
        await here.bus.publish(DatasetDropped("notes"))
        assert (await read_event(dropped))["event"] == "dataset.dropped"
        tags = [(await read_event(both))["event"] for _ in range(3)]
    assert tags == ["dataset.appended", "job.progress", "dataset.dropped"]


@pytest.mark.parametrize("match", ["lakehouse.cmd.>", "a..b", ">.x", "x%20y", ""])
async def test_only_facts_can_be_matched(here: House, match: str) -> None:
    assert (await here.call("GET", f"/events?match={match}"))[0] == 422


async def test_a_feed_opens_in_the_middle_of_the_traffic(here: House) -> None:
    async def busy() -> None:
        number = 0
        while True:
            number += 1
            await here.bus.signal(Progress("t-1", "docs", "sweep", number))
            await asyncio.sleep(0)

    traffic = asyncio.create_task(busy())
    try:
        async with here.client.get("/events?progress=1") as response, asyncio.timeout(10):
            assert response.status == 200
            assert (await read_event(response))["event"] == "job.progress"
    finally:
        traffic.cancel()


async def test_a_client_that_leaves_ends_its_feed(here: House) -> None:
    before = len(here.bus.server.listeners)
    async with here.client.get("/events") as response:
        await opened(response)
        assert len(here.bus.server.listeners) == before + 1
    async with asyncio.timeout(5):
        while len(here.bus.server.listeners) > before:
            await here.bus.publish(DatasetDropped("notes"))
            await asyncio.sleep(0.01)


async def test_a_stop_ends_streams_at_once_and_finishes_requests(tmp_path: Path) -> None:
    async with house(tmp_path, shutdown_s=30) as here:
        response = await here.client.get("/events")
        await opened(response)
        in_flight = asyncio.create_task(here.call("GET", "/datasets/slow"))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await here.server.stop()
            assert await response.content.read() == b""
            assert (await in_flight)[0] == 404, "the actor's own answer"
        with pytest.raises(aiohttp.ClientConnectionError):
            await here.call("GET", "/health")
