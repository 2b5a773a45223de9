"""SQL over datasets and the system's tables: what it answers, how it says no, and what it can't reach."""

import asyncio
import datetime
import decimal
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from actors.errors import Refused
from actors.ports import TableRef
from actors.sql.actor import Sql
from actors.sql.config import SqlConfig
from daemon.bus.heads import MemoryHeads
from daemon.sql.catalogue import Catalogue
from daemon.sql.engine import DuckEngine
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.journal import JOURNAL, TableJournal
from daemon.storage.lineage_log import TableLineageLog
from daemon.storage.query_log import TableQueryLog
from daemon.storage.registry import DocumentRegistry
from daemon.storage.struct_table import schema_of
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig, LanceConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.lineage import LineageRow
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.base import Refusal
from schemas.events.dataset import ColumnInfo, CommitInfo
from schemas.events.sql import RunSql, SqlRows
from tests.integration.http_house import house, index_document, point

ROWS = pa.record_batch(
    {
        "id": pa.array([1, 2, 3]),
        "text": ["a", 'say "hi", x', None],
        "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.25")], pa.decimal128(10, 2)),
        "at": pa.array([datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)] * 3, pa.timestamp("us", "UTC")),
        "v": pa.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], pa.list_(pa.float32())),
        "raw": pa.array([b"\x00\xff", b"", None], pa.binary()),
        "score": [0.5, float("nan"), 1.0],
    }
)


class World:
    def __init__(self, folder: Path, **config: Any) -> None:
        folders = {name: (folder / name).as_uri() for name in ("primary", "second")}
        self.folder = folder
        self.buckets = ObjectBuckets(folders, folder / "cache")
        self.tables = DeltaTables(self.buckets, folder / "cache")
        self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        self.engine = DuckEngine(Catalogue(self.tables, self.registry), SqlConfig(**config))

    async def dataset(self, name: str, *versions: pa.RecordBatch, bucket: str = "primary") -> None:
        path = f"datasets/{name}/table"
        for number, batch in enumerate(versions):
            await self.tables.commit(TableRef(bucket, path), [batch], CommitInfo(0, 0, "append", 0, f"{name}-{number}"))
        document = DatasetDocument(
            dataset=name, bucket=bucket, path=path, id_column="id", generated_id=False, created=1.0,
            columns=[ColumnInfo(field.name, str(field.type), "value") for field in versions[0].schema],
        )  # fmt: skip
        await self.registry.save(name, document, expected=None)

    async def rows(self, query: str, limit: int = 1000, **versions: int) -> list[list[Any]]:
        return (await self.engine.rows(query, limit, versions)).rows

    async def refused(self, query: str, **versions: int) -> Refusal:
        with pytest.raises(Refused) as raised:
            await self.engine.rows(query, 10, versions)
        return raised.value.refusal


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.dataset("docs", ROWS, ROWS.slice(0, 1))
    await made.dataset("far-away", ROWS, bucket="second")
    return made


async def test_values_of_every_type(world: World) -> None:
    answer = await world.engine.rows("SELECT * FROM docs ORDER BY id LIMIT 1", 10, {})
    assert [column.name for column in answer.columns] == ["id", "text", "price", "at", "v", "raw", "score"]
    moment = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    assert answer.rows[0] == [1, "a", decimal.Decimal("1.50"), moment, [1.0, 0.0], b"\x00\xff", 0.5]
    assert not answer.truncated


async def test_any_bucket_and_any_version_also_in_joins(world: World) -> None:
    assert await world.rows('SELECT count(*) FROM "far-away"') == [[3]]
    assert await world.rows("SELECT count(*) FROM docs") == [[4]]
    assert await world.rows("SELECT count(*) FROM docs", docs=0) == [[3]]
    joined = 'SELECT (SELECT count(*) FROM docs) - count(*) FROM "docs@0" JOIN "far-away" USING (id)'
    assert await world.rows(joined) == [[1]]
    assert "no version 9" in (await world.refused('SELECT * FROM "docs@9"')).reason
    assert "no dataset nope" in (await world.refused("SELECT 1", nope=1)).reason


