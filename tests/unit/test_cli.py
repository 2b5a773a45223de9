"""The command line against a daemon that speaks the real routes: what it asks, what it prints."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.config import HnswConfig, IndexConfig, LanceConfig, LanceEffort
from schemas.documents.promotion import PromotionEntry
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.autotune import (
    AgentStatus,
    AutotuneStarted,
    Decision,
    Proposal,
    QueuedTuning,
    Replayed,
    ReplayReport,
    RunningTrial,
    TrialCompleted,
    TrialList,
    TuningFinished,
)
from schemas.events.base import Progress
from schemas.events.dataset import (
    ColumnInfo,
    CommitInfo,
    DatasetInfo,
    DatasetList,
    IngestReport,
    PiiFinding,
    RejectedRow,
)
from schemas.events.index import (
    Explanation,
    Hit,
    IndexDropped,
    IndexInfo,
    IndexList,
    IndexStats,
    SearchResult,
    Step,
)
from schemas.events.profile import ModelLoaded
from schemas.events.promotion import ConfigPromoted, PromotionState, WhyChain, WhyLink
from schemas.http import AgentSummary, Enqueued, SlotSummary, StatusReport, StreamedEvent
from tests.unit.cli_daemon import CliDaemon, Run, ndjson


def point(**more: object) -> TrialPoint:
    values = {
        "trial": "t1", "campaign": "c1", "index": "docs", "build": "b1", "harness": "docs", "dataset_version": 1,
        "rows": 100, "M": 16, "ef_construction": 80, "ef_search": 37, "seed": 42, "queries": 500, "recall": 0.9712,
        "recall_ties": 0.9712, "recall_lower": 0.9651, "recall_worst_decile": 0.8, "p50_us": 81.0, "p95_us": 120.0,
        "p99_us": 160.0, "cpu_us": 80.0, "build_s": 3.2, "build_cpu_s": 3.0, "bytes": 1000, "library": "hnswlib",
        "proposer": "exploit", "rule": "exploit: M 16", "journal_rows": 3, "asked_by": "cli", "trigger": "m1",
        "trigger_tag": "autotune.start", "host": "h", "time": 1.0, "chosen": True,
    }  # fmt: skip
    return msgspec.convert({**values, **more}, TrialPoint)


ENTRY = PromotionEntry(
    config=HnswConfig(16, 80, 37), trial="t1", recall=0.97, recall_lower=0.965, p50_us=81.0, promoted_by="agent",
    note="faster", time=1.0, cause="m1", generation=2,
)  # fmt: skip
DATASET = DatasetInfo(
    "docs", "primary", 3, 12_000, 5_000_000, "_id", [ColumnInfo("text", "string", "text")],
    [CommitInfo(3, 1.0, "append", 12_000, "m1", "docs.csv")],
)  # fmt: skip
INDEX = msgspec.convert(
    {
        "type": "index.info", "index": "docs", "dataset": "docs", "column": "text", "metric": "cosine",
        "backend": "hnsw", "bucket": "primary", "target_recall": 0.95, "embedder": {}, "dim": 384,
        "state": "ready", "generation": 2, "config": {"backend": "hnsw"}, "version": 3, "rows": 12_000,
    },
    IndexInfo,
)  # fmt: skip
STATS = IndexStats("docs", True, 2, HnswConfig(), 12_000, 5, 1, 30_000_000, 77)
STATUS = StatusReport(
    version="0.1.0", uptime_s=61.0, roles=["control"], nats={"url": "nats://x"}, datasets=1, indexes=1,
    agent=AgentSummary(True, 1, 0, 4), slot=SlotSummary("ready", "coder"),
)  # fmt: skip


# --- what it asks and prints ---------------------------------------------------------------------


def test_status_says_what_runs(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /status"] = STATUS
    code, out, _ = run("status")
    assert code == 0
    assert "up 1 min 1 s" in out
    assert "enabled, 1 queued, 0 running, 4 trials this hour" in out


def test_status_fails_when_something_is_down(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /status"] = msgspec.structs.replace(STATUS, down={"nats": "connection refused"})
    code, out, _ = run("status")
    assert (code, "connection refused" in out) == (1, True)


def test_ingest_streams_the_file_and_reports_refused_rows(run: Run, daemon: CliDaemon, tmp_path: Path) -> None:
    content = b"id,text\r\n" + b"1,--boundary\r\n" * 50_000
    (tmp_path / "rows.csv").write_bytes(content)
    reject = RejectedRow("rows.csv", 7, "text", "not UTF-8")
    daemon.answers["POST /ingest/file"] = IngestReport("m1", "docs", 2, 49_999, 60_000, 1, [reject])
    code, out, _ = run("ingest", "rows.csv", "--dataset", "docs", "--id", "id", "--mode", "upsert")
    assert code == 0
    (_, _, body) = daemon.seen[0]
    assert (body.dataset, body.id_column, body.mode, body.format) == ("docs", "id", "upsert", None)
    assert daemon.uploaded == content
    assert "rows.csv: 49,999 rows, 1 set aside; docs has 60,000 rows at version 2" in out
    assert "line 7, text: not UTF-8" in out


def test_ingest_on_the_server_sends_the_path(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /ingest/file"] = IngestReport("m1", "docs", 2, 5, 5, 0)
    code, _, _ = run("ingest", "/srv/x.csv", "/srv/y.csv", "--dataset", "docs", "--on-server")
    assert code == 0
    assert [body.path for _, _, body in daemon.seen] == ["/srv/x.csv", "/srv/y.csv"]


def test_search_sends_what_was_asked(run: Run, daemon: CliDaemon) -> None:
    hits = [Hit("a", 0.1234, {"name": "json.loads", "text": "[bold]parse[/bold]"})]
    daemon.answers["POST /vectors/search"] = SearchResult("docs", 2, [hits], 312.0)
    code, out, _ = run(
        "search", "docs", "parse json", "-k", "3", "--ef", "64", "--filter", "id > 1", "--columns", "name,text"
    )
    assert code == 0
    body = daemon.seen[0][2]
    assert (body.text, body.k, body.ef_search, body.filter) == ("parse json", 3, 64, "id > 1")
    assert body.columns == ["name", "text"]
    assert "json.loads" in out
    assert "[bold]parse[/bold]" in out  # data is never markup
    assert "generation 2, 312 µs" in out
    run("search", "docs", "--vector", "[0.5, 1]")
    assert daemon.seen[1][2].vector == [0.5, 1.0]


@pytest.mark.parametrize(
    ("words", "route", "answer", "expected"),
    [
        (["datasets"], "GET /datasets", DatasetList([DATASET]), ["docs", "12,000", "5.0 MB"]),
        (["datasets", "list"], "GET /datasets", DatasetList([DATASET]), ["docs", "12,000"]),
        (["index", "list"], "GET /vectors/indexes", IndexList([INDEX]), ["ready"]),
        (["datasets", "show", "docs"], "GET /datasets/{dataset}", DATASET, ["docs.csv", "append"]),
        (["indexes"], "GET /vectors/indexes", IndexList([INDEX]), ["ready", "M 16 · efc 100 · ef 50", "0.9500"]),
        (["index", "drop", "docs"], "DELETE /vectors/indexes/{index}", IndexDropped("docs"), ["dropped docs"]),
        (["trials", "docs"], "GET /vectors/trials/{index}", TrialList("docs", [point()], 1), ["t1", "0.9712", "81 µs"]),
        (
            ["promoted", "docs"],
            "GET /vectors/hnsw/promoted/{index}",
            PromotionState("docs", ENTRY, []),
            ["current", "agent"],
        ),
        (
            ["promote", "docs", "t1", "--note", "why not"],
            "POST /vectors/hnsw/promote/{index}/{trial_id}",
            ConfigPromoted("docs", ENTRY, None),
            ["M 16 · efc 80 · ef 37 is current"],
        ),
        (
            ["promote", "docs", "t1", "--nprobes", "16", "--refine-factor", "4"],
            "POST /vectors/hnsw/promote/{index}/{trial_id}",
            ConfigPromoted("docs", msgspec.structs.replace(ENTRY, config=LanceConfig("IVF_PQ", 64, 48, 16, 4)), None),
            ["IVF_PQ · 64 partitions · 48 sub-vectors · nprobes 16 · refine 4 is current"],
        ),
        (
            ["rollback", "docs"],
            "POST /vectors/hnsw/rollback/{index}",
            ConfigPromoted("docs", ENTRY, None, True),
            ["back to M 16 · efc 80 · ef 37"],
        ),
        (
            ["why", "docs"],
            "GET /vectors/why/{index}",
            WhyChain("docs", [WhyLink("file", "x", 1.0, "docs.csv, 12,000 rows")]),
            ["docs.csv, 12,000 rows"],
        ),
    ],
)
def test_answers_are_printed(
    run: Run, daemon: CliDaemon, words: list[str], route: str, answer: msgspec.Struct, expected: list[str]
) -> None:
    daemon.answers[route] = answer
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert daemon.seen[0][0] == route
    assert [text for text in expected if text not in out] == []
    code, out, _ = run(*words, "--json")
    assert (code, json.loads(out)) == (0, msgspec.to_builtins(answer))


def test_index_stats_joins_what_is_asked_for_and_what_serves(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/indexes/{index}"] = INDEX
    daemon.answers["GET /vectors/indexes/{index}/stats"] = STATS
    code, out, _ = run("index", "stats", "docs")
    assert code == 0
    assert "docs.text (cosine, 384 dimensions)" in out
    assert "30.0 MB" in out


LANCE = LanceConfig("IVF_RQ", 64, 0, 16, 4)


@pytest.mark.parametrize(
    ("wish", "serves", "more", "expected"),
    [
        ("hnsw", HnswConfig(), {}, ["backend hnsw", "configuration M 16 · efc 100 · ef 50"]),
        ("lance", HnswConfig(), {}, ["backend hnsw; lance is to serve it when it is built"]),
        ("lance", LANCE, {}, ["backend lance", "configuration IVF_RQ · 64 partitions · nprobes 16 · refine 4"]),
        (
            "auto",
            LANCE,
            {"why_backend": "a graph takes 9.1 GiB of 4.0"},
            ["backend lance, chosen by auto", "because a graph takes 9.1 GiB of 4.0"],
        ),
        ("auto", HnswConfig(), {"companions": ["lance"]}, ["backend hnsw, chosen by auto", "beside it lance"]),
        ("hnsw", HnswConfig(), {"text_column": "text"}, ["text search text"]),
    ],
)
def test_index_show_tells_what_serves_and_why(
    run: Run, daemon: CliDaemon, wish: str, serves: IndexConfig, more: dict[str, Any], expected: list[str]
) -> None:
    changed = {"backend": wish, "config": serves, **more}
    daemon.answers["GET /vectors/indexes/{index}"] = msgspec.structs.replace(INDEX, **changed)
    why = more.get("why_backend", "")
    stats = msgspec.structs.replace(STATS, backend=serves.backend, config=serves, why_backend=why)
    daemon.answers["GET /vectors/indexes/{index}/stats"] = stats
    code, out, _ = run("index", "show", "docs")
    words = " ".join(out.split())
    assert (code, [text for text in expected if text not in words]) == (0, [])
    told = json.loads(run("index", "show", "docs", "--json")[1])
    assert (told["backend"], told["config"]["backend"]) == (wish, serves.backend)


def test_scores_are_shown_where_hits_have_them(run: Run, daemon: CliDaemon) -> None:
    hits = [Hit("a", 0.1234, {}, 0.0325), Hit("b", None, {}, 0.0161)]
    effort = LanceEffort(16, 4)
    explained = Explanation(2, LANCE, "lance", 0, 12_000, None, [Step("lance", 900.0)], 3, effort)
    daemon.answers["POST /vectors/search"] = SearchResult("docs", 2, [hits], 312.0, explained)
    code, out, _ = run("search", "docs", "parse json", "--mode", "hybrid", "--explain")
    lines = [line.split() for line in out.splitlines()]
    assert (code, lines[:3]) == (0, [["score", "distance", "id"], ["0.0325", "0.1234", "a"], ["0.0161", "b"]])
    assert "nprobes 16 · refine 4" in out
    assert ["version", "3"] in lines
    assert daemon.seen[0][2].mode == "hybrid"


def test_a_search_says_where_and_how_hard_to_look(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/search"] = SearchResult("docs", 2, [[]], 312.0)
    words = ["--backend", "lance", "--nprobes", "8", "--refine-factor", "2", "--version", "3"]
    assert run("search", "docs", "x", *words)[0] == 0
    body = daemon.seen[0][2]
    assert (body.backend, body.nprobes, body.refine_factor, body.version, body.mode) == ("lance", 8, 2, 3, "vector")
    assert run("search", "docs", "x", "--mode", "hybrid", "--vector", "[1]")[0] == 0
    assert (daemon.seen[1][2].text, daemon.seen[1][2].vector, daemon.seen[1][2].backend) == ("x", [1.0], None)


def test_promoted_says_what_was_rolled_back_and_why(run: Run, daemon: CliDaemon) -> None:
    taken_back = msgspec.structs.replace(ENTRY, trial="t9", ended=2.0, ended_reason="recall fell to 0.91")
    daemon.answers["GET /vectors/hnsw/promoted/{index}"] = PromotionState("docs", None, [ENTRY], [taken_back])
    lines = run("promoted", "docs")[1].splitlines()
    assert ["rolled back" in line for line in lines] == [False, False, True]
    assert "t9" in lines[2]
    assert "recall fell to 0.91" in lines[2]


def test_a_reject_of_a_whole_line_names_no_column(run: Run, daemon: CliDaemon) -> None:
    rejects = [RejectedRow("x.jsonl", 3, "", "not JSON")]
    daemon.answers["POST /ingest/file"] = IngestReport("m1", "docs", 2, 5, 5, 1, rejects)
    assert "  line 3: not JSON\n" in run("ingest", "/srv/x.jsonl", "--dataset", "docs", "--on-server")[1]


def test_personal_data_is_shown(run: Run, daemon: CliDaemon) -> None:
    found = [
        PiiFinding("email", "email", 0.999, 0.984, 4096, 4030),
        PiiFinding("tel", "phone", 0.97, 1.0, 4096, 4096, "DE AT"),
    ]
    daemon.answers["POST /ingest/file"] = IngestReport("m1", "docs", 2, 5, 5, 0, [], [], found, "mask")
    code, out, _ = run("ingest", "/srv/x.csv", "--dataset", "docs", "--on-server", "--pii", "mask")
    assert (code, daemon.seen[0][2].pii) == (0, "mask")
    assert "personal data in email: email, 98% of 4,096 values looked at, masked\n" in out
    assert "personal data in tel: phone (DE AT), 100% of 4,096 values looked at, masked\n" in out
    answer = msgspec.structs.replace(DATASET, pii=found, pii_policy="drop", dropped=["tel"])
    daemon.answers["GET /datasets/{dataset}"] = answer
    lines = [" ".join(line.split()) for line in run("datasets", "show", "docs")[1].splitlines()]
    assert "pii drop" in lines
    assert "tel phone 0.97 100.0% 4,096 DE AT no" in lines
    assert run("ingest", "x.csv", "--dataset", "docs", "--pii", "hide")[0] == 2


def test_tune_follows_the_stream_to_its_end(run: Run, daemon: CliDaemon) -> None:
    best = point(champion_ratio=0.8, champion_ratio_low=0.75, champion_ratio_high=0.85)
    daemon.answers["POST /vectors/hnsw/autotune"] = ndjson(
        AutotuneStarted("c1", "docs", 2),
        Progress("t1", "docs", "build", 10, 100),
        TrialCompleted("t1", "c1", "docs", best, True, 6),
        TuningFinished("c1", "docs", "promoted", "0.80 × the champion's latency", 2, "t1"),
    )
    code, out, _ = run("tune", "docs", "--grid", "80:30", "160:60:24", "--min-recall", "0.9")
    assert code == 0
    body = daemon.seen[0][2]
    assert [(p.ef_construction, p.ef_search, p.M) for p in body.grid] == [(80, 30, 16), (160, 60, 24)]
    assert (body.min_recall, body.objective) == (0.9, "cost_first")
    assert "recall 0.9712 (≥ 0.9651, holds)  p50 81 µs  × champion 0.80 (0.75 to 0.85)" in out
    assert "promoted: 0.80 × the champion's latency" in out


def test_tune_takes_builds_of_lance(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/hnsw/autotune"] = ndjson(
        AutotuneStarted("c1", "docs", 3), TuningFinished("c1", "docs", "kept", "no gain", 3)
    )
    assert run("tune", "docs", "--lance", "IVF_RQ:64", "IVF_PQ:64:96", "IVF_FLAT")[0] == 0
    asked = [(p.index_type, p.partitions, p.sub_vectors) for p in daemon.seen[0][2].lance]
    assert asked == [("IVF_RQ", 64, None), ("IVF_PQ", 64, 96), ("IVF_FLAT", None, None)]
    for wrong in ("IVF_XX:64", "IVF_RQ:many", "IVF_PQ:1:2:3"):
        code, _, err = run("tune", "docs", "--lance", wrong)
        assert (code, "is no Lance index" in err) == (2, True)
    assert run("tune", "docs", "--agent", "--lance", "IVF_RQ")[0] == 2


def test_trials_of_both_backends_lie_in_one_table(run: Run, daemon: CliDaemon) -> None:
    nothing = {"M": None, "ef_construction": None, "ef_search": None, "seed": None}
    lance = point(trial="t2", **{**nothing, **columns_of(LanceConfig("IVF_PQ", 64, 48, 9, 10))})
    daemon.answers["GET /vectors/trials/{index}"] = TrialList("docs", [lance, point()], 2)
    out = " ".join(run("trials", "docs")[1].split())
    assert "IVF_PQ · 64 partitions · 48 sub-vectors · nprobes 9 · refine 10" in out
    assert "M 16 · efc 80 · ef 37" in out


def test_promote_names_a_point_of_lance(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/hnsw/promote/{index}/{trial_id}"] = ConfigPromoted("docs", ENTRY, None)
    run("promote", "docs", "t1", "--nprobes", "9", "--refine-factor", "4", "--ef", "90")
    run("promote", "docs", "t1", "--ef", "90")
    asked = [(p.ef_search, p.nprobes, p.refine_factor, p.ef) for _, p, _ in daemon.seen]
    assert asked == [(None, 9, 4, 90), (90, None, None, None)]


def test_tune_that_finds_nothing_exits_with_1(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/hnsw/autotune"] = ndjson(
        AutotuneStarted("c1", "docs", 1), TuningFinished("c1", "docs", "infeasible", "best 0.91", 1)
    )
    assert run("tune", "docs")[0] == 1


def test_a_broken_stream_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/hnsw/autotune"] = ndjson(AutotuneStarted("c1", "docs", 1))
    code, _, err = run("tune", "docs", "--json")
    assert (code, "ended before" in err) == (1, True)


def test_replay_fails_when_a_proposal_differs(run: Run, daemon: CliDaemon) -> None:
    same = Replayed("t1", 3, HnswConfig(), HnswConfig(), True)
    other = Replayed("t2", 4, HnswConfig(), HnswConfig(20), False)
    daemon.answers["GET /vectors/replay/{index}"] = ReplayReport("docs", [same], None)
    assert run("replay", "docs")[0] == 0
    daemon.answers["GET /vectors/replay/{index}"] = ReplayReport("docs", [same, other], None)
    assert run("replay", "docs")[0] == 1


def test_events_are_tailed(run: Run, daemon: CliDaemon) -> None:
    event = StreamedEvent("m1", "m0", 1.0, IndexDropped("docs"))
    daemon.answers["GET /events"] = [b": listening\n\n", b"id: m1\ndata: " + msgspec.json.encode(event) + b"\n\n"]
    code, out, _ = run("events", "index.*", "--progress")
    assert (code, daemon.seen[0][1].match, daemon.seen[0][1].progress) == (0, "index.*", True)
    assert "index.dropped index=docs" in out
    assert json.loads(run("events", "--json")[1])["message"]["index"] == "docs"
    loaded = ModelLoaded("ollama", "llama3", 4_700_000_000, 4_700_000_000, 1.003970155999923, "profile chat")
    daemon.answers["GET /events"] = [b"data: " + msgspec.json.encode(StreamedEvent("m1", "m0", 1.0, loaded)) + b"\n\n"]
    assert "size=4700000000 size_vram=4700000000 load_s=1.004 reason=profile chat" in run("events")[1]


def test_a_commands_own_help_says_more_than_its_line_in_the_list(run: Run) -> None:
    assert "The profile that needs it is deactivated" in run("unload", "--help")[1]
    assert "The profile that needs it is deactivated" not in run("--help")[1]
    assert "dataset.*, slot.*,vram.*" in " ".join(run("events", "--help")[1].replace("│", "").split())


def test_dead_letters(run: Run, daemon: CliDaemon) -> None:
    letter = {
        "seq": 5, "subject": "lakehouse.cmd.x", "durable": "lab__x", "reason": "boom", "deliveries": 5, "id": "m1",
        "cause": "m0", "time": 1.0, "body": "{}", "cut": False,
    }  # fmt: skip
    daemon.answers["GET /dead"] = {"letters": [letter], "total": 1}
    daemon.answers["GET /dead/{seq}"] = letter
    daemon.answers["POST /dead/{seq}/retry"] = {"seq": 5, "message": "m9"}
    daemon.answers["DELETE /dead/{seq}"] = {"seq": 5}
    for words in (["dead", "list"], ["dead"], ["dead", "show", "5"]):
        code, out, _ = run(*words)
        assert (code, "boom" in out) == (0, True)
    assert "m9" in run("dead", "retry", "5")[1]
    assert run("dead", "drop", "5")[:2] == (0, "dropped 5\n")


# --- the agent -----------------------------------------------------------------------------------


def test_agent_shows_queue_running_trial_and_decisions(run: Run, daemon: CliDaemon) -> None:
    proposal = Proposal(HnswConfig(24, 80, 30), "explore", "drawn")
    daemon.answers["GET /vectors/agent/status"] = AgentStatus(
        True,
        [QueuedTuning("docs", "2,000 new rows", "agent", "m1", "dataset.appended", 1.0)],
        [RunningTrial("t1", "c1", "docs", proposal, 1.0, "build", 500, 2000)],
        3,
        20,
        {"docs": time.time() + 125},
        [Decision("docs", float(n), "kept", f"reason-{n}") for n in range(30)],
        budget_left=17,
    )
    code, out, _ = run("agent", "--decisions", "2")
    assert code == 0
    assert "3 of 20 trials of its own, 17 left" in out
    assert "docs (2,000 new rows)" in out
    assert "M 24 · efc 80 · ef 30, build 500 of 2,000" in out
    assert "docs 2 min" in out
    assert ("reason-1" in out, "reason-2" in out) == (True, False)


def test_enqueue(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/agent/enqueue/{index}"] = Enqueued("docs", "m1")
    assert run("enqueue", "docs", "--reason", "new model")[0] == 0
    assert daemon.seen[0][1].reason == "new model"
