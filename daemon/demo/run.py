"""The demo: the main job on real input. It is a client like any other: everything goes over HTTP.

A first sample of the docstrings makes the dataset and the index. Then the rest is appended, and
what follows is the daemon's own doing: the index takes the rows in, the agent hears of the append,
runs its trials and promotes. They are judged by questions such as people ask, which for an index
of long texts are harder than its own rows. Run again on the same state, only what is missing is done.
"""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon.cli.client import Client
from daemon.cli.connection import Connection
from daemon.cli.errors import CliError
from daemon.cli.output import configuration, console, size
from daemon.cli.progress import Bars, Steps
from daemon.demo import corpus, report, tuning
from daemon.demo.child import Child, daemon
from daemon.demo.corpus import Definition
from daemon.state_dir import StateDir

NAME = "docs"  # of the dataset and of the index
FIRST_ROWS = 900  # too few for the agent to tune by itself ([agent] min_new_rows)
QUESTIONS = 500
READY_S = 300.0
POLL_S = 0.2

Json = dict[str, Any]


def demo(*, state_dir: Path, config: Path | None, stay: bool, rows: int | None) -> int:
    """Does the main job on at most `rows` docstrings and prints what it found; the exit code.
    With `stay`, a daemon started here runs on until Ctrl-C. Raises CliError."""
    state = StateDir(state_dir)
    started = time.monotonic()
    steps = Steps()
    with daemon(state, config) as child:
        client = Client(Connection(state_dir=state_dir))
        steps.done(f"daemon at {client.url}, {'started' if child.process else 'running already'}")
        steps.listen(client, NAME)
        documents = _harvest(steps, corpus.MAX_ROWS if rows is None else rows)
        first, rest = split(documents)
        with tempfile.TemporaryDirectory(prefix="lakehouse-demo-") as folder:
            _ingest(client, steps, first, Path(folder, "python-docs-sample.jsonl"))
            _index(client, steps, child)
            _ask_questions(client, steps, documents)
            _ingest(client, steps, rest, Path(folder, "python-docs.jsonl"))
        info = _index(client, steps, child)
        outcome, generation = _tune(client, steps, child)
        report.found(outcome, info["target_recall"], generation)
        report.searches(client, NAME)
        report.places(client.url, NAME, str(state_dir))
        console.print(f"\nall of it took {time.monotonic() - started:.0f} s", markup=False)
        if stay and child.process is not None:
            try:
                console.print("the daemon runs on; Ctrl-C stops it", markup=False)
                child.wait()
            except KeyboardInterrupt:
                console.print("\nstopping the daemon", markup=False)
    return 0