async def test_names_are_found_wherever_they_stand(world: World) -> None:
    for query in (
        "SELECT count(*) FROM docs--newest",
        "SELECT 1-count(*)+3 FROM(FROM docs)",
        'FROM "DOCS" SELECT count(*)',
    ):
        assert await world.rows(query), query
    assert await world.rows('SELECT (SELECT count(*) FROM docs)-(SELECT count(*) FROM "docs@0")') == [[1]]


async def test_the_limit_is_told(world: World) -> None:
    answer = await world.engine.rows("FROM range(10)", 4, {})
    assert (answer.rows, answer.truncated) == ([[0], [1], [2], [3]], True)
    assert not (await world.engine.rows("FROM range(4)", 4, {})).truncated


async def test_system_tables_are_there_from_the_beginning(world: World) -> None:
    names = [row[0] for row in await world.rows("SELECT name FROM catalog WHERE kind = 'system' ORDER BY name")]
    assert {"trials", "promotions", "rejects", "lineage", "query_log", "codec_trials", "gate_events"} <= set(names)
    for name in names:
        assert await world.rows(f"SELECT count(*) FROM {name}") is not None
        assert len((await world.engine.rows(f"DESCRIBE {name}", 100, {})).rows) > 2


async def test_system_tables_hold_what_there_is_and_join_datasets(world: World) -> None:
    await TableJournal(world.tables).append([point("t1"), point("t2", 80)])
    await world.registry.save("docs", index_document(), expected=None)
    await TableQueryLog(world.tables).append("docs", np.ones((2, 3), np.float32), [1.0, 2.0])
    await TableLineageLog(world.tables).append(
        [LineageRow("r", "COMPLETE", "ingest", 1.0, "ingest.docs", "[]", '["dataset:docs"]', "", "m", "{}")]
    )
    entry = PromotionEntry(
        config=HnswConfig(), trial="t1", recall=0.97, recall_lower=0.96, p50_us=90.0, promoted_by="agent", note="",
        time=5.0, cause="m",
    )  # fmt: skip
    await world.registry.save("docs", PromotionDocument(index="docs", current=entry), expected=None)
    rejects = pa.record_batch(
        {"ingest": ["m"], "file": ["x.csv"], "line": [3], "column": ["a"], "reason": ["bad"], "content": ["1,2"]}
    )
    note = CommitInfo(0, 0, "append", 0, "m/rejects")
    await world.tables.commit(TableRef("primary", "datasets/docs/rejects"), [rejects], note)
    query = """
        SELECT t.trial, p.state, t.ef_search, (SELECT sum(price) FROM docs) AS total
        FROM trials t JOIN promotions p ON p.trial = t.trial AND p.index = t.index
    """
    assert await world.rows(query) == [["t1", "current", 64, decimal.Decimal("5.25")]]
    assert await world.rows("SELECT dataset, line, reason FROM rejects") == [["docs", 3, "bad"]]
    assert await world.rows("SELECT index, len(vector) FROM query_log") == [["docs", 3], ["docs", 3]]
    assert await world.rows("SELECT count(*) FROM rejects a JOIN Rejects b USING (dataset)") == [[1]]
    assert await world.rows("SELECT kind, state FROM lineage") == [["ingest", "COMPLETE"]]


async def test_trials_and_promotions_of_both_backends(world: World) -> None:
    lance = LanceConfig("IVF_PQ", 64, 48, 9, 10)
    nothing = {"M": None, "ef_construction": None, "ef_search": None, "seed": None}
    of_lance = msgspec.structs.replace(point("t2"), **{**nothing, **columns_of(lance)})
    await TableJournal(world.tables).append([point("t1"), of_lance])
    query = (
        "SELECT trial, backend, ef_search, index_type, partitions, nprobes, refine_factor FROM trials ORDER BY trial"
    )
    assert await world.rows(query) == [
        ["t1", "hnsw", 64, None, None, None, None],
        ["t2", "lance", None, "IVF_PQ", 64, 9, 10],
    ]
    entries = [
        PromotionEntry(config=config, trial=trial, recall=0.97, recall_lower=0.96, p50_us=90.0, promoted_by="agent",
                       note="", time=5.0, cause="m")
        for trial, config in (("t2", lance), ("t1", HnswConfig()))
    ]  # fmt: skip
    document = PromotionDocument(index="docs", current=entries[0], history=entries[1:])
    await world.registry.save("docs", document, expected=None)
    query = "SELECT state, backend, configuration, nprobes, ef_search FROM promotions ORDER BY trial DESC"
    assert await world.rows(query) == [
        ["current", "lance", str(lance), 9, None],
        ["history", "hnsw", "M 16, ef_construction 100, ef_search 50", None, 50],
    ]


