"""The roles split: one control, one work and two serve processes, each with a state directory of
its own, over one NATS server and one shared bucket. The main road, driven through a serve process."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.house import House, HttpError
from tests.integration.test_main_road import ROWS, parquet, search, vectors

PASSWORD = "for-tests-only"


class Town(NamedTuple):
    control: House
    work: House
    serve: House
    other: House  # serves too
    inbox: Path  # the folder that control may read from


@contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    """A server as an operator would run one; its URL."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\n"
        f"authorization {{ user: lakehouse, password: {PASSWORD} }}\n"
        f"jetstream {{ store_dir: {folder / 'store'}, sync_interval: always }}\n"
    )
    with (folder / "log").open("wb") as log:
        binary = Path(sys.executable).with_name("nats-server")
        process = subprocess.Popen([binary, "-c", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def process(folder: Path, role: str, url: str, **settings: Any) -> Iterator[House]:
    """A daemon with one role, started, and ended at the end."""
    password, name = folder / "nats.password", folder.name
    made = House(folder, daemon__name=name, nats__url=url, nats__password_file=str(password), **settings)
    password.write_text(PASSWORD)
    bucket = (folder.parent / "bucket").as_uri()
    with (folder / "lakehouse.toml").open("a") as config:
        config.write(f'\n[[storage.buckets]]\nname = "primary"\nurl = "{bucket}"\n')
    try:
        made.start("--role", role)
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            assert made.stop() == 0


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    inbox = folder / "inbox"
    inbox.mkdir()
    quiet = {"agent__enabled": False}
    with ExitStack() as stack:
        url = stack.enter_context(nats_server(folder / "nats"))
        control = stack.enter_context(
            process(folder / "control", "control", url, ingest__allowed_roots=[str(inbox)], **quiet)
        )
        work = stack.enter_context(process(folder / "work", "work", url, **quiet))
        serve = stack.enter_context(process(folder / "serve", "serve", url, **quiet))
        other = stack.enter_context(process(folder / "other", "serve", url, **quiet))
        parquet(inbox / "first.parquet", ROWS, seed=1)
        assert serve.ingest(inbox / "first.parquet", "points", id_column="id")["rows"] == ROWS
        body = {"name": "points", "dataset": "points", "column": "embedding", "metric": "l2"}
        serve.call("POST", "/vectors/indexes", body)
        serve.index_ready("points", ROWS)
        yield Town(control, work, serve, other, inbox)


def test_every_process_knows_its_role_and_says_so(town: Town) -> None:
    assert [made.call("GET", "/status")["roles"] for made in town[:4]] == [["control"], ["work"], ["serve"], ["serve"]]


def test_both_serve_what_was_created_and_any_process_may_be_asked(town: Town) -> None:
    query = vectors(ROWS, 1)[17]
    for made in town[:4]:
        made.until(lambda made=made: search(made, query)["generation"] >= 1, "it serves a graph", 60)
        assert search(made, query, k=3)["queries"][0][0]["id"] == 17


def test_uploads_go_to_control_and_others_say_so(town: Town) -> None:
    """An upload lies on its process's own disk; control reads none but its own."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="dataset"\r\n\r\nuploaded\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nid,text\n1,one\n\r\n--x--\r\n'
    )
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert town.control.call("POST", "/ingest/file", raw=form, **kind)["rows"] == 1
    with pytest.raises(HttpError) as caught:
        town.serve.call("POST", "/ingest/file", raw=form, **kind)
    assert caught.value.status == 422
    assert "the role control" in caught.value.body["reason"]
    assert not list(town.serve.state.glob("uploads/upload-*"))


def test_tuning_promotes_and_both_swap_without_a_failed_query(town: Town) -> None:
    failures: list[str] = []
    stop = threading.Event()

    def load(made: House) -> None:
        queries = vectors(50, 9)
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                hits = search(made, queries[turn % 50])["queries"][0]
                if len(hits) != 10:
                    failures.append(f"{len(hits)} hits")
            except Exception as error:
                failures.append(repr(error))
            time.sleep(0.01)

    readers = [threading.Thread(target=load, args=[made]) for made in (town.serve, town.other)]
    for reader in readers:
        reader.start()
    try:
        lines = town.serve.call("POST", "/vectors/hnsw/autotune", {"index_name": "points"})
        assert lines[-1]["type"] == "autotune.finished", lines[-1]
        assert {line["type"] for line in lines} >= {"autotune.started", "trial.completed"}
        trials = town.other.call("GET", "/vectors/trials/points")["points"]
        assert {point["host"] for point in trials} == {"work"}
        if lines[-1]["outcome"] != "promoted":
            chosen = next(point for point in trials if point["chosen"] and point["recall_lower"] >= 0.95)
            town.serve.call("POST", f"/vectors/hnsw/promote/points/{chosen['trial']}?promoted_by=test")
        for made in (town.serve, town.other):
            made.until(lambda made=made: search(made, vectors(1, 3)[0])["generation"] > 1, "it swapped", 60)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert town.other.call("GET", "/vectors/hnsw/promoted/points")["current"]["recall_lower"] >= 0.95


def test_rows_that_land_are_found_at_both_and_so_are_deletes(town: Town) -> None:
    new = vectors(200, 5)
    parquet(town.inbox / "more.parquet", 200, seed=5, first_id=50_000)
    town.other.ingest(town.inbox / "more.parquet", "points", id_column="id")
    for made in (town.serve, town.other):
        made.until(lambda made=made: search(made, new[7], k=1)["queries"][0][0]["id"] == 50_007, "it is found", 30)
    town.serve.call("DELETE", "/datasets/points/rows", {"ids": [50_007]})
    for made in (town.serve, town.other):
        made.until(lambda made=made: search(made, new[7], k=1)["queries"][0][0]["id"] != 50_007, "it is gone", 30)


def test_a_serve_process_that_dies_is_missed_by_nobody_and_catches_up(town: Town) -> None:
    before = search(town.serve, vectors(1, 3)[0])["generation"]
    town.other.kill()
    town.serve.call("POST", "/vectors/indexes/points/rebuild", {})
    town.serve.until(lambda: search(town.serve, vectors(1, 3)[0])["generation"] > before, "it swapped", 60)
    town.other.start("--role", "serve")
    town.other.until(lambda: search(town.other, vectors(1, 3)[0])["generation"] > before, "it caught up", 30)


def test_without_the_owner_an_ask_says_whose_role_is_missing(town: Town) -> None:
    assert town.control.stop() == 0
    with pytest.raises(HttpError) as caught:
        town.serve.call("GET", "/datasets")
    assert caught.value.status == 503
    assert "role" in caught.value.body["reason"]
    assert search(town.serve, vectors(ROWS, 1)[17], k=1)["queries"][0][0]["id"] == 17, "searching needs no control"
    town.control.start("--role", "control")
    assert town.serve.call("GET", "/datasets")["datasets"]
