"""The process's life: how it refuses to start, how it stops, what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.house import ROOT, House, HttpError, house
from tests.integration.test_main_road import parquet, search, vectors


def attempt(made: House, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`lakehouse …` with the house's configuration, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments, "--config", str(made.folder / "lakehouse.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It failed, in words for people, with no traceback."""
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_second_daemon_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        one_sentence(attempt(made, "run"), str(made.process.pid), "state_dir")  # type: ignore[union-attr]


def test_a_taken_http_port_is_one_sentence(tmp_path: Path) -> None:
    made = House(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", made.port))
        taken.listen()
        one_sentence(attempt(made, "run"), str(made.port), "[http] port")
    assert not _children_of(made)


def test_a_taken_nats_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_sentence(attempt(House(tmp_path, nats__port=port), "run"), str(port), "nats.port")


def test_an_unreachable_nats_is_one_sentence(tmp_path: Path) -> None:
    one_sentence(attempt(House(tmp_path, nats__url="nats://127.0.0.1:9"), "run"), "127.0.0.1:9", "[nats] url")


def test_repair_says_what_it_looks_at(tmp_path: Path) -> None:
    with house(tmp_path, agent__enabled=False) as made:
        parquet(made.folder / "a.parquet", 10, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        one_sentence(attempt(made, "repair"), "state_dir")  # not while it runs
    done = attempt(made, "repair")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "every head is right"), done
    assert "looking at bucket primary" in done.stdout
    assert "looking at dataset points: 1 revisions" in done.stdout


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    one_sentence(attempt(House(tmp_path, agent__epsilom=0.5), "run"), "epsilom", "epsilon")


def test_a_kill_leaves_no_process_behind(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        children = _children_of(made)
        assert children
        made.kill()
        deadline = time.monotonic() + 10
        while any(_alive(pid) for pid in children):
            assert time.monotonic() < deadline, "an orphan lives on"
            time.sleep(0.05)


def test_a_killed_nats_child_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with house(tmp_path, agent__enabled=False) as made:
        parquet(made.folder / "a.parquet", 500, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        made.index_ready("points", 500)
        (nats,) = [pid for pid in _children_of(made) if b"nats-server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(nats, signal.SIGKILL)
        made.until(lambda: _ingested(made), "an ingest succeeds after the restart", 60)
        made.index_ready("points", 501)


def _ingested(made: House) -> bool:
    row = {"id": 501, "group": 1, "embedding": [1.0] * 48}
    try:
        made.call("POST", "/ingest/rows", {"dataset": "points", "rows": [row]})
    except HttpError as error:
        if error.status != 503:
            raise
        return False
    return True


def test_it_stops_within_thirty_seconds_under_load_and_loses_no_work(tmp_path: Path) -> None:
    with house(tmp_path, agent__cooldown_s=0, agent__min_new_rows=10) as made:
        parquet(made.folder / "a.parquet", 6000, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        made.index_ready("points", 6000)
        stop, wrong = threading.Event(), []

        def load() -> None:
            query = vectors(1, 3)[0]
            while not stop.is_set():
                try:
                    search(made, query)
                except HttpError as error:
                    if error.status != 503:
                        wrong.append(error)
                except (ConnectionError, OSError):
                    return  # the door is closed

        readers = [threading.Thread(target=load) for _ in range(4)]
        for reader in readers:
            reader.start()
        made.call("POST", "/vectors/agent/enqueue/points")
        made.until(lambda: bool(made.call("GET", "/vectors/agent/status")["running"]), "a trial runs", 60)
        began = time.monotonic()
        assert made.stop(within_s=30) == 0
        assert time.monotonic() - began < 30
        stop.set()
        for reader in readers:
            reader.join()
        assert not wrong
        made.start()
        made.until(lambda: made.call("GET", "/vectors/trials/points")["total"] > 0, "the trial was run after all", 90)


def test_heads_lost_with_the_nats_store_come_back_from_the_buckets(tmp_path: Path) -> None:
    with house(tmp_path, agent__enabled=False) as made:
        parquet(made.folder / "a.parquet", 400, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        made.index_ready("points", 400)
        assert made.stop() == 0
        subprocess.run(["rm", "-rf", str(made.state / "nats" / "store")], check=True)
        made.start()
        assert made.call("GET", "/datasets/points")["rows"] == 400
        assert search(made, vectors(400, 1)[3], k=1)["queries"][0][0]["id"] == 3


def test_a_corrupt_document_is_named_and_not_overwritten(tmp_path: Path) -> None:
    with house(tmp_path, agent__enabled=False) as made:
        parquet(made.folder / "a.parquet", 300, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        assert made.stop() == 0
        (revision,) = (made.state / "buckets" / "primary" / "registry" / "dataset" / "points").iterdir()
        damaged = revision.read_bytes().replace(b'"points"', b'"pointz"')
        revision.chmod(0o600)
        revision.write_bytes(damaged)
        made.start()
        with pytest.raises(HttpError) as caught:
            made.call("GET", "/datasets/points")
        assert caught.value.status in (500, 503)
        assert "points" in caught.value.body["reason"]
        assert revision.read_bytes() == damaged


def _children_of(made: House) -> list[int]:
    """Pids of the daemon's children and theirs."""
    if made.process is None:
        return []
    found, pending = [], [made.process.pid]
    while pending:
        try:
            text = Path(f"/proc/{pending[-1]}/task/{pending.pop()}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for pid in map(int, text.split()):
            found.append(pid)
            pending.append(pid)
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_cli_works_against_a_running_daemon(tmp_path: Path) -> None:
    with house(tmp_path, agent__enabled=False) as made:
        parquet(made.folder / "a.parquet", 300, seed=1)

        def cli(*arguments: str) -> Any:
            done = subprocess.run(
                [sys.executable, "-m", "daemon", *arguments, "--state-dir", str(made.state), "--json"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        assert cli("ingest", str(made.folder / "a.parquet"), "--dataset", "points", "--id", "id")
        assert cli("datasets")
        assert cli("index", "create", "points", "--dataset", "points", "--column", "embedding")
        made.index_ready("points", 300)
        found = cli("search", "points", "--vector", json.dumps([float(x) for x in vectors(300, 1)[4]]), "-k", "2")
        assert found["queries"][0][0]["id"] == 4
        assert cli("status")["datasets"] == 1
