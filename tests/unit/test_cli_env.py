"""What is found out about a daemon: `lakehouse env`, and where URL and token come from when more
than one place names them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from daemon.state_dir import Runtime, StateDir
from schemas.http import StatusReport
from tests.unit.cli_daemon import TOKEN, CliDaemon, Run

STATUS = StatusReport(version="1", uptime_s=1.0, roles=[], nats={}, datasets=0, indexes=0, agent=None, slot=None)


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another daemon, which the shell knows since `eval "$(lakehouse env)"` in its folder."""
    other = StateDir(tmp_path / "other")
    other.path.mkdir()
    other.admin_token.write_text("another token")
    other.write_runtime(Runtime("http://127.0.0.1:1", "nats://127.0.0.1:2", os.getpid()))
    monkeypatch.setenv("LAKEHOUSE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LAKEHOUSE_TOKEN_FILE", str(other.admin_token))
    monkeypatch.delenv("LAKEHOUSE_STATE_DIR")


def printed_by(script: str) -> list[str]:
    script += (
        'printf "%s\\n" "$LAKEHOUSE_URL" "$(cat "$LAKEHOUSE_TOKEN_FILE")" "$NATS_URL" "$NATS_USER" "$NATS_PASSWORD"'
    )
    return subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout.split()


def test_env_is_ready_for_eval(run: Run, daemon: CliDaemon) -> None:
    code, out, _ = run("env")
    assert code == 0
    assert printed_by(out) == [daemon.url, TOKEN, "nats://127.0.0.1:4222", "lakehouse", "nats-password"]
    assert "nats-password" not in out


@pytest.mark.usefixtures("run", "another")  # in this order
def test_env_takes_nothing_from_another_daemons(run: Run, daemon: CliDaemon, state: StateDir) -> None:
    Path("lakehouse.toml").write_text('[daemon]\nstate_dir = "state"\n')
    expected = [daemon.url, TOKEN, "nats://127.0.0.1:4222", "lakehouse", "nats-password"]
    assert printed_by(run("env")[1]) == expected
    assert printed_by(run("env", "--state-dir", str(state.path))[1]) == expected


def test_env_as_json(run: Run, daemon: CliDaemon, state: StateDir) -> None:
    values = json.loads(run("env", "--json")[1])
    assert values == {
        "LAKEHOUSE_URL": daemon.url,
        "LAKEHOUSE_TOKEN_FILE": str(state.admin_token),
        "NATS_URL": "nats://127.0.0.1:4222",
        "NATS_USER": "lakehouse",
        "NATS_PASSWORD_FILE": str(state.nats_password),
    }


def test_env_of_a_foreign_state_directory_takes_no_nats_user_of_ours(run: Run, state: StateDir) -> None:
    Path("lakehouse.toml").write_text('[daemon]\nstate_dir = "elsewhere"\n[nats]\nuser = "somebody"\n')
    assert json.loads(run("env", "--json", "--state-dir", str(state.path))[1])["NATS_USER"] == "lakehouse"


@pytest.mark.usefixtures("run", "another")  # in this order
def test_a_named_state_directory_outranks_what_is_exported(run: Run, daemon: CliDaemon, state: StateDir) -> None:
    daemon.answers["GET /status"] = STATUS
    assert run("status", "--state-dir", str(state.path))[0] == 0
    code, _, err = run("status")  # exported: the other one, which is gone
    assert (code, "127.0.0.1:1 can't be reached" in err) == (1, True)


def test_topology_as_json(run: Run) -> None:
    found = {one["actor"]: one for one in json.loads(run("topology", "--json")[1])}
    assert {"tag": "index.build", "kind": "cmd"} in found["builder"]["hears"]
    assert "index.built" in found["builder"]["says"]
