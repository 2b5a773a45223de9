"""What does looking for personal data cost? The pre-filter, on a million values of each sort; the
whole detection of a column, from a full sample; and ingest with it and without it.

    python -m benchmarks.pii [--values 1000000] [--rows 500000]

The pre-filter (one look for what all kinds have in them, then RE2 by kind) must do a million values
a second; the validators see some hundred values of a column, whatever its length.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from email_validator import EmailNotValidError, validate_email

from actors.base import Origin
from actors.ingest import staging
from actors.ingest.actor import Ingest
from actors.ingest.config import IngestConfig
from actors.ingest.pii.detect import detect
from actors.ingest.pii.sampling import MOST, Sampler
from actors.ingest.pii.shapes import shaped
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.events.base import Refusal
from schemas.events.dataset import IngestFile

SORTS: dict[str, Callable[[random.Random], str]] = {
    "e-mail": lambda r: f"user{r.getrandbits(24)}@example.com",
    "phone": lambda r: f"+49 30 {r.randrange(10**6, 10**7)}",
    "address": lambda r: f"{r.randrange(1, 300)} Long Meadow Street",
    "name": lambda r: f"{r.choice(['Anna', 'Peter', 'Lucía'])} {r.choice(['Smith', 'Müller', 'Rossi'])}",
    "eleven digits": lambda r: f"{r.randrange(10**10, 10**11)}",
    "UUID": lambda r: f"{r.getrandbits(128):032x}",
    "price": lambda r: f"{r.randrange(1, 10**4)}.{r.randrange(10, 100)}",
    "prose": lambda r: " ".join(r.choices(["order", "shipped", "late", "3", "again", "because", "of", "rain"], k=12)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=500_000)
    arguments = parser.parse_args()
    print(f"{'column':<16}{'pre-filter':>14}{'sample':>14}{'detect':>12}   found")
    print(f"{'':<16}{'values/s':>14}{'values/s':>14}{'ms/column':>12}")
    for sort, make in SORTS.items():
        rng = random.Random(0)
        values = pa.array([make(rng) for _ in range(arguments.values)])
        sampler = Sampler("benchmark", ["c"])
        sampling = _seconds(_sample, sampler, values)
        sample = sampler.sample("c")
        detecting = _seconds(detect, "c", sample)
        filtering = _seconds(shaped, values)
        found = ", ".join(f"{f.kind} {f.confidence:.2f}" for f in detect("c", sample)) or "-"
        rates = f"{len(values) / filtering:>14,.0f}{len(values) / sampling:>14,.0f}{detecting * 1e3:>12.0f}"
        print(f"{sort:<16}{rates}   {found}")
    _beside_the_validator(arguments.values)
    _ingest(arguments.rows)


def _beside_the_validator(count: int) -> None:
    """The same question to email-validator alone, value by value."""
    rng = random.Random(1)
    texts = [SORTS["e-mail"](rng) for _ in range(min(count, 50_000))]
    one_by_one = _seconds(lambda: [_valid(text) for text in texts])
    print(f"\nemail-validator alone, value by value: {len(texts) / one_by_one:,.0f} values/s")


def _valid(text: str) -> bool:
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _ingest(rows: int) -> None:
    """Nine columns of a Parquet file into a dataset."""
    rng = random.Random(2)
    numbers = np.random.default_rng(0)
    columns = {sort: [make(rng) for _ in range(min(rows, 20_000))] for sort, make in SORTS.items()}
    table = pa.table(
        {"k": pa.array(range(rows))}
        | {sort: pa.array(made).take(pa.array(numbers.integers(0, len(made), rows))) for sort, made in columns.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "people.parquet"
        pq.write_table(table, path)
        looking = staging.Stage.inspect
        print(f"\ningest of {rows:,} rows × {table.num_columns} columns of Parquet")
        for how in ("without looking", "flag", "mask"):
            if how == "without looking":
                staging.Stage.inspect = lambda *_: []  # type: ignore[method-assign]
            seconds = min(asyncio.run(_load(Path(folder), path, how, n)) for n in range(2))
            staging.Stage.inspect = looking  # type: ignore[method-assign]
            print(f"  {how:<16}{rows / seconds:>10,.0f} rows/s")


async def _load(folder: Path, path: Path, how: str, run: int) -> float:
    home = folder / f"{how} {run}"
    home.mkdir()
    buckets = ObjectBuckets({"primary": (home / "primary").as_uri()}, home / "cache")
    tables, registry = DeltaTables(buckets, home / "cache"), DocumentRegistry(buckets, MemoryHeads())
    config = IngestConfig(allowed_roots=[str(folder)], pii="mask" if how == "mask" else "flag")
    ingest = Ingest(tables, registry, buckets, MemoryBus(), SystemClock(), config, home / "uploads")
    await ingest.start()
    began = time.perf_counter()
    said = await ingest.on_file(IngestFile(str(path), "d", id_column="k"), Origin("m", "m", 0.0))
    assert not isinstance(said[-1], Refusal), said
    return time.perf_counter() - began


def _sample(sampler: Sampler, values: pa.Array) -> None:
    for start in range(0, len(values), 8192):
        part = values.slice(start, 8192)
        sampler.see({"c": part}, len(part))


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(f"sample: {MOST} values a column")
    main()
