"""What activating a profile costs beside the model server's own time.

    python -m benchmarks.slot [--swaps 30] [--load-s 0.2] [--listed-s 0.1]

A real daemon over HTTP and the tests' Ollama, which takes so long to load a model and lists one for
so long after its unload. Two profiles of different models are activated in turn (without indexes,
and with one each), then two of the same model. `over the delays` is the wall time minus what Ollama
was told to take. It has three parts: waiting for servers (that a model is gone is seen at the next
look), the daemon's own work, and what comes after: facts are stored, the answer travels. The peer is
the same swap by hand: unload, ask /api/ps until it is gone, load.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.http_search import Connection, child, free_port, wait_for_port
from tests.integration.house import House, house
from tests.integration.test_main_road import parquet

GOAL_SWAP_MS, GOAL_SAME_MS = 20.0, 5.0
MODELS = ("llama3:latest", "mistral:7b")
POLL_S = 0.005
WARM_UP = 2


@dataclass
class Row:
    name: str
    activate: Callable[[int], dict[str, float]]  # number i; the daemon's answer
    delays_ms: float  # of the model server
    goal_ms: float | None
    wall_ms: list[float] = field(default_factory=list)
    parts_ms: list[tuple[float, float, float]] = field(default_factory=list)
    """By the daemon's account, beside the delays: waiting for servers, its own work, what comes after
    the order is carried out (its facts are stored, the answer travels)."""

    def measure(self, count: int) -> None:
        for number in range(count + WARM_UP):
            began = time.perf_counter()
            answer = self.activate(number)
            wall = (time.perf_counter() - began) * 1000
            if number >= WARM_UP:
                self.wall_ms.append(wall)
                if "took_ms" in answer:
                    took, servers = answer["took_ms"], answer["servers_ms"]
                    self.parts_ms.append((servers - self.delays_ms, took - servers, wall - took))


@contextlib.contextmanager
def ollama(options: argparse.Namespace) -> Iterator[int]:
    """The tests' Ollama in a process of its own; its port."""
    port = free_port()
    play = json.dumps({"load_s": options.load_s, "listed_s": options.listed_s, "drain_s": options.listed_s})
    command = [sys.executable, "-m", "tests.ollama_server", "--port", str(port), "--play", play]
    with child(command, stdout=subprocess.DEVNULL):
        wait_for_port(port)
        yield port


def profiles(made: House, folder: Path) -> dict[str, tuple[str, str]]:
    """Pairs of profiles, by what is activated in turn."""
    made.ingest(parquet(folder / "points.parquet", 1000, 1), "points")
    pairs = {"swap": MODELS, "swap-index": MODELS, "same": (MODELS[0], MODELS[0])}
    for index in ("first", "second"):
        made.call("POST", "/vectors/indexes", {"name": index, "dataset": "points", "column": "embedding"})
        made.index_ready(index, 1000)
    named = {}
    for pair, models in pairs.items():
        names = (f"{pair}-first", f"{pair}-second")
        for name, model, index in zip(names, models, ("first", "second"), strict=True):
            indexes = [index] if pair == "swap-index" else []
            made.call("POST", "/vectors/profiles", {"id": name, "model": model, "indexes": indexes})
        named[pair] = names
    return named


def by_daemon(there: Connection, pair: tuple[str, str]) -> Callable[[int], dict[str, float]]:
    def activate(number: int) -> dict[str, float]:
        answer: dict[str, float] = there.json("POST", f"/vectors/profile/{pair[number % 2]}/activate")
        return answer

    return activate


def by_hand(server: Connection) -> Callable[[int], dict[str, float]]:
    def activate(number: int) -> dict[str, float]:
        new, old = MODELS[number % 2], MODELS[(number + 1) % 2]
        server.json("POST", "/api/generate", {"model": old, "keep_alive": 0})
        while any(model["name"] == old for model in server.json("GET", "/api/ps")["models"]):
            time.sleep(POLL_S)
        server.json("POST", "/api/generate", {"model": new, "keep_alive": -1})
        return {}

    return activate


def report(rows: list[Row]) -> None:
    table = Table("p50, ms", "wall", "over the delays", "p95", "waiting", "own work", "after", "goal", "n")
    for row in rows:
        over50, over95 = np.percentile(np.array(row.wall_ms) - row.delays_ms, [50, 95])
        parts = np.median(row.parts_ms, axis=0) if row.parts_ms else []
        table.add_row(
            row.name,
            f"{np.median(row.wall_ms):.1f}",
            f"{over50:.1f}",
            f"{over95:.1f}",
            *([f"{part:.1f}" for part in parts] or ["-", "-", "-"]),
            f"{row.goal_ms:g}" if row.goal_ms else "-",
            str(len(row.wall_ms)),
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--load-s", type=float, default=0.2)
    parser.add_argument("--listed-s", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        ours, other = running.enter_context(ollama(options)), running.enter_context(ollama(options))
        url = f"http://127.0.0.1:{ours}"
        made = running.enter_context(
            house(folder, models__ollama_url=url, models__llamacpp_url="http://127.0.0.1:9", agent__enabled=False)
        )
        there = Connection(made.port, {"Authorization": f"Bearer {made.token}"})
        pairs = profiles(made, folder)
        delays = 1000 * (options.load_s + options.listed_s)
        rows = [
            Row("another model", by_daemon(there, pairs["swap"]), delays, GOAL_SWAP_MS),
            Row("another model, an index each", by_daemon(there, pairs["swap-index"]), delays, GOAL_SWAP_MS),
            Row("another model, by hand", by_hand(Connection(other)), delays, None),
            Row("the same model", by_daemon(there, pairs["same"]), 0.0, GOAL_SAME_MS),
        ]
        for row in rows:
            row.measure(options.swaps)
    report(rows)


if __name__ == "__main__":
    main()
