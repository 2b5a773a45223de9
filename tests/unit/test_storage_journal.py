"""The trial journal and the query log over real tables."""

import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.ports import ROW, TableRef
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.journal import JOURNAL, TableJournal
from daemon.storage.query_log import TableQueryLog, table_of
from daemon.storage.struct_table import schema_of
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig, HnswEffort, LanceConfig, LanceEffort
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.dataset import CommitInfo


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return DeltaTables(ObjectBuckets({"primary": (tmp_path / "p").as_uri()}, tmp_path / "cache"), tmp_path / "cache")


def point(trial: str, index: str = "docs", ef: int = 50, **fields: object) -> TrialPoint:
    known = {
        "trial": trial,
        "campaign": "c1",
        "index": index,
        "build": "b",
        "harness": "docs",
        "dataset_version": 3,
        "rows": 1000,
        "M": 16,
        "ef_construction": 100,
        "ef_search": ef,
        "seed": 42,
        "queries": 500,
        "recall": 0.97,
        "recall_ties": 0.98,
        "recall_lower": 0.96,
        "recall_worst_decile": 0.8,
        "p50_us": 120.5,
        "p95_us": 200.0,
        "p99_us": 300.0,
        "cpu_us": 110.0,
        "build_s": 1.5,
        "build_cpu_s": 1.4,
        "bytes": 1 << 33,
        "library": "hnswlib",
        "proposer": "explore",
        "rule": "explore: drawn",
        "journal_rows": 7,
        "asked_by": "agent",
        "trigger": "m1",
        "trigger_tag": "dataset.appended",
        "host": "here",
        "time": time.time(),
    }
    return msgspec.convert(known | fields, TrialPoint)


async def test_points_come_back_as_they_were_written(tables: DeltaTables) -> None:
    log = TableJournal(tables)
    assert await log.points("docs") == []
    first = [point("t1", ef=10, draw=0.125, champion_trial="t0"), point("t1", ef=20, chosen=True)]
    await log.append(first)
    await log.append([point("t2", index="other")])
    third = [point("t3")]
    await log.append(third)
    for reader in (log, TableJournal(tables)):
        assert await reader.points("docs") == first + third
        assert await reader.trial("docs", "t1") == first
        assert await reader.trial("docs", "t2") == []
        assert len(await reader.points("other")) == 1


async def test_a_trial_is_written_once(tables: DeltaTables) -> None:
    first = [point("t1", ef=10), point("t1", ef=20)]
    await TableJournal(tables).append(first)
    await TableJournal(tables).append([point("t1", ef=99), point("t2", ef=30)])
    points = await TableJournal(tables).points("docs")
    assert points[:2] == first
    assert [p.ef_search for p in points] == [10, 20, 30]


async def test_another_process_sees_new_points(tables: DeltaTables, tmp_path: Path) -> None:
    other = TableJournal(
        DeltaTables(ObjectBuckets({"primary": (tmp_path / "p").as_uri()}, tmp_path / "c2"), tmp_path / "c2")
    )
    mine = TableJournal(tables)
    for n in range(12):  # small files are merged meanwhile
        await mine.append([point(f"t{n}", ef=10 + n)])
        assert [p.ef_search for p in await other.points("docs")] == list(range(10, 11 + n))


async def test_a_journal_of_an_older_schema_is_read_and_grows(tables: DeltaTables) -> None:
    """A field that TrialPoint gained since: old rows have its default, new ones their value."""
    old = pa.schema([field for field in schema_of(TrialPoint) if field.name not in ("target_recall", "policy")])
    row = {k: v for k, v in msgspec.to_builtins(point("t0", ef=33)).items() if k in old.names}
    note = CommitInfo(version=0, time=0, operation="append", rows=0, message="trial-t0")
    await tables.commit(JOURNAL, [pa.RecordBatch.from_pylist([row], schema=old)], note)
    log = TableJournal(tables)
    assert [(p.ef_search, p.policy) for p in await log.points("docs")] == [(33, "")]
    await log.append([point("t1", policy="{}", target_recall=0.9)])
    assert [(p.trial, p.policy, p.target_recall) for p in await log.points("docs")] == [
        ("t0", "", 0),
        ("t1", "{}", 0.9),
    ]


