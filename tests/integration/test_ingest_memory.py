"""Peak memory of an ingest does not depend on the size of the file: measured in a process of
its own, from a file to a committed table."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

LIMIT_MB = 300

_INGEST = """
import asyncio, sys
from pathlib import Path
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

async def main(folder: Path, path: str) -> None:
    buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
    registry = DocumentRegistry(buckets, MemoryHeads())
    config = IngestConfig(allowed_roots=[str(folder)])
    tables = DeltaTables(buckets, folder / "cache")
    ingest = Ingest(tables, registry, buckets, MemoryBus(), SystemClock(), config, folder / "uploads")
    await ingest.start()
    rows = []
    for n in range(2):  # the second time every row is there already
        said = await ingest.on_file(IngestFile(path, "d"), Origin(f"m{n}", "c", 0.0))
        rows += [message.rows for message in said if isinstance(message, IngestReport)]
    # Not ru_maxrss: that keeps the peak of the process that forked this one.
    peak_kb = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
    print(*rows, int(peak_kb) // 1024)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def ingest(folder: Path, path: Path) -> tuple[int, int, int]:
    """Rows stored the first and the second time, peak RSS in MB."""
    done = subprocess.run(
        [sys.executable, "-c", _INGEST, str(folder), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, peak = map(int, done.stdout.split())
    return first, second, peak


@pytest.mark.slow
def test_600_mb_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    words = [f"word{n} " * 10 for n in range(1000)]
    rows = 0
    with path.open("w") as out:
        out.write("key,title,price\n")
        while out.tell() < 600_000_000:
            out.write("".join(f"k{n},{words[n % 997]},{n * 0.25}\n" for n in range(rows, rows + 10_000)))
            rows += 10_000
    first, second, peak = ingest(tmp_path, path)
    assert (first, second) == (rows, 0)
    assert peak < LIMIT_MB


@pytest.mark.slow
def test_one_arrow_batch_of_600_mb(tmp_path: Path) -> None:
    """An Arrow file may be a single record batch; it is mapped, not read."""
    path = tmp_path / "big.arrow"
    rows, dim = 400_000, 384
    vectors = np.random.default_rng(0).random((rows, dim), dtype=np.float32)
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(vectors.ravel(), dim)})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    assert path.stat().st_size > 600_000_000
    first, second, peak = ingest(tmp_path, path)
    assert (first, second) == (rows, 0)
    assert peak < LIMIT_MB
