"""Commands that wait: until an index serves, with the daemon's progress on the terminal."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from schemas.config import LanceConfig
from schemas.events.base import Progress
from schemas.events.dataset import DatasetInfo, IngestReport
from schemas.events.index import IndexInfo, RebuildQueued
from schemas.http import StreamedEvent
from tests.unit.cli_daemon import Answer, CliDaemon, Run

BUILDING = msgspec.convert(
    {
        "type": "index.info", "index": "docs", "dataset": "d", "column": "text", "metric": "cosine",
        "backend": "hnsw", "bucket": "primary", "target_recall": 0.95, "embedder": {}, "dim": 384,
        "state": "building", "generation": 0, "config": {"backend": "hnsw"}, "version": 3, "rows": 12_000,
    },
    IndexInfo,
)  # fmt: skip
READY = msgspec.structs.replace(BUILDING, state="ready", generation=1)
FAILED = msgspec.structs.replace(BUILDING, state="failed", reason="no memory")
DATASET = DatasetInfo("d", "primary", 3, 12_000, 5_000, "_id", [], [])
CREATE = ["index", "create", "docs", "--dataset", "d", "--column", "text"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.cli import index

    monkeypatch.setattr(index, "POLL_S", 0.01)


def one_after_the_other(*answers: Answer) -> Callable[[], Answer]:
    left = list(answers)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def told(*messages: Progress) -> list[bytes]:
    return [b"data: " + msgspec.json.encode(StreamedEvent("m", "c", 1.0, one)) + b"\n\n" for one in messages]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def creating(daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/indexes"] = BUILDING
    daemon.answers["GET /datasets/{dataset}"] = DATASET
    daemon.answers["GET /vectors/indexes/{index}"] = one_after_the_other(BUILDING, BUILDING, READY)


def routes(daemon: CliDaemon) -> list[str]:
    return [route for route, _, _ in daemon.seen]


@pytest.mark.usefixtures("creating")
def test_create_waits_until_the_index_serves(run: Run, daemon: CliDaemon) -> None:
    code, out, err = run(*CREATE)
    assert (code, err) == (0, "")
    assert "docs: ready, 12,000 rows × 384, M 16" in out
    assert routes(daemon).count("GET /vectors/indexes/{index}") == 3
    assert "GET /events" not in routes(daemon)  # nobody looks on


@pytest.mark.usefixtures("creating")
def test_create_returns_at_once_when_told(run: Run, daemon: CliDaemon) -> None:
    out = run(*CREATE, "--no-wait")[1]
    assert "docs: building" in out
    assert "lakehouse index show docs" in out
    assert routes(daemon) == ["POST /vectors/indexes"]


@pytest.mark.usefixtures("creating")
def test_create_without_rows_waits_for_none(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /datasets/{dataset}"] = msgspec.structs.replace(DATASET, rows=0)
    daemon.answers["GET /vectors/indexes/{index}"] = BUILDING
    assert "docs: building" in run(*CREATE)[1]


@pytest.mark.usefixtures("creating")
def test_a_failed_build_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/indexes/{index}"] = one_after_the_other(BUILDING, FAILED)
    code, _, err = run(*CREATE)
    assert (code, err.splitlines()[0]) == (1, "docs could not be built: no memory.")


@pytest.mark.usefixtures("creating")
def test_create_as_json_is_the_index_that_serves(run: Run) -> None:
    assert json.loads(run(*CREATE, "--json")[1])["generation"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("creating", "terminal")
def test_create_shows_the_daemons_phases_on_a_terminal(run: Run, daemon: CliDaemon) -> None:
    asked, heard = threading.Event(), threading.Event()

    def create() -> Answer:
        asked.set()
        return BUILDING

    def facts() -> Answer:
        asked.wait(10)
        heard.set()
        return told(
            Progress("docs-embed", "docs", "embed", 4_000, 12_000),
            Progress("others-embed", "others", "fit", 7, 8),
            Progress("docs-1", "docs", "build", 3_000, 12_000),
        )

    polls = iter(range(1_000))

    def index() -> Answer:
        heard.wait(10)
        return READY if next(polls) > 40 else BUILDING  # the bars are drawn ten times a second

    daemon.answers["POST /vectors/indexes"] = create
    daemon.answers["GET /events"] = facts
    daemon.answers["GET /vectors/indexes/{index}"] = index
    code, out, err = run(*CREATE)
    assert (code, "ready" in out) == (0, True)
    assert "embedding" in err
    assert "4,000 of 12,000 rows" in err
    assert "building" in err
    assert "learning word weights" not in err  # another index's


def test_rebuild_waits_for_its_generation(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/indexes/{index}/rebuild"] = RebuildQueued("docs", 4)
    served = [msgspec.structs.replace(READY, generation=number) for number in (3, 3, 4)]
    daemon.answers["GET /vectors/indexes/{index}"] = one_after_the_other(*served)
    assert run("index", "rebuild", "docs", "--reason", "deletes")[:2] == (0, "docs: generation 4 is served\n")
    assert daemon.seen[0][1].reason == "deletes"
    assert len(daemon.seen) == 4
    assert "generation 4 is being built" in run("index", "rebuild", "docs", "--no-wait")[1]


def test_interrupted_says_that_it_goes_on(run: Run, daemon: CliDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    daemon.answers["POST /vectors/indexes/{index}/rebuild"] = RebuildQueued("docs", 4)
    daemon.answers["GET /vectors/indexes/{index}"] = READY
    monkeypatch.setattr(time, "sleep", interrupt)
    code, _, err = run("index", "rebuild", "docs")
    assert (code, "the daemon goes on" in err, "lakehouse index show docs" in err) == (130, True, True)


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("where", [["--on-server"], []])
def test_ingest_shows_what_the_daemon_does_with_the_file(run: Run, daemon: CliDaemon, where: list[str]) -> None:
    asked, heard = threading.Event(), threading.Event()

    def facts() -> Answer:
        asked.wait(10)
        heard.set()
        return told(Progress("m1", "d", "survey", 1_000_000, 4_000_000, "bytes"), Progress("m1", "d", "commit", 50, 90))

    def report() -> Answer:
        asked.set()
        heard.wait(10)
        time.sleep(0.4)
        return IngestReport("m1", "d", 2, 5, 5, 0)

    Path("x.csv").write_text("id\n1\n")
    daemon.answers["GET /events"] = facts
    daemon.answers["POST /ingest/file"] = report
    code, out, err = run("ingest", "x.csv", "--dataset", "d", *where)
    assert (code, "x.csv: 5 rows" in out) == (0, True)
    assert "looking through the file" in err
    assert "1.0 MB of 4.0 MB" in err
    assert "50 of 90 rows" in err
    assert ("x.csv: uploaded" in err) == (not where)


# --- what is asked for ----------------------------------------------------------------------------


def test_create_sends_only_what_was_given(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/indexes"] = READY
    assert run(*CREATE, "--target-recall", "0.9")[0] == 0
    body = daemon.seen[0][2]
    assert (body.name, body.dataset, body.column, body.target_recall, body.embedder) == ("docs", "d", "text", 0.9, None)
    assert (body.config.M, body.config.ef_construction, body.config.ef_search) == (16, 100, 50)
    run(*CREATE, "--embedder", "ollama", "--model", "bge-m3")
    assert (daemon.seen[1][2].embedder.kind, daemon.seen[1][2].embedder.model) == ("ollama", "bge-m3")


def test_create_takes_a_backend_and_a_configuration(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/indexes"] = READY
    words = ["--backend", "hnsw", "--m", "24", "--ef-construction", "200", "--ef-search", "64"]
    assert run(*CREATE, *words)[0] == 0
    body = daemon.seen[0][2]
    assert body.backend == "hnsw"
    assert (body.config.M, body.config.ef_construction, body.config.ef_search) == (24, 200, 64)


def test_create_takes_lance_and_a_text_column(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/indexes"] = READY
    assert run(*CREATE, "--backend", "auto", "--text-column", "body")[0] == 0
    body = daemon.seen[0][2]
    assert (body.backend, body.text_column, body.lance) == ("auto", "body", None)
    code, _, err = run(*CREATE, "--backend", "lance", "--m", "24")
    assert (code, err.count("\n"), "hint: lakehouse lance migrate" in err, len(daemon.seen)) == (2, 2, True, 1)


ON_LANCE = msgspec.structs.replace(READY, backend="lance", config=LanceConfig("IVF_FLAT", 1), generation=2)


def test_a_backend_is_set_and_waited_for(run: Run, daemon: CliDaemon) -> None:
    wished = msgspec.structs.replace(READY, backend="lance")
    daemon.answers["PUT /vectors/indexes/{index}/backend"] = wished
    daemon.answers["GET /vectors/indexes/{index}"] = one_after_the_other(wished, wished, ON_LANCE)
    code, out, _ = run("index", "backend", "docs", "lance")
    assert (code, out) == (0, "docs: served by lance, IVF_FLAT · 1 partition · nprobes 1 · refine 1\n")
    assert daemon.seen[0][2].backend == "lance"
    assert routes(daemon).count("GET /vectors/indexes/{index}") == 3
    out = run("index", "backend", "docs", "lance", "--no-wait")[1]
    assert out == "docs: served by hnsw, M 16 · efc 100 · ef 50; lance takes over when it is built\n"


def test_auto_is_said_with_its_reason_and_not_waited_for(run: Run, daemon: CliDaemon) -> None:
    chosen = msgspec.structs.replace(READY, backend="auto", why_backend="a graph fits: 40 MiB of 4.0 GiB")
    daemon.answers["PUT /vectors/indexes/{index}/backend"] = chosen
    out = run("index", "backend", "docs", "auto")[1]
    assert out == "docs: served by hnsw, M 16 · efc 100 · ef 50 (a graph fits: 40 MiB of 4.0 GiB)\n"
    assert routes(daemon) == ["PUT /vectors/indexes/{index}/backend"]


def test_a_backend_that_cant_be_built_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["PUT /vectors/indexes/{index}/backend"] = READY
    daemon.answers["GET /vectors/indexes/{index}"] = msgspec.structs.replace(READY, reason="no space is left")
    code, _, err = run("index", "backend", "docs", "lance")
    assert (code, err.splitlines()[0]) == (1, "docs could not be built: no space is left.")
    code, _, err = run("index", "backend", "docs", "faiss")
    assert (code, "hnsw" in err, "hint: " in err) == (2, True, True)


@pytest.mark.parametrize(
    "words", [["--m", "3"], ["--ef-construction", "401"], ["--ef-search", "9"], ["--backend", "x"]]
)
def test_create_refuses_what_no_index_can_have(run: Run, words: list[str]) -> None:
    code, _, err = run(*CREATE, *words)
    assert (code, words[0] in err.lower()) == (2, True)
