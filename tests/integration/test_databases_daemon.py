"""Databases and a whole daemon: a password over HTTP lies nowhere afterwards, a kill in the middle of a
run leaves nothing half-visible, a schedule keeps a dataset in step."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import PASSWORD, QUOTED_PASSWORD, Database, postgres
from tests.integration.house import House, HttpError, house
from tests.integration.test_databases import forms, holding

pytestmark = [pytest.mark.slow, pytest.mark.needs("postgres")]

CANARY = "Canary7PassWord"


@pytest.fixture(scope="module")
def pg() -> Iterator[Database]:
    with postgres() as database:
        yield database


@pytest.fixture
def here(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "house", ingest__database_hosts=["127.0.0.1"], agent__enabled=False) as made:
        yield made


def pull(here: House, database: Database, **more: Any) -> Any:
    return here.call("POST", "/ingest/db", {"dsn": database.dsn, "dataset": "t", **more})


def test_a_password_lies_nowhere_after_all_that_can_go_wrong(here: House, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS t; CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    for form in forms(CANARY):
        for road in ("/ingest/db", "/ingest/mysql"):
            with pytest.raises(HttpError) as error:
                here.call("POST", road, {"dsn": form, "dataset": "t", "table": "t"})
            assert CANARY not in f"{error.value} {error.value.body}", form
    with pytest.raises(HttpError) as error:
        here.call("POST", "/ingest/db", {"dsn": pg.dsn, "dataset": "t", "table": "no such table"})
    assert error.value.status == 404
    assert pull(here, pg, table="t", id_column="id", cursor="id")["rows"] == 2
    assert here.call("GET", "/lineage/t")["up"]
    here.stop()
    for secret in (CANARY, PASSWORD, QUOTED_PASSWORD):
        assert holding(here.state, secret.encode()) == []
        assert secret not in here.log.read_text()


def test_a_kill_in_the_middle_leaves_nothing_and_the_run_is_done_again(here: House, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS big; CREATE TABLE big AS SELECT i AS id, repeat(md5(i::text), 4) AS t "
           "FROM generate_series(1, 400000) i")  # fmt: skip

    def ask() -> None:
        with contextlib.suppress(Exception):  # nobody answers: it is killed
            pull(here, pg, table="big", id_column="id", cursor="id")

    asking = threading.Thread(target=ask)
    asking.start()
    stages = here.state
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size > 4 << 20 for path in stages.rglob("stage-*/rows")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    here.kill()
    asking.join()
    here.start()
    assert [one["dataset"] for one in here.call("GET", "/datasets")["datasets"]] in ([], ["t"])
    first = pull(here, pg, table="big", id_column="id", cursor="id")
    assert first["total_rows"] == 400_000
    pg.run("INSERT INTO big VALUES (400001, 'new')")
    assert pull(here, pg, table="big", id_column="id", cursor="id")["rows"] == 1
    counted = here.call("POST", "/sql", {"query": "SELECT count(*), count(DISTINCT id) FROM t"})["rows"]
    assert counted == [[400_001, 400_001]]
    assert list(stages.rglob("stage-*")) == []
