"""An index that is searched by a codec's codes: put to use, kept in step with its dataset, taken out of use again, and
never a query that fails."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from msgspec.structs import replace

from actors import hnsw
from actors.codec_ports import CodedRows
from actors.errors import Refused
from actors.index.coded import CodedVectors
from actors.index.vectors import VectorSet
from schemas.certificate import ColumnGate
from schemas.codec import CodecParams, VectorColumn
from schemas.config import HnswConfig
from schemas.documents.codec import CodecJobDocument, IndexCodecDocument
from schemas.documents.index import GenerationDocument
from schemas.events.codec import (
    CalibrateCodec,
    CertifyCodec,
    CodecWithdrawn,
    DropCodec,
    GetCodec,
    GraduateCodec,
    WithdrawCodec,
)
from schemas.events.index import GenerationSwapped, GetIndexStats, Search
from tests.integration.index_house import IndexHouse, clustered, rows_of

ROWS, DIM = 3000, 64
RECALL, OVERSAMPLE = 0.6, 5
ROTATED = CodecParams(family="rotated", bits=4, rotation="hadamard", calibration_rows=1000)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[IndexHouse]:
    async with IndexHouse(tmp_path, exact_below_rows=100).running() as made:
        yield made


async def coded(
    house: IndexHouse, params: CodecParams = ROTATED, metric: Any = "cosine", spread: float = 4.0
) -> np.ndarray:
    """An index `docs` with a certified artifact `small`; its vectors."""
    vectors = clustered(ROWS, DIM, spread=spread)
    if metric != "cosine":
        vectors *= np.random.default_rng(3).uniform(0.5, 2, (ROWS, 1)).astype(np.float32)
    await house.dataset("data", rows_of(vectors), "vector")
    await house.create("docs", "data", "vector", metric=metric)
    await house.bus.ask(CalibrateCodec(VectorColumn("data", "vector"), params, "small"))
    await ended(house)
    await house.bus.ask(CertifyCodec("small", gate=ColumnGate(recall=RECALL, oversample=OVERSAMPLE)))
    await ended(house)
    certificate = (await house.bus.ask(GetCodec("small"))).certificate
    assert certificate is not None
    assert certificate.passed, certificate.failures
    return vectors


async def ended(house: IndexHouse) -> None:
    async def none_left() -> bool:
        return await house.registry.all(CodecJobDocument) == []

    await house.until(none_left, 60)


async def graduated(house: IndexHouse, to: str | None = "small") -> None:
    order = GraduateCodec(to, index="docs") if to else WithdrawCodec(index="docs")
    await house.bus.ask(order)

    async def served() -> bool:
        return (await house.bus.ask(GetIndexStats("docs"))).codec == to

    await house.until(served)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
async def test_a_search_by_codes_finds_what_is_nearest_and_tells_exact_distances(
    house: IndexHouse, metric: Any
) -> None:
    vectors = await coded(house, metric=metric)
    graph_bytes = (await house.bus.ask(GetIndexStats("docs"))).bytes
    await graduated(house)
    stats = await house.bus.ask(GetIndexStats("docs"))
    codes = ROWS * (DIM // 2 + 2)  # 4 bits and a float16 a row
    assert stats.bytes < graph_bytes - 0.8 * 4 * ROWS * DIM + codes
    hits = 0
    for query in vectors[5::100]:
        result = await house.bus.ask(Search("docs", vector=query.tolist(), k=10, explain=True))
        assert result.explain is not None
        assert result.explain.strategy == "codes"
        assert [step.name for step in result.explain.steps] == ["read", "codes", "fetch"]
        rows, distances = hnsw.exact_topk(query[None], vectors, 10, metric)
        found = {hit.id: hit.distance for hit in result.queries[0]}
        for row, distance in zip(rows[0], distances[0], strict=True):
            if f"r{row}" in found:
                hits += 1
                assert found[f"r{row}"] == pytest.approx(float(distance), abs=1e-5)
        assert list(found.values()) == sorted(found.values())
    assert hits / (10 * len(vectors[5::100])) > 0.97


@pytest.mark.parametrize(
    "params",
    [
        CodecParams(family="scalar", bits=4, group=16, calibration_rows=1000),
        CodecParams(family="vq", dsub=2, rotation="hadamard", calibration_rows=1000),
        CodecParams(family="rabitq", rotation="hadamard", calibration_rows=1000),
        CodecParams(family="pq", dsub=4, calibration_rows=1000),
    ],
    ids=lambda params: params.family,
)
async def test_every_family_serves(house: IndexHouse, params: CodecParams) -> None:
    vectors = await coded(house, params)
    await graduated(house)
    queries = vectors[7::300]
    found = await house.bus.ask(Search("docs", vectors=queries.tolist(), k=1))
    assert [hits[0].id for hits in found.queries] == [f"r{n}" for n in range(7, ROWS, 300)]


async def test_rows_that_come_are_found_and_those_that_go_are_not(house: IndexHouse) -> None:
    vectors = await coded(house)
    await graduated(house)
    new = clustered(5, DIM, seed=50)
    await house.append("data", rows_of(new, ROWS))
    await house.delete("data", ["r10", "r11"])

    async def changed() -> bool:
        newest = await house.ids("docs", new[3], 1)
        return newest == [f"r{ROWS + 3}"] and "r10" not in await house.ids("docs", vectors[10], 5)

    await house.until(changed)
    stats = await house.bus.ask(GetIndexStats("docs"))
    assert (stats.rows, stats.codec) == (ROWS + 3, "small")
    assert (await house.ids("docs", vectors[12], 1)) == ["r12"]


async def test_a_filter_leaves_candidates_among_what_matches(house: IndexHouse) -> None:
    vectors = await coded(house)
    await graduated(house)
    for condition, wanted, strategy in (
        ("number % 2 = 0", range(0, ROWS, 2), "codes"),
        ("number < 400", range(400), "codes"),  # by a graph's cost it were exact
        ("number < 50", range(50), "exact"),
    ):
        query = vectors[33]
        search = Search("docs", vector=query.tolist(), k=10, filter=condition, explain=True)
        result = await house.bus.ask(search)
        rows = np.array(wanted)
        best = rows[np.argsort(-(vectors[rows] @ query), kind="stable")[:10]]
        assert result.explain is not None
        assert result.explain.strategy == strategy
        assert len({hit.id for hit in result.queries[0]} & {f"r{row}" for row in best}) >= 9


async def test_no_query_fails_while_codes_and_graphs_take_turns(house: IndexHouse) -> None:
    vectors = await coded(house)
    asked, over = 0, False

    async def ask(seed: int) -> None:
        nonlocal asked
        for number in np.random.default_rng(seed).integers(ROWS, size=100_000).tolist():
            if over:
                return
            assert (await house.ids("docs", vectors[number], 1)) == [f"r{number}"]
            asked += 1
            await anyio.sleep(0.001)  # a search of a graph awaits nothing

    async with anyio.create_task_group() as group:
        for seed in range(3):
            group.start_soon(ask, seed)
        for to in ("small", None, "small", None):
            before = asked
            await graduated(house, to)
            with anyio.fail_after(20):
                while asked < before + 50:  # noqa: ASYNC110 - it is the others that ask
                    await anyio.sleep(0.01)
        over = True
    stats = await house.bus.ask(GetIndexStats("docs"))
    assert (stats.codec, stats.generation) == (None, 1)


async def test_what_is_promoted_meanwhile_serves_when_the_codec_is_withdrawn(house: IndexHouse) -> None:
    vectors = await coded(house)
    await graduated(house)
    await house.promote("docs", HnswConfig(M=8, ef_construction=60, ef_search=77), "t1")

    async def remembered() -> bool:
        stats = await house.bus.ask(GetIndexStats("docs"))
        return (stats.generation, stats.codec) == (2, "small")

    house.searcher.upkeep_s = 0.1
    await house.until(remembered, 40)
    await graduated(house, None)
    stats = await house.bus.ask(GetIndexStats("docs"))
    assert (stats.generation, stats.config.ef_search) == (2, 77)
    assert (await house.ids("docs", vectors[12], 1)) == ["r12"]


async def test_a_promotion_behind_a_codec_is_told_to_serve_when_the_codec_is_withdrawn(house: IndexHouse) -> None:
    """Else a drift of its recall couldn't be laid to it."""
    await coded(house)
    await graduated(house)
    await house.promote("docs", HnswConfig(M=8, ef_construction=60, ef_search=77), "t1")

    async def remembered() -> bool:
        return (await house.bus.ask(GetIndexStats("docs"))).generation == 2

    house.searcher.upkeep_s = 0.1
    await house.until(remembered, 40)
    index = house.searcher._shelf.here("docs")
    assert index is not None
    await house.registry.delete(IndexCodecDocument, "docs", expected=None)
    said = await house.searcher.on_withdrawn(CodecWithdrawn("small", "docs", None, "test"))
    assert [(fact.generation, fact.trial) for fact in said if isinstance(fact, GenerationSwapped)] == [(2, "t1")]
    assert index.codes is None


