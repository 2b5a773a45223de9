"""Search on the main road: made, filled, changed, filtered, swapped, restarted, damaged."""

import shutil

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.errors import Refused
from actors.graphs import CachedGraph
from schemas.config import HnswConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.index import (
    CreateIndex,
    DropIndex,
    EmbedderSpec,
    GetIndex,
    GetIndexStats,
    IndexAppended,
    ListIndexes,
    RebuildIndex,
    RecallDrifted,
    Search,
    ServeIndex,
)
from tests.integration.index_house import IndexHouse, clustered, rows_of

DIM = 32
SOON_S = 5.0
"""The promise is one second on an idle machine; a shared one gets more before it fails."""


@pytest.fixture
async def house(tmp_path):
    async with IndexHouse(tmp_path).running() as house:
        yield house


@pytest.fixture
async def docs(house):
    """An index of 3000 vectors."""
    house.vectors = clustered(3000, DIM)
    await house.dataset("data", rows_of(house.vectors), "vector")
    await house.create("docs", "data", "vector")
    return house


def nearest(vectors, query, k, metric="cosine"):
    """Oracle: positions of the k nearest, by brute force in float64."""
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        distances = ((vectors - query) ** 2).sum(1)
    else:
        if metric == "cosine":
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            query = query / np.linalg.norm(query)
        distances = 1 - vectors @ query
    order = np.argsort(distances, kind="stable")[:k]
    return order, distances[order]


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
async def test_ids_distances_and_columns_are_those_of_the_nearest_rows(house, metric):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((1500, 16), dtype=np.float32) * rng.uniform(0.5, 2, (1500, 1)).astype(np.float32)
    await house.dataset("data", rows_of(vectors, note=[f"note {i}" for i in range(1500)]), "vector")
    await house.create("docs", "data", "vector", metric=metric)
    for query in rng.standard_normal((20, 16), dtype=np.float32):
        result = await house.bus.ask(Search("docs", vector=query.tolist(), k=5, ef_search=400))
        rows, distances = nearest(vectors, query, 5, metric)
        hits = result.queries[0]
        assert [hit.id for hit in hits] == [f"r{i}" for i in rows]
        np.testing.assert_allclose([hit.distance for hit in hits], distances, atol=1e-4)
        assert hits[0].columns == {"number": rows[0], "note": f"note {rows[0]}"}


async def test_many_vectors_at_once_chosen_columns_and_more_than_there_are(docs):
    vectors = docs.vectors[:40].tolist()
    result = await docs.bus.ask(Search("docs", vectors=vectors, k=3, columns=["vector"]))
    assert [hits[0].id for hits in result.queries] == [f"r{i}" for i in range(40)]
    np.testing.assert_allclose(result.queries[7][0].columns["vector"], docs.vectors[7], rtol=1e-6)
    result = await docs.bus.ask(Search("docs", vector=vectors[0], k=1000, filter="number < 12", columns=[]))
    assert sorted(int(hit.id[1:]) for hit in result.queries[0]) == list(range(12))


