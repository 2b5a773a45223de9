"""The whole daemon is killed again and again while rows land, trials run and promotions happen.
What it answered must be there afterwards, once, and everything must go on by itself."""

import random
import threading
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.integration.house import House, HttpError, house
from tests.integration.test_main_road import parquet, vectors

KILLS = 5


def _row(id: int) -> dict[str, Any]:
    return {"id": id, "group": id % 10, "embedding": [float(x) for x in vectors(1, id)[0]]}


class Writer(threading.Thread):
    """Writes rows one after another and remembers which were acknowledged."""

    def __init__(self, made: House) -> None:
        super().__init__()
        self.acked: list[int] = []
        self.wrong: list[HttpError] = []
        self._made = made
        self._over = threading.Event()

    def run(self) -> None:
        id = 100_000
        while not self._over.is_set():
            id += 1
            try:
                self._made.call("POST", "/ingest/rows", {"dataset": "points", "rows": [_row(id)]})
            except HttpError as error:
                if error.status != 503:
                    self.wrong.append(error)
                time.sleep(0.05)
            except (OSError, HTTPException):  # nobody there: killed, or not up again yet
                time.sleep(0.05)
            else:
                self.acked.append(id)

    def end(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    dice = random.Random(7)
    tuned = {"agent__min_new_rows": 20, "agent__cooldown_s": 0, "agent__wake_s": 2, "agent__max_trials_per_hour": 1000}
    with house(tmp_path, **tuned) as made:
        parquet(made.folder / "a.parquet", 3000, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        made.index_ready("points", 3000)
        writer = Writer(made)
        writer.start()
        try:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.3, 2.5))
                made.kill()
                made.start()
        finally:
            writer.end()
        assert not writer.wrong
        assert writer.acked, "nothing was written between the kills"

        rows = made.call("GET", "/datasets/points")["rows"]
        made.index_ready("points", rows)
        missing = [id for id in writer.acked if _found(made, id) != [id]]
        assert not missing, f"{len(missing)} of {len(writer.acked)} acknowledged rows are gone or doubled"
        # A row whose answer the kill cut off may be there; nothing else may.
        assert 3000 + len(writer.acked) <= rows <= 3000 + len(writer.acked) + KILLS

        made.until(lambda: not made.call("GET", "/vectors/agent/status")["running"], "the agent comes to rest", 120)
        points = made.call("GET", "/vectors/trials/points?limit=10000")["points"]
        measured = [(point["trial"], point["ef_search"]) for point in points]
        assert len(measured) == len(set(measured)), "a trial was journalled twice"
        why = made.call("GET", "/vectors/why/points")
        assert {"commit", "file"} <= {link["what"] for link in why["links"]}
        assert all(one["same"] for one in made.call("GET", "/vectors/replay/points")["proposals"])
        assert made.call("GET", "/dead")["letters"] == []


def _found(made: House, id: int) -> list[int]:
    """Ids of rows with exactly this id, by filter: each must be there once."""
    body = {"index": "points", "vector": _row(id)["embedding"], "k": 5, "filter": f"id = {id}"}
    return [hit["id"] for hit in made.call("POST", "/vectors/search", body)["queries"][0]]