async def test_live_recall_of_a_codec_goes_on_when_a_generation_is_promoted_behind_it(tmp_path: Path) -> None:
    house = IndexHouse(tmp_path, exact_below_rows=100, sample_share=1.0)
    async with house.running():
        house.searcher.check_s = house.searcher.upkeep_s = 0.1
        vectors = await coded(house)
        await graduated(house)

        async def sampled(count: int) -> None:
            for query in vectors[:20]:
                await house.ids("docs", query)

            async def told() -> bool:
                recall = (await house.bus.ask(GetIndexStats("docs"))).live_recall
                return recall is not None and recall.samples == count and recall.mean > 0.9

            await house.until(told)

        await sampled(20)
        await house.promote("docs", HnswConfig(M=8, ef_construction=60, ef_search=77), "t1")

        async def remembered() -> bool:
            return (await house.bus.ask(GetIndexStats("docs"))).generation == 2

        await house.until(remembered, 40)
        await sampled(40)
        await graduated(house, None)
        await sampled(20)  # the graph's own


async def test_a_row_that_the_codec_cannot_keep_brings_the_graph_back(house: IndexHouse) -> None:
    await coded(house, metric="l2")
    await graduated(house)
    new = clustered(2, DIM, seed=50)
    new[0] *= 1e6  # float16 has no such norm over the unit of the others
    await house.append("data", rows_of(new, ROWS))

    async def changed() -> bool:
        stats = await house.bus.ask(GetIndexStats("docs"))
        return (stats.rows, stats.codec, stats.generation) == (ROWS + 2, None, 1)

    await house.until(changed)
    assert await house.ids("docs", new[1], 1) == [f"r{ROWS + 1}"]
    await house.delete("data", [f"r{ROWS}"])
    house.searcher.upkeep_s = 0.1

    async def again() -> bool:
        return (await house.bus.ask(GetIndexStats("docs"))).codec == "small"

    await house.until(again)
    assert await house.ids("docs", new[1], 1) == [f"r{ROWS + 1}"]


