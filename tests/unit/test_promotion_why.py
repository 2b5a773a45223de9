"""The chain from the live configuration back to the file, from what is stored alone."""

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from actors.ports import TableRef
from actors.promotion.actor import Promotion
from daemon.clock import SystemClock
from schemas.config import HnswConfig, LanceConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument
from schemas.documents.trial import columns_of
from schemas.events.dataset import CommitInfo
from schemas.events.promotion import Promote, Why, WhyChain
from tests.unit.promotion_setting import INDEX, Setting, only, origin, point


@pytest.fixture
async def here(tmp_path: Path) -> Setting:
    setting = Setting(tmp_path)
    await setting.registry.save("docs", INDEX, expected=None)
    return setting


TABLE = TableRef("primary", "datasets/notes/table")


async def why(setting: Setting) -> WhyChain:
    chain = only(await setting.actor.on_why(Why("docs")))
    assert isinstance(chain, WhyChain)
    return chain


async def ingest(setting: Setting, message: str, source: str) -> None:
    note = CommitInfo(version=0, time=0, operation="append", rows=0, message=message, source=source, sha256="a" * 64)
    batch = pa.RecordBatch.from_pylist([{"id": message, "text": "x"}])
    await setting.tables.commit(TABLE, [batch], note)


async def dataset_and_index(setting: Setting) -> None:
    await setting.registry.save("docs", INDEX, expected=None)
    notes = DatasetDocument(
        dataset="notes", bucket="primary", path=TABLE.path, id_column="id", generated_id=False, columns=[], created=1.0
    )
    await setting.registry.save("notes", notes, expected=None)
    await ingest(setting, "cmd-1", "first.csv")
    await ingest(setting, "cmd-2", "second.csv")
    await ingest(setting, "cmd-3", "third.csv")


GENERATION = GenerationDocument(
    index="docs", generation=4, config=HnswConfig(24, 120, 11), key="k", sha256="b" * 64, bytes=10, version=1, rows=2,
    build_s=1.0, reason="promoted", library="hnswlib 0.8.0 native", built=60.0, trial="t1",
)  # fmt: skip


async def test_the_chain_leads_from_the_live_configuration_to_the_file_and_survives_a_restart(tmp_path: Path) -> None:
    here = Setting(tmp_path, (tmp_path / "primary").as_uri())
    await dataset_and_index(here)
    await here.registry.save("docs", GENERATION, expected=None)
    await here.actor.on_promote(Promote("docs", "t1", promoted_by="agent", note="faster"), origin("cmd-p"))
    chain = await why(here)
    assert [link.what for link in chain.links] == [
        "generation", "promotion", "trial", "proposal", "trigger", "commit", "file",
    ]  # fmt: skip
    generation, promotion, trial, proposal, trigger, commit, file = chain.links
    assert (generation.id, generation.cause, promotion.id) == ("4", "cmd-p", "cmd-p")
    assert (trial.id, trial.facts["recall_lower"], trial.facts["sweep"][0]["ef_search"]) == ("t1", 0.96, 11)
    assert (proposal.facts["draw"], proposal.facts["rule"]) == (0.7312, "exploit: champion M 16 + 8")
    assert (trigger.id, trigger.cause) == ("m-append", "cmd-2"), "the event's commit is found by its version"
    assert (commit.id, commit.cause, file.id, file.facts["sha256"]) == ("1", "cmd-2", "second.csv", "a" * 64)
    assert commit.time > 1e9

    again = Setting(tmp_path, (tmp_path / "primary").as_uri(), here.heads)
    restarted = Promotion(again.registry, here.journal, again.tables, SystemClock())
    assert only(await restarted.on_why(Why("docs"))) == chain


async def test_a_trigger_that_is_the_ingest_itself_is_matched_by_its_id(tmp_path: Path) -> None:
    here = Setting(tmp_path, (tmp_path / "primary").as_uri())
    await dataset_and_index(here)
    here.journal.rows.append(point(30, trigger="cmd-1", dataset_version=2))
    await here.actor.on_promote(Promote("docs", "t30"), origin("cmd-p"))
    commit, file = (await why(here)).links[-2:]
    assert (commit.id, file.id) == ("0", "first.csv")


