"""Aggregates over a dataset of 1M rows: the lakehouse's engine beside plain DuckDB on the same files.

python -m benchmarks.sql [--rows 1000000] [--repeat 30]
"""

import argparse
import asyncio
import glob
import statistics
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from actors.ports import TableRef
from actors.sql.config import SqlConfig
from daemon.bus.heads import MemoryHeads
from daemon.sql.catalogue import Catalogue
from daemon.sql.engine import DuckEngine
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.documents.dataset import DatasetDocument
from schemas.events.dataset import CommitInfo

QUERIES = {
    "count, sum, avg": "SELECT count(*), sum(n), avg(score) FROM {t}",
    "group by 1,000": "SELECT key, count(*), sum(score) FROM {t} GROUP BY key ORDER BY 2 DESC LIMIT 10",
    "filter and group": "SELECT key % 7, max(score) FROM {t} WHERE score > 0.9 GROUP BY 1",
    "text": "SELECT count(DISTINCT name) FROM {t} WHERE name LIKE '%7'",
}


async def run(rows: int, repeat: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        tables, registry = DeltaTables(buckets, folder / "cache"), DocumentRegistry(buckets, MemoryHeads())
        rng = np.random.default_rng(1)
        key = rng.integers(0, 1000, rows)
        batch = pa.record_batch(
            {"n": np.arange(rows), "key": key, "score": rng.random(rows), "name": [f"name {value}" for value in key]}
        )
        await tables.commit(TableRef("primary", "datasets/t/table"), batches(batch), CommitInfo(0, 0, "append", 0, "m"))
        document = DatasetDocument(
            dataset="t",
            bucket="primary",
            path="datasets/t/table",
            id_column="n",
            generated_id=False,
            columns=[],
            created=0.0,
        )
        await registry.save("t", document, expected=None)
        engine = DuckEngine(Catalogue(tables, registry), SqlConfig())
        plain = duckdb.connect(config={"threads": 2})
        files = glob.glob(f"{folder}/**/part-*.parquet", recursive=True)
        print(f"{'query':20} {'lakehouse p50':>14} {'DuckDB p50':>12} {'ratio':>6}")
        for label, query in QUERIES.items():
            ours, theirs = [], []
            for _ in range(repeat + 3):
                began = time.perf_counter()
                await engine.rows(query.format(t="t"), 1000, {})
                ours.append(time.perf_counter() - began)
                began = time.perf_counter()
                plain.sql(query.format(t=f"read_parquet({files})")).fetchall()
                theirs.append(time.perf_counter() - began)
            a, b = statistics.median(ours[3:]), statistics.median(theirs[3:])
            print(f"{label:20} {a * 1e3:11.1f} ms {b * 1e3:9.1f} ms {a / b:6.2f}")


def batches(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    return [batch.slice(start, 65_536) for start in range(0, batch.num_rows, 65_536)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=30)
    given = parser.parse_args()
    asyncio.run(run(given.rows, given.repeat))


if __name__ == "__main__":
    main()
