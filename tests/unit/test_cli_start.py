"""What starting a command costs and gives: init, help, completion, imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.cli.app import COMMANDS
from tests.unit.cli_daemon import Run

REPOSITORY = Path(__file__).parents[2]
HEAVY = ["numpy", "pyarrow", "duckdb", "aiohttp", "nats", "hnswlib", "deltalake", "obstore", "structlog", "asyncio"]


def test_init_writes_a_file_that_holds(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("init", "new")
    assert (code, "made" in out) == (0, True)
    assert (tmp_path / "new/data").stat().st_mode & 0o777 == 0o700
    assert run("check-config", "--config", "new/lakehouse.toml")[0] == 0
    assert run("init", "new")[0] == 1
    assert run("init", "new", "--force")[0] == 0


@pytest.mark.parametrize("command", [name for group in COMMANDS.values() for name in group])
def test_every_command_has_help(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: lakehouse {command}" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["--help"], ["status"], ["search", "docs", "x"], ["check-config"], ["profile", "list"], ["vram"]],
)
def test_client_commands_import_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    """What keeps start-up under half a second: benchmarks/startup.py has the time."""
    code = (
        "import sys\nfrom daemon.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "LAKEHOUSE_STATE_DIR": str(tmp_path), "LAKEHOUSE_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.slow
def test_the_shell_completes_commands(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = [sys.executable, "-m", "daemon", "--install-completion"]
    subprocess.run(command, capture_output=True, cwd=REPOSITORY, env=environment, check=True)
    script = tmp_path / ".local/share/bash-completion/completions/lakehouse"
    complete = f"""
source {script}
COMP_WORDS=(lakehouse pro) COMP_CWORD=1 COMP_LINE="lakehouse pro" COMP_POINT=13
"$(complete -p lakehouse | sed 's/.*-F \\([^ ]*\\).*/\\1/')" lakehouse pro lakehouse
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"promote", "promoted", "profile"}
