"""Model profiles, the slot and the GPU's memory over HTTP: statuses, strictness, what the owner is asked."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from daemon.http.routes.events import facts
from schemas.config import HnswConfig
from schemas.events.base import Event, concrete, tag_of
from schemas.events.dataset import DatasetDropped
from schemas.events.index import EmbedderSpec
from schemas.events.profile import ModelReport, ProfileActivated, ProfileInfo, SlotInfo, VramReport
from schemas.profile import Adapter, ModelProfile
from tests.integration.http_house import House, house
from tests.integration.http_models import GIB, SIZE, TOTAL

CODER: dict[str, Any] = {
    "id": "coder",
    "model": "qwen2.5-coder:7b",
    "server": "ollama",
    "embedder": {"kind": "ollama", "model": "all-minilm"},
    "indexes": ["docs", "notes"],
    "bucket": "coder",
    "hnsw": {"M": 24, "ef_construction": 120, "ef_search": 64},
    "adapters": [{"name": "style.gguf", "scale": 0.5}],
    "keep_alive": "10m",
    "group": "chat",
    "exclusive": False,
    "persistent": True,
}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


async def profile(here: House, **fields: Any) -> None:
    status, body = await here.call("POST", "/vectors/profiles", json={"model": "llama3:latest", **fields})
    assert status == 201, body


# --- the documents -------------------------------------------------------------------------------


async def test_a_profile_is_made_shown_replaced_and_deleted(here: House) -> None:
    async with here.client.post("/vectors/profiles", json=CODER) as response:
        assert response.status == 201
        made = msgspec.json.decode(await response.read(), type=ProfileInfo)
    assert made.profile == ModelProfile(
        id="coder", model="qwen2.5-coder:7b", embedder=EmbedderSpec("ollama", "all-minilm"),
        indexes=["docs", "notes"], bucket="coder", hnsw=HnswConfig(24, 120, 64), adapters=[Adapter("style.gguf", 0.5)],
        keep_alive="10m", group="chat", exclusive=False, persistent=True,
    )  # fmt: skip
    assert here.slot.profiles["coder"] == made.profile
    assert type(here.slot.profiles["coder"].embedder) is EmbedderSpec, "the bus's own structs, not the strict ones"
    assert (await here.call("POST", "/vectors/profiles", json=CODER))[0] == 409
    status, body = await here.call("GET", "/vectors/profiles")
    assert (status, [one["profile"]["id"] for one in body["profiles"]]) == (200, ["coder"])
    status, body = await here.call("PUT", "/vectors/profiles/coder", json={"model": "llama3:latest"})
    assert (status, body["profile"]["model"], body["profile"]["indexes"]) == (200, "llama3:latest", [])
    assert (await here.call("GET", "/vectors/profiles/coder"))[1]["profile"] == body["profile"]
    status, body = await here.call("DELETE", "/vectors/profiles/coder")
    assert (status, body["profile"]) == (200, "coder")
    for method, more in (("GET", {}), ("PUT", {"json": {"model": "m"}}), ("DELETE", {})):
        assert (await here.call(method, "/vectors/profiles/coder", **more))[0] == 404


async def test_defaults_are_the_profiles_own(here: House) -> None:
    await profile(here, id="plain")
    assert here.slot.profiles["plain"] == ModelProfile(id="plain", model="llama3:latest")


@pytest.mark.parametrize(
    ("change", "status", "reason", "hint"),
    [
        ({"modle": "x"}, 400, "unknown field `modle`", "did you mean `model`?"),
        ({"embedder": {"kind": "ollama", "modle": "x"}}, 400, "unknown field `modle` - at `$.embedder`", "`model`"),
        ({"adapters": [{"nam": "a"}]}, 400, "unknown field `nam`", "did you mean `name`?"),
        ({"embedder": {"scale": 1}}, 400, "unknown field `scale`", "fields: dim, kind, model, url"),
        ({"hnsw": {"efSearch": 5}}, 400, "unknown field `efSearch` - at `$.hnsw`", "ef_search"),
        (
            {"adapters": [{"name": "a", "weight": 1}]},
            400,
            "unknown field `weight` - at `$.adapters[0]`",
            "fields: folder, name, scale",
        ),
        ({"model": None}, 400, "Expected `str`, got `null` - at `$.model`", "model"),
        ({"server": "vllm"}, 422, "`$.server`", "one of llamacpp, ollama"),
        ({"vector_backend": "faiss"}, 422, "`$.vector_backend`", "one of auto, hnsw, lance"),
        ({"keep_alive": "soon"}, 422, "`$.keep_alive`", "30s, 5m, 2h"),
        ({"keep_alive": "0m"}, 422, "`$.keep_alive`", "30s, 5m, 2h"),
        ({"hnsw": {"M": 3}}, 422, "`$.hnsw.M`", "from 4 to 64"),
        ({"adapters": [{"name": "a", "scale": -1}]}, 422, "`$.adapters[0].scale`", "from 0 to 100"),
        ({"indexes": ["Not A Name"]}, 422, "`$.indexes[0]`", "a-z 0-9"),
        ({"id": "../x"}, 422, "`$.id`", "a-z 0-9"),
        ({"model": "-rf"}, 422, "`$.model`", "as its server names it"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_profile_is_read_strictly(
    here: House, method: str, change: dict[str, Any], status: int, reason: str, hint: str
) -> None:
    path = "/vectors/profiles" if method == "POST" else "/vectors/profiles/coder"
    got, body = await here.call(method, path, json=CODER | change)
    assert (got, reason in body["reason"], hint in body["hint"]) == (status, True, True), body
    assert here.slot.profiles == {}


async def test_the_path_and_the_body_name_the_same_profile(here: House) -> None:
    await profile(here, id="coder")
    status, body = await here.call("PUT", "/vectors/profiles/coder", json=CODER | {"id": "chat"})
    assert (status, body["error"]) == (422, "invalid")
    assert body["reason"] == "the path names profile coder, the body chat"
    assert (await here.call("PUT", "/vectors/profiles/coder", json=CODER))[0] == 200
    assert (await here.call("PUT", "/vectors/profiles/Not%20one", json={"model": "m"}))[0] == 422
    assert (await here.call("POST", "/vectors/profiles", json={"model": "m"}))[1]["reason"].endswith("`id`")


# --- the slot ------------------------------------------------------------------------------------


async def test_profiles_take_turns(here: House) -> None:
    await profile(here, id="chat")
    await profile(here, id="coder", model="qwen2.5-coder:7b", indexes=["docs", "notes"])
    assert (await here.call("POST", "/vectors/profile/chat/activate"))[0] == 200
    async with here.client.post("/vectors/profile/coder/activate") as response:
        assert response.status == 200
        activated = msgspec.json.decode(await response.read(), type=ProfileActivated)
    assert (activated.previous, [str(ref) for ref in activated.unloaded]) == ("chat", ["ollama/llama3:latest"])
    assert [(one.index, one.generation, one.building) for one in activated.indexes] == [
        ("docs", 3, None),
        ("notes", 3, 4),
    ]
    async with here.client.get("/vectors/profile/active") as response:
        slot = msgspec.json.decode(await response.read(), type=SlotInfo)
    assert (slot.state, slot.profile, slot.models[0].model) == ("ready", "coder", "qwen2.5-coder:7b")
    assert here.slot.looked == [True], "the servers are asked: ready was true a moment ago"
    assert (await here.call("GET", "/status"))[1]["slot"] == {"state": "ready", "profile": "coder"}
    assert here.slot.looked == [True, False], "a status must not wait for model servers"
    assert (await here.call("DELETE", "/vectors/profiles/coder"))[0] == 409
    status, body = await here.call("POST", "/vectors/profile/coder/deactivate")
    assert (status, body["type"], body["reason"]) == (200, "profile.deactivated", "asked")
    status, body = await here.call("POST", "/vectors/profile/coder/deactivate")
    assert (status, body["type"], body["state"]) == (200, "slot.info", "empty")


@pytest.mark.parametrize(
    ("fields", "query", "status", "error"),
    [
        ({"model": "huge:70b"}, "", 422, "invalid"),
        ({"server": "llamacpp"}, "", 503, "unavailable"),
        ({}, "?wait=false", 409, "conflict"),
        ({}, "?wait=0", 409, "conflict"),
        ({}, "?wait=maybe", 400, "malformed"),
        ({}, "?wiat=false", 400, "malformed"),
    ],
)
async def test_an_activation_is_refused_in_the_slots_words(
    here: House, fields: dict[str, Any], query: str, status: int, error: str
) -> None:
    await profile(here, id="coder", **fields)
    here.slot.busy = True
    got, body = await here.call("POST", f"/vectors/profile/coder/activate{query}")
    assert (got, body["error"]) == (status, error)
    assert body["reason"]
    if fields.get("model"):
        assert body["reason"] == "huge:70b needs 80.0 GiB, 24.0 GiB can be had"
    assert here.slot.state == "empty"


async def test_waiting_is_the_default(here: House) -> None:
    await profile(here, id="coder")
    here.slot.busy = True
    assert (await here.call("POST", "/vectors/profile/coder/activate"))[0] == 200
    assert (await here.call("POST", "/vectors/profile/coder/deactivate?wait=false"))[0] == 409
    assert (await here.call("POST", "/vectors/profile/coder/deactivate?wait=true"))[0] == 200
    assert (await here.call("POST", "/vectors/profile/nobody/activate"))[0] == 404


async def test_a_swap_may_take_longer_than_a_question(tmp_path: Path) -> None:
    async with house(tmp_path, ask_timeout_s=0.2) as here:
        await profile(here, id="chat")
        await here.call("POST", "/vectors/profile/chat/activate")
        await profile(here, id="coder", model="qwen")
        here.slot.pace_s = 0.3
        assert (await here.call("POST", "/vectors/profile/coder/activate"))[0] == 200
        assert (await here.call("POST", "/admin/preload", json={"model": "other"}))[0] == 200


# --- searches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("named_in", ["path", "body"])
async def test_a_search_has_the_profiles_rights(here: House, named_in: str) -> None:
    async def search(**body: Any) -> tuple[int, Any]:
        if named_in == "path":
            return await here.call("POST", "/vectors/profile/coder/search", json=body)
        return await here.call("POST", "/vectors/search", json={"profile": "coder", **body})

    assert (await search(index="docs", text="x"))[0] == 404
    await profile(here, id="coder", indexes=["docs"])
    status, body = await search(index="secrets", vector=[0.5])
    assert (status, body["error"], "secrets" in body["reason"]) == (403, "forbidden", True)
    assert (await search(index="docs", text="x"))[0] == 409
    query = {
        "vector": [0.5, 1.0], "k": 2, "ef_search": 70, "filter": "id > 3", "columns": ["title"], "explain": True,
        "mode": "hybrid", "backend": "lance", "nprobes": 8, "refine_factor": 2, "version": 3,
    }  # fmt: skip
    status, body = await search(index="docs", **query)
    assert (status, [hit["id"] for hit in body["queries"][0]]) == (200, ["coder-0", "coder-1"])
    (asked,) = here.profiles.searched
    assert msgspec.to_builtins(asked) == {
        "type": "profile.search", "profile": "coder", "index": "docs", "text": None, "vectors": None, **query,
    }  # fmt: skip
    await search(index="docs", vectors=[[1.0], [2.0]])
    assert here.profiles.searched[1].vectors == [[1.0], [2.0]]


async def test_the_index_may_be_left_out_where_the_profile_is_in_the_path(here: House) -> None:
    await profile(here, id="coder", indexes=["docs"])
    assert (await here.call("POST", "/vectors/profile/coder/search", json={"vector": [1.0]}))[0] == 200
    status, body = await here.call("POST", "/vectors/search", json={"profile": "coder", "vector": [1.0]})
    assert (status, "missing required field `index`" in body["reason"]) == (400, True)
    status, body = await here.call("POST", "/vectors/profile/coder/search", json={"vektor": [1.0]})
    assert (status, body["hint"]) == (400, "did you mean `vector`?")


async def test_a_search_without_a_profile_asks_no_profile(here: House) -> None:
    status, body = await here.call("POST", "/vectors/search", json={"index": "docs", "text": "x", "k": 1})
    assert (status, body["queries"][0][0]["id"], here.profiles.searched) == (200, "r0", [])


# --- memory --------------------------------------------------------------------------------------


async def test_models_come_and_go_and_asking_again_changes_nothing(here: House) -> None:
    for changed in (True, False):
        async with here.client.post("/admin/preload", json={"model": "llama3:latest"}) as response:
            report = msgspec.json.decode(await response.read(), type=ModelReport)
        assert (response.status, report.changed, report.loaded, report.size_vram) == (200, changed, True, SIZE)
        assert report.expires_at is not None, "5m is the default"
    async with here.client.get("/admin/vram") as response:
        vram = msgspec.json.decode(await response.read(), type=VramReport)
    assert [(gpu.total, gpu.used) for gpu in vram.gpus] == [(TOTAL, SIZE + GIB // 2)]
    assert [model.model for model in vram.servers[0].models] == ["llama3:latest"]
    assert (vram.accounted, vram.unaccounted, vram.servers[1].reason) == (SIZE, GIB // 2, "connection refused")
    for changed in (True, False):
        status, body = await here.call("POST", "/admin/unload", json={"model": "llama3:latest", "server": "ollama"})
        assert (status, body["changed"], body["loaded"]) == (200, changed, False)


async def test_a_machine_without_a_gpu_says_why(here: House) -> None:
    here.slot.gpu = False
    status, body = await here.call("GET", "/admin/vram")
    assert (status, body["gpus"], body["source"], body["free"]) == (200, [], "none", None)
    assert body["reason"] == "no NVIDIA driver is installed"


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/admin/preload", {"model": "unknown"}, 404, "no model server knows unknown"),
        ("/admin/preload", {"model": "m", "keepalive": "5m"}, 400, "unknown field `keepalive`"),
        ("/admin/preload", {"model": "m", "keep_alive": "5 minutes"}, 422, "`$.keep_alive`"),
        ("/admin/preload", {}, 400, "missing required field `model`"),
        ("/admin/unload", {"model": "m", "keep_alive": "5m"}, 400, "unknown field `keep_alive`"),
        ("/admin/unload", {"model": "m", "server": "vllm"}, 422, "`$.server`"),
    ],
)
async def test_admin_bodies_are_read_strictly(
    here: House, path: str, body: dict[str, Any], status: int, reason: str
) -> None:
    got, answer = await here.call("POST", path, json=body)
    assert (got, reason in answer["reason"]) == (status, True), answer


# --- what a console follows ----------------------------------------------------------------------


async def events(response: aiohttp.ClientResponse, count: int) -> list[tuple[str, Any]]:
    """The next events: tag and message."""
    found: list[tuple[str, Any]] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            lines = (await response.content.readuntil(b"\n\n")).decode().splitlines()
            fields = dict(line.partition(": ")[::2] for line in lines)
            if "event" in fields:
                found.append((fields["event"], json.loads(fields["data"])["message"]))
    return found


async def test_a_console_follows_the_slot_and_the_memory(here: House) -> None:
    await profile(here, id="coder")
    match = "slot.*,vram.*,model.*,profile.*"
    async with here.client.get("/events", params={"match": match}) as response:
        assert response.status == 200
        await here.bus.publish(DatasetDropped("notes"))
        await here.call("POST", "/vectors/profile/coder/activate")
        heard = await events(response, 4)
    assert [tag for tag, _ in heard] == ["model.loaded", "slot.changed", "vram.changed", "profile.activated"]
    assert heard[1][1]["slot"]["models"][0]["size_vram"] == SIZE
    assert heard[2][1]["vram"]["servers"][0]["models"][0]["model"] == "llama3:latest"


async def test_the_phases_of_a_swap_are_heard_without_any_fact(here: House) -> None:
    await profile(here, id="coder")
    async with here.client.get("/events?match=none&progress=true") as response:
        await here.call("POST", "/vectors/profile/coder/activate")
        heard = await events(response, 2)
    assert [(tag, said["phase"], said["done"]) for tag, said in heard] == [
        ("job.progress", "load llama3:latest", 0),
        ("job.progress", "load llama3:latest", 1),
    ]


@pytest.mark.parametrize(
    ("match", "subjects"),
    [
        (">", ["lakehouse.evt.>"]),
        ("slot.*", ["lakehouse.evt.slot.*"]),
        ("none", []),
        ("slot.*,slot.changed,*.failed", None),
        ("dataset.>,lakehouse.evt.dataset.*", None),
        ("slot.*,>", None),
    ],
)
def test_patterns_that_overlap_hear_a_fact_once(match: str, subjects: list[str] | None) -> None:
    """NATS delivers a message once for each subscription that matches it."""
    listened = facts(match)
    if subjects is not None:
        assert listened == subjects
        return
    patterns = [one.removeprefix("lakehouse.evt.") for one in match.split(",")]
    wanted = {tag_of(kind) for kind in concrete(Event) if any(fits(tag_of(kind), one) for one in patterns)}
    assert {subject.removeprefix("lakehouse.evt.") for subject in listened} == wanted
    assert len(listened) == len(wanted), "no wildcard and none twice"


def fits(tag: str, pattern: str) -> bool:
    """An oracle, for tags and patterns of two words."""
    words, wanted = tag.split("."), pattern.split(".")
    return pattern == ">" or (
        len(words) == len(wanted) and all(p in ("*", ">", t) for p, t in zip(wanted, words, strict=True))
    )


@pytest.mark.parametrize(
    ("match", "reason", "hint"),
    [
        ("slot.*,vram.chagned", "'vram.chagned' matches no facts", "did you mean vram.changed?"),
        ("slot.*,", "'' matches no facts", "such as"),
        ("slots.*", "'slots.*' matches no facts", "did you mean slot.*?"),
        ("slot.changed,lakehouse.cmd.>", "'lakehouse.cmd.>' matches no facts", "such as"),
        ("none,slot.*", "'none' matches no facts", "such as"),
        ("slot.* vram.*", "characters", "comma-separated"),
    ],
)
async def test_a_pattern_that_can_never_match_is_said(here: House, match: str, reason: str, hint: str) -> None:
    status, body = await here.call("GET", "/events", params={"match": match})
    assert (status, reason in body["reason"], hint in body["hint"]) == (422, True, True), body
