"""What the HTTP border refuses, and in which words: who may ask, and what a request may hold."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from daemon.http.guard import Guard
from daemon.http.server import PortTaken
from tests.integration.http_house import House, house


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, max_body_mb=1, read_timeout_s=0.5) as made:
        yield made


NO_TOKEN = {"Authorization": ""}


async def test_health_needs_no_token_and_everything_else_does(here: House) -> None:
    assert await here.call("GET", "/health", headers=NO_TOKEN) == (200, {"status": "live"})
    for path in ("/ready", "/status", "/metrics", "/datasets", "/nowhere", "/events"):
        status, body = await here.call("GET", path, headers=NO_TOKEN)
        assert (status, body["error"]) == (401, "unauthorized"), path
    for wrong in ("Bearer nonsense", "Bearer ", "Basic abc", "Bearer geheim-für"):
        assert (await here.call("GET", "/status", headers={"Authorization": wrong}))[0] == 401, wrong


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", "", "[::2]"])
async def test_a_foreign_host_is_turned_away_before_its_token_is_looked_at(here: House, host: str) -> None:
    for headers in ({"Host": host}, {"Host": host, **NO_TOKEN}):
        for path in ("/status", "/health"):
            status, body = await here.call("GET", path, headers=headers)
            assert (status, body["error"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8700", "[::1]"])
async def test_the_listed_hosts_are_answered_on_any_port(here: House, host: str) -> None:
    assert (await here.call("GET", "/status", headers={"Host": host}))[0] == 200


async def test_an_unlisted_origin_is_refused_even_with_the_token(here: House, tmp_path: Path) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8700"):
        status, body = await here.call("GET", "/status", headers={"Origin": origin})
        assert (status, body["error"], body["hint"]) == (403, "forbidden", "[http] allowed_origins")
    async with house(tmp_path / "b", allowed_origins=("https://console.example",)) as other:
        assert (await other.call("GET", "/status", headers={"Origin": "https://console.example"}))[0] == 200


def test_a_server_without_a_token_is_never_made() -> None:
    with pytest.raises(ValueError, match="token is empty"):
        Guard("", ("localhost",), ())


async def test_unknown_paths_and_methods_are_answered_in_the_same_form(here: House) -> None:
    assert await here.call("GET", "/nowhere") == (
        404,
        {"error": "not_found", "reason": "there is no such path", "hint": "GET / lists what there is"},
    )
    status, body = await here.call("PUT", "/datasets")
    assert (status, body["error"], body["hint"]) == (405, "method_not_allowed", "allowed: GET")


SEARCH: dict[str, Any] = {"index": "docs", "text": "x"}


@pytest.mark.parametrize(
    ("body", "status", "reason", "hint"),
    [
        (b'{"index": "docs"', 400, "not JSON: it is empty or breaks off", ""),
        (b"", 400, "not JSON: it is empty or breaks off", ""),
        (b"docs", 400, "not JSON: JSON is malformed", ""),
        (b'"\xff"', 400, "", ""),
        (b"[]", 400, "Expected `object`, got `array`", ""),
        (b'{"text": "x"}', 400, "missing required field `index`", ""),
        (b'{"index": "docs", "txet": "x"}', 400, "unknown field `txet`", "did you mean `text`?"),
        (b'{"index": "docs", "k": "ten"}', 400, "`$.k`", "k: from 1 to 1000"),
        (b'{"index": "docs", "k": 0}', 422, "`$.k`", "k: from 1 to 1000"),
        (b'{"index": "../etc"}', 422, "can't have - at `$.index`", "index: a-z 0-9 _ -, at most 63"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_the_path_of_the_field(
    here: House, body: bytes, status: int, reason: str, hint: str
) -> None:
    got, answer = await here.call("POST", "/vectors/search", data=body)
    assert got == status
    assert reason in answer["reason"]
    assert answer["hint"] == hint
    assert set(answer) == {"error", "reason", "hint"}


async def test_a_body_too_deep_for_the_decoder_is_refused(here: House, caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"dataset": "notes", "rows": [{"id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}"
    status, answer = await here.call("POST", "/ingest/rows", data=body)
    assert (status, answer["reason"]) == (400, "the body is nested too deeply")
    assert caplog.text == ""


@pytest.mark.parametrize("path", ["/vectors/search", "/ingest/file"])
async def test_a_body_that_is_not_what_its_encoding_says_is_refused(
    here: House, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=x"}
    status, answer = await here.call("POST", path, data=b"no gzip", headers=headers)
    assert (status, answer["error"]) == (400, "malformed")
    assert "gzip" in answer["reason"]
    assert caplog.text == "", "a client's mistake is no error of the daemon"


async def test_a_request_that_is_no_http_leaves_no_traceback_in_the_log(
    here: House, caplog: pytest.LogCaptureFixture
) -> None:
    for mistake in ("/datasets/\r\nHost: evil", "/" + "a" * 10_000, "/é"):
        status, _ = await raw_get(here, mistake)
        assert status == 400
    assert caplog.text == ""


async def test_a_configuration_out_of_bounds_is_refused_with_the_bounds(here: House) -> None:
    grid = [{"ef_construction": 20, "ef_search": 30}, {"ef_construction": 20, "ef_search": 401}]
    status, body = await here.call("POST", "/vectors/hnsw/autotune", json={"index_name": "docs", "grid": grid})
    assert (status, body["error"], body["hint"]) == (422, "invalid", "ef_search: from 10 to 400")
    assert "`$.grid[1].ef_search`" in body["reason"]
    create = {"name": "x", "dataset": "notes", "column": "text", "config": {"M": 3}}
    assert (await here.call("POST", "/vectors/indexes", json=create))[1]["hint"] == "M: from 4 to 64"
    create["config"] = {"ef_serach": 30}
    status, body = await here.call("POST", "/vectors/indexes", json=create)
    assert (status, body["hint"]) == (400, "did you mean `ef_search`?")
    create["config"], create["metric"] = {}, "euclid"
    status, body = await here.call("POST", "/vectors/indexes", json=create)
    assert (status, body["hint"]) == (422, "metric: one of cosine, ip, l2")
    assert here.tuner.started == []


@pytest.mark.parametrize("name", ["..%2F..%2Fetc", "Docs", "a%00b", "%2e%2e", "a" * 64, "d%C3%B6cs", "a%20b"])
async def test_names_in_paths_are_checked_after_decoding(here: House, name: str) -> None:
    status, body = await raw_get(here, f"/datasets/{name}")
    assert status in (404, 422), body
    assert b"there is no dataset" not in body, "it must not reach an actor"


async def raw_get(here: House, path: str) -> tuple[int, bytes]:
    token = here.client.headers["Authorization"]
    reader, writer = await asyncio.open_connection("127.0.0.1", here.server.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1]), answer


async def test_unknown_and_wrong_query_parameters_are_refused(here: House) -> None:
    status, body = await here.call("GET", "/vectors/trials/docs?limt=3")
    assert (status, body["hint"]) == (400, "did you mean `limit`?")
    assert (await here.call("GET", "/vectors/trials/docs?limit=0"))[1]["hint"] == "limit: from 1 to 10000"
    assert (await here.call("GET", "/vectors/trials/docs?limit=many"))[0] == 400
    assert (await here.call("GET", "/datasets?x=1"))[0] == 400
    assert (await here.call("GET", "/dead/zero"))[0] == 400


async def test_a_body_over_the_limit_is_refused(here: House) -> None:
    rows = io.BytesIO(b'{"dataset": "notes", "rows": [{"id": "' + b"x" * 2_000_000 + b'"}]}')
    status, body = await here.call("POST", "/ingest/rows", data=rows)
    assert (status, body["error"], body["hint"]) == (413, "too_large", "[http] max_body_mb")


async def test_a_client_that_stalls_in_its_body_is_cut_off(here: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.server.port)
    token = here.client.headers["Authorization"]
    head = f"POST /vectors/search HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b'{"index"')
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_never_finishes_its_header_is_cut_off_and_others_are_not(here: House) -> None:
    assert (await here.call("GET", "/datasets"))[0] == 200  # kept alive by the client
    reader, writer = await asyncio.open_connection("127.0.0.1", here.server.port)
    writer.write(b"GET /status HTTP/1.1\r\nHost: loc")
    async with asyncio.timeout(5), here.client.get("/events") as feed:
        assert await reader.read() == b""
        assert await feed.content.readline() == b": listening\n"
    writer.close()
    await writer.wait_closed()
    assert here.client.connector is not None
    assert (await here.call("GET", "/datasets"))[0] == 200


async def test_a_filter_of_any_length_is_not_taken(here: House) -> None:
    status, body = await here.call("POST", "/vectors/search", json={**SEARCH, "filter": "n = 1 OR " * 2000 + "n = 2"})
    assert (status, "`$.filter`" in body["reason"]) == (422, True)


@pytest.mark.parametrize(
    ("dataset", "status", "error", "reason"),
    [
        ("nothing", 404, "not_found", "there is no dataset nothing"),
        ("full", 429, "busy", "too much at once"),
        ("away", 503, "unavailable", "the object store is away"),
        ("corrupt", 503, "unavailable", "run `lakehouse repair`"),
    ],
)
async def test_what_an_actor_raises_becomes_a_status(
    here: House, dataset: str, status: int, error: str, reason: str
) -> None:
    async with here.client.get(f"/datasets/{dataset}") as response:
        body = await response.json()
        assert (response.status, body["error"]) == (status, error)
        assert reason in body["reason"]
        assert ("Retry-After" in response.headers) == (dataset in ("full", "away"))


async def test_nothing_of_the_inside_leaks(
    here: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> str:
        raise RuntimeError("secret detail of the inside")

    monkeypatch.setattr(here.process, "topology", broken)
    status, body = await here.call("GET", "/topology")
    assert (status, body["error"]) == (500, "internal")
    assert "secret detail" not in str(body)
    assert body["id"] in body["hint"]
    assert body["id"] in caplog.text, "who reads the log finds it by its id"
    assert "secret detail" in caplog.text


async def test_a_handler_that_fails_is_a_500_with_an_id_and_the_next_request_is_answered(here: House) -> None:
    status, body = await here.call("GET", "/datasets/broken")
    assert (status, body["error"]) == (500, "internal")
    assert "secret detail" not in str(body)
    assert body["id"] in body["hint"]
    assert (await here.call("GET", "/datasets"))[0] == 200


async def test_a_taken_port_is_one_clear_sentence(here: House, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match=rf"127.0.0.1:{here.server.port}: another process does; set \[http\] port"):
        async with house(tmp_path / "b", port=here.server.port):
            pass
