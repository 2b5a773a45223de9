"""The lab on real graphs over small data: rows of the journal that can be checked by hand, each
trial once, truth that follows appends and deletes."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors import hnsw
from actors.autotune import harness
from actors.base import Origin
from actors.errors import Transient
from schemas.config import GraphConfig, HnswConfig, HnswEffort
from schemas.documents.index import GenerationDocument
from schemas.events.autotune import (
    BuildHarness,
    HarnessBuilt,
    HarnessInfo,
    ListHarnesses,
    Proposal,
    TrialCompleted,
    TrialFailed,
)
from schemas.events.base import Progress, Refusal
from schemas.events.index import IndexDropped
from tests.unit.tuning_bench import VECTORS, Bench, D


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return await Bench(tmp_path).open()


def fresh(M: int = 12, ef_construction: int = 60, **more: Any) -> Proposal:
    return Proposal(HnswConfig(M, ef_construction, 30), "explore", "explore: M 12", 0.1, 7, policy="{}", **more)


LIVE = Proposal(HnswConfig(8, 40, 40), "champion", "champion: live", extra=[HnswEffort(40)], reuse_live=True)


async def test_every_point_of_the_sweep_is_a_row_that_tells_all(bench: Bench) -> None:
    said = await bench.trial("t-1", fresh())
    assert isinstance(said, TrialCompleted)
    rows = bench.journal.rows
    assert len(rows) == said.points >= 4
    assert [row.chosen for row in rows].count(True) == 1
    assert (said.best, said.holds_target) == (next(row for row in rows if row.chosen), True)
    for row in rows:
        assert (row.M, row.ef_construction, row.seed) == (12, 60, 42)
        assert (row.harness, row.queries, row.dataset_version, row.rows) == ("docs", 100, 1, 2000)
        assert 0 < row.p50_us <= row.p95_us <= row.p99_us
        assert 0 < row.recall_lower < row.recall <= row.recall_ties <= 1
        assert row.recall_worst_decile <= row.recall
        assert row.build_s > 0
        assert row.bytes > 2000 * D * 4
        assert (row.draw, row.rule, row.journal_rows, row.policy) == (0.1, "explore: M 12", 7, "{}")
        assert (row.host, row.trigger, row.trigger_tag, row.library) == (
            "host-1",
            "m-1",
            "dataset.appended",
            hnsw.LIBRARY,
        )
    below = [row for row in rows if row.ef_search == said.best.ef_search - 1]
    assert said.best.recall_lower >= 0.9
    assert said.best.ef_search == 11 or below[0].recall_lower < 0.9
    phases = [signal.phase for signal in bench.bus.heard if isinstance(signal, Progress)]
    assert [phases[0], phases[-1]] == ["prepare", "compare"]
    assert {"build", "sweep"} <= set(phases)


async def test_recall_is_what_brute_force_says(bench: Bench) -> None:
    await bench.trial("t-1", fresh(extra=[HnswEffort(25)]))
    row = next(row for row in bench.journal.rows if row.ef_search == 25)
    cached = bench.graphs.find("docs", GraphConfig(12, 60), 1)
    assert cached is not None
    graph = hnsw.load(cached.path, D, "l2", cached.sha256)
    _, eval_set = await bench.eval_set()
    recalls = []
    for own, query in zip(eval_set.query_rows, eval_set.queries, strict=True):
        distances = ((VECTORS[:2000].astype(np.float64) - query) ** 2).sum(axis=1)
        distances[own] = np.inf
        labels, _ = hnsw.knn(graph, query[None], 11, 25)
        found = [label for label in labels[0] if label != own][:10]
        recalls.append(len(set(found) & set(np.argsort(distances)[:10].tolist())) / 10)
    assert row.recall == pytest.approx(np.mean(recalls))


async def test_an_order_that_comes_again_measures_nothing(bench: Bench) -> None:
    first = await bench.trial("t-1", fresh())
    rows = list(bench.journal.rows)
    bench.bus.heard.clear()
    assert await bench.trial("t-1", fresh(), delivery=2) == first
    assert bench.journal.rows == rows
    assert bench.bus.heard == []


async def test_a_graph_is_built_once(bench: Bench) -> None:
    await bench.trial("t-1", fresh())
    await bench.trial("t-2", fresh())
    first, second = ([r for r in bench.journal.rows if r.trial == name] for name in ("t-1", "t-2"))
    assert second[0].build == first[0].build
    assert (second[0].build_s, second[0].build_cpu_s) == (0, 0)
    assert {r.ef_search: r.recall for r in second} == {r.ef_search: r.recall for r in first}


async def test_the_live_graph_is_brought_up_to_date_and_its_ef_compared(bench: Bench) -> None:
    await bench.go_live(HnswConfig(8, 40, 40))
    live = np.setdiff1d(np.arange(2600), np.arange(0, 300, 3))  # 600 came, 100 went
    bench.snapshots.set(2, live)
    said = await bench.trial("t-1", LIVE)
    assert isinstance(said, TrialCompleted)
    best = said.best
    assert (best.M, best.ef_construction, best.dataset_version, best.rows) == (8, 40, 2, 2500)
    assert (best.graph_added, best.graph_deleted, best.build_s) == (600, 100, 0)
    assert best.champion_trial == "generation-1"
    at_live = next(row for row in bench.journal.rows if row.ef_search == 40)
    assert best.champion_recall_lower == at_live.recall_lower
    assert best.champion_ratio_low is not None
    assert best.champion_ratio is not None
    assert best.champion_ratio_low <= best.champion_ratio
    again = await bench.trial("t-2", LIVE)  # from the cache
    assert isinstance(again, TrialCompleted)
    assert (again.best.graph_added, again.best.graph_deleted) == (600, 100)
    assert again.best.recall == best.recall


@pytest.mark.slow
async def test_a_challenger_is_measured_against_the_champions_trial(bench: Bench) -> None:
    await bench.go_live(HnswConfig(8, 40, 40))
    first = await bench.trial("t-1", LIVE)
    second = await bench.trial("t-2", fresh(24, 200), champion_trial="t-1")
    assert isinstance(first, TrialCompleted)
    assert isinstance(second, TrialCompleted)
    assert second.best.champion_trial == "t-1"
    assert second.best.champion_recall_lower == first.best.recall_lower
    assert second.best.champion_ratio_high is not None
    third = await bench.trial("t-3", fresh(24, 200), champion_trial="t-2")  # one from the graph cache
    assert isinstance(third, TrialCompleted)
    assert third.best.champion_ratio == 1.0 or 0.8 < (third.best.champion_ratio or 0) < 1.25


async def test_a_graph_of_another_library_is_not_loaded(bench: Bench) -> None:
    await bench.go_live(HnswConfig(8, 40, 40))
    found = await bench.registry.load(GenerationDocument, "docs")
    assert found is not None
    foreign = msgspec.structs.replace(found[0], library="chroma-hnswlib 0.7 native")
    await bench.registry.save("docs", foreign, expected=found[1])
    said = await bench.trial("t-1", LIVE)
    assert isinstance(said, TrialCompleted)
    assert said.best.build == "v1-M8-efc40-s42"  # built instead


@pytest.mark.slow
async def test_truth_follows_appends_and_deletes(bench: Bench) -> None:
    await bench.trial("t-1", fresh())
    before, _ = await bench.eval_set()
    live = np.setdiff1d(np.arange(2900), np.arange(5, 400, 2))
    bench.snapshots.set(2, live)
    await bench.trial("t-2", fresh())
    document, merged = await bench.eval_set()
    assert (document.version, document.rows, document.created) == (2, len(live), before.created)
    assert before.key not in await bench.buckets.list("primary", "indexes/docs/harnesses")
    recomputed = harness.create(merged.queries, merged.query_rows, live, VECTORS[live], "l2")
    np.testing.assert_array_equal(merged.truth_rows[:, :10], recomputed.truth_rows[:, :10])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"index": "nope"}, "index 'nope'"),
        ({"harness": "nope"}, "eval set 'nope'"),
    ],
)
async def test_a_trial_that_lacks_something_says_what(bench: Bench, more: dict[str, str], words: str) -> None:
    said = await bench.trial("t-1", fresh(), **more)
    assert isinstance(said, TrialFailed)
    assert words in said.reason


async def test_too_few_rows_and_dying_workers_are_failures_with_a_reason(bench: Bench) -> None:
    bench.snapshots.set(2, np.arange(15))
    said = await bench.trial("t-1", fresh())
    assert isinstance(said, TrialFailed)
    assert "15 rows" in said.reason
    bench.snapshots.set(3, np.arange(2000))
    said = await bench.trial("t-1", fresh(), delivery=4)
    assert isinstance(said, TrialFailed)
    assert "at each of 3 attempts" in said.reason


async def build(bench: Bench, **asked: Any) -> list[HarnessInfo | HarnessBuilt | Refusal]:
    return list(await bench.lab.on_build_harness(BuildHarness("docs", **asked), Origin(id="o", cause="o", time=0.0)))


async def test_eval_sets_are_made_of_rows_logs_and_given_vectors(bench: Bench) -> None:
    event, info = await build(bench, queries=80)
    assert event == HarnessBuilt("docs", "docs", 80, "rows", 1)
    assert info == HarnessInfo("docs", "docs", 80, 10, "rows", 1, 2000, depth=harness.KEPT)
    await build(bench, harness="real", source="logged")
    await build(bench, harness="mine", source="given", vectors=VECTORS[:12].tolist())
    (listed,) = await bench.lab.on_list_harnesses(ListHarnesses("docs"))
    assert [(h.harness, h.source, h.queries) for h in listed.harnesses] == [
        ("docs", "rows", 80),
        ("mine", "given", 12),
        ("real", "logged", 50),
    ]
    _, given = await bench.eval_set("mine")
    assert (given.query_rows == harness.NOWHERE).all()
    np.testing.assert_array_equal(given.truth_rows[:, 0], np.arange(12))  # nothing is left out
    said = await bench.trial("t-1", fresh(), harness="mine")
    assert isinstance(said, TrialCompleted)
    assert (said.best.harness, said.best.queries) == ("mine", 12)
    await bench.lab.on_index_dropped(IndexDropped("docs"))
    (listed,) = await bench.lab.on_list_harnesses(ListHarnesses())
    assert listed.harnesses == []
    assert await bench.buckets.list("primary", "indexes/docs/harnesses") == []


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"source": "given", "vectors": [[1.0] * 31] * 10}, "invalid", "32 dimensions"),
        ({"source": "given", "vectors": [[1.0] * 32] * 3}, "invalid", "3 queries"),
        ({"source": "given"}, "invalid", "either vectors or texts"),
        ({"source": "given", "texts": ["a"] * 10}, "invalid", "no embedder"),
        ({"source": "logged"}, "invalid", "4 logged queries"),
    ],
)
async def test_an_eval_set_that_can_not_be_made_is_refused(
    bench: Bench, asked: dict[str, Any], status: str, words: str
) -> None:
    bench.log.many = 4
    (refusal,) = await build(bench, **asked)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert words in refusal.reason


async def test_a_trial_whose_eval_set_is_replaced_meanwhile_comes_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await build(bench)
    journal = bench.journal.trial

    async def replaced(index: str, trial: str) -> Any:
        if trial == "champion":
            monkeypatch.setattr(bench.journal, "trial", journal)
            await build(bench, seed=43)
        return await journal(index, trial)

    monkeypatch.setattr(bench.journal, "trial", replaced)
    with pytest.raises(Transient, match="eval set 'docs' was replaced"):
        await bench.trial("t-1", fresh(), champion_trial="champion")
    assert isinstance(await bench.trial("t-1", fresh(), delivery=2), TrialCompleted)


async def test_a_trial_whose_eval_set_is_replaced_before_it_has_its_file_comes_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await build(bench)
    fetch = bench.buckets.fetch

    async def replaced(*args: Any) -> Path:
        monkeypatch.setattr(bench.buckets, "fetch", fetch)
        await build(bench, seed=43)
        return await fetch(*args)

    monkeypatch.setattr(bench.buckets, "fetch", replaced)
    with pytest.raises(Transient, match="eval set 'docs' was replaced"):
        await bench.trial("t-1", fresh())
    assert isinstance(await bench.trial("t-1", fresh(), delivery=2), TrialCompleted)
