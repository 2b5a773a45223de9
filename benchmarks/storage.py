"""What an append of 100 rows costs, beside the alternatives; how fast rows stream into a table.

    python benchmarks/storage.py [--rows 100000] [--dim 384]

Ours is durable on return (every file and directory fsynced); deltalake's own writer isn't. A
"Parquet rewrite" reads the whole file, adds the rows and writes it again, atomically.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from actors.ports import TableRef
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.tables import DeltaTables
from schemas.events.dataset import CommitInfo

TABLE = TableRef("primary", "bench")
APPENDS = 100


def batches(rows: int, dim: int, seed: int) -> Iterator[pa.RecordBatch]:
    generator = np.random.default_rng(seed)
    for start in range(0, rows, 8192):
        n = min(8192, rows - start)
        flat = pa.array(generator.random(n * dim, dtype=np.float32))
        vectors = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * dim), flat)
        texts = pa.array([f"row {start + i}: a line of text that says a little" for i in range(n)])
        yield pa.record_batch([texts, vectors], names=["text", "vector"])


def note(message: str) -> CommitInfo:
    return CommitInfo(version=0, time=0, operation="append", rows=0, message=message)


def report(what: str, times: list[float], written: float) -> None:
    p50, p99 = statistics.median(times) * 1e3, sorted(times)[int(0.99 * (len(times) - 1))] * 1e3
    print(f"{what:44} {p50:9.2f} {p99:9.2f} {written / 1024:12.0f}")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def ours(folder: Path, rows: int, dim: int) -> None:
    tables = DeltaTables(ObjectBuckets({"primary": folder.as_uri()}, folder / "cache"), folder / "cache")
    start = time.perf_counter()
    state = await tables.commit(TABLE, batches(rows, dim, 0), note("load"))
    took = time.perf_counter() - start
    print(f"load: {rows:,} rows, {state.bytes / 2**20:.0f} MiB in {took:.1f} s = {rows / took:,.0f} rows/s\n")
    print(f"{f'append of 100 rows to {rows:,} × {dim}':44} {'p50 ms':>9} {'p99 ms':>9} {'KiB each':>12}")
    before, times = size(folder), []
    for n in range(APPENDS):
        some = list(batches(100, dim, n))
        start = time.perf_counter()
        await tables.commit(TABLE, some, note(f"m{n}"))
        times.append(time.perf_counter() - start)
    report("lakehouse tables (durable, merging included)", times, (size(folder) - before) / APPENDS)
    times = []
    for _ in range(1000):
        start = time.perf_counter()
        await tables.state(TABLE)
        times.append(time.perf_counter() - start)
    print(f"{'  state() when nothing changed':44} {statistics.median(times) * 1e3:9.3f}")
    times = []
    for n in range(50):
        start = time.perf_counter()
        await tables.read(TABLE, ["text"], rows=np.random.default_rng(n).integers(0, rows, 10))
        times.append(time.perf_counter() - start)
    print(f"{'  read() of 10 random rows, text column':44} {statistics.median(times) * 1e3:9.2f}")
    times = []
    for n in range(20):
        start = time.perf_counter()
        await tables.match(TABLE, f"text LIKE 'row {n}%'")
        times.append(time.perf_counter() - start)
    print(f"{'  match() of a LIKE over every row':44} {statistics.median(times) * 1e3:9.2f}")


def deltalake_itself(folder: Path, rows: int, dim: int) -> None:
    write_deltalake(folder, pa.RecordBatchReader.from_batches(next(batches(1, dim, 0)).schema, batches(rows, dim, 0)))
    before, times = size(folder), []
    for n in range(APPENDS):
        some = pa.Table.from_batches(batches(100, dim, n))
        start = time.perf_counter()
        write_deltalake(folder, some, mode="append")
        times.append(time.perf_counter() - start)
    report("deltalake.write_deltalake (not synced)", times, (size(folder) - before) / APPENDS)


def rewrite(folder: Path, rows: int, dim: int) -> None:
    path = folder / "all.parquet"
    pq.write_table(pa.Table.from_batches(batches(rows, dim, 0)), path)
    times = []
    for n in range(3):
        some = pa.Table.from_batches(batches(100, dim, n))
        start = time.perf_counter()
        pq.write_table(pa.concat_tables([pq.read_table(path), some]), folder / "new.parquet")
        (folder / "new.parquet").replace(path)
        times.append(time.perf_counter() - start)
    report("Parquet rewrite (not synced)", times, path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("ours", "delta", "rewrite")]
        for place in places:
            place.mkdir()
        asyncio.run(ours(places[0], arguments.rows, arguments.dim))
        deltalake_itself(places[1], arguments.rows, arguments.dim)
        rewrite(places[2], arguments.rows, arguments.dim)


if __name__ == "__main__":
    main()