async def test_what_is_graduated_again_serves_as_it_was_certified_last(house: IndexHouse) -> None:
    await coded(house)
    await graduated(house)
    await house.bus.ask(CertifyCodec("small", gate=ColumnGate(recall=0.8, oversample=3)))
    await ended(house)
    await house.bus.ask(GraduateCodec("small", index="docs"))

    async def fewer() -> bool:
        index = house.searcher._shelf.here("docs")
        return index is not None and index.codes is not None and index.codes._oversample == 3

    await house.until(fewer)


async def test_a_damaged_artifact_in_place_of_a_sound_one_brings_the_graph_back(house: IndexHouse) -> None:
    vectors = await coded(house)
    await house.bus.ask(CalibrateCodec(VectorColumn("data", "vector"), ROTATED, "other"))
    await ended(house)
    await house.bus.ask(CertifyCodec("other", gate=ColumnGate(recall=RECALL, oversample=OVERSAMPLE)))
    await ended(house)
    await graduated(house)
    damaged = house.folder / "primary" / "codecs" / "other" / "tensors" / "000000.safetensors"
    damaged.write_bytes(b"damaged")
    await house.bus.ask(GraduateCodec("other", index="docs"))

    async def by_graph() -> bool:
        stats = await house.bus.ask(GetIndexStats("docs"))
        return (stats.codec, stats.generation) == (None, 1)

    await house.until(by_graph)
    assert await house.ids("docs", vectors[12], 1) == ["r12"]


