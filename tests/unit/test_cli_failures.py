"""How the command line fails: one sentence, a hint, the right exit code, never a traceback."""

import subprocess
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.state_dir import Runtime, StateDir
from schemas.http import ErrorBody
from tests.unit.cli_daemon import CliDaemon, Run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["serch", "docs"], 'Did you mean "search"'),
        (["search", "docs"], "Exactly one of TEXT and --vector"),
        (["search", "docs", "--vector", "[1,"], "--vector is not a JSON array"),
        (["search", "docs", "x", "-k", "0"], "-k"),
        (["search", "docs", " "], "TEXT is empty"),
        (["search", "docs", "--mode", "text"], "--mode text needs a TEXT."),
        (["search", "docs", "x", "--mode", "text", "--vector", "[1]"], "--mode text takes no --vector."),
        (["search", "docs", "x", "--vector", "[1]"], "Exactly one of TEXT and --vector"),
        (["search", "docs", "x", "--mode", "fuzzy"], "hybrid"),
        (["search", "docs", "x", "--nprobes", "0"], "--nprobes"),
        (["search", "docs", "x", "--refine-factor", "101"], "--refine-factor"),
        (["search", "docs", "x", "--version", "-1"], "--version"),
        (["lance", "migrate", "docs", "--type", "IVF_XQ"], "IVF_RQ"),
        (["lance", "migrate", "docs", "--partitions", "0"], "--partitions"),
        (["lance", "migrate", "docs", "--dataset", "d"], "--dataset and --column go together."),
        (["lance", "migrate", "docs", "--metric", "l2"], "--metric says nothing without --dataset."),
        (["lance", "migrate", "docs", "--dataset", "d", "--column", "c", "--model", "m"], "without --embedder."),
        (["lance", "index", "docs", "--type", "IVF_RQ", "--sub-vectors", "48"], "IVF_RQ has none."),
        (["lance", "index", "docs", "--sub-vectors", "0"], "--sub-vectors"),
        (["lance", "search", "docs"], "Exactly one of TEXT and --vector"),
        (["gate", "weights", "p", "a\udcff"], "is no UTF-8 text: character 1."),
        (["lance", "doc", "docs"], "ID"),
        (["lance", "doc", "docs", ""], "ID is empty."),
        (["lance", "delete", "docs"], "IDS"),
        (["lance", "append", "docs", "/nowhere/x.jsonl"], "/nowhere/x.jsonl can't be read: No such file"),
        (["lance", "optimise"], "NAME"),
        (["index", "backend", "docs", "faiss"], "auto"),
        (["status", "now"], "lakehouse status takes no 'now'."),
        (["status", "--nope"], "Unknown option"),
        (["ingest", "/nowhere/x.csv", "--dataset", "d"], "/nowhere/x.csv is no file"),
        (["ingest", "x.csv"], "--dataset"),
        (["tune", "docs", "--grid", "80"], "no point of a grid"),
        (["tune", "docs", "--agent", "--grid", "80:30"], "exclude each other"),
        (["index", "create", "x", "--dataset", "d", "--column", "c", "--metric", "hamming"], "cosine"),
        (["run", "--role", "king"], "control"),
        (["status", "--url", "ftp://x"], "no http address"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(run: Run, words: list[str], expected: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert "hint: " in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 2


def test_a_refusal_of_the_daemon_is_said_in_its_words(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/trials/{index}"] = (404, ErrorBody("not_found", "there is no index x", "see indexes"))
    assert run("trials", "x") == (1, "", "There is no index x.\nhint: see indexes\n")


def test_a_refusal_of_several_lines_becomes_one(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /datasets"] = (422, ErrorBody("invalid", "binder error\n  candidates: x", "mend it"))
    assert run("datasets") == (1, "", "Binder error candidates: x.\nhint: mend it\n")


@pytest.mark.parametrize("reason", ["encoder.layer.0.weight: scalar needs bits", "bucket://attic/x: no such object"])
def test_a_name_that_a_refusal_begins_with_keeps_its_letters(run: Run, daemon: CliDaemon, reason: str) -> None:
    daemon.answers["GET /datasets"] = (422, ErrorBody("invalid", reason, "mend it"))
    assert run("datasets") == (1, "", f"{reason}.\nhint: mend it\n")


def test_a_refused_tuning_prints_nothing_else(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/hnsw/autotune"] = [b""]
    code, out, _ = run("tune", "docs")
    assert (code, out) == (1, "")


def test_a_wrong_token_is_refused(run: Run, state: StateDir) -> None:
    state.admin_token.write_text("other")
    code, _, err = run("status")
    assert (code, "bearer token" in err, "--token-file" in err) == (1, True, True)


def test_no_daemon_running(run: Run, state: StateDir) -> None:
    state.runtime_file.unlink()
    code, _, err = run("status")
    assert (code, err.splitlines()[0]) == (1, f"No daemon runs on {state.path}.")


def test_a_note_left_behind_by_a_killed_daemon_counts_for_nothing(run: Run, state: StateDir) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    state.write_runtime(Runtime("http://127.0.0.1:1", "", ended.pid))
    assert "No daemon runs" in run("status")[2]


def test_a_daemon_that_went_away(run: Run) -> None:
    code, _, err = run("status", "--url", "http://127.0.0.1:1")
    assert (code, "can't be reached: Connection refused" in err) == (1, True)


def test_an_internal_error_shows_no_traceback_unless_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.cli import watching

    monkeypatch.setattr(watching.Client, "get", lambda *_: {}["bug"])
    code, out, err = run("status")
    assert (code, out) == (1, "")
    assert err.startswith("internal error: KeyError: 'bug'\nhint: ")
    with pytest.raises(KeyError):
        main(["status", "--debug"])


def test_a_wrong_config_file_is_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "lakehouse.toml").write_text("[agent]\nepsilom = 1\n")
    code, _, err = run("check-config")
    assert (code, err.count("\n")) == (1, 1)
    assert 'lakehouse.toml: agent.epsilom is not a known key; did you mean "epsilon"?' in err
