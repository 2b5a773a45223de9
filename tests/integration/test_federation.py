"""Buckets at run time on a real daemon: made over HTTP, known after a restart, moved to and from under searches, and
pulled away under load."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.house import House, HttpError, house
from tests.s3_server import s3_api

pytestmark = pytest.mark.slow

SECRET = "canary-5e1f0c77-secret"
ROWS, DIM = 400, 16


def refused(call: Any) -> tuple[int, str]:
    with pytest.raises(HttpError) as error:
        call()
    return error.value.status, error.value.body["reason"]


def write_rows(path: Path, n: int = ROWS, first: int = 0) -> Path:
    vectors = np.random.default_rng(first).standard_normal((n, DIM)).round(4)
    rows = [{"id": f"r{first + i}", "vector": vector.tolist()} for i, vector in enumerate(vectors)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Load:
    """Searches without a pause, and what came of them."""

    def __init__(self, here: House, index: str) -> None:
        self.answers, self.wrong = 0, []  # type: ignore[var-annotated]
        self._here, self._index, self._stop = here, index, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rng = np.random.default_rng(1)
        while not self._stop.is_set():
            try:
                body = {"index": self._index, "vector": rng.standard_normal(DIM).tolist(), "k": 5}
                found = self._here.call("POST", "/vectors/search", body)
                hits = len(found["queries"][0])
                self.answers += 1
                if hits != 5:
                    self.wrong.append(f"{hits} hits")
            except Exception as error:
                self.wrong.append(str(error))

    @contextmanager
    def on(self) -> Iterator["Load"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[House]:
    settings: dict[str, Any] = {"storage__allowed_roots": [str(tmp_path / "disks")], "agent__enabled": False}
    environ = {"LAKE_TEST_KEY": "key", "LAKE_TEST_SECRET": SECRET}
    with house(tmp_path / "house", environ=environ, **settings) as made:
        yield made


def add(here: House, name: str, url: str = "", **options: str) -> Any:
    return here.call("POST", "/storage/buckets", {"name": name, "url": url, "options": options})


def bucket_of(here: House, name: str) -> Any:
    return here.call("GET", f"/storage/buckets/{name}")


def test_made_listed_restarted_and_removed(here: House, tmp_path: Path) -> None:
    disk = tmp_path / "disks" / "one"
    with s3_api() as api:
        named = {"access_key_id_env": "LAKE_TEST_KEY", "secret_access_key_env": "LAKE_TEST_SECRET"}
        assert add(here, "near", disk.as_uri())["health"] == "ok"
        assert disk.is_dir()
        far = add(here, "far", "s3://bucket/lake", endpoint=api.endpoint, region="us-east-1", **named)
        assert far["options"]["secret_access_key_env"] == "LAKE_TEST_SECRET"
        assert add(here, "beside")["url"].endswith("/beside")
        assert add(here, "near", disk.as_uri())["bucket"] == "near", "the same again is no conflict"
        here.ingest(write_rows(here.folder / "rows.jsonl"), "rows", bucket="far", id_column="id")
        here.stop()
        here.start()
        listed = {one["bucket"]: one for one in here.call("GET", "/storage/buckets")["buckets"]}
        assert sorted(listed) == ["beside", "far", "near", "primary", "rescue"]
        assert {one["health"] for one in listed.values()} == {"ok"}
        assert listed["far"]["objects"] >= 2
        assert listed["far"]["bytes"] > 1000
        assert here.call("GET", "/datasets/rows")["bucket"] == "far"
        # what is refused, and why
        assert refused(lambda: add(here, "near", "s3://bucket/else"))[0] == 409
        assert refused(lambda: add(here, "inside", (disk / "deeper").as_uri())) == (
            409,
            f"bucket 'near' lies at {disk.as_uri()}: one can't lie in the other",
        )
        assert refused(lambda: add(here, "etc", "file:///etc/lakehouse"))[0] == 403
        assert refused(lambda: add(here, "ftp", "ftp://host/x"))[0] == 422
        status, reason = refused(lambda: add(here, "raw", "s3://bucket/x", secret_access_key=SECRET))
        assert (status, SECRET in reason) == (422, False)
        status, reason = refused(lambda: add(here, "away", "s3://bucket/x", endpoint="http://169.254.169.254"))
        assert (status, "link-local" in reason) == (422, True)
        status, reason = refused(lambda: add(here, "unset", "s3://bucket/y", access_key_id_env="LAKE_NOT_SET"))
        assert (status, "LAKE_NOT_SET" in reason) == (422, True)
        assert refused(lambda: here.call("DELETE", "/storage/buckets/primary"))[0] == 403
        assert refused(lambda: here.call("DELETE", "/storage/buckets/rescue"))[0] == 403
        assert refused(lambda: here.call("DELETE", "/storage/buckets/nothing"))[0] == 404
        assert refused(lambda: here.call("DELETE", "/storage/buckets/far")) == (
            409,
            "bucket 'far' is home to dataset rows",
        )
        here.call("PATCH", "/datasets/rows", {"bucket": "near"})
        assert here.call("GET", "/datasets/rows")["rows"] == ROWS
        here.until(lambda: not bucket_of(here, "far")["homes"], "the old place is cleared", 60)
        assert here.call("DELETE", "/storage/buckets/far") == {"type": "bucket.removed", "bucket": "far"}
        assert refused(lambda: bucket_of(here, "far"))[0] == 404
        assert api.keys() == []
    here.stop()
    for path in [here.log, *(path for path in here.state.rglob("*") if path.is_file())]:
        assert SECRET.encode() not in path.read_bytes(), path


def test_searches_go_on_while_all_of_it_moves(here: House, tmp_path: Path) -> None:
    add(here, "near", (tmp_path / "disks" / "one").as_uri())
    here.ingest(write_rows(here.folder / "rows.jsonl"), "rows", id_column="id")
    here.call("POST", "/vectors/indexes", {"name": "docs", "dataset": "rows", "column": "vector"})
    here.index_ready("docs", ROWS)
    with Load(here, "docs").on() as load:
        for bucket in ("near", "primary", "near"):
            assert here.call("PATCH", "/vectors/indexes/docs", {"bucket": bucket})["bucket"] == bucket
            assert here.call("PATCH", "/datasets/rows", {"bucket": bucket})["bucket"] == bucket
        here.ingest(write_rows(here.folder / "more.jsonl", 50, ROWS), "rows", id_column="id")
        here.index_ready("docs", ROWS + 50)
        here.until(lambda: not bucket_of(here, "primary")["homes"], "the old place is cleared", 60)
        before = load.answers
        here.until(lambda: load.answers > before + 50, "searches go on", 10)
    assert load.wrong == []
    assert not (here.state / "buckets/primary/indexes/docs").exists()
    assert here.call("GET", "/vectors/indexes/docs")["bucket"] == "near"
    here.stop()
    here.start()
    here.index_ready("docs", ROWS + 50)


def test_a_bucket_is_pulled_away_under_load_and_comes_back(here: House, tmp_path: Path) -> None:
    disk, away = tmp_path / "disks" / "one", tmp_path / "away"
    add(here, "near", disk.as_uri())
    here.ingest(write_rows(here.folder / "rows.jsonl"), "rows", id_column="id")
    here.call("POST", "/vectors/indexes", {"name": "docs", "dataset": "rows", "column": "vector", "bucket": "near"})
    here.index_ready("docs", ROWS)
    with Load(here, "docs").on() as load:
        disk.rename(away)
        generation = here.call("POST", "/vectors/indexes/docs/rebuild")["generation"]
        here.until(lambda: bucket_of(here, "near")["waiting"] > 0, "something waits in rescue", 30)
        assert bucket_of(here, "near")["health"] == "down"

        def served() -> bool:
            return bool(here.call("GET", "/vectors/indexes/docs/stats")["generation"] == generation)

        here.until(served, "the new generation is served from rescue", 60)
        assert not disk.exists()
        assert refused(lambda: here.call("DELETE", "/storage/buckets/near"))[0] == 409
        assert load.answers > 0
        assert load.wrong == []  # what is asked from the kill on finds nobody
        here.kill()
    here.start()
    here.until(lambda: bucket_of(here, "near")["waiting"] > 0, "it still waits", 30)
    away.rename(disk)
    here.until(lambda: bucket_of(here, "near")["health"] == "ok", "it was brought home", 60)
    assert bucket_of(here, "near")["waiting"] == 0
    graphs = sorted((disk / "indexes/docs/generations").rglob("graph.hnsw"))
    assert graphs[-1].parent.name == f"{generation:06d}"
    assert [path for path in (here.state / "buckets/rescue").rglob("*") if path.is_file()] == []
    here.stop()
    here.start()
    here.index_ready("docs", ROWS)
    assert here.call("GET", "/vectors/indexes/docs")["generation"] == generation
    events = here.log.read_text()
    assert "bucket is degraded" in events
    assert "bucket is restored" in events
