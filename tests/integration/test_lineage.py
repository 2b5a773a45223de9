"""What came from what: the runs that the events of an ingest, a build, a campaign and a promotion
become, stored once however often they are heard, walked up and down, and posted."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from actors.base import Origin
from actors.errors import Poison, Transient
from actors.lineage.actor import Lineage
from actors.lineage.config import LineageConfig
from actors.lineage.runs import source_of
from daemon.bus.heads import MemoryHeads
from daemon.clock import SystemClock
from daemon.lineage_sink import HttpLineageSink
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.journal import TableJournal
from daemon.storage.lineage_log import TableLineageLog
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.promotion import PromotionEntry
from schemas.events.autotune import TrialCompleted, TuningFinished
from schemas.events.base import Refusal
from schemas.events.dataset import ColumnInfo, DatasetAppended, IngestRejected, PiiFinding
from schemas.events.index import GenerationBuilt, GenerationFailed
from schemas.events.lineage import GetLineage, LineageGraph, PostLineage
from schemas.events.promotion import ConfigPromoted
from tests.integration.http_house import index_document, point

CONFIG = HnswConfig()


class World:
    def __init__(self, folder: Path, url: str = "") -> None:
        buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        tables = DeltaTables(buckets, folder / "cache")
        self.registry = DocumentRegistry(buckets, MemoryHeads())
        self.journal = TableJournal(tables)
        self.log = TableLineageLog(tables)
        self.config = LineageConfig(url=url)
        self.sink = HttpLineageSink(self.config)
        self.actor = Lineage(self.log, self.sink, self.registry, self.journal, SystemClock(), self.config)

    async def prepare(self) -> None:
        document = DatasetDocument(
            dataset="notes", bucket="primary", path="p", id_column="_id", generated_id=True, created=1.0,
            columns=[ColumnInfo("_id", "string", "id"), ColumnInfo("text", "string", "text")],
            pii=[PiiFinding("text", "email", 0.99, 1.0, 10, 10)], pii_policy="mask",
        )  # fmt: skip
        await self.registry.save("notes", document, expected=None)
        await self.registry.save("docs", index_document(), expected=None)
        await self.journal.append([point("t1")])

    async def main_road(self) -> list[PostLineage]:
        """One append, from the file to the promotion; every event is heard twice."""
        said: list[PostLineage] = []
        for _ in range(2):
            said += await self.actor.on_appended(
                DatasetAppended("notes", "primary", 1, 10, 10, source="/in/a.jsonl", started=100.0),
                Origin("m1", "m1", 103.0),
            )
            said += await self.actor.on_built(
                GenerationBuilt("docs", 1, CONFIG, 1, 10, 99, "0" * 64, "k", 2.0, "created", "hnswlib"),
                Origin("m2", "m1", 110.0),
            )
            trial = TrialCompleted("t1", "c1", "docs", point("t1"), True, 5)
            said += await self.actor.on_trial(trial, Origin("m3", "m1", 120.0))
            said += await self.actor.on_finished(
                TuningFinished("c1", "docs", "promoted", "cheaper", 1, "t1", point("t1")), Origin("m4", "m1", 130.0)
            )
            entry = PromotionEntry(
                config=CONFIG, trial="t1", recall=0.97, recall_lower=0.96, p50_us=90.0, promoted_by="agent", note="",
                time=131.0, cause="m4",
            )  # fmt: skip
            said += await self.actor.on_promoted(ConfigPromoted("docs", entry, None), Origin("m5", "m4", 131.0))
        return said

    async def graph(self, name: str) -> LineageGraph:
        (graph,) = await self.actor.on_get(GetLineage(name))
        assert isinstance(graph, LineageGraph), graph
        return graph


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.prepare()
    yield made
    await made.sink.aclose()


async def test_every_run_is_stored_once_with_its_start_and_its_end(world: World) -> None:
    assert await world.main_road() == []  # no endpoint, nothing to post
    rows = await world.log.newest(100)
    assert [(row.kind, row.state) for row in rows] == [
        ("ingest", "START"), ("ingest", "COMPLETE"), ("build", "START"), ("build", "COMPLETE"),
        ("campaign", "START"), ("campaign", "COMPLETE"), ("promotion", "START"), ("promotion", "COMPLETE"),
    ]  # fmt: skip
    assert [row.time for row in rows][:4] == [100.0, 103.0, 108.0, 110.0]


async def test_events_are_as_openlineage_defines_them(world: World) -> None:
    await world.main_road()
    rows = await world.log.newest(100)
    for row in rows:
        event = msgspec.json.decode(row.event)
        assert set(event) == {"eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"}
        assert str(uuid.UUID(event["run"]["runId"])) == row.run
        assert event["eventTime"].endswith("Z")
        for facet in facets(event):
            assert facet["_schemaURL"].startswith("https://"), facet
            assert facet["_producer"]
    done = msgspec.json.decode(rows[1].event)
    (output,) = done["outputs"]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 10
    assert output["facets"]["version"]["datasetVersion"] == "1"
    pii = output["facets"]["lakehouse_pii"]
    assert (pii["policy"], pii["findings"][0]["column"], pii["findings"][0]["kind"]) == ("mask", "text", "email")
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == ["_id", "text"]
    assert output["facets"]["columnLineage"]["fields"]["text"]["inputFields"][0]["field"] == "text"
    assert (done["inputs"][0]["namespace"], done["inputs"][0]["name"]) == ("file", "source:file:/in/a.jsonl")


def facets(event: dict[str, Any]) -> list[dict[str, Any]]:
    holders = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
    names = ("facets", "inputFacets", "outputFacets")
    return [facet for holder in holders for name in names for facet in holder.get(name, {}).values()]


async def test_a_name_is_walked_up_to_the_file_and_down_to_the_promotion(world: World) -> None:
    await world.main_road()
    graph = await world.graph("docs")
    assert graph.roots == ["index:docs"]
    assert [run.kind for run in graph.up] == ["promotion", "build", "campaign", "ingest"]
    assert graph.up[-1].inputs == ["source:file:/in/a.jsonl"]
    assert [run.kind for run in graph.down] == ["campaign", "promotion"]
    dataset = await world.graph("notes")
    assert dataset.down[0].kind == "build"
    (refusal,) = await world.actor.on_get(GetLineage("unknown"))
    assert isinstance(refusal, Refusal)


def test_sources_have_the_names_that_openlineage_gives_them() -> None:
    table = source_of("postgresql://db:5432/shop#public.products")
    assert (table.namespace, table.name) == ("postgresql://db:5432", "source:postgresql://db:5432/shop#public.products")
    assert table.facets["symlinks"]["identifiers"][0]["name"] == "shop.public.products"
    assert source_of("rows").name == source_of("").name == "source:request"


async def test_what_failed_says_why(world: World) -> None:
    rejected = IngestRejected("m9", "notes", "/in/bad.csv", 0, "it is empty", refused=True, started=5.0)
    await world.actor.on_rejected(rejected, Origin("m10", "m9", 6.0))
    await world.actor.on_failed(GenerationFailed("docs", 2, "no rows"), Origin("m11", "m11", 7.0))
    rows = await world.log.newest(10)
    assert [row.state for row in rows] == ["START", "FAIL", "START", "FAIL"]
    failed = msgspec.json.decode(rows[1].event)
    assert failed["run"]["facets"]["errorMessage"]["message"] == "it is empty"
    some = IngestRejected("m12", "notes", "/in/some.csv", 3, "rows set aside")
    assert await world.actor.on_rejected(some, Origin("m13", "m12", 8.0)) == ()
    assert len(await world.log.newest(10)) == 4


async def test_events_are_posted_and_tried_again(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    statuses = [503, 201, 400]

    async def take(request: web.Request) -> web.Response:
        heard.append(await request.json())
        return web.Response(status=statuses.pop(0) if statuses else 201)

    app = web.Application()
    app.router.add_post("/api/v1/lineage", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    world = World(tmp_path, f"http://127.0.0.1:{port}/api/v1/lineage")
    try:
        await world.prepare()
        first, second = (await world.main_road())[:2]
        first = msgspec.json.decode(msgspec.json.encode(first), type=PostLineage)  # as the bus brings it
        with pytest.raises(Transient, match="503"):
            await world.actor.on_post(first)
        await world.actor.on_post(first)
        with pytest.raises(Poison, match="400"):
            await world.actor.on_post(second)
        assert [event["eventType"] for event in heard] == ["START", "START", "COMPLETE"]
        await runner.cleanup()
        with pytest.raises(Transient, match="away"):
            await world.actor.on_post(first)
    finally:
        await asyncio.shield(runner.cleanup())
        await world.sink.aclose()