async def test_text_is_embedded_and_explained(house):
    texts = ["reads a file of comma separated values", "opens a socket and listens", "sorts a list in place"] * 50
    texts = [f"{text} variant {i}" for i, text in enumerate(texts)]
    await house.dataset("data", pa.table({"id": [str(i) for i in range(150)], "text": texts}))
    info = await house.create("docs", "data", "text")
    assert (info.state, info.dim, info.rows) == ("ready", 384, 150)
    result = await house.bus.ask(Search("docs", text="listens on a socket variant 31", k=1, explain=True))
    assert result.queries[0][0].id == "31"
    assert [step.name for step in result.explain.steps] == ["embed", "plan", "graph", "fetch"]
    assert all(step.us > 0 for step in result.explain.steps)
    assert (result.explain.generation, result.explain.strategy, result.explain.ef_search) == (1, "graph", 50)
    await house.append("data", pa.table({"id": ["new"], "text": ["paints a picture of a mountain"]}))
    await house.delete("data", ["31"])

    async def changed():
        hits = (await house.bus.ask(Search("docs", text="a picture of a mountain", k=200))).queries[0]
        return hits[0].id == "new" and len(hits) == 150 and "31" not in {hit.id for hit in hits}

    await house.until(changed, SOON_S)


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        (Search("nope", text="x"), "not_found", "nope"),
        (Search("docs"), "invalid", "exactly one"),
        (Search("docs", text="x", vector=[0.0] * DIM), "invalid", "exactly one"),
        (Search("docs", text="x"), "invalid", "no embedder"),
        (Search("docs", vector=[1.0] * 5), "invalid", "5 dimensions"),
        (Search("docs", vectors=[[1.0] * DIM, [1.0]]), "invalid", "1 dimensions"),
        (Search("docs", vector=[1e39] * DIM), "invalid", "too large"),
        (Search("docs", vector=["x"] * DIM), "invalid", "float32"),
        (Search("docs", vectors=[]), "invalid", "empty"),
        (Search("docs", vector=[float("nan")] * DIM), "invalid", "finite"),
        (Search("docs", vector=[1.0] * DIM, columns=["nope"]), "invalid", "nope"),
        (Search("docs", vector=[1.0] * DIM, filter="nope = 1"), "invalid", "filter"),
        (Search("docs", vector=[1.0] * DIM, filter="number ="), "invalid", "filter"),
        (GetIndexStats("nope"), "not_found", "nope"),
        (GetIndex("nope"), "not_found", "nope"),
        (DropIndex("nope"), "not_found", "nope"),
        (RebuildIndex("nope"), "not_found", "nope"),
    ],
)
async def test_what_is_wrong_is_refused_with_a_reason(docs, query, status, word):
    with pytest.raises(Refused, match=word) as error:
        await docs.bus.ask(query)
    assert error.value.refusal.status == status


async def test_appends_and_deletes_are_visible_within_a_second(docs):
    new = clustered(200, DIM, seed=5)
    await docs.append("data", rows_of(new, first=3000))

    async def there():
        return await docs.ids("docs", new[17], 1) == ["r3017"]

    await docs.until(there, SOON_S)
    await docs.delete("data", ["r3017", "r5"])

    async def gone():
        return await docs.ids("docs", new[17], 1) != ["r3017"]

    await docs.until(gone, SOON_S)
    assert await docs.ids("docs", docs.vectors[5], 1) != ["r5"]

    async def taken_in():
        stats = await docs.bus.ask(GetIndexStats("docs"))
        return stats.fresh_rows == 0 and stats.rows == 3198

    await docs.until(taken_in)
    everything = np.concatenate([docs.vectors, new])
    keep = np.setdiff1d(np.arange(3200), [5, 3017])
    recalls = []
    for query in clustered(50, DIM, seed=6):
        truth = {f"r{keep[i]}" for i in nearest(everything[keep], query, 10)[0]}
        recalls.append(len(truth & set(await docs.ids("docs", query, ef_search=200))) / 10)
    assert np.mean(recalls) > 0.98


async def test_an_upsert_replaces_a_row(docs):
    await docs.append("data", rows_of(-docs.vectors[:1]), remove=[0])

    async def replaced():
        return await docs.ids("docs", -docs.vectors[0], 1) == ["r0"]

    await docs.until(replaced, SOON_S)
    assert await docs.ids("docs", docs.vectors[0], 1) != ["r0"]


async def test_an_index_over_nothing_is_built_when_rows_come(house):
    vectors = clustered(300, DIM)
    table = rows_of(vectors)
    await house.dataset("data", table.slice(0, 0), None)
    with pytest.raises(Refused, match="holds list"):
        await house.create("docs", "data", "vector")
    await house.dataset("texts", pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}))
    await house.bus.ask(CreateIndex("texts", "texts", "text"))

    async def embedded():
        return (await house.bus.ask(GetIndex("texts"))).version >= 0

    await house.until(embedded)
    info = await house.bus.ask(GetIndex("texts"))
    assert (info.state, info.generation, info.rows) == ("building", 0, 0)
    assert (await house.bus.ask(Search("texts", text="anything"))).queries == [[]]
    await house.append("texts", pa.table({"id": ["a", "b"], "text": ["some words", "other things"]}))
    await house.ready("texts")
    assert (await house.bus.ask(Search("texts", text="some words", k=1))).queries[0][0].id == "a"


