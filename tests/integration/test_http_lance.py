"""Lance stores over HTTP: statuses, strictness, what their owner is asked, which ids reach it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from schemas.config import LanceConfig
from schemas.events.index import EmbedderSpec, Search, SearchResult
from schemas.events.lance import (
    DeleteDocuments,
    GetDocument,
    IndexStore,
    MigrateIndex,
    OptimizeStore,
    StoredDocument,
    StoreQueued,
    StoreStats,
)
from tests.integration.http_house import House, house
from tests.integration.test_http_border import raw_get

MIGRATE, INDEX, SEARCH = (f"/vectors/lance/{verb}/docs" for verb in ("migrate", "index", "search"))
APPEND, DELETE, OPTIMIZE = (f"/vectors/lance/{verb}/docs" for verb in ("append", "delete", "optimize"))


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


@pytest.fixture
async def migrated(here: House) -> House:
    assert (await here.call("POST", MIGRATE, json={}))[0] == 202
    here.stores.asked.clear()
    return here


async def test_an_index_gets_a_store_and_another_index_in_it(here: House) -> None:
    async with here.client.post(MIGRATE, json={}) as response:
        assert response.status == 202
        queued = msgspec.json.decode(await response.read(), type=StoreQueued)
    assert queued == StoreQueued("docs", 4, LanceConfig("IVF_RQ", 62, 0, 20, 4))
    wanted = {"index_type": "IVF_PQ", "partitions": 16, "sub_vectors": 48}
    status, body = await here.call("POST", INDEX, json=wanted)
    assert (status, body["config"]["sub_vectors"], body["config"]["backend"]) == (202, 48, "lance")
    assert here.stores.asked == [MigrateIndex("docs"), IndexStore("docs", "IVF_PQ", 16, 48)]
    async with here.client.get("/vectors/lance/stats/docs") as response:
        stats = msgspec.json.decode(await response.read(), type=StoreStats)
    assert (stats.indexes[0].name, stats.versions[0].version) == ("IVF_RQ-p62-v3", 4)


async def test_a_column_becomes_an_index_on_lance(here: House) -> None:
    more = {"dataset": "notes", "column": "text", "metric": "ip", "embedder": {"kind": "lexical"}, "target_recall": 0.9}
    assert (await here.call("POST", MIGRATE, json=more))[0] == 202
    asked = MigrateIndex("docs", "notes", "text", "ip", EmbedderSpec(), 0.9)
    assert here.stores.asked == [asked]
    assert type(here.stores.asked[0].embedder) is EmbedderSpec


async def test_a_search_is_on_lance(here: House) -> None:
    asked = {"vector": [0.5] * 384, "k": 2, "nprobes": 8, "refine_factor": 2, "version": 1, "columns": ["title"]}
    async with here.client.post(SEARCH, json=asked) as response:
        assert response.status == 200
        assert len(msgspec.json.decode(await response.read(), type=SearchResult).queries[0]) == 2
    assert here.shelf.searched == [Search(index="docs", backend="lance", **asked)]
    status, body = await here.call("POST", SEARCH, json={"text": "x", "mode": "text", "backend": "lance"})
    assert (status, here.shelf.searched[-1].mode) == (200, "text")
    status, body = await here.call("POST", SEARCH, json={"text": "x", "backend": "hnsw"})
    assert (status, body["error"], body["hint"]) == (
        422,
        "invalid",
        "leave the body's `backend` out, or POST /vectors/search",
    )


async def test_rows_are_written_shown_and_deleted(migrated: House) -> None:
    status, body = await migrated.call("POST", APPEND, json={"rows": [{"id": 1, "t": "a"}, {"id": "zwei"}]})
    assert (status, body["rows"], body["version"], body["lance_version"]) == (200, 2, 4, 13)
    async with migrated.client.get("/vectors/lance/doc/docs/1") as response:
        document = msgspec.json.decode(await response.read(), type=StoredDocument)
    assert (document.columns, document.vector) == ({"id": 1, "t": "a"}, [0.5, 0.25])
    status, body = await migrated.call("POST", DELETE, json={"ids": [1, "zwei", "drei"]})
    assert (status, body["rows"]) == (200, 2)
    assert migrated.stores.asked[-1] == DeleteDocuments("docs", [1, "zwei", "drei"]), "numbers and texts as they are"
    assert (await migrated.call("GET", "/vectors/lance/doc/docs/1"))[0] == 404


IDS = ["7", "a/b", "/", "%2F", "%252F", "a%b", "ü ß", "a?b#c", "{x}", "..", ".", "a\nb", "+", "a+b", " "]


@pytest.mark.parametrize("id", IDS)
async def test_any_id_reaches_the_owner(migrated: House, id: str) -> None:
    status, _ = await raw_get(migrated, f"/vectors/lance/doc/docs/{quote(id, safe='')}")
    assert status == 404
    assert migrated.stores.asked == [GetDocument("docs", id)]


async def test_a_store_is_optimised_and_dropped(migrated: House) -> None:
    assert await migrated.call("POST", OPTIMIZE) == (
        202,
        {"type": "lance.optimize_queued", "index": "docs", "unindexed_rows": 60},
    )
    assert (await migrated.call("POST", f"{OPTIMIZE}?retrain=true&reason=new%20topics"))[0] == 202
    assert migrated.stores.asked == [OptimizeStore("docs"), OptimizeStore("docs", True, "new topics")]
    status, body = await migrated.call("DELETE", "/vectors/lance/served")
    assert (status, body["hint"]) == (409, "lakehouse index backend served hnsw")
    assert (await migrated.call("DELETE", "/vectors/lance/docs"))[0] == 200
    for method, path in (("GET", "/vectors/lance/stats/docs"), ("POST", INDEX), ("POST", APPEND)):
        more = {"json": {"rows": [{"id": 1}]} if path == APPEND else {}} if method == "POST" else {}
        status, body = await migrated.call(method, path, **more)
        assert (status, body["hint"]) == (404, "lakehouse lance migrate docs"), path


@pytest.mark.parametrize(
    ("path", "body", "status", "reason", "hint"),
    [
        (MIGRATE, {"index_type": "IVF_XQ"}, 422, "`$.index_type`", "IVF_FLAT, IVF_HNSW_SQ, IVF_PQ, IVF_RQ, auto"),
        (MIGRATE, {"type": "IVF_PQ"}, 400, "unknown field `type`", "index_type"),
        (MIGRATE, {"index": "docs"}, 400, "unknown field `index`", "did you mean `index_type`?"),
        (MIGRATE, {"partitions": 0}, 422, "`$.partitions`", "partitions: from 1 to 32768"),
        (MIGRATE, {"partitions": "many"}, 400, "`$.partitions`", "partitions: from 1 to 32768"),
        (MIGRATE, {"embedder": {"knd": "x"}}, 400, "unknown field `knd`", "did you mean `kind`?"),
        (MIGRATE, {"dataset": "Not A Name"}, 422, "`$.dataset`", "a-z 0-9"),
        (INDEX, {"sub_vectors": 0}, 422, "`$.sub_vectors`", "sub_vectors: from 1 to 4096"),
        (INDEX, {"index_type": "IVF_PQ", "sub_vectors": 50}, 422, "384 dimensions don't divide into 50", "leave it"),
        (INDEX, {"partitions": 4, "metric": "ip"}, 400, "unknown field `metric`", "fields: index_type, partitions"),
        (SEARCH, {"vector": [0.5]}, 422, "a query has 1 dimensions, index 'docs' has 384", "a vector of 384 numbers"),
        (SEARCH, {"vector": ["a"]}, 400, "`$.vector[0]`", "a list of numbers"),
        (SEARCH, {"vector": [None]}, 400, "`$.vector[0]`", "a list of numbers"),
        (SEARCH, {"text": "x", "mode": "fuzzy"}, 422, "`$.mode`", "mode: one of hybrid, text, vector"),
        (SEARCH, {"text": "x", "nprobes": 0}, 422, "`$.nprobes`", "nprobes: from 1 to 32768"),
        (SEARCH, {"text": "x", "refine_factor": 101}, 422, "`$.refine_factor`", "refine_factor: from 1 to 100"),
        (SEARCH, {"text": "x", "version": -1}, 422, "`$.version`", "a version of the dataset, from 0"),
        (SEARCH, {"text": "x", "backend": "auto"}, 422, "`$.backend`", "backend: one of hnsw, lance"),
        (SEARCH, {"text": "x", "index": "docs"}, 400, "unknown field `index`", "fields: "),
        (APPEND, {"rows": []}, 422, "`$.rows`", "objects, one a row, at least one"),
        (APPEND, {"rows": [7]}, 400, "`$.rows[0]`", "objects, one a row"),
        (APPEND, {"rows": [{"t": 1}]}, 422, "row 1 has no id", "give each row its `id`"),
        (APPEND, {}, 400, "missing required field `rows`", ""),
        (DELETE, {"ids": []}, 422, "`$.ids`", "ids: texts or whole numbers, at least one"),
        (DELETE, {"ids": [1.5]}, 400, "`$.ids[0]`", "ids: texts or whole numbers"),
        (DELETE, {"ids": [None]}, 400, "`$.ids[0]`", "ids: texts or whole numbers"),
        (DELETE, {"ids": "a"}, 400, "`$.ids`", "ids: texts or whole numbers"),
        (f"{OPTIMIZE}?retrian=true", None, 400, "unknown field `retrian`", "did you mean `retrain`?"),
        (f"{OPTIMIZE}?retrain=maybe", None, 400, "`$.retrain`", ""),
        ("/vectors/lance/migrate/Not%20one", {}, 422, "`$.index`", "index: a-z 0-9"),
    ],
)
async def test_what_is_wrong_is_told_with_how_to_mend_it(
    migrated: House, path: str, body: Any, status: int, reason: str, hint: str
) -> None:
    got, answer = await migrated.call("POST", path, json=body)
    assert (got, reason in answer["reason"], hint in answer["hint"]) == (status, True, True), answer
    assert set(answer) == {"error", "reason", "hint"}
