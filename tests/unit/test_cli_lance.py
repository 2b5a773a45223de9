"""Commands about Lance stores: what they ask, what they wait for, what they print."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.config import LanceBuild, LanceConfig
from schemas.documents.store import StoreVersion
from schemas.events.base import DeadLettered
from schemas.events.index import Hit, IndexInfo, SearchResult
from schemas.events.lance import (
    IndexedBy,
    OptimizeQueued,
    StoreChanged,
    StoredDocument,
    StoreDropped,
    StoreOptimized,
    StoreQueued,
    StoreStats,
)
from schemas.http import ErrorBody, StreamedEvent
from tests.unit.cli_daemon import Answer, CliDaemon, Run

INFO = msgspec.convert(
    {
        "type": "index.info", "index": "docs", "dataset": "d", "column": "text", "metric": "cosine",
        "backend": "hnsw", "bucket": "primary", "target_recall": 0.95, "embedder": {}, "dim": 384,
        "state": "ready", "generation": 1, "config": {"backend": "hnsw"}, "version": 3, "rows": 12_000,
    },
    IndexInfo,
)  # fmt: skip
CONFIG = LanceConfig("IVF_RQ", 8, 0, 4, 4)
FLAT = IndexedBy("IVF_FLAT-p1-v1", LanceBuild("IVF_FLAT", 1), 1, 11_000, 1_000, False)
RQ = IndexedBy("IVF_RQ-p8-v3", LanceBuild("IVF_RQ", 8), 3, 11_940, 60, True)
STATS = StoreStats(
    "docs", "primary", "indexes/docs/lance/1", True, 12_000, 7, 9, 41_000_000, 12, 3, [RQ, FLAT], "text", 0.005,
    [StoreVersion(version, version + 9) for version in range(6, -1, -1)], "pylance 14.0.2",
)  # fmt: skip
MIGRATE, INDEX = "POST /vectors/lance/migrate/{index}", "POST /vectors/lance/index/{index}"
OPTIMIZE = "POST /vectors/lance/optimize/{index}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.cli import index

    monkeypatch.setattr(index, "POLL_S", 0.01)


def one_after_the_other(*answers: Answer) -> Callable[[], Answer]:
    left = list(answers)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def routes(daemon: CliDaemon) -> list[str]:
    return [route for route, _, _ in daemon.seen]


# --- made ----------------------------------------------------------------------------------------


def test_migrate_waits_until_the_new_index_is_searched(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[MIGRATE] = StoreQueued("docs", 2, CONFIG)
    daemon.answers["GET /vectors/indexes/{index}"] = INFO
    without = msgspec.structs.replace(STATS, indexes=[FLAT])
    none = (404, ErrorBody("not_found", "index 'docs' has no Lance store"))
    daemon.answers["GET /vectors/lance/stats/{index}"] = one_after_the_other(none, without, STATS)
    code, out, err = run("lance", "migrate", "docs")
    assert (code, out, err) == (0, "docs: IVF_RQ · 8 partitions · nprobes 4 · refine 4 can be searched\n", "")
    body = daemon.seen[0][2]
    assert (body.index_type, body.partitions, body.dataset, body.metric) == ("auto", None, None, "cosine")
    assert routes(daemon).count("GET /vectors/lance/stats/{index}") == 3


def test_migrate_makes_an_index(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[MIGRATE] = StoreQueued("docs", 1, CONFIG)
    code, out, _ = run(
        "lance", "migrate", "docs", "--dataset", "d", "--column", "text", "--metric", "ip", "--embedder", "ollama",
        "--model", "bge-m3", "--target-recall", "0.9", "--type", "IVF_PQ", "--partitions", "16", "--sub-vectors", "48",
        "--no-wait",
    )  # fmt: skip
    assert (code, out.splitlines()[0]) == (0, "docs: IVF_RQ · 8 partitions · nprobes 4 · refine 4 is being built")
    assert "lakehouse lance stats docs" in out
    body = daemon.seen[0][2]
    assert (body.dataset, body.column, body.metric, body.target_recall) == ("d", "text", "ip", 0.9)
    assert (body.embedder.kind, body.embedder.model) == ("ollama", "bge-m3")
    assert (body.index_type, body.partitions, body.sub_vectors) == ("IVF_PQ", 16, 48)
    assert len(daemon.seen) == 1


def test_a_store_that_serves_its_index_is_waited_for_too(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[INDEX] = StoreQueued("docs", 5, CONFIG)
    daemon.answers["GET /vectors/indexes/{index}"] = msgspec.structs.replace(INFO, backend="lance", config=CONFIG)
    old = msgspec.structs.replace(RQ, serves=False)
    before = msgspec.structs.replace(STATS, indexes=[old, msgspec.structs.replace(FLAT, serves=True)])
    daemon.answers["GET /vectors/lance/stats/{index}"] = one_after_the_other(before, before, STATS)
    code, out, _ = run("lance", "index", "docs", "--type", "IVF_RQ", "--json")
    assert (code, json.loads(out)["generation"]) == (0, 5)
    assert routes(daemon).count("GET /vectors/lance/stats/{index}") == 3


def test_a_build_that_fails_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[MIGRATE] = StoreQueued("docs", 2, CONFIG)
    failed = msgspec.structs.replace(INFO, reason="the disk is full")
    daemon.answers["GET /vectors/indexes/{index}"] = one_after_the_other(INFO, failed)
    gone = (404, ErrorBody("not_found", "index 'docs' has no Lance store"))
    daemon.answers["GET /vectors/lance/stats/{index}"] = gone
    code, _, err = run("lance", "migrate", "docs")
    assert (code, err.splitlines()[0]) == (1, "docs could not be built: the disk is full.")
    away = (503, ErrorBody("unavailable", "the Lance store of 'docs' can't be read", "make it anew"))
    daemon.answers["GET /vectors/lance/stats/{index}"] = away
    assert run("lance", "migrate", "docs")[2].splitlines()[0] == "The Lance store of 'docs' can't be read."


# --- rows ----------------------------------------------------------------------------------------


def test_search_goes_through_the_store(run: Run, daemon: CliDaemon) -> None:
    hits = [Hit("a", 0.25, {"text": "parse"})]
    daemon.answers["POST /vectors/lance/search/{index}"] = SearchResult("docs", 2, [hits], 3120.0)
    code, out, _ = run("lance", "search", "docs", "parse json", "--nprobes", "4", "--version", "2")
    assert (code, "0.2500" in out, "generation 2, 3,120 µs" in out) == (0, True, True)
    _, params, body = daemon.seen[0]
    assert (params.index, body.text, body.nprobes, body.version, body.backend) == ("docs", "parse json", 4, 2, None)


@pytest.mark.parametrize("id", ["7", "-7", "a/b", "%2F", "ü ?#", "..", "{x}", "--nope"])
def test_any_id_reaches_the_daemon_as_it_is(run: Run, daemon: CliDaemon, id: str) -> None:
    answer = StoredDocument("docs", id, {"text": "[bold]x[/bold]", "year": 2016}, [0.5, 0.25, 1, 2, 3])
    daemon.answers["GET /vectors/lance/doc/{index}/{doc_id}"] = answer
    daemon.answers["POST /vectors/lance/delete/{index}"] = StoreChanged("docs", 4, 13, 1)
    code, out, err = run("lance", "doc", "docs", id)
    assert (code, err, daemon.seen[0][1].doc_id) == (0, "", id)
    assert "[bold]x[/bold]" in out
    assert "0.5, 0.25, 1, 2, … (5 numbers)" in out
    assert "2016" in out
    assert run("lance", "delete", "docs", id)[:2] == (0, "docs: 1 row deleted, version 4\n")
    assert daemon.seen[1][2].ids == [id]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", '{"id": 1, "text": "a"}\n\n{"id": 2}\n'),
        ("x.json", ' [{"id": 1, "text": "a"}, {"id": 2}]'),
        ("-", '{"id": 1, "text": "a"}\n{"id": 2}'),
    ],
)
def test_rows_are_appended(
    run: Run, daemon: CliDaemon, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    daemon.answers["POST /vectors/lance/append/{index}"] = StoreChanged("docs", 4, 13, 2)
    if name == "-":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    else:
        Path(name).write_text(content)
    assert run("lance", "append", "docs", name) == (0, "docs: 2 rows written, version 4\n", "")
    assert daemon.seen[0][2].rows == [{"id": 1, "text": "a"}, {"id": 2}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", "x is no JSON lines"),
        ("{", "x is no JSON lines"),
        ("id,text", "x is no JSON lines"),
        ("", "has no rows"),
    ],
)
def test_what_isnt_rows_is_told_before_anything_is_sent(
    run: Run, daemon: CliDaemon, content: str, expected: str
) -> None:
    Path("x").write_text(content)
    code, out, err = run("lance", "append", "docs", "x")
    assert (code, out, daemon.seen, expected in err) == (2, "", [], True)


def test_delete_sends_every_id(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/lance/delete/{index}"] = StoreChanged("docs", 4, 13, 3)
    code, out, _ = run("lance", "delete", "docs", "a", "b", "7", "--json")
    assert (code, json.loads(out)["rows"], daemon.seen[0][2].ids) == (0, 3, ["a", "b", "7"])


# --- kept ----------------------------------------------------------------------------------------


def told(*messages: Any) -> list[bytes]:
    return [b"data: " + msgspec.json.encode(StreamedEvent("m", "c", 1.0, one)) + b"\n\n" for one in messages]


def test_optimise_waits_for_its_own_end(run: Run, daemon: CliDaemon) -> None:
    def facts() -> Answer:
        return told(
            StoreOptimized("others", 9, 1, False, "asked", 0.1), StoreOptimized("docs", 14, 60, True, "asked", 1.25)
        )

    daemon.answers["GET /events"] = facts
    daemon.answers[OPTIMIZE] = OptimizeQueued("docs", 60)
    code, out, _ = run("lance", "optimise", "docs", "--retrain", "--reason", "new topics")
    assert (code, out) == (0, "docs: 60 rows taken in, trained again, took 1.2 s; the store is at version 14\n")
    assert routes(daemon) == ["GET /events", OPTIMIZE], "its end is heard before it is ordered"
    assert (daemon.seen[1][1].retrain, daemon.seen[1][1].reason) == (True, "new topics")
    assert run("lance", "optimize", "docs", "--no-wait")[1] == "docs: 60 rows are being taken in\n"


def test_an_optimising_that_ends_otherwise_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[OPTIMIZE] = OptimizeQueued("docs", 60)
    daemon.answers["GET /events"] = told(DeadLettered("lance.run_optimize", "builder__x", "no space is left", 5))
    code, _, err = run("lance", "optimise", "docs")
    assert (code, err.splitlines()[0]) == (1, "A store could not be optimised: no space is left.")
    daemon.answers["GET /events"] = told()
    code, _, err = run("lance", "optimise", "docs")
    assert (code, "The daemon stopped" in err) == (1, True)
    daemon.answers[OPTIMIZE] = (404, ErrorBody("not_found", "index 'docs' has no Lance store", "make one"))
    assert run("lance", "optimise", "docs")[2] == "Index 'docs' has no Lance store.\nhint: make one\n"


def test_stats_show_indexes_and_versions(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/lance/stats/{index}"] = STATS
    code, out, _ = run("lance", "stats", "docs")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    for expected in (
        "store indexes/docs/lance/1 in bucket primary, pylance 14.0.2",
        "size 41.0 MB",
        "version 3 of the dataset (Lance's 12)",
        "searchable at 6, 5, 4, 3, 2, … (7 versions)",
        "unindexed 0.5% of the rows, which are scanned",
        "● IVF_RQ-p8-v3 IVF_RQ · 8 partitions 3 11,940 60",
        "IVF_FLAT-p1-v1 IVF_FLAT · 1 partition 1 11,000 1,000",
    ):
        assert expected in lines
    assert json.loads(run("lance", "show", "docs", "--json")[1]) == msgspec.to_builtins(STATS)
    texts = msgspec.structs.replace(STATS, vectors=False, indexes=[], unindexed_share=1.0)
    daemon.answers["GET /vectors/lance/stats/{index}"] = texts
    out = run("lance", "stats", "docs")[1]
    assert ("texts only, beside a graph" in out, "unindexed" in out) == (True, False)


def test_drop(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["DELETE /vectors/lance/{index}"] = StoreDropped("docs")
    assert run("lance", "drop", "docs")[:2] == (0, "dropped the Lance store of docs\n")
    said = ErrorBody("conflict", "Lance serves index docs", "lakehouse index backend docs hnsw")
    daemon.answers["DELETE /vectors/lance/{index}"] = (409, said)
    code, _, err = run("lance", "drop", "docs")
    assert (code, err) == (1, "Lance serves index docs.\nhint: lakehouse index backend docs hnsw\n")