async def test_a_name_is_taken_until_it_is_dropped(docs):
    with pytest.raises(Refused) as error:
        await docs.create("docs", "data", "vector")
    assert error.value.refusal.status == "conflict"
    await docs.bus.ask(DropIndex("docs"))
    assert (await docs.bus.ask(ListIndexes())).indexes == []

    async def forgotten():
        try:
            await docs.ids("docs", docs.vectors[0])
        except Refused as refused:
            return refused.refusal.status == "not_found"
        return False

    await docs.until(forgotten)
    assert [key for key in await docs.buckets.list("primary", "indexes/docs") if "generations" in key] == []
    info = await docs.create("docs", "data", "vector", metric="l2")
    assert info.metric == "l2"
    assert await docs.ids("docs", docs.vectors[9], 1) == ["r9"]


async def test_a_dataset_whose_first_ingest_broke_off_bears_no_index(docs):
    document, _ = await docs.registry.load(DatasetDocument, "data")
    half = msgspec.structs.replace(document, dataset="half", path="datasets/half/table")
    await docs.registry.save("half", half, expected=None)
    with pytest.raises(Refused, match="has no table") as error:
        await docs.create("other", "half", "vector")
    assert error.value.refusal.status == "conflict"


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"dataset": "nope", "column": "vector"}, "no dataset"),
        ({"dataset": "data", "column": "nope"}, "no column"),
        ({"dataset": "data", "column": "number"}, "int64"),
        ({"dataset": "data", "column": "vector", "bucket": "nope"}, "no bucket"),
        ({"dataset": "data", "column": "vector", "embedder": EmbedderSpec()}, "no embedder"),
        ({"dataset": "data", "column": "id", "embedder": EmbedderSpec("none")}, "needs an embedder"),
    ],
)
async def test_an_index_that_can_t_be_is_refused(docs, asked, word):
    with pytest.raises(Refused, match=word):
        await docs.create("other", **asked)


async def test_a_restart_loads_and_builds_nothing(tmp_path):
    house, vectors = IndexHouse(tmp_path), clustered(2500, DIM)
    async with house.running():
        await house.dataset("data", rows_of(vectors), "vector")
        await house.create("docs", "data", "vector")
        before = [await house.ids("docs", query) for query in vectors[:20]]
        assert house.builds == 1
    async with house.running():
        stats = await house.bus.ask(GetIndexStats("docs"))
        assert (stats.loaded, stats.generation, stats.rows) == (True, 1, 2500)
        assert [await house.ids("docs", query) for query in vectors[:20]] == before
        assert house.builds == 1


async def test_rows_that_came_while_it_was_down_are_there_after_the_start(tmp_path):
    house, vectors = IndexHouse(tmp_path), clustered(600, DIM)
    async with house.running():
        await house.dataset("data", rows_of(vectors[:500]), "vector")
        await house.create("docs", "data", "vector")
    table = rows_of(vectors[500:], first=500)
    await house._commit("data", table.to_batches(), table.schema, [3])
    async with house.running():
        assert await house.ids("docs", vectors[555], 1) == ["r555"]
        assert await house.ids("docs", vectors[3], 1) != ["r3"]


async def test_a_damaged_graph_is_served_exactly_and_built_again_and_others_go_on(tmp_path):
    house, vectors = IndexHouse(tmp_path), clustered(2500, DIM)
    async with house.running():
        await house.dataset("data", rows_of(vectors), "vector")
        await house.create("docs", "data", "vector")
        await house.create("good", "data", "vector")
    (graph,) = (tmp_path / "primary").glob("indexes/docs/generations/000001/graph.hnsw*")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 255
    graph.chmod(0o644)
    graph.write_bytes(data)
    house.graphs.drop("docs")
    async with house.running():
        assert await house.ids("docs", vectors[7], 1) == ["r7"]
        assert (await house.bus.ask(GetIndexStats("good"))).generation == 1
        await house.ready("docs", 2)
        assert await house.ids("docs", vectors[7], 1) == ["r7"]


