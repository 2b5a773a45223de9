"""Every route's good answer, and that the OpenAPI document says what the table does."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.http.route import Route, message
from daemon.http.routes import ROUTES
from schemas import http, http_codec, http_lance, http_profile
from schemas.codec import CodecParams
from schemas.config import LanceConfig
from schemas.events import codec, lance
from schemas.events.autotune import BuildHarness
from schemas.events.dataset import IngestFile
from schemas.events.index import CreateIndex, Search, SearchResult
from schemas.events.profile import PreloadModel, SearchProfile, UnloadModel
from schemas.events.promotion import WhyChain
from schemas.profile import ModelProfile
from tests.integration.http_house import House, house, until


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


async def test_a_search_answers_with_the_bus_reply(here: House) -> None:
    body = {"index": "docs", "vector": [0.5] * 384, "k": 3, "filter": "id > 3", "explain": True}
    async with here.client.post("/vectors/search", json=body) as response:
        assert response.status == 200
        result = msgspec.json.decode(await response.read(), type=SearchResult)
    assert [hit.id for hit in result.queries[0]] == ["r0", "r1", "r2"]
    assert result.queries[0][0].columns == {"title": "ü"}
    asked = {"text": "x", "mode": "hybrid", "vector": [0.5] * 384, "nprobes": 4, "refine_factor": 2, "version": 3}
    assert (await here.call("POST", "/vectors/search", json={"index": "docs", "backend": "lance", **asked}))[0] == 200
    assert here.shelf.searched[-1] == Search(index="docs", backend="lance", **asked)


async def test_rows_and_datasets(here: House) -> None:
    status, body = await here.call("POST", "/ingest/rows", json={"dataset": "notes", "rows": [{"id": 1}]})
    assert (status, body["rows"]) == (200, 1)
    status, body = await here.call("DELETE", "/datasets/notes/rows", json={"ids": [1, "two"]})
    assert (status, body["rows"]) == (200, 2)
    status, body = await here.call("GET", "/datasets")
    assert [dataset["dataset"] for dataset in body["datasets"]] == ["notes"]


async def test_indexes(here: House) -> None:
    create = {"name": "docs", "dataset": "notes", "column": "text", "config": {"M": 8}, "embedder": {"kind": "lexical"}}
    status, body = await here.call("POST", "/vectors/indexes", json=create)
    assert (status, body["index"], body["config"]["M"]) == (201, "docs", 8)
    assert (await here.call("GET", "/vectors/indexes"))[1]["indexes"][0]["index"] == "docs"
    assert (await here.call("GET", "/vectors/indexes/docs"))[1]["state"] == "ready"
    assert (await here.call("GET", "/vectors/indexes/docs/stats"))[1]["queries"] == 77
    assert (await here.call("GET", "/vectors/indexes/other"))[0] == 404


async def test_an_index_is_made_for_a_backend(here: House) -> None:
    create = {"name": "docs", "dataset": "notes", "column": "vec", "backend": "auto", "text_column": "text"}
    status, body = await here.call("POST", "/vectors/indexes", json=create)
    assert (status, body["backend"], body["config"]["backend"]) == (201, "auto", "hnsw")
    lance = {"index_type": "IVF_FLAT", "partitions": 8, "nprobes": 4}
    status, body = await here.call("POST", "/vectors/indexes", json=create | {"backend": "lance", "lance": lance})
    assert (status, body["config"]["backend"], body["config"]["partitions"]) == (201, "lance", 8)
    made = here.shelf.created
    assert (made[0].text_column, made[0].lance, type(made[1].lance)) == ("text", None, LanceConfig)
    tagged = create | {"config": {"backend": "hnsw", "M": 8}, "lance": {"backend": "lance", **lance}}
    assert (await here.call("POST", "/vectors/indexes", json=tagged))[0] == 201, "as an answer writes them"


async def test_what_serves_an_index_is_set(here: House) -> None:
    status, body = await here.call("PUT", "/vectors/indexes/docs/backend", json={"backend": "lance"})
    assert (status, body["backend"], body["config"]["backend"]) == (200, "lance", "hnsw")
    status, body = await here.call("PUT", "/vectors/indexes/docs/backend", json={"backend": "faiss"})
    assert (status, body["hint"]) == (422, "backend: one of auto, hnsw, lance")
    assert (await here.call("PUT", "/vectors/indexes/other/backend", json={"backend": "lance"}))[0] == 404


async def test_promotion_rollback_and_why(here: House) -> None:
    assert (await here.call("GET", "/vectors/hnsw/promoted/docs"))[1]["current"] is None
    status, body = await here.call("POST", "/vectors/hnsw/promote/docs/t1?promoted_by=me&note=hello%20there")
    assert (status, body["entry"]["promoted_by"], body["entry"]["note"]) == (200, "me", "hello there")
    status, body = await here.call("POST", "/vectors/hnsw/promote/docs/t2")
    assert (body["previous"]["ef_search"], body["entry"]["config"]["ef_search"]) == (64, 80)
    state = (await here.call("GET", "/vectors/hnsw/promoted/docs"))[1]
    assert (state["current"]["trial"], [old["trial"] for old in state["history"]]) == ("t2", ["t1"])
    async with here.client.get("/vectors/why/docs") as response:
        chain = msgspec.json.decode(await response.read(), type=WhyChain)
    assert [link.what for link in chain.links] == ["promotion", "trial", "proposal", "trigger"]
    status, body = await here.call("POST", "/vectors/hnsw/rollback/docs?reason=slower")
    assert (status, body["entry"]["trial"], body["rolled_back"]) == (200, "t1", True)
    assert (await here.call("POST", "/vectors/hnsw/rollback/docs"))[1]["type"] == "promotion.cleared"
    assert (await here.call("POST", "/vectors/hnsw/rollback/docs"))[0] == 404
    assert (await here.call("POST", "/vectors/hnsw/promote/docs/unknown"))[0] == 404
    assert (await here.call("POST", "/vectors/hnsw/promote/nothing/t1"))[0] == 404
    status, body = await here.call("POST", "/vectors/hnsw/promote/docs/low")
    assert (status, "lower bound 0.9000" in body["reason"]) == (422, True)
    assert (await here.call("POST", "/vectors/hnsw/promote/docs/low?force=true"))[0] == 200


async def test_of_simultaneous_promotions_those_that_lose_get_409(here: House) -> None:
    calls = [here.call("POST", f"/vectors/hnsw/promote/docs/t{1 + n % 2}?note=n{n}") for n in range(8)]
    answers = await asyncio.gather(*calls)
    won = [body["entry"]["note"] for status, body in answers if status == 200]
    lost = [body["error"] for status, body in answers if status == 409]
    assert len(won) + len(lost) == 8
    assert won
    assert set(lost) == {"conflict"}, "at once: only one can start from the head that it saw"
    state = (await here.call("GET", "/vectors/hnsw/promoted/docs"))[1]
    made = [entry["note"] for entry in [state["current"], *state["history"]]]
    assert len(made) == len(set(made))
    assert set(made) == set(won), "who wants what won is answered with the winner's entry"


async def test_enqueue_is_durable_and_refuses_an_unknown_index(here: House) -> None:
    status, body = await here.call("POST", "/vectors/agent/enqueue/docs?reason=new%20rows")
    assert (status, body["index"]) == (202, "docs")
    await until(lambda: here.tuner.enqueued)
    async with here.client.get("/metrics") as response:
        handled = 'lakehouse_messages_total{durable="tuner__autotune_enqueue",outcome="acked"} 1.0'
        assert handled in await response.text()
    assert (here.tuner.enqueued[0].reason, here.tuner.enqueued[0].asked_by) == ("new rows", "http")
    assert (await here.call("POST", "/vectors/agent/enqueue/other"))[0] == 404


async def test_trials_and_the_agent(here: House) -> None:
    assert (await here.call("GET", "/vectors/trials/docs?limit=5"))[1]["points"][0]["trial"] == "t1"
    assert (await here.call("GET", "/vectors/agent/status"))[1]["max_trials_per_hour"] == 20


async def test_the_daemon_says_how_it_is(here: House) -> None:
    status, body = await here.call("GET", "/status")
    assert (status, body["datasets"], body["indexes"], body["agent"]["trials_this_hour"]) == (200, 1, 1, 4)
    assert body["slot"] == {"state": "empty", "profile": None}
    assert await here.call("GET", "/ready") == (200, {"ready": True, "down": {}})
    here.process.broken = {"nats": "no connection for 12 s"}
    assert await here.call("GET", "/ready") == (503, {"ready": False, "down": {"nats": "no connection for 12 s"}})
    assert (await here.call("GET", "/asyncapi.json"))[1] == {"asyncapi": "3.0.0"}
    async with here.client.get("/topology") as response:
        assert (response.content_type, await response.text()) == ("text/plain", "flowchart LR\n")
    links = (await here.call("GET", "/"))[1]["links"]
    paths = {route.path for route in ROUTES}
    assert set(links.values()) <= paths


async def test_metrics_count_requests_and_ask_for_live_recall(here: House) -> None:
    await here.call("POST", "/vectors/search", json={"index": "docs", "text": "x"})
    await here.call("GET", "/nowhere")
    async with here.client.get("/metrics") as response:
        text = await response.text()
    assert 'lakehouse_http_requests_total{method="POST",route="/vectors/search",status="200"} 1.0' in text
    assert 'lakehouse_http_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert 'lakehouse_live_recall{bound="lower",index="docs"} 0.96' in text


async def test_dead_letters_are_shown_retried_and_dropped(here: House) -> None:
    for index in ("Not A Name", "Another One"):
        await here.bus._store("lakehouse.cmd.autotune.enqueue", json.dumps({"index": index}).encode(), {})
    await until(lambda: len(here.bus.server.streams["LAKEHOUSE_DEAD"].kept) == 2)
    letters = (await here.call("GET", "/dead?limit=1"))[1]
    assert (len(letters["letters"]), letters["total"]) == (1, 2)
    seq = letters["letters"][0]["seq"]
    status, letter = await here.call("GET", f"/dead/{seq}")
    assert (status, "Another One" in letter["body"], letter["deliveries"]) == (200, True, 1)
    status, body = await here.call("POST", f"/dead/{seq}/retry")
    assert (status, body["seq"], bool(body["message"])) == (200, seq, True)
    first = (await here.call("GET", "/dead"))[1]["letters"][-1]["seq"]
    assert await here.call("DELETE", f"/dead/{first}") == (200, {"seq": first})
    for method, path in (("GET", "/dead/999"), ("POST", "/dead/999/retry"), ("DELETE", "/dead/999")):
        assert (await here.call(method, path))[0] == 404


# --- the table, the structs and the document -----------------------------------------------------


async def test_the_openapi_document_has_every_route_and_struct(here: House) -> None:
    document = (await here.call("GET", "/openapi.json"))[1]
    assert document["openapi"] == "3.1.0"
    operations = {(method.upper(), path) for path, of in document["paths"].items() for method in of}
    assert operations == {(route.method, route.path) for route in ROUTES}
    schemas = document["components"]["schemas"]
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        names = {parameter["name"] for parameter in operation.get("parameters", [])}
        assert names == set(route.params.__struct_fields__), route.path
        assert set(operation["responses"]) == {str(route.status), "default"} | ({"202"} if route.accepted else set())
        if route.body is not None:
            assert route.body.__name__ in schemas
            assert set(schemas[route.body.__name__]["properties"]) == set(route.body.__struct_fields__)
    assert all(ref in schemas for ref in references(document))


async def test_the_openapi_document_tells_configurations_apart_by_their_tag(here: House) -> None:
    schemas = (await here.call("GET", "/openapi.json"))[1]["components"]["schemas"]
    assert schemas["IndexInfo"]["properties"]["config"]["discriminator"]["mapping"] == {
        "hnsw": "#/components/schemas/HnswConfig",
        "lance": "#/components/schemas/LanceConfig",
    }
    assert "backend" in schemas["HnswConfig"]["required"], "an answer always says what it is"
    for part in ("ConfigBody", "LanceConfigBody"):
        assert schemas[part]["required"] == [], "a request needn't, where it can be nothing else"
        assert schemas[part]["additionalProperties"] is False


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"].rpartition("/")[2]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for inner in value.values() for ref in references(inner)]
    return [ref for inner in value for ref in references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_row_is_complete(route: Route) -> None:
    assert route.summary
    assert set(route.path.split("{")[1:]) == {part for part in route.path.split("{")[1:] if "}" in part}
    in_path = {part.partition("}")[0] for part in route.path.split("{")[1:]}
    assert in_path <= set(route.params.__struct_fields__), "every name in the path is a checked parameter"
    for struct in (route.params, route.body):
        assert struct is None or struct.__struct_config__.forbid_unknown_fields
    assert route.reply is not None or route.items is not None or route.media == "text/plain"


@pytest.mark.parametrize(
    ("body", "kind", "of_one"),
    [
        (http.IngestFileBody, IngestFile, set()),
        (http.CreateIndexBody, CreateIndex, set()),
        (http.SearchBody, Search, {"profile"}),  # makes it a SearchProfile
        (http_profile.ProfileSearchBody, SearchProfile, {"profile"}),  # in the path
        (http.HarnessBody, BuildHarness, set()),
        (http_profile.ProfileBody, ModelProfile, set()),
        (http_profile.ReplaceProfileBody, ModelProfile, set()),
        (http_profile.PreloadBody, PreloadModel, set()),
        (http_profile.UnloadBody, UnloadModel, set()),
        (http_lance.MigrateBody, lance.MigrateIndex, {"index"}),  # in the path
        (http_lance.IndexStoreBody, lance.IndexStore, {"index"}),
        (http_lance.AppendBody, lance.AppendDocuments, {"index"}),
        (http_lance.DeleteDocumentsBody, lance.DeleteDocuments, {"index"}),
        (http_lance.OptimizeParams, lance.OptimizeStore, set()),
        (http.BackendBody, lance.SetBackend, {"index"}),
    ],
)
def test_a_body_has_the_fields_and_defaults_of_its_message(body: Any, kind: Any, of_one: set[str]) -> None:
    of_body = {f.name: (f.default, f.default_factory) for f in msgspec.structs.fields(body)}
    of_message = {f.name: (f.default, f.default_factory) for f in msgspec.structs.fields(kind)}
    assert of_body.keys() ^ of_message.keys() == of_one
    for name in of_body.keys() & of_message.keys() - {"config"}:
        assert of_body[name] == of_message[name] or (body, name) == (http_profile.ReplaceProfileBody, "id"), name
    if "config" in of_body:
        assert msgspec.to_builtins(of_body["config"][0]) == msgspec.to_builtins(of_message["config"][0])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (http_codec.CalibrateBody, codec.CalibrateCodec),
        (http_codec.SweepBody, codec.SweepCodec),
        (http_codec.ProbeBody, codec.ProbeRowcount),
        (http_codec.CertifyBody, codec.CertifyCodec),
        (http_codec.GraduateBody, codec.GraduateCodec),
        (http_codec.WithdrawBody, codec.WithdrawCodec),
        (http_codec.DecodeBody, codec.DecodeCodec),
        (http_codec.CodecTrialsParams, codec.ListCodecTrials),
        (http_codec.FrontierParams, codec.GetFrontier),
        (http_codec.CodecBody, CodecParams),
    ],
)
def test_what_is_asked_of_codecs_has_the_fields_and_defaults_of_its_message(body: Any, kind: Any) -> None:
    def fields(of: Any) -> dict[str, Any]:
        found = {field.name: (field.default, field.default_factory) for field in msgspec.structs.fields(of)}
        found.pop("asked_by", None)  # it says that it came this way
        return found

    assert msgspec.to_builtins(fields(body), enc_hook=repr) == msgspec.to_builtins(fields(kind), enc_hook=repr)


def test_a_body_becomes_its_message() -> None:
    body = http.CreateIndexBody(name="docs", dataset="notes", column="text", config=http.ConfigBody(M=8))
    made = message(CreateIndex, body)
    assert type(made) is CreateIndex
    assert type(made.config).__name__ == "HnswConfig"
    assert made.config.M == 8