async def test_trials_of_before_a_column_read_it_as_null(world: World) -> None:
    old = pa.schema([field for field in schema_of(TrialPoint) if field.name not in ("backend", "nprobes")])
    row = {k: v for k, v in msgspec.to_builtins(point("t0")).items() if k in old.names}
    note = CommitInfo(version=0, time=0, operation="append", rows=0, message="trial-t0")
    await world.tables.commit(JOURNAL, [pa.RecordBatch.from_pylist([row], schema=old)], note)
    assert await world.rows("SELECT trial, backend, nprobes FROM trials") == [["t0", None, None]]


async def test_errors_are_duckdbs_with_their_caret(world: World) -> None:
    refusal = await world.refused("SELECT nme FROM docs")
    assert refusal.status == "invalid"
    assert "nme" in refusal.reason
    assert "^" in refusal.reason
    assert "Candidate" in refusal.reason
    unknown = await world.refused("SELECT * FROM dcos")
    assert "dcos" in unknown.reason
    assert "docs" in unknown.hint
    assert "^" in (await world.refused("SELEC 1")).reason


@pytest.mark.parametrize(
    "query",
    [
        "COPY docs TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet'",
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM read_blob('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM sniff_csv('{file}')",
        "SELECT * FROM parquet_metadata('{file}')",
        "ATTACH '{folder}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 1",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO docs SELECT * FROM docs",
        "DELETE FROM docs",
        "DROP VIEW docs",
        "EXPORT DATABASE '{folder}/dump'",
        "CREATE SECRET s (TYPE s3)",
        "EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
        "EXPLAIN DELETE FROM docs",
        "/* EXPLAIN SELECT 1; */ EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
        "EXPLAIN ANALYZE CREATE VIEW x AS SELECT 1",
        "SELECT 1; DROP TABLE docs",
        "SELECT getenv('HOME')",
        "SELECT * FROM duckdb_secrets()",
        "BEGIN",
        "",
        "-- nothing",
    ],
)
async def test_nothing_else_can_be_reached(world: World, query: str) -> None:
    secret = world.folder / "secret.csv"
    secret.write_text("secret\ncanary\n")
    before = sorted(os.listdir(world.folder))
    refusal = await world.refused(query.format(folder=world.folder, file=secret))
    assert refusal.status == "invalid", refusal
    assert "canary" not in refusal.reason
    left = "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
    assert await world.rows(left) == []
    assert sorted(os.listdir(world.folder)) == before
    assert await world.rows("SELECT count(*) FROM docs") == [[4]]


async def test_what_reads_is_allowed(world: World) -> None:
    for query in (
        "DESCRIBE docs",
        "SUMMARIZE docs",
        "EXPLAIN SELECT * FROM docs",
        "FROM docs",
        "VALUES (1)",
        "TABLE docs",
        "WITH d AS (SELECT * FROM docs) SELECT * FROM d",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT * FROM DOCS",
    ):
        assert await world.rows(query), query


async def test_a_query_ends_with_its_time_and_its_memory(tmp_path: Path) -> None:
    world = World(tmp_path, timeout_s=0.5, memory_mb=64)
    began = time.monotonic()
    late = await world.refused("SELECT count(*) FROM range(10000000000) a, range(100) b WHERE a.range % 7 = b.range")
    assert "0.5 s" in late.reason
    assert time.monotonic() - began < 5
    large = World(tmp_path, memory_mb=64)
    assert "64 MB" in (await large.refused("SELECT list(range) FROM range(100000000)")).reason
    assert await large.rows("SELECT 1") == [[1]]


async def test_more_than_may_wait_come_again(tmp_path: Path) -> None:
    world = World(tmp_path, concurrent=1, timeout_s=2.0)
    slow = "SELECT count(*) FROM range(10000000000) a, range(100) b WHERE a.range % 7 = b.range"
    asked = [asyncio.create_task(world.engine.rows(slow, 1, {})) for _ in range(3)]  # one runs, one waits
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    error = next(iter(done)).exception()
    assert isinstance(error, Refused)
    assert error.refusal.status == "busy"
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    assert await world.rows("SELECT 1") == [[1]]


async def test_a_damaged_file_is_said(world: World) -> None:
    (path,) = [p for p in (world.folder / "second").rglob("*.parquet")]  # noqa: C416
    path.write_bytes(b"damaged" * 100)
    refusal = await world.refused('SELECT sum(id) FROM "far-away"')
    assert refusal.status == "unavailable", refusal


async def test_the_bus_asks_too(world: World) -> None:
    (answer,) = await Sql(world.engine).on_run(RunSql("SELECT sum(id) FROM docs"))
    assert isinstance(answer, SqlRows)
    (refusal,) = await Sql(world.engine).on_run(RunSql("SELECT"))
    assert isinstance(refusal, Refusal)


@pytest.fixture
async def http(world: World) -> AsyncIterator[Any]:
    async with house(world.folder / "http", sql=world.engine) as served:
        yield served


async def test_json_arrow_and_csv_over_http(http: Any) -> None:
    query = 'SELECT id, text, price, v, score FROM "docs@0" ORDER BY id'
    status, answer = await http.call("POST", "/sql", json={"query": query})
    assert status == 200
    assert answer["rows"] == [
        [1, "a", "1.50", [1.0, 0.0], 0.5],
        [2, 'say "hi", x', None, [0.0, 1.0], None],
        [3, None, "2.25", [0.5, 0.5], 1.0],
    ]
    async with http.client.post("/sql", json={"query": query, "format": "arrow", "limit": 2}) as response:
        table = pa.ipc.open_stream(await response.read()).read_all()
    assert table["text"].to_pylist() == ["a", 'say "hi", x']
    async with http.client.post("/sql", json={"query": query, "format": "csv"}) as response:
        assert response.headers["Content-Type"].startswith("text/csv")
        found = pyarrow.csv.read_csv(pa.py_buffer(await response.read()))
    assert found["text"].to_pylist() == ["a", 'say "hi", x', ""]
    assert found["v"].to_pylist()[0] == "[1.0,0.0]"
    status, answer = await http.call("POST", "/sql", json={"query": "SELECT nope FROM docs"})
    assert (status, "^" in answer["reason"]) == (422, True)
    status, answer = await http.call("POST", "/sql", json={"query": "SELECT nope FROM docs", "format": "csv"})
    assert (status, "^" in answer["reason"]) == (422, True)


async def test_large_answers_are_streamed(http: Any) -> None:
    body = {"query": "SELECT range AS n, repeat('x', 100) AS t FROM range(100000)", "limit": 100_000}
    async with http.client.post("/sql", json={**body, "format": "arrow"}) as response:
        table = pa.ipc.open_stream(await response.read()).read_all()
    assert table["n"].to_pylist() == list(range(100_000))
    async with http.client.post("/sql", json={**body, "format": "csv"}) as response:
        assert len((await response.read()).splitlines()) == 100_001


async def test_a_query_stops_when_its_client_goes(world: World, http: Any) -> None:
    slow = "SELECT count(*) FROM range(10000000000) a, range(100) b WHERE a.range % 7 = b.range"
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.5):
            await http.client.post("/sql", json={"query": slow})
    running = vars(world.engine)["_running"]
    async with asyncio.timeout(5):
        while running.value < SqlConfig().concurrent:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_written_parquet_reads_as_duckdb_reads_it(world: World) -> None:
    """The oracle: the same files, read without the lakehouse."""
    files = [str(path) for path in (world.folder / "primary" / "datasets" / "docs").rglob("*.parquet")]
    expected = pa.concat_tables([pq.read_table(file) for file in files])["id"].to_numpy().sum()
    assert await world.rows("SELECT sum(id)::BIGINT FROM docs") == [[expected]]


async def test_what_is_dropped_while_it_is_read_needs_no_backup(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = vars(world.engine)["_catalogue"]
    named = catalogue.named

    async def dropped(*args: Any) -> Any:
        found = await named(*args)
        await world.tables.drop(TableRef("primary", "datasets/docs/table"))
        return found

    monkeypatch.setattr(catalogue, "named", dropped)
    refusal = await world.refused("SELECT * FROM docs")
    assert (refusal.status, refusal.hint) == ("conflict", "ask again")