async def test_a_damaged_table_is_refused_with_its_reason_and_others_go_on(tmp_path):
    house, vectors = IndexHouse(tmp_path), clustered(600, DIM)
    async with house.running():
        for name in ("bad", "good"):
            await house.dataset(name, rows_of(vectors), "vector")
            await house.create(name, name, "vector")
    shutil.rmtree(tmp_path / "cache")
    for entry in (tmp_path / "primary").glob("datasets/bad/table/_delta_log/*.json"):
        entry.chmod(0o644)
        entry.write_bytes(b"{")
    async with house.running():
        assert await house.ids("good", vectors[7], 1) == ["r7"]
        with pytest.raises(Refused, match="bad"):
            await house.ids("bad", vectors[7], 1)


async def test_a_torn_snapshot_is_made_again(tmp_path):
    house, vectors = IndexHouse(tmp_path), clustered(600, DIM)
    async with house.running():
        await house.dataset("data", rows_of(vectors), "vector")
        await house.create("docs", "data", "vector")
    for file in (tmp_path / "cache" / "snapshots" / "docs").glob("*/*.npy"):
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:100])
    async with house.running():
        assert await house.ids("docs", vectors[7], 1) == ["r7"]


async def test_an_index_without_its_embedder_is_refused_and_others_go_on(tmp_path):
    house = IndexHouse(tmp_path)
    texts = pa.table({"id": [str(i) for i in range(50)], "text": [f"text number {i}" for i in range(50)]})
    async with house.running():
        for name in ("bad", "good"):
            await house.dataset(name, texts)
            await house.create(name, name, "text")
        document, _ = await house.registry.load(IndexDocument, "bad")
    (tmp_path / "primary" / document.embedder_key).unlink()
    async with house.running():
        assert (await house.bus.ask(Search("good", text="text number 7", k=1))).queries[0][0].id == "7"
        with pytest.raises(Refused, match="embedder"):
            await house.bus.ask(Search("bad", text="text number 7", k=1))


async def test_twenty_swaps_under_load_and_no_search_fails_or_sees_half_an_index(docs):
    graphs = [HnswConfig(M, 60, 50) for M in (4, 8, 12, 16)]
    done, asked, generations = False, 0, set()

    async def reader(seed):
        nonlocal asked
        rng = np.random.default_rng(seed)
        while not done:
            row = int(rng.integers(0, 3000))
            ef = int(rng.choice([60, 100]))
            query = Search("docs", vector=docs.vectors[row].tolist(), k=10, ef_search=ef, explain=True)
            result = await docs.bus.ask(query)
            assert len(result.queries[0]) == 10
            assert result.explain.rows == 3000
            found = [hit.distance for hit in result.queries[0]]
            assert found == sorted(found)
            generations.add(result.generation)
            asked += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for seed in range(4):
            group.start_soon(reader, seed)
        for swap in range(20):
            config = graphs[swap % 4]
            if swap % 5 == 4:
                config = HnswConfig(config.M, 60, 77)  # only ef: no load
            await docs.promote("docs", config, f"t{swap}")
            await docs.ready("docs", swap + 2)
        done = True
    assert asked > 200
    assert len(generations) > 15
    stats = await docs.bus.ask(GetIndexStats("docs"))
    assert (stats.generation, stats.config) == (21, HnswConfig(16, 60, 77))
    assert docs.builds <= 5  # each graph once: the cache and kept artifacts give the others
    kept = {key.split("/")[3] for key in await docs.buckets.list("primary", "indexes/docs/generations")}
    assert len(kept) <= docs.config.keep_generations