async def test_a_campaign_that_no_data_set_off_is_dated_by_its_first_point(here: Setting) -> None:
    tag, times = "autotune.enqueue", (100.0, 90.0, 80.0)
    here.journal.rows = [
        point(1, trigger_tag=tag, time=times[0], campaign="c2"),
        point(2, trigger_tag=tag, time=times[1], campaign="c2"),
        point(3, trigger_tag=tag, time=times[2], campaign="c1"),
    ]
    await here.actor.on_promote(Promote("docs", "t1"), origin("cmd-p"))
    trigger = (await why(here)).links[-1]
    assert (trigger.what, trigger.time) == ("trigger", 90.0)
    assert trigger.text == "Tuning was asked for on the queue (autotune.enqueue), asked by agent."


async def test_a_trigger_is_dated_by_its_own_time(tmp_path: Path) -> None:
    here = Setting(tmp_path, (tmp_path / "primary").as_uri())
    await dataset_and_index(here)
    here.journal.rows = [
        point(1, trigger_tag="index.ready", trigger_time=41.0, time=50.0),
        point(2, trigger_tag="dataset.appended", trigger_time=42.0, time=60.0),
    ]
    for trial, expected in (("t1", 41.0), ("t2", 42.0)):
        await here.actor.on_promote(Promote("docs", trial), origin(f"cmd-{trial}"))
        (trigger,) = [link for link in (await why(here)).links if link.what == "trigger"]
        assert trigger.time == expected


async def test_the_commit_is_found_however_much_came_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.promotion.why.COMMITS", 2)
    here = Setting(tmp_path, (tmp_path / "primary").as_uri())
    await dataset_and_index(here)
    await here.registry.save("docs", GENERATION, expected=None)
    await here.actor.on_promote(Promote("docs", "t1"), origin("cmd-p"))
    before = (await why(here)).links
    for number in range(4, 12):
        await ingest(here, f"cmd-{number}", f"{number}.csv")
    assert (await why(here)).links == before
    assert (before[-1].what, before[-1].id) == ("file", "second.csv")


async def test_a_chain_on_lance_says_what_was_built_and_how_it_is_searched(here: Setting) -> None:
    config = LanceConfig("IVF_PQ", 64, 48, 9, 10)
    nothing = {"M": None, "ef_construction": None, "ef_search": None, "seed": None}
    here.journal.rows = [
        point(1, **{**nothing, **columns_of(config)}),
        point(1, **{**nothing, **columns_of(config), "nprobes": 4, "chosen": False}),
    ]
    served = msgspec.structs.replace(GENERATION, config=config, vector_index="IVF_PQ-p64-m48-v1")
    await here.registry.save("docs", served, expected=None)
    await here.actor.on_promote(Promote("docs", "t1"), origin("cmd-p"))
    generation, promotion, trial, proposal, *_ = (await why(here)).links
    assert f"serves with {config}, built over" in generation.text
    assert promotion.facts["config"]["backend"] == "lance"
    assert "at nprobes 9, refine_factor 10, over 500 queries" in trial.text
    assert [(p["nprobes"], p["refine_factor"]) for p in trial.facts["sweep"]] == [(4, 10), (9, 10)]
    assert (proposal.facts["index_type"], proposal.facts["sub_vectors"]) == ("IVF_PQ", 48)


async def test_a_promotion_that_is_not_served_yet_is_said_so(here: Setting) -> None:
    await here.registry.save("docs", GENERATION, expected=None)
    await here.actor.on_promote(Promote("docs", "t2"), origin("cmd-p"))
    generation = (await why(here)).links[0]
    assert (generation.cause, "trial t2 is still being built" in generation.text) == (None, True)


async def test_with_nothing_promoted_the_chain_starts_at_the_index(here: Setting, tmp_path: Path) -> None:
    assert [link.what for link in (await why(here)).links] == ["index"]
    here = Setting(tmp_path, (tmp_path / "primary").as_uri())
    await dataset_and_index(here)
    links = (await why(here)).links
    assert [link.what for link in links] == ["index", "commit", "file"]
    assert "ef_search 33" in links[0].text
    assert links[2].id == "third.csv"