async def test_a_restart_serves_by_codes_and_a_damaged_artifact_by_the_graph(tmp_path: Path) -> None:
    house = IndexHouse(tmp_path, exact_below_rows=100)
    async with house.running():
        vectors = await coded(house)
        await graduated(house)
    async with house.running():
        assert (await house.bus.ask(GetIndexStats("docs"))).codec == "small"
        assert (await house.ids("docs", vectors[12], 1)) == ["r12"]
    artifact = tmp_path / "primary" / "codecs" / "small"
    for damaged in (
        artifact / "tensors" / "000000.safetensors",
        artifact / "extra" / "rows.npy",
        artifact / "manifest.json",
    ):
        damaged.write_bytes(b"damaged")
        async with house.running():
            stats = await house.bus.ask(GetIndexStats("docs"))
            assert (stats.codec, stats.generation) == (None, 1)
            assert (await house.ids("docs", vectors[12], 1)) == ["r12"]


async def test_codes_of_other_vectors_are_made_anew(house: IndexHouse) -> None:
    """An index that was dropped and made again over the same rows with other vectors."""
    await coded(house)
    await graduated(house)
    index = house.searcher._shelf.here("docs")
    assert index is not None
    assert index.codes is not None
    codes = index.codes
    other = clustered(ROWS, DIM, seed=77)
    vectors = VectorSet(9, codes.vectors.rows, other, "cosine")
    anew = CodedVectors.of(CodedRows(codes.codec, codes.vectors.rows, codes._codes), vectors, 10)
    for name, array in codes.codec.encode(other).items():
        np.testing.assert_array_equal(anew._codes[name], array)


async def test_an_artifact_in_use_stays(house: IndexHouse) -> None:
    await coded(house)
    await graduated(house)
    with pytest.raises(Refused, match="in use by index docs"):
        await house.bus.ask(DropCodec("small"))


async def test_an_index_whose_next_generation_is_unreadable_goes_on_with_its_graph(house: IndexHouse) -> None:
    """It says which generation serves."""
    vectors = clustered(ROWS, DIM)
    await house.dataset("data", rows_of(vectors), "vector")
    await house.create("docs", "data", "vector")
    found = await house.registry.load(GenerationDocument, "docs")
    assert found is not None
    worse = replace(found[0], generation=2, key="graphs/gone", sha256="0" * 64)
    await house.registry.save("docs", worse, expected=found[1])
    index = house.searcher._shelf.here("docs")
    assert index is not None
    assert not await house.searcher._loader.follow(index)
    stats = await house.bus.ask(GetIndexStats("docs"))
    assert (stats.generation, stats.codec) == (1, None)
    result = await house.bus.ask(Search("docs", vector=vectors[12].tolist(), k=1, explain=True))
    assert result.explain is not None
    assert (result.generation, result.explain.strategy) == (1, "graph")
