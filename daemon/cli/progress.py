"""Bars for what takes long: a step of a command, and below it what the daemon does meanwhile,
by its `job.progress` signals, heard as server-sent events in a thread of their own. Nothing
depends on them: they may be lost. Without a terminal nothing is drawn and nothing is heard.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from daemon.cli.client import Client
from daemon.cli.errors import CliError
from daemon.cli.output import console, size

WORDS = {
    "survey": "looking through the file",
    "read": "reading rows",
    "commit": "committing rows",
    "fit": "learning word weights",
    "embed": "embedding",
    "build": "building",
    "migrate": "copying rows into Lance",
    "optimise": "optimising the Lance store",
    "update": "bringing the live graph up to date",
    "train": "training the gate",
    "hash": "reading the base",
    "search": "trying weights",
    "loss": "measuring losses",
    "merge": "merging",
    "truth": "exact answers for the eval set",
    "sweep": "measuring",
    "compare": "comparing with the champion",
    "prepare": "preparing a trial",
    "settle": "waiting until the memory is free",
}


IN_TURN = frozenset({"slot"})
"""Jobs whose phases don't overlap: one that begins says that those before it are over."""


class Bars:
    """One bar for the step itself, and one for each phase that the daemon tells of meanwhile."""

    def __init__(self, progress: Progress, step: TaskID, unit: str) -> None:
        self._progress = progress
        self._step = step
        self._unit = unit
        self._phases: dict[str, tuple[str, TaskID]] = {}
        self._lock = threading.Lock()

    def step(self, done: float, total: float | None, description: str | None = None) -> None:
        """How far the step is. Without a total its bar only shows that it is alive."""
        self._progress.tasks[0].total = total  # update() takes None for "as before"
        amount = _amount(done, total, self._unit)
        self._progress.update(self._step, completed=done, description=description, amount=amount)

    def heard(self, message: dict[str, Any]) -> None:
        """A `job.progress`. A new job's phase begins its bar again."""
        phase, job = message["phase"], message["job"]
        done, total = message["done"], message.get("total")
        with self._lock:
            known = self._phases.get(phase)
            if known is None:
                task = self._progress.add_task(f"  {WORDS.get(phase, phase)}", total=total, amount="")
            elif known[0] != job:
                task = known[1]
                self._progress.reset(task, total=total)
            else:
                task = known[1]
            if job in IN_TURN:
                self._over(job, phase)
            self._phases[phase] = (job, task)
            unit = message.get("unit", "rows")
            self._progress.update(task, completed=done, total=total, amount=_amount(done, total, unit), unit=unit)

    def _over(self, job: str, but: str) -> None:
        """The job's other phases have done what they were to do."""
        for phase, (of, task) in self._phases.items():
            bar = self._progress.tasks[self._progress.task_ids.index(task)]
            if of == job and phase != but and bar.total:
                amount = _amount(bar.total, bar.total, bar.fields["unit"])
                self._progress.update(task, completed=bar.total, amount=amount)


class Steps:
    """The steps of a command on the terminal: bars while one runs, gone with it. They lie on
    stderr when stdout is redirected."""

    def __init__(self) -> None:
        self._console = console if sys.stdout.isatty() else Console(stderr=True)
        self._bars: Bars | None = None
        self._about: frozenset[str] = frozenset()
        self._hears = threading.Event()

    def listen(self, client: Client, *about: str, wait_s: float = 0.0) -> None:
        """Show the daemon's progress about these datasets, indexes and profiles from now on.
        Waits at most `wait_s` until it is heard, so that what is asked next is shown from its beginning."""
        self._about = frozenset(about)
        if self._console.is_terminal:
            threading.Thread(target=self._hear, args=(client,), daemon=True).start()
            self._hears.wait(wait_s)

    @contextlib.contextmanager
    def step(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Bars]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(Column(min_width=7)),  # on a narrow terminal others give way
            TimeRemainingColumn(table_column=Column(min_width=7)),
        )
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            redirect_stdout=self._console is console,  # else what is printed would land on stderr
        ) as progress:
            self._bars = Bars(progress, progress.add_task(description, total=total, amount=""), unit)
            try:
                yield self._bars
            finally:
                self._bars = None

    def done(self, text: str) -> None:
        console.print(f"[green]✓[/green] {text}", soft_wrap=True)

    def _hear(self, client: Client) -> None:
        with contextlib.suppress(CliError, OSError, ValueError):  # the daemon stops, the stream is cut
            for event in client.server_sent("/events", opened=self._hears.set, match="none", progress=True):
                message, bars = event["message"], self._bars
                if bars is not None and message.get("about") in self._about:
                    bars.heard(message)


def _amount(done: float, total: float | None, unit: str) -> str:
    """`1.2 MB of 5.0 MB`, `300 of 2,000 rows`; empty before anything is known."""
    if unit == "bytes":
        return f"{size(done)} of {size(total)}" if total else size(done) if done else ""
    of = f" of {total:,.0f}" if total else ""
    return f"{done:,.0f}{of} {unit}".rstrip() if done or total else ""


@contextlib.contextmanager
def stream_bars() -> Iterator[Progress]:
    """Bars above which lines are printed as a job's stream tells them; redirected, the lines alone."""
    terminal = sys.stdout.isatty()
    drawn_on = console if terminal else Console(stderr=True)
    # Redirected, what is printed here would land on stderr.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=drawn_on,
        transient=True,
        redirect_stdout=terminal,
        disable=not drawn_on.is_terminal,
    ) as bars:
        yield bars
