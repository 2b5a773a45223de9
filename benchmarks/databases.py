"""From a database's table to a committed dataset, beside the database's own client that writes the
same table to a file: 1M rows × 9 columns, servers started here.

    python -m benchmarks.databases [--rows 1000000] [--repeat 3]
"""

import argparse
import asyncio
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import asyncmy
import pyarrow as pa
from asyncmy.cursors import SSCursor

from actors.base import Origin
from actors.ingest.actor import Ingest
from actors.ingest.config import IngestConfig
from actors.ingest.databases.dsn import parse
from actors.ingest.databases.opening import open_database
from actors.ingest.databases.request import DatabaseRequest
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.events.dataset import IngestDatabase, IngestReport
from schemas.secret import Secret
from tests.databases import PASSWORD, Database, mariadb, postgres

PG = """
CREATE TABLE t AS SELECT i AS id, i * 7919::bigint AS big, (i % 100000) / 100.0::numeric(12,2) AS price,
  random() AS score, i % 3 = 0 AS ok, date '2020-01-01' + i % 2000 AS day,
  timestamptz '2020-01-01 00:00Z' + i * interval '1 minute' AS at, md5(i::text) AS name,
  repeat(md5((i * 31)::text), 2) AS note FROM generate_series(1, {rows}) i;
ALTER TABLE t ALTER price TYPE numeric(12,2); ANALYZE t;
"""
MARIA = """
CREATE TABLE t (id int, big bigint, price decimal(12,2), score double, ok tinyint(1), day date, at datetime(6),
  name varchar(40), note varchar(80)) ENGINE=InnoDB;
INSERT INTO t SELECT seq, seq * 7919, (seq % 100000) / 100, rand(), seq % 3 = 0,
  date '2020-01-01' + interval seq % 2000 day,
  timestamp "2020-01-01 00:00:00" + interval seq minute, md5(seq), repeat(md5(seq * 31), 2) FROM seq_1_to_{rows};
"""

NAMES = ["id", "big", "price", "score", "ok", "day", "at", "name", "note"]


async def ingest(database: Database, folder: Path, id_column: str | None, query: str = "SELECT * FROM t") -> int:
    buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
    tables = DeltaTables(buckets, folder / "cache")
    registry = DocumentRegistry(buckets, MemoryHeads())
    config = IngestConfig(database_hosts=["127.0.0.1"])
    actor = Ingest(tables, registry, buckets, MemoryBus(), SystemClock(), config, folder / "uploads")
    await actor.start()
    command = IngestDatabase(dsn=Secret(database.dsn), query=query, dataset="t", id_column=id_column)
    said = await actor.on_database(command, Origin("m", "m", 0.0, asked=True))
    assert isinstance(said[-1], IngestReport), said[-1]
    return said[-1].rows


def ours(database: Database, id_column: str | None) -> tuple[float, int]:
    """Seconds, and the most memory of its own (MiB, anonymous) that a process had that did nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(in_a_process, database, id_column).result()


def in_a_process(database: Database, id_column: str | None) -> tuple[float, int]:
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", status)[1]))  # type: ignore[index]

    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory() as folder:
        # A daemon has its libraries loaded.
        asyncio.run(ingest(database, Path(folder, "warm"), id_column, "SELECT * FROM t LIMIT 1000"))
        began = time.perf_counter()
        asyncio.run(ingest(database, Path(folder, "timed"), id_column))
        seconds = time.perf_counter() - began
    done.set()
    watching.join()
    return seconds, peak // 1024


async def read_tuples(database: Database) -> int:
    """asyncmy's cursor as it is, and Arrow arrays of its cells."""
    connection = await asyncmy.connect(
        host="127.0.0.1", port=database.port, user=database.user, password=PASSWORD, db=database.name
    )
    rows = 0
    async with connection.cursor(SSCursor) as cursor:
        await cursor.execute("SELECT * FROM t")
        while batch := await cursor.fetchmany(16_384):
            rows += len(pa.RecordBatch.from_arrays([pa.array(cells) for cells in zip(*batch, strict=True)], NAMES))
    await connection.ensure_closed()
    return rows


def read_lines(database: Database) -> int:
    """Our reader, without staging what it reads."""
    reader = open_database(DatabaseRequest(dsn=parse(database.dsn), address="127.0.0.1", table="t"))
    return sum(len(chunk.lines) for chunk in reader.chunks(reader.survey(None, None).columns))


def read_alone(database: Database, rows: int, repeat: int) -> None:
    ways: dict[str, Callable[[], int]] = {
        "read alone, asyncmy's tuples": lambda: asyncio.run(read_tuples(database)),
        "read alone, lines of CSV": lambda: read_lines(database),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, run in ways.items():
            began = time.perf_counter()
            assert run() == rows
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        print(f"{database.scheme + ': ' + name:40} {rows / min(seconds):10,.0f}")


def dump(database: Database) -> float:
    """Seconds that the server's own client takes."""
    with tempfile.NamedTemporaryFile() as out:
        began = time.perf_counter()
        if database.scheme == "postgresql":
            subprocess.run(["psql", "-qX", database.dsn, "-c", rf"\copy t to '{out.name}' csv"], check=True)
        else:
            command = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{database.port}", "-ulake", "--batch", "--quick"]
            env = {**os.environ, "MYSQL_PWD": PASSWORD}
            subprocess.run([*command, "lake", "-e", "SELECT * FROM t"], check=True, stdout=out, env=env)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print(f"{'way':40} {'rows/s':>10} {'of client':>10} {'memory':>9}")
    for server, fill, client in ((postgres, PG, r"psql \copy to csv"), (mariadb, MARIA, "mariadb --batch")):
        with server() as database:
            database.run(fill.format(rows=given.rows))
            dump(database)
            clients, by_id, by_content = [], [], []
            for _ in range(given.repeat):  # interleaved: the machine is shared
                clients.append(dump(database))
                by_id.append(ours(database, "id"))
                by_content.append(ours(database, None))
            theirs = min(clients)
            print(f"{database.scheme + ': ' + client:40} {given.rows / theirs:10,.0f} {1:10.2f}")
            for name, runs in (("ingest, id_column", by_id), ("ingest, content ids", by_content)):
                seconds, memory = min(each[0] for each in runs), max(each[1] for each in runs)
                line = f"{database.scheme + ': ' + name:40} {given.rows / seconds:10,.0f} {theirs / seconds:10.2f}"
                print(f"{line} {memory:5} MiB", flush=True)
            if database.scheme == "mysql":
                read_alone(database, given.rows, given.repeat)


if __name__ == "__main__":
    main()
