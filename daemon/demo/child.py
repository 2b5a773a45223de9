"""The daemon that the demo talks to: the one that runs on the state directory already, or one
started for the demo, which never outlives it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.cli.errors import CliError
from daemon.state_dir import StateDir

START_S = 60.0
STOP_S = 40.0
LOG = "demo-daemon.log"
_PR_SET_PDEATHSIG = 1


class Child:
    """The daemon's process when it is ours, else nothing but the fact that it isn't."""

    def __init__(self, process: "subprocess.Popen[bytes] | None", log: Path) -> None:
        self.process = process
        self.log = log

    def check(self) -> None:
        """Raises CliError when it ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            raise CliError(
                f"The daemon ended with exit code {self.process.returncode}: {self._last_words()}", self._hint
            )

    def wait(self) -> None:
        """Until it ends. Raises CliError when it fails."""
        if self.process is not None:
            self.process.wait()
            self.check()

    def stop(self) -> None:
        """Drains and stops it. Raises CliError when it has to be killed or fails."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise CliError(f"The daemon didn't stop within {STOP_S:.0f} s and was killed.", self._hint) from None
        if code:
            raise CliError(f"The daemon stopped with exit code {code}: {self._last_words()}", self._hint)

    @property
    def _hint(self) -> str:
        return f"its log is {self.log}"

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("lakehouse: ") if lines else "it said nothing"


@contextmanager
def daemon(state: StateDir, config: Path | None) -> Iterator[Child]:
    """A ready daemon on the state directory. One started here is stopped on leaving. Raises
    CliError when it doesn't come up."""
    log = state.path / LOG
    if state.runtime() is not None:
        yield Child(None, log)
        return
    child = Child(_start(state, config, log), log)
    try:
        deadline = time.monotonic() + START_S
        while state.runtime() is None:
            child.check()
            if time.monotonic() > deadline:
                raise CliError(f"The daemon wasn't ready after {START_S:.0f} s.", f"its log is {log}")
            time.sleep(0.05)
        yield child
    finally:
        child.stop()


def _start(state: StateDir, config: Path | None, log: Path) -> "subprocess.Popen[bytes]":
    state.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "daemon", "run"] + (["--config", str(config)] if config else [])
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LAKEHOUSE_DAEMON__STATE_DIR": str(state.path.resolve())},
            process_group=0,  # Ctrl-C is for the demo, which then stops the daemon
            preexec_fn=die_with_parent,  # no thread runs yet
        )
