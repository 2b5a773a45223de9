"""The generation head: whatever comes late, twice or after a crash, it only moves forward, and
nothing that was ordered is forgotten."""

import msgspec
import pytest

from actors.hnsw import LIBRARY
from actors.index import artifacts
from actors.index.generations import Generations
from daemon.bus.heads import MemoryHeads
from daemon.clock import SystemClock
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from schemas.config import HnswConfig
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.events.base import Refusal
from schemas.events.index import BuildGeneration, EmbedderSpec, GenerationBuilt, GenerationFailed, GenerationReady

FIRST = HnswConfig(16, 100, 50)


class Shop:
    """Generations, and a builder's part played by `finish`."""

    def __init__(self, folder):
        self.buckets = ObjectBuckets({"primary": "memory://"}, folder)
        self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        self.generations = Generations(self.registry, self.buckets, SystemClock(), keep=3)

    async def finish(self, order, rows=1000):
        key = artifacts.graph_key("docs", order.generation)
        await self.buckets.put("primary", key, b"graph", overwrite=True)
        built = GenerationBuilt(
            index="docs",
            generation=order.generation,
            config=order.config,
            version=1,
            rows=rows,
            bytes=5,
            sha256="0" * 64,
            key=key,
            build_s=2.0,
            reason=order.reason,
            library=LIBRARY,
            trial=order.trial,
        )
        await artifacts.record(self.buckets, "primary", built)
        return built

    async def promote(self, config, trial):
        entry = PromotionEntry(
            config=config, trial=trial, recall=1, recall_lower=1, p50_us=1, promoted_by="t", note="", time=0, cause="c"
        )
        found = await self.registry.load(PromotionDocument, "docs")
        document = PromotionDocument(index="docs", current=entry)
        await self.registry.save("docs", document, expected=found[1] if found else None)

    async def head(self):
        found = await self.registry.load(GenerationDocument, "docs")
        return found[0] if found else None

    async def document(self):
        return (await self.registry.load(IndexDocument, "docs"))[0]


@pytest.fixture
async def shop(tmp_path):
    shop = Shop(tmp_path)
    document = IndexDocument(
        index="docs",
        dataset="data",
        column="v",
        metric="l2",
        backend="hnsw",
        bucket="primary",
        target_recall=0.95,
        embedder=EmbedderSpec("none"),
        embedder_key=None,
        dim=2,
        config=FIRST,
        created=1.0,
    )
    await shop.registry.save("docs", document, expected=None)
    return shop


async def test_an_order_stands_until_it_is_answered_and_is_said_again_when_asked_again(shop):
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    assert order == BuildGeneration("docs", 1, FIRST, "created", None)
    assert await shop.generations.ensure("docs", "created", 1000) == [order]  # the first time, nobody may have heard
    assert await shop.generations.ensure("docs", "created", 1000, only_first=True) == []
    assert (await shop.document()).building == order
    built = await shop.finish(order)
    (ready,) = await shop.generations.built(built)
    assert ready == GenerationReady("docs", 1, FIRST, "created", None)
    assert (await shop.document()).building is None
    assert await shop.generations.built(built) == [ready]  # delivered again
    assert await shop.generations.ensure("docs", "created", 1000) == [ready]


async def test_nothing_is_ordered_for_nothing(shop):
    assert await shop.generations.ensure("docs", "created", 0) == []
    assert isinstance(await shop.generations.rebuild("docs", "asked", 0), Refusal)
    assert (await shop.document()).next_generation == 1


async def test_a_late_build_never_moves_the_head_back(shop):
    (slow,) = await shop.generations.ensure("docs", "created", 1000)
    await shop.promote(HnswConfig(8, 50, 50), "t1")
    (quick,) = await shop.generations.ensure("docs", "promoted", 1000)
    assert (slow.generation, quick.generation) == (1, 2)
    await shop.generations.built(await shop.finish(quick))
    assert await shop.generations.built(await shop.finish(slow)) == []
    head = await shop.head()
    assert (head.generation, head.config, head.trial) == (2, HnswConfig(8, 50, 50), "t1")


async def test_ef_alone_and_a_rollback_need_no_build(shop):
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    await shop.generations.built(await shop.finish(order))
    await shop.promote(HnswConfig(16, 100, 90), "t1")
    (ready,) = await shop.generations.ensure("docs", "promoted", 5000)
    assert (ready.generation, ready.config.ef_search, ready.trial) == (2, 90, "t1")
    assert (await shop.head()).key == artifacts.graph_key("docs", 1)
    await shop.promote(HnswConfig(8, 50, 50), "t2")
    (order,) = await shop.generations.ensure("docs", "promoted", 1000)
    await shop.generations.built(await shop.finish(order))
    await shop.promote(HnswConfig(16, 100, 90), "t1")
    (back,) = await shop.generations.ensure("docs", "rolled back", 1100)
    assert isinstance(back, GenerationReady)
    assert (back.generation, (await shop.head()).key) == (4, artifacts.graph_key("docs", 1))


async def test_a_failure_is_kept_and_the_live_generation_goes_on(shop):
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    await shop.generations.built(await shop.finish(order))
    again = await shop.generations.rebuild("docs", "asked", 1000)
    assert again.generation == 2
    assert await shop.generations.rebuild("docs", "asked", 1000) == again  # joins the one under way
    await shop.generations.failed(GenerationFailed("docs", 2, "no memory"))
    document = await shop.document()
    assert (document.failure, document.building) == ("no memory", None)
    assert (await shop.head()).generation == 1
    third = await shop.generations.rebuild("docs", "asked", 1000)
    await shop.generations.failed(GenerationFailed("docs", 2, "late"))
    assert (await shop.document()).building == third  # the failure of another order changes nothing
    await shop.generations.built(await shop.finish(third))
    assert (await shop.document()).failure == ""


async def test_old_artifacts_go_the_live_one_stays(shop):
    for number in range(1, 8):
        await shop.promote(HnswConfig(4 + number, 50, 50), f"t{number}")
        (order,) = await shop.generations.ensure("docs", "promoted", 1000)
        await shop.generations.built(await shop.finish(order))
    assert [b.generation for b in await artifacts.kept(shop.buckets, "primary", "docs")] == [5, 6, 7]


async def test_what_comes_for_a_dropped_index_changes_nothing(shop):
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    built = await shop.finish(order)
    await shop.registry.delete(IndexDocument, "docs")
    assert await shop.generations.built(built) == []
    assert await shop.generations.ensure("docs", "promoted", 1000) == []
    await shop.generations.failed(GenerationFailed("docs", 1, "x"))
    assert await shop.head() is None


async def test_half_an_artifact_is_none(shop):
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    await shop.buckets.put("primary", artifacts.graph_key("docs", order.generation), b"half")
    assert await artifacts.kept(shop.buckets, "primary", "docs") == []
    built = await shop.finish(order)
    assert await artifacts.recorded(shop.buckets, "primary", "docs", 1) == msgspec.structs.replace(built)
