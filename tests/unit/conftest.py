"""The command line in this process, and a daemon for it to talk to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.state_dir import Runtime, StateDir
from tests.unit.cli_daemon import TOKEN, CliDaemon, Run


@pytest.fixture
def daemon() -> Iterator[CliDaemon]:
    server = CliDaemon()
    yield server
    server.close()


@pytest.fixture
def state(tmp_path: Path, daemon: CliDaemon) -> StateDir:
    """The state directory of a running daemon (this process stands in for it)."""
    state = StateDir(tmp_path / "state")
    state.path.mkdir()
    state.admin_token.write_text(TOKEN + "\n")
    state.nats_password.write_text("nats-password")
    state.write_runtime(Runtime(daemon.url, "nats://127.0.0.1:4222", os.getpid()))
    return state


@pytest.fixture
def run(state: StateDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    for variable in ("LAKEHOUSE_URL", "LAKEHOUSE_TOKEN_FILE", "LAKEHOUSE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LAKEHOUSE_STATE_DIR", str(state.path))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
