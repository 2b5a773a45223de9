"""Indexes on Lance: made, migrated, searched, kept in step, optimised, given back to memory."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.backends import lance_store
from actors.backends.lance import LanceBackend
from actors.errors import Refused
from schemas.config import HnswConfig, LanceConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument
from schemas.documents.store import StoreDocument
from schemas.events.index import CreateIndex, GetIndex, GetIndexStats, Search
from schemas.events.lance import (
    DropStore,
    GetDocument,
    GetStoreStats,
    IndexStore,
    MigrateIndex,
    OptimizeStore,
    SetBackend,
)
from schemas.events.storage import ClearIndex, DatasetMoved, IndexMoved, SwitchIndex
from tests.integration.index_house import IndexHouse, clustered, rows_of
from tests.s3_server import BUCKET, s3_api

VECTORS = clustered(3000, 32)
WORDS = ["otter", "badger", "heron", "lynx", "stoat"]


def notes(first: int, vectors: np.ndarray) -> pa.Table:
    texts = [f"note {first + i} about the {WORDS[(first + i) % 5]}" for i in range(len(vectors))]
    return rows_of(vectors, first, body=texts)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[IndexHouse]:
    async with IndexHouse(tmp_path, sample_share=1.0, log_share=0.0).running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        yield house


async def stats(house: IndexHouse, index: str = "docs") -> Any:
    return await house.bus.ask(GetStoreStats(index))


async def companion_is_ready(house: IndexHouse) -> bool:
    try:
        await house.bus.ask(Search("docs", vector=VECTORS[0].tolist(), backend="lance"))
    except Refused as refused:
        if refused.refusal.status != "unavailable":
            raise
        return False
    return True


def exact(query: np.ndarray, vectors: np.ndarray, k: int = 10) -> list[str]:
    return [f"r{row}" for row in np.argsort(-(vectors @ query), kind="stable")[:k]]


async def recall(house: IndexHouse, queries: np.ndarray, vectors: np.ndarray, **more: Any) -> float:
    found = [await house.ids("docs", query, **more) for query in queries]
    wanted = [exact(query, vectors) for query in queries]
    return float(np.mean([len(set(f) & set(w)) / 10 for f, w in zip(found, wanted, strict=True)]))


async def test_an_index_that_lance_serves(house: IndexHouse) -> None:
    info = await house.create("docs", "notes", "vector", backend="lance", text_column="body")
    assert isinstance(info.config, LanceConfig)
    assert (info.state, info.backend, info.config.index_type) == ("ready", "lance", "IVF_RQ")
    assert await recall(house, clustered(30, 32, seed=3), VECTORS) >= 0.95
    result = await house.bus.ask(Search("docs", vector=VECTORS[7].tolist(), k=3, explain=True))
    hit, explain = result.queries[0][0], result.explain
    assert (hit.id, hit.columns["number"], hit.columns["body"]) == ("r7", 7, "note 7 about the heron")
    assert abs(hit.distance) < 1e-5
    assert explain is not None
    assert (explain.strategy, explain.rows, explain.effort) == ("lance", 3000, info.config.effort)
    live = await house.bus.ask(GetIndexStats("docs"))
    assert (live.backend, live.rows, live.loaded) == ("lance", 3000, True)


async def test_what_is_appended_and_deleted_is_found_and_not_found_at_once(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    more = clustered(50, 32, seed=8)
    await house.append("notes", notes(3000, more))
    await house.until(lambda: _covers(house, 3050))
    assert await house.ids("docs", more[9], 1) == ["r3009"]
    found = await stats(house)
    assert (found.rows, found.indexes[0].unindexed_rows, found.indexes[0].serves) == (3050, 50, True)
    await house.delete("notes", ["r3009", "r5"])
    await house.until(lambda: _covers(house, 3048))
    assert "r3009" not in await house.ids("docs", more[9])
    assert "r5" not in await house.ids("docs", VECTORS[5])


async def _covers(house: IndexHouse, rows: int) -> bool:
    return (await house.bus.ask(GetIndexStats("docs"))).rows == rows


@pytest.mark.parametrize("predicate", ["number < 40", "number % 2 = 0", "number >= 2990 OR number < 10"])
async def test_a_filter_leaves_the_same_rows_as_in_memory(house: IndexHouse, predicate: str) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    number = np.arange(3000)
    matching = {
        "number < 40": number < 40,
        "number % 2 = 0": number % 2 == 0,
        "number >= 2990 OR number < 10": (number >= 2990) | (number < 10),
    }[predicate]
    for query in clustered(10, 32, seed=4):
        near = np.argsort(-(VECTORS @ query), kind="stable")
        wanted = [f"r{row}" for row in near if matching[row]][:10]
        found = await house.ids("docs", query, filter=predicate)
        assert len(set(found) & set(wanted)) >= 9


@pytest.mark.parametrize("backend", ["hnsw", "lance"])
async def test_rows_that_go_while_a_filter_is_looked_up_change_nothing_of_what_it_leaves(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    await house.create("docs", "notes", "vector", backend=backend)
    match = house.tables.match

    async def meanwhile(*args: Any, **more: Any) -> np.ndarray:
        found = await match(*args, **more)
        monkeypatch.setattr(house.tables, "match", match)
        await house.delete("notes", [f"r{row}" for row in range(1500)])
        await house.until(lambda: _covers(house, 1500))
        return found

    monkeypatch.setattr(house.tables, "match", meanwhile)
    query = VECTORS[2990]
    wanted = [f"r{row}" for row in np.argsort(-(VECTORS @ query), kind="stable") if row >= 2500][:10]
    assert await house.ids("docs", query, filter="number >= 2500") == wanted


async def test_a_vector_of_any_length_finds_old_rows_and_new(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    more = clustered(50, 32, seed=8)
    await house.append("notes", notes(3000, 5 * more))
    await house.until(lambda: _covers(house, 3050))
    result = await house.bus.ask(Search("docs", vector=(7 * more[9]).tolist(), k=1))
    assert (result.queries[0][0].id, abs(result.queries[0][0].distance) < 1e-5) == ("r3009", True)


@pytest.mark.parametrize("more", [{}, {"filter": "number < 40"}, {"mode": "hybrid", "text": "otter"}])
async def test_the_id_and_a_column_named_twice_may_be_asked_for(house: IndexHouse, more: dict[str, Any]) -> None:
    await house.create("docs", "notes", "vector", backend="lance", text_column="body")
    await house.append("notes", notes(3000, clustered(50, 32, seed=8)))  # some rows outside the index
    await house.until(lambda: _covers(house, 3050))
    query = Search("docs", vector=VECTORS[7].tolist(), k=60, columns=["id", "number", "number"], **more)
    hits = (await house.bus.ask(query)).queries[0]
    assert hits
    assert all(hit.columns == {"id": hit.id, "number": int(hit.id[1:])} for hit in hits)


async def test_migration_keeps_the_graph_and_answers_by_lance_too(house: IndexHouse) -> None:
    info = await house.create("docs", "notes", "vector")
    assert info.config == HnswConfig()
    queued = await house.bus.ask(MigrateIndex("docs"))
    assert (queued.index, queued.config.index_type) == ("docs", "IVF_RQ")
    await house.until(lambda: companion_is_ready(house))
    info = await house.bus.ask(GetIndex("docs"))
    assert (info.config, info.companions) == (HnswConfig(), ["lance"])
    queries = clustered(20, 32, seed=5)
    assert await recall(house, queries, VECTORS, backend="lance") >= 0.95
    assert await recall(house, queries, VECTORS, backend="hnsw") >= 0.95
    result = await house.bus.ask(Search("docs", vector=VECTORS[0].tolist(), backend="lance", explain=True))
    assert result.explain.strategy == "lance"
    document = await house.bus.ask(GetDocument("docs", "r17"))
    assert (document.columns["number"], len(document.vector)) == (17, 32)
    assert np.allclose(document.vector, VECTORS[17], atol=1e-6)
    with pytest.raises(Refused, match="no document 'nobody'"):
        await house.bus.ask(GetDocument("docs", "nobody"))


async def test_another_index_in_the_same_store(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector")
    await house.bus.ask(MigrateIndex("docs"))
    await house.until(lambda: companion_is_ready(house))
    key = (await stats(house)).key
    queued = await house.bus.ask(IndexStore("docs", "IVF_HNSW_SQ"))
    assert queued.config.index_type == "IVF_HNSW_SQ"

    async def served() -> bool:
        result = await house.bus.ask(Search("docs", vector=VECTORS[0].tolist(), backend="lance", explain=True))
        return bool(result.explain.config.index_type == "IVF_HNSW_SQ")

    await house.until(served)
    found = await stats(house)
    assert found.key == key
    assert [index.build.index_type for index in found.indexes] == ["IVF_HNSW_SQ", "IVF_RQ"]
    assert [index.serves for index in found.indexes] == [True, False]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (IndexStore("docs", "IVF_PQ", None, 7), "32 dimensions don't divide into 7 sub-vectors"),
        (IndexStore("docs", "IVF_RQ", 9999), "9999 partitions of 3000 rows"),
        (IndexStore("docs", "IVF_FLAT", None, 8), "sub_vectors is of IVF_PQ"),
        (IndexStore("nobody"), "there is no index 'nobody'"),
        (MigrateIndex("nobody"), "there is no index 'nobody'"),
        (DropStore("nobody"), "there is no index 'nobody'"),
        (OptimizeStore("nobody"), "there is no index 'nobody'"),
        (GetStoreStats("nobody"), "there is no index 'nobody'"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_with_the_numbers(house: IndexHouse, order: Any, said: str) -> None:
    await house.create("docs", "notes", "vector")
    await house.bus.ask(MigrateIndex("docs"))
    await house.until(lambda: companion_is_ready(house))
    with pytest.raises(Refused, match=said):
        await house.bus.ask(order)
    assert await house.ids("docs", VECTORS[3], 1, backend="lance") == ["r3"]


async def test_a_backend_that_is_not_there_is_refused(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector")
    with pytest.raises(Refused, match="isn't kept ready for lance"):
        await house.bus.ask(Search("docs", vector=VECTORS[0].tolist(), backend="lance"))
    with pytest.raises(Refused, match="has no Lance store"):
        await house.bus.ask(IndexStore("docs"))


async def test_the_backend_changes_over_without_a_failed_query(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector")
    for backend, kind in (("lance", LanceConfig), ("hnsw", HnswConfig), ("lance", LanceConfig)):
        info = await house.bus.ask(SetBackend("docs", backend))

        async def changed(kind: Any = kind) -> bool:
            assert await house.ids("docs", VECTORS[11], 1) == ["r11"]
            return isinstance((await house.bus.ask(GetIndexStats("docs"))).config, kind)

        await house.until(changed)
        assert info.backend == backend
    assert await recall(house, clustered(10, 32, seed=6), VECTORS) >= 0.95


async def test_the_store_goes_when_nothing_needs_it(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector")
    await house.bus.ask(MigrateIndex("docs"))
    await house.until(lambda: companion_is_ready(house))
    key = (await stats(house)).key
    await house.bus.ask(DropStore("docs"))
    assert await house.registry.load(StoreDocument, "docs") is None
    assert await house.buckets.list("primary", key) == []
    with pytest.raises(Refused, match="isn't kept ready for lance"):
        await house.bus.ask(Search("docs", vector=VECTORS[0].tolist(), backend="lance"))
    await house.bus.ask(SetBackend("docs", "lance"))
    await house.until(lambda: companion_is_ready(house))
    with pytest.raises(Refused, match="is served by Lance"):
        await house.bus.ask(DropStore("docs"))


async def test_optimising_takes_rows_in_and_the_older_version_can_be_searched(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    before = (await stats(house)).version
    more = clustered(500, 32, seed=9)  # a sixth of the rows: it is optimised by itself
    await house.append("notes", notes(3000, more))

    async def taken_in() -> bool:
        found = await stats(house)
        return bool(found.rows == 3500 and found.indexes[0].unindexed_rows == 0)

    await house.until(taken_in)
    assert await house.ids("docs", more[3], 1) == ["r3003"]
    then = await house.bus.ask(Search("docs", vector=more[3].tolist(), k=10, version=before, explain=True))
    assert (then.explain.version, then.explain.rows) == (before, 3000)
    assert [hit.id for hit in then.queries[0]] == exact(more[3], VECTORS)
    with pytest.raises(Refused, match="at version 99"):
        await house.bus.ask(Search("docs", vector=more[3].tolist(), version=99))


async def test_an_older_version_in_memory_too(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector")
    before = (await house.bus.ask(GetIndex("docs"))).version
    await house.append("notes", notes(3000, VECTORS[:5] * -1))
    await house.until(lambda: _covers(house, 3005))
    assert (await house.ids("docs", -VECTORS[2], 1)) == ["r3002"]
    then = await house.ids("docs", -VECTORS[2], 10, version=before, filter="number < 2000")
    assert then == exact(-VECTORS[2], VECTORS[:2000])


@pytest.mark.parametrize("backend", ["hnsw", "lance"])
async def test_words_and_vector_together(house: IndexHouse, backend: str) -> None:
    await house.create("docs", "notes", "vector", backend=backend, text_column="body")

    async def texts() -> bool:
        found = await house.registry.load(StoreDocument, "docs")
        return found is not None and found[0].text_column == "body"

    await house.until(texts)
    by_text = await house.bus.ask(Search("docs", text="note 1234", mode="text", k=3, columns=["body"]))
    hits = by_text.queries[0]
    assert (hits[0].id, hits[0].distance) == ("r1234", None)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    both = await house.bus.ask(
        Search(
            "docs", text="heron", vector=VECTORS[8].tolist(), mode="hybrid", k=5, filter="number < 100", explain=True
        )
    )
    found = both.queries[0]
    assert [step.name for step in both.explain.steps][-2:] == ["fuse", "fetch"]
    assert all(hit.columns["number"] < 100 for hit in found)
    assert any("heron" in hit.columns["body"] for hit in found)
    assert found[0].score <= 2 / 61 + 1e-9
    await house.append("notes", notes(3000, VECTORS[:1] * -1))

    async def fresh() -> bool:
        result = await house.bus.ask(Search("docs", text="3000", mode="text", k=1))
        return [hit.id for hit in result.queries[0]] == ["r3000"]

    await house.until(fresh)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"mode": "text", "vector": [0.0] * 32}, "needs text"),
        ({"mode": "text", "text": "x", "vector": [0.0] * 32}, "takes no vector"),
        ({"mode": "hybrid", "text": "x"}, "no embedder"),
        ({"mode": "text", "text": "x", "version": 1}, "version goes with mode vector"),
        ({"vector": [float("nan")] * 32}, "not finite"),
        ({"vector": [0.0] * 31}, "31 dimensions"),
        ({"text": "x"}, "no embedder"),
    ],
    ids=str,
)
async def test_bad_queries(house: IndexHouse, query: Any, said: str) -> None:
    await house.create("docs", "notes", "vector", backend="lance", text_column="body")
    with pytest.raises(Refused, match=said):
        await house.bus.ask(Search("docs", **query))


async def test_an_index_without_texts_says_so(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector")
    with pytest.raises(Refused, match="has no text to search"):
        await house.bus.ask(Search("docs", text="x", mode="text"))


async def test_after_a_restart_it_serves_at_once_and_a_damaged_store_is_built_anew(tmp_path: Path) -> None:
    home = IndexHouse(tmp_path, sample_share=0.0, log_share=0.0)
    async with home.running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        await house.create("docs", "notes", "vector", backend="lance")
    async with home.running() as house:
        await house.ready("docs")
        assert await house.ids("docs", VECTORS[3], 1) == ["r3"]
        key = (await stats(house)).key
    for manifest in (tmp_path / "primary" / key / "_versions").iterdir():
        manifest.write_bytes(b"torn")
    async with home.running() as house:
        assert await house.ids("docs", VECTORS[4], 1) == ["r4"]  # exactly, meanwhile

        async def anew() -> bool:
            live = await house.bus.ask(GetIndexStats("docs"))
            return live.backend == "lance" and (await stats(house)).key != key

        await house.until(anew)
        assert await recall(house, clustered(10, 32, seed=6), VECTORS) >= 0.95


@pytest.mark.parametrize("column", ["a.body", "a`body", "query_index"])
async def test_a_column_that_a_store_cannot_have_is_refused_and_a_graph_does_without(
    house: IndexHouse, column: str
) -> None:
    table = notes(0, VECTORS).rename_columns(["id", "number", "vector", column])
    await house.dataset("odd", table, "vector")
    with pytest.raises(Refused, match="which a Lance store can't have"):
        await house.create("docs", "odd", "vector", backend="lance")
    await house.create("docs", "odd", "vector", text_column=column)
    assert await house.ids("docs", VECTORS[4], 1) == ["r4"]
    with pytest.raises(Refused, match="which a Lance store can't have"):
        await house.bus.ask(Search("docs", text="otter", mode="text"))
    waiting = house.bus.server.streams["LAKEHOUSE_CMD"].kept.values()
    assert "lakehouse.cmd.lance.build_texts" not in {kept.subject for kept in waiting}  # it could never be done


async def test_in_a_bucket_that_lance_cannot_reach_a_graph_serves_and_the_answer_says_so(tmp_path: Path) -> None:
    async with IndexHouse(tmp_path, {"heap": "memory://heap"}, sample_share=0.0, log_share=0.0).running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        with pytest.raises(Refused, match="can't hold a Lance store: file:// and s3:// can"):
            await house.create("docs", "notes", "vector", bucket="heap", backend="lance")
        await house.create("docs", "notes", "vector", bucket="heap", backend="auto", text_column="body")
        assert await house.ids("docs", VECTORS[4], 1) == ["r4"]
        with pytest.raises(Refused, match="can't hold a Lance store"):
            await house.bus.ask(Search("docs", text="otter", mode="text"))
        assert not house.bus.server.streams["LAKEHOUSE_DEAD"].kept


async def test_without_full_text_a_search_by_words_says_what_to_set(tmp_path: Path) -> None:
    home = IndexHouse(tmp_path, full_text=False, sample_share=0.0, log_share=0.0)
    async with home.running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        await house.create("docs", "notes", "vector", text_column="body")
        with pytest.raises(Refused, match="has no full-text index") as refused:
            await house.bus.ask(Search("docs", text="otter", mode="text"))
        assert "full_text = true" in str(refused.value.refusal.hint)
        await house.bus.ask(MigrateIndex("docs"))
        await house.until(lambda: companion_is_ready(house))
        found = await house.bus.ask(Search("docs", text="otter", mode="text"))
        assert "otter" in str(found.queries[0][0].columns["body"])


async def test_a_store_whose_rows_are_damaged_is_made_anew(tmp_path: Path) -> None:
    home = IndexHouse(tmp_path, sample_share=0.0, log_share=0.0)
    async with home.running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        await house.create("docs", "notes", "vector", backend="lance")
        key = (await stats(house)).key
    for file in (tmp_path / "primary" / key / "data").iterdir():
        file.write_bytes(file.read_bytes()[:2000])
    async with home.running() as house:
        await house.ready("docs")
        with pytest.raises(Refused, match="can't be read"):
            await house.ids("docs", VECTORS[4], 1)

        async def anew() -> bool:
            return bool((await stats(house)).key != key)

        await house.until(anew)
        await house.ready("docs", 2)
        assert await recall(house, clustered(10, 32, seed=6), VECTORS) >= 0.95
        assert await house.ids("docs", VECTORS[4], 1) == ["r4"]


async def test_what_is_asked_while_a_store_is_replaced_is_answered_from_the_new_one(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    before = await stats(house)
    new, looked = f"{before.key}1", LanceBackend.versions

    async def replace() -> None:
        folder = house.folder / "primary"
        shutil.copytree(folder / before.key, folder / new)
        head = await house.registry.load(StoreDocument, "docs")
        assert head is not None
        replaced = msgspec.structs.replace(head[0], key=new)
        await house.registry.save("docs", replaced, expected=head[1], bucket="primary")
        await house.buckets.delete_prefix("primary", before.key)

    def versions(backend: LanceBackend) -> set[int]:
        if backend.place.uri.endswith(before.key):
            anyio.from_thread.run(replace)
        return looked(backend)

    monkeypatch.setattr(LanceBackend, "versions", versions)
    after = await stats(house)
    assert after == msgspec.structs.replace(before, key=new)


async def test_texts_that_are_damaged_are_refused_and_the_graph_stays(tmp_path: Path) -> None:
    home = IndexHouse(tmp_path, sample_share=0.0, log_share=0.0)
    async with home.running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        await house.create("docs", "notes", "vector", text_column="body")
        await house.until(lambda: _has_store(house))
        key = (await stats(house)).key
    for file in (tmp_path / "primary" / key / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    for file in (tmp_path / "primary" / key / "_indices").rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:100])
    async with home.running() as house:
        await house.ready("docs")
        for _ in range(2):
            with pytest.raises(Refused, match="the full-text index of 'docs' can't be read"):
                await house.bus.ask(Search("docs", text="otter", mode="text"))
        await anyio.sleep(0.5)  # the time in which a rebuild would be ordered
        assert await house.ids("docs", VECTORS[4], 1) == ["r4"]
        assert (await house.bus.ask(GetIndexStats("docs"))).generation == 1
        assert house.builds == 1
        await house.bus.ask(DropStore("docs"))

        async def anew() -> bool:
            try:
                return bool((await stats(house)).key != key)
            except Refused:
                return False

        await house.until(anew)
        result = await house.bus.ask(Search("docs", text="otter", mode="text", k=3))
        assert len(result.queries[0]) == 3


async def _has_store(house: IndexHouse) -> bool:
    try:
        return bool((await stats(house)).text_column)
    except Refused:
        return False


async def test_a_worker_that_dies_in_a_build_leaves_what_serves_and_comes_back(house: IndexHouse) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    await house.bus.ask(IndexStore("docs", "IVF_FLAT"))
    house.deaths += ["build_vector_index", "build_vector_index"]

    async def served() -> bool:
        assert await house.ids("docs", VECTORS[3], 1) == ["r3"]
        config = (await house.bus.ask(GetIndexStats("docs"))).config
        return isinstance(config, LanceConfig) and config.index_type == "IVF_FLAT"

    await house.until(served)
    assert house.deaths == []


async def test_a_build_that_cannot_be_leaves_what_serves_and_says_why(house: IndexHouse) -> None:
    vectors = clustered(100, 12)
    await house.dataset("odd", rows_of(vectors), "vector")
    with pytest.raises(Refused, match="12 dimensions are no multiple of 8"):
        await house.create("small", "odd", "vector", backend="lance", lance=LanceConfig("IVF_RQ", 4))
    await house.bus.ask(CreateIndex("small", "odd", "vector", backend="lance", lance=LanceConfig("IVF_PQ", 1, 4)))

    async def failed() -> bool:
        return (await house.bus.ask(GetIndex("small"))).state == "failed"

    await house.until(failed)
    assert "IVF_PQ needs 256 rows at least, there are 100" in (await house.bus.ask(GetIndex("small"))).reason
    assert await house.ids("small", vectors[3], 1) == ["r3"]  # exactly


@pytest.mark.parametrize(("budget", "backend"), [(1, "lance"), (64, "hnsw")])
async def test_auto_takes_what_fits_memory_and_says_so(tmp_path: Path, budget: int, backend: str) -> None:
    async with IndexHouse(tmp_path, memory_budget_mb=budget, log_share=0.0).running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        info = await house.create("docs", "notes", "vector", backend="auto")
        assert (info.backend, info.config.backend) == ("auto", backend)
        live = await house.bus.ask(GetIndexStats("docs"))
        assert "that indexes may take" in live.why_backend
        assert ("too large for memory" in live.why_backend) == (backend == "lance")


async def test_auto_changes_over_when_the_graph_outgrows_memory(tmp_path: Path) -> None:
    async with IndexHouse(tmp_path, memory_budget_mb=2, log_share=0.0).running() as house:
        await house.dataset("notes", notes(0, VECTORS), "vector")
        info = await house.create("docs", "notes", "vector", backend="auto")
        assert info.config.backend == "hnsw"
        await house.append("notes", notes(3000, clustered(6000, 32, seed=12)))

        async def changed() -> bool:
            assert await house.ids("docs", VECTORS[3], 1) == ["r3"]
            return (await house.bus.ask(GetIndexStats("docs"))).config.backend == "lance"

        await house.until(changed)
        assert (await house.bus.ask(GetIndex("docs"))).rows == 9000


async def test_an_index_on_s3(tmp_path: Path) -> None:
    with s3_api() as api:
        house = IndexHouse(tmp_path, {"far": f"s3://{BUCKET}/lake"}, {"far": api.options}, log_share=0.0)
        async with house.running():
            await house.dataset("notes", notes(0, VECTORS), "vector")
            info = await house.create("docs", "notes", "vector", backend="lance", bucket="far", text_column="body")
            assert (info.bucket, info.config.backend) == ("far", "lance")
            assert await recall(house, clustered(10, 32, seed=3), VECTORS) >= 0.95
            await house.append("notes", notes(3000, VECTORS[:1] * -1))
            await house.until(lambda: _covers(house, 3001))
            assert await house.ids("docs", -VECTORS[0], 1) == ["r3000"]
            result = await house.bus.ask(Search("docs", text="note 3000", mode="text", k=1))
            assert [hit.id for hit in result.queries[0]] == ["r3000"]
            keys = api.keys()
            assert [key for key in keys if "/lance/" in key]


async def test_a_store_moves_with_its_index_and_is_kept_in_step_there(tmp_path: Path) -> None:
    house = IndexHouse(tmp_path, {"other": (tmp_path / "other").as_uri()}, log_share=0.0)
    async with house.running():
        await house.dataset("notes", notes(0, VECTORS), "vector")
        await house.create("docs", "notes", "vector", text_column="body")
        await house.bus.ask(MigrateIndex("docs"))
        await house.until(lambda: companion_is_ready(house))
        await house.bus.ask(SwitchIndex("docs", "primary", "other"))
        await house.bus.publish(IndexMoved("docs", "primary", "other", 0, 0))
        await house.bus.ask(ClearIndex("docs", "primary"))
        assert await house.buckets.list("primary", "indexes/docs") == []
        await house.append("notes", notes(3000, VECTORS[:1] * -1))
        for backend in ("lance", "hnsw"):

            async def found(backend: str = backend) -> bool:
                return await house.ids("docs", -VECTORS[0], 1, backend=backend) == ["r3000"]

            await house.until(found)
        assert (await stats(house)).bucket == "other"


async def test_who_searches_a_store_that_was_replaced_orders_no_other(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    before = await stats(house)
    await house.ids("docs", VECTORS[0], 1)
    folder, new = house.folder / "primary", f"{before.key}1"
    head = await house.registry.load(StoreDocument, "docs")
    live = await house.registry.load(GenerationDocument, "docs")
    assert head is not None
    assert live is not None
    shutil.copytree(folder / before.key, folder / new)
    await house.registry.save("docs", msgspec.structs.replace(head[0], key=new), expected=head[1])
    moved = msgspec.structs.replace(live[0], key=new, generation=live[0].generation + 1)
    await house.registry.save("docs", moved, expected=live[1])

    def gone(*_: Any) -> Any:
        raise FileNotFoundError(before.key)

    monkeypatch.setattr(house.searcher._shelf.all()[0].vectors.backend, "near", gone)
    refused = []

    async def ask() -> None:
        try:
            await house.ids("docs", VECTORS[4], 1)
        except Refused as error:
            refused.append(error.refusal.reason)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
    assert all("is elsewhere by now" in reason for reason in refused), refused
    assert not house.searcher._rebuilds()
    assert await house.ids("docs", VECTORS[4], 1) == ["r4"]


async def test_texts_that_are_asked_for_while_their_store_is_replaced_are_found_in_the_new_one(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("docs", "notes", "vector", text_column="body")
    await house.until(lambda: _has_store(house))
    load = LanceBackend.load

    async def replace() -> None:
        await house.bus.ask(MigrateIndex("docs"))
        await house.until(lambda: companion_is_ready(house))

    def replaced(*args: Any) -> LanceBackend:
        monkeypatch.setattr(LanceBackend, "load", load)
        anyio.from_thread.run(replace)
        return load(*args)

    monkeypatch.setattr(LanceBackend, "load", replaced)
    result = await house.bus.ask(Search("docs", text="otter", mode="text", k=3))
    assert len(result.queries[0]) == 3


async def test_a_dataset_that_moves_while_a_store_of_it_is_made_fails_no_build(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, read = lance_store.create, house.tables.read
    folder = house.folder / "primary" / "datasets" / "notes"

    async def gone(table: Any, *args: Any, **more: Any) -> Any:
        monkeypatch.setattr(house.tables, "read", read)
        shutil.copytree(folder / "table", folder / "elsewhere")
        found = await house.registry.load(DatasetDocument, "notes")
        assert found is not None
        document = msgspec.structs.replace(found[0], path="datasets/notes/elsewhere")
        await house.registry.save("notes", document, expected=found[1])
        await house.tables.drop(table)
        return await read(table, *args, **more)

    def made(*args: Any) -> int:
        monkeypatch.setattr(lance_store, "create", create)
        monkeypatch.setattr(house.tables, "read", gone)
        return create(*args)

    monkeypatch.setattr(lance_store, "create", made)
    info = await house.create("docs", "notes", "vector", backend="lance")
    assert (info.state, info.reason) == ("ready", "")


async def test_what_is_heard_while_a_store_is_made_anew_breaks_nothing(
    house: IndexHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create("docs", "notes", "vector", backend="lance")
    before = await stats(house)
    await house.ids("docs", VECTORS[0], 1)
    folder, new, load = house.folder / "primary", f"{before.key}1", LanceBackend.load
    moved = DatasetMoved("notes", "elsewhere", "primary", 0, 0)

    async def replace() -> None:
        shutil.copytree(folder / before.key, folder / new)
        head = await house.registry.load(StoreDocument, "docs")
        assert head is not None
        await house.registry.save("docs", msgspec.structs.replace(head[0], key=new), expected=head[1])
        await house.buckets.delete_prefix("primary", before.key)

    def replaced(*args: Any) -> LanceBackend:
        monkeypatch.setattr(LanceBackend, "load", load)
        anyio.from_thread.run(replace)
        return load(*args)

    head = await house.registry.load(StoreDocument, "docs")
    assert head is not None
    renewed = msgspec.structs.replace(head[0], unindexed_rows=1)  # something to follow
    await house.registry.save("docs", renewed, expected=head[1])
    monkeypatch.setattr(LanceBackend, "load", replaced)
    await house.searcher.on_dataset_moved(moved)  # its index isn't in the new store yet
    live = await house.registry.load(GenerationDocument, "docs")
    assert live is not None
    await house.registry.save("docs", msgspec.structs.replace(live[0], key=new), expected=live[1])
    await house.searcher.on_dataset_moved(moved)
    assert await house.ids("docs", VECTORS[4], 1) == ["r4"]