async def test_a_journal_of_before_lance_is_one_of_graphs_and_takes_lance_rows(tables: DeltaTables) -> None:
    younger = {"backend", "index_type", "partitions", "sub_vectors", "nprobes", "refine_factor", "ef"}
    old = pa.schema([field for field in schema_of(TrialPoint) if field.name not in younger])
    row = {k: v for k, v in msgspec.to_builtins(point("t0", ef=33)).items() if k in old.names}
    note = CommitInfo(version=0, time=0, operation="append", rows=0, message="trial-t0")
    await tables.commit(JOURNAL, [pa.RecordBatch.from_pylist([row], schema=old)], note)
    lance = LanceConfig("IVF_PQ", 64, 48, 9, 10)
    nothing = {"M": None, "ef_construction": None, "ef_search": None, "seed": None}
    await TableJournal(tables).append([point("t1", **{**nothing, **columns_of(lance)})])
    first, second = await TableJournal(tables).points("docs")
    assert (first.config, first.effort) == (HnswConfig(16, 100, 33), HnswEffort(33))
    assert (second.config, second.effort) == (lance, LanceEffort(9, 10))


async def test_the_journal_is_plain_columns(tables: DeltaTables) -> None:
    await TableJournal(tables).append([point("t1", ef=10), point("t1", ef=77)])
    assert list(await tables.match(JOURNAL, "ef_search > 50 AND \"index\" = 'docs' AND draw IS NULL")) == [1]


def test_a_struct_that_is_no_row_is_refused() -> None:
    class Nested(msgspec.Struct):
        items: list[int]

    with pytest.raises(TypeError, match="items: the journal has no column type"):
        schema_of(Nested)


async def test_the_query_log_samples_distinct_vectors(tables: DeltaTables) -> None:
    log = TableQueryLog(tables)
    assert (await log.sample("docs", 5, 1)).shape == (0, 0)
    vectors = np.arange(60, dtype=np.float32).reshape(20, 3)
    await log.append("docs", vectors, [float(i) for i in range(20)])
    await log.append("docs", np.repeat(vectors[:1], 50, axis=0), [1.0] * 50)
    sample = await log.sample("docs", 8, seed=1)
    assert sample.shape == (8, 3)
    assert sample.dtype == np.float32
    assert len({tuple(row) for row in sample}) == 8
    assert {tuple(row) for row in sample} <= {tuple(row) for row in vectors}
    assert np.array_equal(sample, await log.sample("docs", 8, seed=1))
    assert not np.array_equal(sample, await log.sample("docs", 8, seed=2))
    everything = await log.sample("docs", 1000, seed=3)
    assert sorted(map(tuple, everything)) == sorted(map(tuple, vectors))


async def test_the_query_log_keeps_the_newest(tables: DeltaTables) -> None:
    log = TableQueryLog(tables, keep=10, slack=5)
    for n in range(20):
        await log.append("docs", np.full((2, 2), n, np.float32), [float(n)] * 2)
    table = await tables.read(table_of("docs"), ["time"])
    assert 10 <= table.num_rows <= 17
    assert table["time"].to_pylist()[-1] == 19.0
    assert table["time"].to_pylist() == sorted(table["time"].to_pylist())


async def test_vectors_of_an_index_made_anew_are_not_mixed(tables: DeltaTables) -> None:
    log = TableQueryLog(tables)
    await log.append("docs", np.ones((5, 3), np.float32), [1.0] * 5)
    await log.append("docs", np.eye(4, dtype=np.float32), [2.0] * 4)
    assert (await log.sample("docs", 100, seed=1)).shape == (4, 4)
    assert (await tables.read(TableRef("primary", "system/query_log/docs"), [])).column_names == [ROW]
