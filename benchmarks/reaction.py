"""How soon the agent reacts: from a committed append to the first trial at work, on a real daemon.

    python -m benchmarks.reaction [--appends N]

The cooldown is off. Each append re-calibrates ef on the live graph, which is the trial that is
waited for. `committed` is when DatasetAppended was published, `at work` when the worker process
first reported progress; both are read from the daemon's event stream.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.integration.house import House, house
from tests.integration.test_main_road import parquet, vectors

GOAL_MS = 200.0


def events(made: House) -> Iterator[dict[str, Any]]:
    """Server-sent events, progress included, as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", made.port)
    connection.request("GET", "/events?progress=1", headers={"Authorization": f"Bearer {made.token}"})
    for line in connection.getresponse():
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def reactions(made: House, appends: int) -> list[float]:
    """Milliseconds per append."""
    heard: list[tuple[str, str, float]] = []

    def listen() -> None:
        for event in events(made):
            message = event["message"]
            heard.append((message["type"], message.get("job", ""), event["time"]))

    threading.Thread(target=listen, daemon=True).start()
    time.sleep(0.5)
    found = []
    for number in range(appends):
        made.until(lambda: _at_rest(made), "the agent is at rest", 120)
        heard.clear()
        rows = [
            {"id": 1_000_000 + 100 * number + i, "group": 1, "embedding": [float(x) for x in vector]}
            for i, vector in enumerate(vectors(20, 500 + number))
        ]
        made.call("POST", "/ingest/rows", {"dataset": "points", "rows": rows})
        made.until(lambda: any(job.startswith("t-") for _, job, _ in heard), "a trial runs", 60)
        committed = next(at for kind, _, at in heard if kind == "dataset.appended")
        at_work = next(at for _, job, at in heard if job.startswith("t-"))
        found.append((at_work - committed) * 1e3)
    return found


def _at_rest(made: House) -> bool:
    status = made.call("GET", "/vectors/agent/status")
    return not status["running"] and not status["queue"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--appends", type=int, default=20)
    arguments = parser.parse_args()
    settings = {"agent__min_new_rows": 1, "agent__cooldown_s": 0, "agent__max_trials_per_hour": 10_000}
    with tempfile.TemporaryDirectory() as folder, house(Path(folder), **settings) as made:
        parquet(made.folder / "first.parquet", 20_000, seed=1)
        made.ingest(made.folder / "first.parquet", "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        made.index_ready("points", 20_000)
        made.until(lambda: bool(made.call("GET", "/vectors/trials/points")["total"]), "the first campaign runs", 120)
        took = sorted(reactions(made, arguments.appends))
    table = Table(title="append committed → first trial at work, 20k × 48 rows")
    for column in ("appends", "p50 ms", "p95 ms", "max ms", "goal p50 ms"):
        table.add_column(column, justify="right")
    p95 = took[int(0.95 * (len(took) - 1))]
    table.add_row(str(len(took)), f"{statistics.median(took):.0f}", f"{p95:.0f}", f"{took[-1]:.0f}", f"{GOAL_MS:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
