"""Trials and builds while rows keep arriving: new snapshots push the old ones out of the cache
before a job starts and at each of its steps.
"""

import numpy as np
import pytest

from actors.autotune.config import AgentConfig
from actors.autotune.lab import Lab
from actors.base import Origin
from actors.index.builder import Builder
from actors.ports import Snapshot
from schemas.config import HnswConfig, HnswEffort
from schemas.documents.index import IndexDocument
from schemas.events.autotune import Proposal, RunTrial, TrialCompleted, TrialFailed
from schemas.events.index import BuildGeneration, DropIndex, GenerationBuilt, GenerationFailed
from tests.integration.index_house import IndexHouse, clustered, rows_of
from tests.unit.inline_compute import InlineCompute
from tests.unit.tuning_play import ListJournal

DIM = 16
EVERY = 7
"""Items of a job between two batches of rows: a sweep has dozens."""


class Drip(InlineCompute):
    """Before a job starts and now and then while it runs, `happens` does."""

    def __init__(self, happens):
        super().__init__()
        self.happens = happens

    async def stream(self, job, *args):
        await self.happens()
        number = 0
        async for item in super().stream(job, *args):
            number += 1
            if number % EVERY == 1:
                await self.happens()
            yield item


class Drizzle:
    """Rows for the index, more versions than the cache keeps."""

    def __init__(self, house):
        self.house, self.rows = house, 1500

    async def __call__(self):
        for _ in range(3):
            self.rows += 1
            await self.house.append("data", rows_of(clustered(1, DIM, seed=self.rows), first=self.rows))
            async with self.house.snapshots.held("docs") as snapshot:
                assert isinstance(snapshot, Snapshot)


@pytest.fixture
async def house(tmp_path):
    house = IndexHouse(tmp_path)
    async with house.running():
        await house.dataset("data", rows_of(clustered(1500, DIM)), "vector")
        await house.create("docs", "data", "vector", config=HnswConfig(8, 40, 40))
        yield house


def lab(house, compute):
    return Lab(
        house.registry, ListJournal(), house.snapshots, house.buckets, compute, house.graphs, house.query_log,
        None, house.bus, house.clock, "host", AgentConfig(harness_queries=50),
    )  # fmt: skip


def trial(name, proposal):
    return RunTrial(
        trial=name, campaign="c-1", index="docs", proposal=proposal, target_recall=0.9, harness=None,
        asked_by="agent", trigger="m-1", trigger_tag="dataset.appended",
    )  # fmt: skip


ORIGIN = Origin(id="o", cause="o", time=0.0)
LIVE = Proposal(HnswConfig(8, 40, 40), "champion", "champion: live", extra=[HnswEffort(40)], reuse_live=True)
FRESH = Proposal(HnswConfig(12, 60, 30), "explore", "explore: M 12", 0.1, 7, policy="{}")


@pytest.mark.parametrize("proposal", [LIVE, FRESH], ids=["live", "fresh"])
async def test_a_trial_finishes_on_the_version_that_it_began_with(house, proposal):
    before = await house.snapshots.covered("docs")
    drizzle = Drizzle(house)
    (said,) = await lab(house, Drip(drizzle)).on_trial(trial("t-1", proposal), ORIGIN)
    assert isinstance(said, TrialCompleted), said
    assert (said.best.dataset_version, said.best.rows) == (before, 1500)
    assert drizzle.rows >= 1512  # it did rain
    assert len(list((house.folder / "cache" / "snapshots" / "docs").iterdir())) == 2


async def test_a_build_finishes_on_the_version_that_it_began_with(house):
    before = await house.snapshots.covered("docs")
    drizzle = Drizzle(house)
    order = BuildGeneration("docs", 7, HnswConfig(12, 60, 30), "promoted", None)
    (said,) = await builder(house, Drip(drizzle)).on_build(order)
    assert isinstance(said, GenerationBuilt)
    assert (said.version, said.rows) == (before, 1500)
    assert drizzle.rows > 1500


async def test_vectors_that_are_really_gone_fail_the_build_with_a_reason(house):
    async def lost():
        for path in (house.folder / "cache" / "snapshots" / "docs").glob("*/*.npy"):
            path.unlink()

    order = BuildGeneration("docs", 7, HnswConfig(12, 60, 30), "promoted", None)
    (said,) = await builder(house, Drip(lost)).on_build(order)
    assert isinstance(said, GenerationFailed)
    assert "rows.npy" in said.reason


@pytest.mark.parametrize("proposal", [LIVE, FRESH], ids=["live", "fresh"])
@pytest.mark.parametrize("moment", [1, 3, 4], ids=["before", "at the start", "amid"])
async def test_an_index_dropped_during_its_trial_leaves_nothing_in_the_cache(house, proposal, moment):
    calls = 0  # 1 and 2 are in the job that makes the eval set

    async def drop():
        nonlocal calls
        calls += 1
        if calls == moment:
            await house.bus.ask(DropIndex("docs"))
            await house.until(gone)

    async def gone():
        return await _empty(house.folder / "cache" / "graphs")

    (said,) = await lab(house, Drip(drop)).on_trial(trial("t-1", proposal), ORIGIN)
    assert isinstance(said, TrialFailed)
    assert "dropped" in said.reason
    assert calls >= moment
    cache = house.folder / "cache"
    await house.until(lambda: _empty(cache / "graphs"))
    await house.until(lambda: _empty(cache / "snapshots" / "docs"))


async def _empty(folder):
    return not folder.is_dir() or not any(folder.iterdir())


async def test_a_dropped_index_takes_its_live_graphs_along(house):
    await house.append("data", rows_of(clustered(20, DIM, seed=5), first=5000))
    await house.until(lambda: _covers(house, 1520))
    (said,) = await lab(house, InlineCompute()).on_trial(trial("t-1", LIVE), ORIGIN)
    assert isinstance(said, TrialCompleted)
    graphs = house.folder / "cache" / "graphs"
    assert any("+live-" in path.name for path in graphs.iterdir())
    await house.bus.ask(DropIndex("docs"))
    await house.until(lambda: _empty(graphs))
    assert await house.registry.load(IndexDocument, "docs") is None
    assert np.all([not any(p.iterdir()) for p in (house.folder / "cache" / "snapshots").iterdir()])


async def _covers(house, rows):
    async with house.snapshots.held("docs") as snapshot:
        return snapshot.rows == rows


def builder(house, compute):
    return Builder(
        house.registry, house.tables, house.snapshots, house.buckets, compute, house.graphs, house.bus, house.clock,
        house.config,
    )  # fmt: skip
