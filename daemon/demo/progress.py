"""Bars for what the daemon does: its `job.progress` signals, heard as server-sent events in a
thread of their own. Nothing depends on them: they may be lost."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from daemon.cli.client import Client
from daemon.cli.errors import CliError
from daemon.cli.output import console

WORDS = {
    "read": "reading rows",
    "check": "checking rows",
    "write": "writing rows",
    "fit": "learning word weights",
    "embed": "embedding",
    "build": "building a graph",
    "update": "bringing the live graph up to date",
    "truth": "exact answers for the eval set",
    "sweep": "measuring ef_search",
    "compare": "comparing with the champion",
    "prepare": "preparing a trial",
}


class Bars:
    """One bar for the step itself, and one for each phase that the daemon tells of meanwhile."""

    def __init__(self, progress: Progress, step: TaskID) -> None:
        self._progress = progress
        self._step = step
        self._phases: dict[str, tuple[str, TaskID]] = {}
        self._lock = threading.Lock()

    def step(self, done: float, total: float | None, description: str | None = None) -> None:
        self._progress.update(self._step, completed=done, total=total, description=description)

    def heard(self, message: dict[str, Any]) -> None:
        """A `job.progress`. A new job's phase begins its bar again."""
        phase, job = message["phase"], message["job"]
        done, total = message["done"], message.get("total")
        with self._lock:
            known = self._phases.get(phase)
            if known is None:
                task = self._progress.add_task(f"  {WORDS.get(phase, phase)}", total=total)
            elif known[0] != job:
                task = known[1]
                self._progress.reset(task, total=total)
            else:
                task = known[1]
            self._phases[phase] = (job, task)
            self._progress.update(task, completed=done, total=total)


class Steps:
    """The demo's steps on the terminal: bars while one runs, a line when it is done."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._about: frozenset[str] = frozenset()

    def listen(self, client: Client, about: frozenset[str]) -> None:
        """Show the daemon's progress about these datasets and indexes from now on."""
        self._about = about
        threading.Thread(target=self._hear, args=(client,), daemon=True).start()

    @contextlib.contextmanager
    def step(self, description: str, total: float | None = None) -> Iterator[Bars]:
        """A step of the demo. Its bars disappear with it."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            self._bars = Bars(progress, progress.add_task(description, total=total))
            try:
                yield self._bars
            finally:
                self._bars = None

    def done(self, text: str) -> None:
        console.print(f"[green]✓[/green] {text}", soft_wrap=True)

    def _hear(self, client: Client) -> None:
        with contextlib.suppress(CliError, OSError, ValueError):  # the daemon stops, the stream is cut
            for event in client.server_sent("/events", match="job.none", progress=True):
                message, bars = event["message"], self._bars
                if bars is not None and message.get("about") in self._about:
                    bars.heard(message)