def split(rows: Sequence[Definition]) -> tuple[list[Definition], list[Definition]]:
    """A sample evenly spread over all rows, and the others."""
    many = min(FIRST_ROWS, len(rows) // 2)
    first = {i * len(rows) // many for i in range(many)}
    return [row for i, row in enumerate(rows) if i in first], [row for i, row in enumerate(rows) if i not in first]


def _harvest(steps: Steps, limit: int) -> list[Definition]:
    started = time.monotonic()
    with steps.step("reading the documentation of installed Python packages") as bars:
        harvest = corpus.harvest(limit, bars.step)
    steps.done(
        f"{len(harvest.rows):,} docstrings of {harvest.packages} packages from {harvest.files:,} files "
        f"({harvest.duplicates:,} repeated, {harvest.unreadable} files unreadable) "
        f"in {time.monotonic() - started:.1f} s"
    )
    return harvest.rows


def _ingest(client: Client, steps: Steps, rows: Sequence[Definition], file: Path) -> None:
    corpus.write(rows, file)
    known = next((d for d in client.get("/datasets")["datasets"] if d["dataset"] == NAME), None)
    if known is not None:
        known = client.get(f"/datasets/{NAME}")
        _check_ours(known)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        commit = next((c for c in known["commits"] if c["sha256"] == digest), None)
        if commit is not None:
            steps.done(f"dataset {NAME}: {file.name} is in it since version {commit['version']}, nothing appended")
            return
    started = time.monotonic()
    fields = {"dataset": NAME, "id_column": "id", "mode": "append" if known is None else "upsert"}
    with steps.step(f"uploading {size(file.stat().st_size)}", unit="bytes") as bars:
        answer = client.upload("/ingest/file", fields, file, bars.step)
    steps.done(
        f"dataset {NAME}: {answer['rows']:,} rows ingested, {answer['rejected']} rejected, version "
        f"{answer['version']}, in {time.monotonic() - started:.1f} s"
    )


def _ask_questions(client: Client, steps: Steps, rows: Sequence[Definition]) -> None:
    """The index's eval set. Its exact answers are the daemon's work, now and after the append."""
    if any(known["harness"] == NAME for known in client.get("/vectors/harnesses", index=NAME)["harnesses"]):
        return
    texts = [text for _, text in corpus.questions(rows, QUESTIONS, seed=42)]
    with steps.step("exact answers for the eval set"):
        client.post("/vectors/harnesses", {"index": NAME, "harness": NAME, "source": "given", "texts": texts})
    steps.done(f"eval set: {len(texts)} questions, each a docstring's first sentence without the function's name")


def _check_ours(dataset: Json) -> None:
    columns = {column["name"] for column in dataset["columns"]}
    if not set(corpus.Definition.__struct_fields__) <= columns:
        raise CliError(
            f"There is a dataset {NAME} here that the demo didn't make.",
            "run the demo on another state directory, or drop that one",
        )


def _index(client: Client, steps: Steps, child: Child) -> Json:
    """The index, serving every row of the dataset."""
    started = time.monotonic()
    known = any(index["index"] == NAME for index in client.get("/vectors/indexes")["indexes"])
    rows = client.get(f"/datasets/{NAME}")["rows"]
    with steps.step("embedding and indexing") as bars:
        if not known:
            client.post("/vectors/indexes", {"name": NAME, "dataset": NAME, "column": "text"})
        info = _wait_ready(client, child, rows, bars)
    how = f"{'up to date' if known else 'made'} in {time.monotonic() - started:.1f} s"
    steps.done(
        f"index {NAME}: {info['rows']:,} vectors of {info['dim']} dimensions, {info['embedder']['kind']} embedder, "
        f"{configuration(info['config'])}, {how}"
    )
    return info


def _wait_ready(client: Client, child: Child, rows: int, bars: Bars) -> Json:
    deadline = time.monotonic() + READY_S
    while True:
        child.check()
        info: Json = client.get(f"/vectors/indexes/{NAME}")
        if info["state"] == "failed":
            raise CliError(f"The index could not be built: {info['reason']}.", "`lakehouse dead list`")
        bars.step(info["rows"], rows)
        if info["state"] == "ready" and info["rows"] == rows:
            return info
        if time.monotonic() > deadline:
            raise CliError(f"The index isn't ready after {READY_S:.0f} s.", "`lakehouse status` says what is down")
        time.sleep(POLL_S)


def _tune(client: Client, steps: Steps, child: Child) -> tuple[tuning.Outcome, int]:
    """The agent's campaign and the generation that serves after it."""
    started = time.monotonic()
    if tuning.is_tuned(client, NAME):
        outcome = tuning.outcome(client, NAME)
        steps.done(f"the agent has tuned {NAME} before: {outcome.trials} trials in its last campaign")
    else:
        with steps.step("tuning: the agent begins") as bars:
            tuning.follow(client, NAME, bars, child.check)
        outcome = tuning.outcome(client, NAME)
        steps.done(
            f"{outcome.trials} trials with {len(outcome.points)} measured points "
            f"in {time.monotonic() - started:.1f} s, proposed by the agent"
        )
    if outcome.promoted is None:
        return outcome, int(client.get(f"/vectors/indexes/{NAME}/stats")["generation"])
    with steps.step("swapping") as bars:
        return outcome, tuning.wait_for_swap(client, NAME, outcome.promoted["config"], bars, child.check)
