"""The daemon is killed while a Lance store is made, indexed, appended to, optimised and given the serving.
What was acknowledged is found afterwards, once, on both backends, and what served goes on serving."""

import random
import time
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.chaos.test_kill_daemon import Writer, _row
from tests.integration.house import House, HttpError, house
from tests.integration.test_main_road import parquet

ORDERS = [
    ("POST", "/vectors/lance/migrate/points", {}),
    ("POST", "/vectors/lance/index/points", {"index_type": "IVF_FLAT"}),
    ("PUT", "/vectors/indexes/points/backend", {"backend": "lance"}),
    ("POST", "/vectors/lance/optimize/points", {}),
    ("POST", "/vectors/lance/index/points", {"index_type": "IVF_PQ"}),
    ("PUT", "/vectors/indexes/points/backend", {"backend": "hnsw"}),
]


@pytest.mark.slow
def test_kills_in_the_middle_of_a_store_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    dice = random.Random(11)
    with house(tmp_path, agent__enabled=False) as made:
        parquet(made.folder / "a.parquet", 3000, seed=1)
        made.ingest(made.folder / "a.parquet", "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        made.index_ready("points", 3000)
        writer = Writer(made)
        writer.start()
        try:
            for order in ORDERS:
                made.until(lambda order=order: _taken(made, *order), f"{order} is taken", 60)
                time.sleep(dice.uniform(0.0, 1.5))
                made.kill()
                made.start()
                made.until(lambda: _found(made, 1) == [1], "what served serves again", 30)
        finally:
            writer.end()
        assert not writer.wrong
        rows = made.call("GET", "/datasets/points")["rows"]
        made.index_ready("points", rows)
        for backend in ("hnsw", "lance"):
            made.until(lambda backend=backend: _answers(made, backend), f"{backend} answers", 60)
            wanted = [*dice.sample(writer.acked, min(40, len(writer.acked))), 1, 2999]
            made.until(lambda b=backend, w=wanted: all(_found(made, i, b) == [i] for i in w), f"all by {backend}", 60)
        made.until(lambda: _holds_all(made), "the store holds every row, once", 60)
        assert made.call("GET", "/dead")["letters"] == []


def _taken(made: House, method: str, path: str, body: object) -> bool:
    """Whether the order was accepted; what it needs may still be on its way."""
    try:
        made.call(method, path, body)
    except HttpError as error:
        if error.status not in (404, 409, 429, 503):
            raise
        return False
    return True


def _holds_all(made: House) -> bool:
    held, rows = (made.call("GET", path)["rows"] for path in ("/vectors/lance/stats/points", "/datasets/points"))
    return bool(held == rows)


def _answers(made: House, backend: str) -> bool:
    try:
        _found(made, 1, backend)
    except HttpError as error:
        if error.status == 404:
            made.call("PUT", "/vectors/indexes/points/backend", {"backend": backend})
        return False
    return True


def _found(made: House, id: int, backend: str | None = None) -> list[int]:
    """Ids of rows with exactly this id; nobody may be there yet."""
    vector = _row(id)["embedding"]
    body = {"index": "points", "vector": vector, "k": 5, "filter": f"id = {id}", "backend": backend}
    try:
        return [hit["id"] for hit in made.call("POST", "/vectors/search", body)["queries"][0]]
    except (OSError, HTTPException):
        return []
