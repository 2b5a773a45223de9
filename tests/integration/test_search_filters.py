"""Filtered search against exact filtered search on 20k rows, from 1 row in 1000 to every other,
with filters that have nothing to do with the query, go with it, and go against it."""

import numpy as np
import pyarrow as pa
import pytest
import pytest_asyncio

from schemas.events.index import Search
from tests.integration.index_house import IndexHouse, clustered, rows_of

N, DIM = 20_000, 64
SHARES = [0.001, 0.01, 0.1, 0.5]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory):
    """Rows with a random number in [0, 1), and their distance rank from the axis that all
    queries lie near: `near` filters by the one half, `far` by the other."""
    vectors = clustered(N, DIM)
    axis = vectors[0]
    rank = np.argsort(np.argsort(-(vectors @ axis))) / N
    draw = np.random.default_rng(3).random(N)
    async with IndexHouse(tmp_path_factory.mktemp("filters"), exact_below_rows=500).running() as house:
        table = rows_of(vectors, draw=pa.array(draw), rank=pa.array(rank))
        await house.dataset("data", table, "vector")
        await house.create("docs", "data", "vector")
        house.vectors, house.draw, house.rank, house.axis = vectors, draw, rank, axis
        yield house


def queries_for(house, kind):
    if kind == "any":
        return clustered(40, DIM, seed=77)
    noise = np.random.default_rng(5).standard_normal((40, DIM), dtype=np.float32)
    return house.axis + np.float32(0.05) * noise


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["any", "near", "far"])
async def test_recall_of_filtered_search(house, kind, share):
    predicate, holds = {
        "any": (f"draw < {share}", house.draw < share),
        "near": (f"rank < {share}", house.rank < share),
        "far": (f"rank >= {1 - share}", house.rank >= 1 - share),
    }[kind]
    rows = np.flatnonzero(holds)
    recalls, strategies = [], set()
    for query in queries_for(house, kind):
        asked = Search("docs", vector=query.tolist(), k=10, filter=predicate, explain=True, columns=["draw", "rank"])
        result = await house.bus.ask(asked)
        found = [int(hit.id[1:]) for hit in result.queries[0]]
        assert len(found) == 10
        assert set(found) <= set(rows.tolist())
        truth = rows[np.argsort(-(house.vectors[rows] @ query), kind="stable")[:10]]
        recalls.append(len(set(found) & set(truth.tolist())) / 10)
        strategies.add(result.explain.strategy)
        assert result.explain.matching_rows == len(rows)
    assert np.mean(recalls) >= 0.95, strategies
    if (kind, share) == ("any", 0.5):
        assert strategies == {"filtered_graph"}
    if share == 0.001:
        assert strategies == {"exact"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_filter_that_nothing_passes_gives_nothing(house):
    result = await house.bus.ask(Search("docs", vector=house.axis.tolist(), filter="draw > 5", explain=True))
    assert result.queries == [[]]
    assert result.explain.matching_rows == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_many_queries_under_one_filter_are_each_answered(house):
    queries = clustered(30, DIM, seed=8)
    result = await house.bus.ask(Search("docs", vectors=queries.tolist(), k=5, filter="draw < 0.5"))
    allowed = np.flatnonzero(house.draw < 0.5)
    recalls = []
    for query, hits in zip(queries, result.queries, strict=True):
        truth = allowed[np.argsort(-(house.vectors[allowed] @ query))[:5]]
        recalls.append(len({int(hit.id[1:]) for hit in hits} & set(truth.tolist())) / 5)
    assert np.mean(recalls) >= 0.95
