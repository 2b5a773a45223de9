"""A live graph against a brute-force model: whatever comes and goes, exactly the rows that are
there are found, while searches go on."""

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import hnsw
from actors.index.live import LiveGraph
from actors.index.vectors import VectorSet, merged
from schemas.config import GraphConfig, HnswConfig
from schemas.documents.index import GenerationDocument

DIM = 8


def pool(n, metric, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM), dtype=np.float32)
    return hnsw.normalise(vectors) if metric == "cosine" else vectors


def at(version, rows, vectors, metric):
    rows = np.array(sorted(rows), np.int64)
    return VectorSet(version, rows, vectors[rows], metric)


def graph_of(vectors):
    build = hnsw.build(vectors.vectors, vectors.rows, vectors.metric, GraphConfig(16, 100))
    while True:
        try:
            next(build)
        except StopIteration as stop:
            return stop.value


def document(vectors):
    return GenerationDocument(
        index="docs",
        generation=1,
        config=HnswConfig(),
        key="k",
        sha256="0" * 64,
        bytes=0,
        version=vectors.version,
        rows=len(vectors),
        build_s=0,
        reason="created",
        library=hnsw.LIBRARY,
        built=0,
    )


async def found_rows(live, queries, k):
    """Rows and distances as a search gives them, exact search where the graph gives up."""
    found, view = await live.search(queries, k, 400)
    return found if found is not None else view.vectors.exact(queries, k)


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30)),
    st.tuples(st.just("delete"), st.integers(1, 40)),
    st.tuples(st.just("take in"), st.just(0)),
    st.tuples(st.just("search"), st.integers(1, 30)),
)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@settings(max_examples=25, deadline=None)
@given(start=st.integers(1, 60), steps=st.lists(STEP, max_size=12), seed=st.integers(0, 999))
def test_a_live_graph_finds_what_brute_force_finds(metric, start, steps, seed):
    async def scenario():
        rng = np.random.default_rng(seed)
        vectors, queries = pool(600, metric, seed), pool(3, metric, seed + 1)
        rows, next_row, version = set(range(start)), start, 0
        first = at(version, rows, vectors, metric)
        live = await LiveGraph.adopt(document(first), graph_of(first), first)
        for action, n in [*steps, ("search", 10)]:
            if action == "add":
                rows |= set(range(next_row, next_row + n))
                next_row += n
            elif action == "delete" and rows:
                rows -= set(rng.choice(sorted(rows), min(n, len(rows)), replace=False).tolist())
            elif action == "take in":
                await live.take_in(60)
                assert len(live.view.fresh_rows) == 0
            if action in ("add", "delete"):
                version += 1
                await live.reconcile(at(version, rows, vectors, metric))
            if action == "search":
                now = at(version, rows, vectors, metric)
                ours, distances = await found_rows(live, queries, n)
                truth, true_distances = now.exact(queries, n)
                assert ours.shape == truth.shape == (3, min(n, len(rows)))
                assert set(ours.ravel().tolist()) <= rows
                np.testing.assert_allclose(distances, true_distances, atol=1e-5)

    anyio.run(scenario)


@pytest.mark.slow
async def test_searches_go_on_and_stay_whole_while_rows_come_go_and_are_taken_in():
    """Rows come in pairs of equal vectors: an answer with one of a pair is half a change."""
    vectors = pool(3000, "l2")
    vectors[1::2] = vectors[::2]
    rows = set(range(1000))
    live = await LiveGraph.adopt(
        document(at(0, rows, vectors, "l2")), graph_of(at(0, rows, vectors, "l2")), at(0, rows, vectors, "l2")
    )
    done, asked = False, 0

    async def reader(ef):
        nonlocal asked
        rng = np.random.default_rng(ef)
        while not done:
            query = vectors[rng.integers(0, 1500) * 2][None, :]
            (found, distances), _ = await live.search(query, 2, ef)
            assert distances[0, 0] != 0 or (distances[0, 1] == 0 and found[0, 0] + 1 == found[0, 1])
            asked += 1
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for ef in (50, 60, 300):
                group.start_soon(reader, ef)
            for step in range(10):
                rows |= set(range(1000 + 200 * step, 1200 + 200 * step))
                rows -= set(range(100 * step, 100 * step + 100))
                await live.reconcile(at(step + 1, rows, vectors, "l2"))
                await live.take_in(60)
            done = True
    assert asked > 50
    assert live.deleted == 1000


async def test_all_rows_deleted_but_a_few_are_still_found():
    vectors = pool(2000, "cosine")
    first = at(0, range(2000), vectors, "cosine")
    live = await LiveGraph.adopt(document(first), graph_of(first), first)
    left = at(1, range(1990, 2000), vectors, "cosine")
    await live.reconcile(left)
    rows, _ = await found_rows(live, vectors[:5], 10)
    assert {tuple(sorted(r)) for r in rows.tolist()} == {tuple(range(1990, 2000))}


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 20), m=st.integers(0, 20), k=st.integers(1, 25), seed=st.integers(0, 99))
def test_merging_two_halves_is_searching_the_whole(n, m, k, seed):
    vectors, queries = pool(n + m, "l2", seed), pool(2, "l2", seed + 1)
    whole = at(0, range(n + m), vectors, "l2")
    halves = [at(0, range(n), vectors, "l2"), at(0, range(n, n + m), vectors, "l2")]
    rows, distances = merged(halves[0].exact(queries, k), halves[1].exact(queries, k), k)
    truth = whole.exact(queries, k)
    np.testing.assert_array_equal(rows, truth[0])
    np.testing.assert_array_equal(distances, truth[1])


def test_exact_search_among_some_is_exact_search_over_them(monkeypatch):
    monkeypatch.setattr("actors.index.vectors.GATHER_FLOATS", 64)
    vectors, queries = pool(500, "cosine"), pool(4, "cosine", 9)
    some = np.sort(np.random.default_rng(1).choice(500, 77, replace=False))
    rows, distances = at(0, range(500), vectors, "cosine").exact(queries, 10, some)
    truth = at(0, some.tolist(), vectors, "cosine").exact(queries, 10)
    np.testing.assert_array_equal(rows, truth[0])
    np.testing.assert_array_equal(distances, truth[1])
