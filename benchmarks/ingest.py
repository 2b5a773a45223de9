"""How fast is ingest, and how much memory does it take? Each format from a file to a committed
table, beside pyarrow reading the same file and throwing it away.

    python -m benchmarks.ingest [--rows 500000]

Every figure comes from a process of its own; memory is its VmHWM, imports included.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

FORMATS = ("csv", "jsonl", "parquet", "arrow")
DIM = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--one", nargs=2, metavar=("ROAD", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _measure(arguments.one[0], Path(arguments.one[1]))
        return
    print(
        f"{'file':<16}{'MB':>6}{'rows':>9}   {'ingest rows/s':>14}{'MB/s':>7}{'RSS MB':>8}"
        f"   {'pyarrow rows/s':>14}{'RSS MB':>8}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind, rows in (("text", arguments.rows), ("vectors", arguments.rows // 20)):
            for suffix in FORMATS:
                path = Path(folder) / f"{kind}.{suffix}"
                _write(path, kind, rows)
                size = path.stat().st_size / 1e6
                seconds, peak = _run("ingest", path)
                bare, bare_peak = _run("pyarrow", path)
                print(
                    f"{path.name:<16}{size:>6.0f}{rows:>9}   {rows / seconds:>14,.0f}{size / seconds:>7.0f}{peak:>8.0f}"
                    f"   {rows / bare:>14,.0f}{bare_peak:>8.0f}"
                )
                path.unlink()


def _write(path: Path, kind: str, rows: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(5000)])
    text = [" ".join(row) for row in words[rng.integers(0, 5000, (rows, 10))]]
    table = pa.table({"key": [f"k{n:09d}" for n in range(rows)], "title": text, "price": rng.random(rows)})
    if kind == "vectors":
        vectors = rng.random((rows, DIM), dtype=np.float32)
        table = table.append_column("v", pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM))
    if path.suffix == ".csv":
        if kind == "vectors":
            table = table.set_column(3, "v", pa.array([str(v.tolist()) for v in vectors]))
        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".jsonl":
        with path.open("wb") as out:
            for batch in table.to_batches(8192):
                out.write(msgspec.json.Encoder().encode_lines(batch.to_pylist()))
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def _run(road: str, path: Path) -> tuple[float, float]:
    """Seconds, and peak MB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ingest", "--one", road, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def _measure(road: str, path: Path) -> None:
    seconds = asyncio.run(_ingest(path)) if road == "ingest" else _pyarrow(path)
    peak_kb = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(seconds, int(peak_kb.split()[1]) / 1024)


async def _ingest(path: Path) -> float:
    from actors.base import Origin
    from actors.ingest.actor import Ingest
    from actors.ingest.config import IngestConfig
    from daemon.bus.heads import MemoryHeads
    from daemon.bus.memory import MemoryBus
    from daemon.clock import SystemClock
    from daemon.storage.buckets import ObjectBuckets
    from daemon.storage.registry import DocumentRegistry
    from daemon.storage.tables import DeltaTables
    from schemas.events.dataset import IngestFile, IngestReport

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        tables, registry = DeltaTables(buckets, folder / "cache"), DocumentRegistry(buckets, MemoryHeads())
        config = IngestConfig(allowed_roots=[str(path.parent)])
        ingest = Ingest(tables, registry, buckets, MemoryBus(), SystemClock(), config, folder / "uploads")
        await ingest.start()
        start = time.perf_counter()
        said = await ingest.on_file(IngestFile(str(path), "d"), Origin("m", "c", 0.0))
        seconds = time.perf_counter() - start
        report = next(message for message in said if isinstance(message, IngestReport))
        if report.rejected:
            raise RuntimeError(f"{report.rejected} rows refused: {report.rejects[0]}")
        return seconds


def _pyarrow(path: Path) -> float:
    start = time.perf_counter()
    if path.suffix == ".csv":
        for _ in pyarrow.csv.open_csv(path):
            pass
    elif path.suffix == ".jsonl":
        pyarrow.json.read_json(path)
    elif path.suffix == ".parquet":
        for _ in pq.ParquetFile(path).iter_batches(8192):
            pass
    else:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as opened:
            for i in range(opened.num_record_batches):
                opened.get_batch(i)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