async def test_a_promotion_that_changes_ef_alone_takes_effect_at_once(docs):
    await docs.promote("docs", HnswConfig(ef_search=123), "t1")
    info = await docs.ready("docs", 2)
    assert info.config.ef_search == 123
    result = await docs.bus.ask(Search("docs", vector=docs.vectors[0].tolist(), explain=True))
    assert (result.explain.ef_search, result.explain.generation) == (123, 2)
    assert docs.builds == 1


async def test_a_profile_s_default_is_built_and_swapped_in(docs):
    config = HnswConfig(8, 50, 60)
    served = await docs.bus.ask(ServeIndex("docs", default=config))
    assert (served.config, served.generation, served.building) == (config, 1, 2)
    info = await docs.ready("docs", 2)
    assert (info.generation, info.config) == (2, config)
    again = await docs.bus.ask(ServeIndex("docs", default=config))
    assert (again.generation, again.building, docs.builds) == (2, None, 2)
    await docs.promote("docs", HnswConfig(8, 50, 90), "t1")
    await docs.ready("docs", 3)
    promoted = await docs.bus.ask(ServeIndex("docs", default=config))
    assert (promoted.config.ef_search, promoted.generation) == (90, 3)
    with pytest.raises(Refused, match="there is no index 'other'") as caught:
        await docs.bus.ask(ServeIndex("other", default=config))
    assert caught.value.refusal.status == "not_found"


async def test_memory_over_budget_is_put_away_and_loaded_on_demand_once(tmp_path):
    house, vectors = IndexHouse(tmp_path, memory_budget_mb=1), clustered(2500, DIM)
    async with house.running():
        await house.dataset("data", rows_of(vectors), "vector")
        for name in ("one", "two", "three"):
            await house.create(name, "data", "vector")
        loaded = [(await house.bus.ask(GetIndexStats(name))).loaded for name in ("one", "two", "three")]
        assert sum(loaded) == 1  # the one used last stays, though it is over the budget alone
        away = ("one", "two", "three")[loaded.index(False)]
        loads = 0
        load = house.searcher._shelf._load

        async def counted(name):
            nonlocal loads
            loads += 1
            return await load(name)

        house.searcher._shelf._load = counted
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(house.ids, away, vectors[3], 1)
        assert loads == 1
        assert await house.ids(away, vectors[3], 1) == ["r3"]


async def test_live_recall_is_measured_and_a_drift_is_told_once(tmp_path):
    house, vectors = IndexHouse(tmp_path, sample_share=1.0), clustered(6000, DIM, spread=2.0)
    async with house.running():
        house.searcher.check_s = 0.05
        drifts = []

        async def listen():
            async for envelope in house.bus.listen("lakehouse.evt.recall.drifted"):
                drifts.append(envelope.message)

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await house.dataset("data", rows_of(vectors), "vector")
            poor = HnswConfig(4, 10, 10)
            await house.create("docs", "data", "vector", config=poor, target_recall=0.95)
            for round in range(3):
                for query in clustered(60, DIM, seed=round + 40, spread=2.0):
                    await house.ids("docs", query)
                await anyio.sleep(1.2)
            group.cancel_scope.cancel()
        (drift,) = drifts
        assert isinstance(drift, RecallDrifted)
        live = (await house.bus.ask(GetIndexStats("docs"))).live_recall
        truth = []
        for query in clustered(60, DIM, seed=40, spread=2.0):
            found = set(await house.ids("docs", query))
            truth.append(len(found & {f"r{i}" for i in nearest(vectors, query, 10)[0]}) / 10)
        assert live.samples >= 100
        assert abs(live.mean - np.mean(truth)) < 0.08
        assert live.lower < live.mean < live.upper < 0.95


async def test_live_recall_is_of_queries_that_asked_for_ten(tmp_path):
    house, vectors = IndexHouse(tmp_path, sample_share=1.0, exact_below_rows=10), clustered(2000, DIM)
    async with house.running():
        house.searcher.check_s = 0.05
        await house.dataset("data", rows_of(vectors), "vector")
        await house.create("docs", "data", "vector")
        for k in (1, 3, 9, 10, 20):
            await house.ids("docs", vectors[5], k)

        async def samples():
            live = (await house.bus.ask(GetIndexStats("docs"))).live_recall
            return live.samples if live else 0

        await house.until(samples)
        await anyio.sleep(0.2)
        assert await samples() == 2


