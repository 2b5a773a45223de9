"""The generation head: whatever comes late, twice or after a crash, it only moves forward, and
nothing that was ordered is forgotten."""

import msgspec
import pytest

from actors.hnsw import LIBRARY
from actors.index import artifacts
from actors.index.choosing import BackendChooser
from actors.index.generations import Generations
from actors.index.heads import StoreHeads
from daemon.bus.heads import MemoryHeads
from daemon.clock import SystemClock
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from schemas.config import HnswConfig
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.events.base import Refusal
from schemas.events.index import (
    BuildGeneration,
    EmbedderSpec,
    GenerationBuilt,
    GenerationFailed,
    GenerationReady,
    IndexServed,
)

FIRST = HnswConfig(16, 100, 50)


class NoTrials:
    """A journal with nothing in it."""

    async def points(self, index):
        return []


class Shop:
    """Generations, and a builder's part played by `finish`."""

    def __init__(self, folder):
        self.buckets = ObjectBuckets({"primary": "memory://"}, folder)
        self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        chooser = BackendChooser(self.registry, self.buckets, NoTrials(), 1 << 30)
        self.generations = Generations(
            self.registry, self.buckets, StoreHeads(self.registry), chooser, SystemClock(), keep=3
        )

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


# --- a profile's default -----------------------------------------------------------------------

FASTER, WIDER = HnswConfig(8, 50, 50), HnswConfig(16, 100, 90)


async def test_what_is_served_or_ordered_already_changes_nothing(shop):
    assert await shop.generations.standing("docs", None) is None, "there is something to do"
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    assert await shop.generations.standing("docs", None) == IndexServed("docs", FIRST, 0, building=1)
    await shop.generations.built(await shop.finish(order))
    assert await shop.generations.standing("docs", None) == IndexServed("docs", FIRST, 1)
    assert await shop.generations.standing("docs", FIRST) == IndexServed("docs", FIRST, 1)
    assert await shop.generations.standing("docs", FASTER) is None
    assert (await shop.document()).next_generation == 2


async def test_a_default_holds_from_then_on_where_nothing_is_promoted(shop):
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    await shop.generations.built(await shop.finish(order))
    served, ordered = await shop.generations.serve("docs", FASTER, 1000)
    assert served == IndexServed("docs", FASTER, 1, building=2)
    assert ordered == BuildGeneration("docs", 2, FASTER, "activated", None)
    assert (await shop.document()).config == FASTER
    assert await shop.generations.standing("docs", FASTER) == served, "asked again while it is built"
    await shop.generations.built(await shop.finish(ordered))
    assert await shop.generations.standing("docs", FASTER) == IndexServed("docs", FASTER, 2)
    served, ready = await shop.generations.serve("docs", WIDER, 1000)
    assert (served.generation, served.building, ready.generation) == (3, None, 3), "an earlier graph serves it at once"
    assert ready == GenerationReady("docs", 3, WIDER, "activated", None)


async def test_without_a_default_the_index_s_own_is_back(shop):
    """Another profile on the same index says nothing about it: it doesn't inherit the first one's."""
    (order,) = await shop.generations.ensure("docs", "created", 1000)
    await shop.generations.built(await shop.finish(order))
    _, order = await shop.generations.serve("docs", FASTER, 1000)
    await shop.generations.built(await shop.finish(order))
    await shop.generations.serve("docs", WIDER, 1000)
    assert await shop.generations.standing("docs", None) is None
    served, ready = await shop.generations.serve("docs", None, 1000)
    assert (served, ready.config) == (IndexServed("docs", FIRST, 4), FIRST), "its graph was kept: nothing is built"
    assert ((await shop.document()).config, (await shop.document()).own) == (FIRST, None)
    assert await shop.generations.standing("docs", None) == served


async def test_a_promotion_goes_before_the_default(shop):
    await shop.promote(HnswConfig(4, 50, 50), "t1")
    served, order = await shop.generations.serve("docs", FASTER, 1000)
    assert (served.config, order.config, order.trial) == (HnswConfig(4, 50, 50), HnswConfig(4, 50, 50), "t1")
    assert (await shop.document()).config == FASTER, "what a rollback goes back to"


async def test_nothing_is_built_for_an_index_without_rows_or_an_unknown_one(shop):
    assert await shop.generations.serve("docs", FASTER, 0) == [IndexServed("docs", FASTER, 0)]
    (order,) = await shop.generations.ensure("docs", "created", 10)
    assert order.config == FASTER, "once rows come"
    assert await shop.generations.standing("other", FASTER) is None
    assert await shop.generations.serve("other", FASTER, 0) == []


async def test_said_again_when_it_is_delivered_again(shop):
    first = await shop.generations.serve("docs", FASTER, 1000)
    assert await shop.generations.serve("docs", FASTER, 1000) == first
    await shop.generations.built(await shop.finish(first[1]))
    assert await shop.generations.serve("docs", FASTER, 1000) == [
        IndexServed("docs", FASTER, 1),
        GenerationReady("docs", 1, FASTER, "activated", None),
    ]
