"""The demo as a user runs it: a real daemon, a real campaign, small input."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.state_dir import StateDir

COMMAND = [sys.executable, "-m", "daemon", "demo", "--rows", "2200"]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = tmp_path_factory.mktemp("demo") / "state"
    return {
        **os.environ,
        "LAKEHOUSE_DAEMON__STATE_DIR": str(state),
        "LAKEHOUSE_HTTP__PORT": str(port),
        "LAKEHOUSE_AGENT__MAX_TRIALS_PER_CAMPAIGN": "3",
    }


def state_of(environ: dict[str, str]) -> StateDir:
    return StateDir(Path(environ["LAKEHOUSE_DAEMON__STATE_DIR"]))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def demo(environ: dict[str, str], *more: str) -> "Iterator[subprocess.Popen[str]]":
    """It runs; at the end it is gone, whatever came of the test."""
    with subprocess.Popen([*COMMAND, *more], env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} never came:\n{seen}")


@pytest.mark.slow
def test_the_demo_does_the_main_job(environ):
    done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "900 rows ingested" in done.stdout
    assert "1,300 rows ingested" in done.stdout
    (before,) = re.findall(r"^before .*", done.stdout, re.MULTILINE)
    (after,) = re.findall(r"^after .*", done.stdout, re.MULTILINE)
    assert "M 16 · efc 100 · ef 50" in before
    assert float(after.split("ef ")[-1].split()[2]) >= 0.95  # the lower bound of recall
    assert "by agent" in done.stdout
    assert len(re.findall(r"µs in the daemon", done.stdout)) == 3
    assert state_of(environ).runtime() is None  # the daemon that it started is stopped


@pytest.mark.slow
def test_again_it_does_only_what_is_missing_and_stays_until_ctrl_c(environ):
    with demo(environ, "--stay") as running:
        seen = read_until(running, "Ctrl-C stops it")
        assert len(re.findall("nothing appended", seen)) == 2
        assert "has tuned docs before" in seen
        note = state_of(environ).runtime()
        assert note is not None
        running.send_signal(signal.SIGINT)
        assert running.wait(45) == 0
    assert not alive(note.pid)


@pytest.mark.slow
def test_a_demo_that_is_killed_leaves_no_daemon(environ):
    with demo(environ) as running:
        read_until(running, "daemon at")
        note = state_of(environ).runtime()
        assert note is not None
    deadline = time.monotonic() + 40
    while alive(note.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(note.pid)


@pytest.mark.slow
def test_a_daemon_that_cant_start_is_one_sentence(environ):
    with socket.create_server(("127.0.0.1", int(environ["LAKEHOUSE_HTTP__PORT"]))):
        done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "The daemon ended with exit code" in done.stderr
    assert environ["LAKEHOUSE_HTTP__PORT"] in done.stderr
    assert "Traceback" not in done.stderr