async def test_sampled_queries_are_logged(tmp_path):
    house, vectors = IndexHouse(tmp_path, log_share=1.0), clustered(300, DIM)
    async with house.running():
        await house.dataset("data", rows_of(vectors), "vector")
        await house.create("docs", "data", "vector")
        for query in vectors[:25]:
            await house.ids("docs", query)
        await house.searcher.on_upkeep()
        logged = await house.query_log.sample("docs", 100, 0)
        assert sorted(map(tuple, logged.tolist())) == sorted(map(tuple, vectors[:25].tolist()))


async def test_an_index_that_is_dropped_while_it_is_looked_at_is_none(docs, monkeypatch):
    await docs.create("other", "data", "vector")
    covered = docs.snapshots.covered

    async def dropped(name):
        monkeypatch.setattr(docs.snapshots, "covered", covered)
        await docs.bus.ask(DropIndex("docs"))
        return await covered(name)

    monkeypatch.setattr(docs.snapshots, "covered", dropped)
    assert [info.index for info in (await docs.bus.ask(ListIndexes())).indexes] == ["other"]
    await docs.create("docs", "data", "vector")
    monkeypatch.setattr(docs.snapshots, "covered", dropped)
    with pytest.raises(Refused, match="there is no index 'docs'"):
        await docs.bus.ask(GetIndex("docs"))


async def test_an_index_whose_dataset_goes_while_it_is_loaded_is_refused(house, monkeypatch):
    vectors = clustered(300, DIM)
    await house.dataset("data", rows_of(vectors), "vector")
    await house.create("docs", "data", "vector")
    await house.searcher._shelf.drop("docs")
    read = house.tables.read

    async def gone(table, *args, **more):
        monkeypatch.setattr(house.tables, "read", read)
        await house.bus.ask(DropIndex("docs"))
        await house.tables.drop(table)
        return await read(table, *args, **more)

    monkeypatch.setattr(house.tables, "read", gone)
    with pytest.raises(Refused, match="there is no index 'docs'"):
        await house.ids("docs", vectors[0], 1)


async def test_rows_of_an_index_that_was_just_dropped_are_nobodys(docs):
    await docs.ids("docs", docs.vectors[0], 1)
    (index,) = docs.searcher._shelf.all()
    found = await docs.registry.load(IndexDocument, "docs")
    await docs.registry.delete(IndexDocument, "docs")
    assert await docs.searcher.on_appended(IndexAppended("docs", "data", index.vectors.version + 1, 1, 3001)) == ()
    await docs.registry.save("docs", found[0], expected=None)


async def test_who_searches_what_was_just_dropped_orders_no_rebuild(docs, monkeypatch):
    found = await docs.registry.load(IndexDocument, "docs")

    async def gone(table, *_, **__):
        await docs.registry.delete(IndexDocument, "docs")
        raise FileNotFoundError(table.path)

    monkeypatch.setattr(docs.tables, "match", gone)
    with pytest.raises(Refused, match="there is no index 'docs'"):
        await docs.ids("docs", docs.vectors[0], filter="number < 3")
    assert not docs.searcher._loader.unreadable
    await docs.registry.save("docs", found[0], expected=None)


async def test_a_cached_graph_that_is_evicted_while_it_is_looked_at_is_built_again(docs, monkeypatch):
    config = HnswConfig(M=8, ef_construction=60, ef_search=77)

    def evicted(*args):
        path = docs.graphs.path_for(*args)
        return CachedGraph(path, "0" * 64, 3000, 0, 1.0, "hnswlib")

    monkeypatch.setattr(docs.graphs, "find", evicted)
    await docs.promote("docs", config, "t1")
    await docs.ready("docs", 2)
