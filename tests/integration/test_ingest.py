"""The ingest actor over real tables, buckets and registry: what becomes visible, what doesn't,
and that a second delivery changes nothing."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.base import Origin
from actors.errors import Transient
from actors.ingest import loading
from actors.ingest.actor import Ingest
from actors.ingest.config import IngestConfig
from actors.ingest.core import GENERATED_ID
from actors.ports import TableRef, TableState
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.base import Message, Progress, Refusal
from schemas.events.dataset import (
    DatasetAppended,
    DatasetDropped,
    DatasetInfo,
    DatasetList,
    DeleteRows,
    DropDataset,
    GetDataset,
    IngestFile,
    IngestRejected,
    IngestReport,
    ListDatasets,
    RowsDeleted,
    UpsertRows,
)
from schemas.events.index import EmbedderSpec

VISIBLE = (DatasetAppended, RowsDeleted)


class FullDisk(DeltaTables):
    """Tables whose disk fills up in the middle of the commits to a table."""

    fails: str | None = None

    async def commit(self, table: TableRef, batches: Iterable[pa.RecordBatch], *args: Any, **kw: Any) -> TableState:
        def until_full() -> Iterable[pa.RecordBatch]:
            for batch in batches:
                yield batch
                raise Transient("no space left")

        failing = self.fails is not None and table.path.endswith(self.fails)
        return await super().commit(table, until_full() if failing else batches, *args, **kw)


class World:
    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        (folder / "in").mkdir(parents=True, exist_ok=True)
        self.buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        self.heads = MemoryHeads()
        self.config = IngestConfig(allowed_roots=[str(folder / "in")], **config)
        self.count = 0

    async def restart(self) -> None:
        """A new process over the same state."""
        self.tables = FullDisk(self.buckets, self.folder / "cache")
        self.registry = DocumentRegistry(self.buckets, self.heads)
        self.bus = MemoryBus()
        self.ingest = Ingest(
            self.tables, self.registry, self.buckets, self.bus, SystemClock(), self.config, self.folder / "uploads"
        )
        await self.ingest.start()

    def write(self, name: str, content: str | bytes) -> str:
        path = self.folder / "in" / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def remove(self, path: str) -> None:
        Path(path).unlink()

    async def file(self, path: str, dataset: str = "d", id: str | None = None, **command: Any) -> list[Message]:
        self.count += 1
        origin = Origin(id or f"m{self.count}", "cause", 0.0)
        return list(await self.ingest.on_file(IngestFile(path, dataset, **command), origin))

    async def rows(self, dataset: str = "d", *columns: str) -> list[dict[str, Any]]:
        table = await self.tables.read(loading.table_of("primary", dataset), list(columns) or None)
        return [{n: v for n, v in row.items() if n != "_row"} for row in table.to_pylist()]

    def everything(self) -> list[str]:
        """Every file of the bucket, and every stage left over."""
        places = (self.folder / "primary", self.folder / "uploads" / ".stages")
        return sorted(str(path) for place in places for path in place.rglob("*") if path.is_file())

    def next(self) -> Origin:
        self.count += 1
        return Origin(f"m{self.count}", "cause", 0.0)


def report(said: Iterable[Message]) -> IngestReport:
    (found,) = [message for message in said if isinstance(message, IngestReport)]
    return found


def refusal(said: Iterable[Message]) -> Refusal:
    (found,) = [message for message in said if isinstance(message, Refusal)]
    return found


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await world.restart()
    return world


async def test_a_file_becomes_a_dataset_with_its_lineage(world: World) -> None:
    path = world.write("a.csv", 'title,price,v\nfoo,1.5,"[1,0.5]"\nbar,oops,"[1,2]"\nbaz,2,"[0,1]"\n')
    said = await world.file(path)
    assert said == [
        DatasetAppended("d", "primary", 0, 2, 2, 0, "m1", path),
        IngestRejected("m1", "d", path, 1, "rows set aside; the first: expected a number, found 'oops'"),
        report(said),
    ]
    assert (report(said).rows, report(said).rejected) == (2, 1)
    assert await world.rows("d", "title", "price", "v") == [
        {"title": "foo", "price": 1.5, "v": [1.0, 0.5]},
        {"title": "baz", "price": 2.0, "v": [0.0, 1.0]},
    ]
    (info,) = await world.ingest.on_get(GetDataset("d"))
    assert isinstance(info, DatasetInfo)
    assert [(c.name, c.role, c.type, c.dim) for c in info.columns] == [
        (GENERATED_ID, "id", "string", None),
        ("title", "text", "string", None),
        ("price", "value", "double", None),
        ("v", "vector", "vector<float32>", 2),
    ]
    (commit,) = info.commits
    assert (commit.message, commit.source, commit.rows, commit.rejected) == ("m1", path, 2, 1)
    assert commit.sha256 is not None
    rejects = await world.tables.read(loading.rejects_of("primary", "d"))
    assert rejects.drop_columns(["_row"]).to_pylist() == [
        {
            "ingest": "m1",
            "file": path,
            "line": 3,
            "column": "price",
            "reason": "expected a number, found 'oops'",
            "content": 'bar,oops,"[1,2]"',
        }
    ]


@pytest.mark.parametrize("mode", ["append", "upsert"])
async def test_the_same_rows_are_stored_once(world: World, mode: str) -> None:
    csv = world.write("a.csv", "t,n\nx,1\ny,2\nx,1\n")
    assert report(await world.file(csv, mode=mode)).rows == 2
    again = await world.file(csv, mode=mode)
    assert again == [IngestReport("m2", "d", 0, 0, 2, 0, [])]
    # Another format, another order of columns, one row more.
    jsonl = world.write("b.jsonl", '{"n":2,"t":"y"}\n{"n":3,"t":"z"}\n')
    assert report(await world.file(jsonl, mode=mode)).rows == 1
    assert [row["t"] for row in await world.rows()] == ["x", "y", "z"]


async def test_append_refuses_ids_that_are_there(world: World) -> None:
    path = world.write("a.csv", "k,t\n1,a\n2,b\n1,c\n,d\n3,e\n")
    said = await world.file(path, id_column="k")
    assert [(r.line, r.reason) for r in report(said).rejects] == [
        (5, "the id is empty"),
        (4, "id 1 is already on line 2"),
    ]
    more = world.write("b.csv", "k,t\n3,x\n4,y\n5,z\n")
    said = await world.file(more)
    assert [(r.line, r.reason) for r in report(said).rejects] == [(2, "id 3 is already in the dataset")]
    assert [row["k"] for row in await world.rows()] == [1, 2, 3, 4, 5]
    no = refusal(await world.file(more))
    assert no.status == "invalid"
    assert "3 of 3 rows are bad (line 2, column k: id 3 is already in the dataset" in no.reason


@pytest.mark.parametrize("many", [False, True])
async def test_upsert_replaces_by_id_and_the_last_wins(
    world: World, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:  # the road that scans the table's ids instead of asking for a few
        monkeypatch.setattr(loading, "FEW", 1)
        monkeypatch.setattr(loading, "_WINDOW", 2)
    await world.file(world.write("a.csv", "k,t\na,1x\nb'c,2x\nü,3x\nd,4x\n"), id_column="k")
    said = await world.file(world.write("b.csv", "k,t\nb'c,new\nd,old\nd,newest\ne,5x\n"), mode="upsert")
    assert said[0] == DatasetAppended("d", "primary", 1, 3, 5, 2, "m2", said[0].source)  # type: ignore[attr-defined]
    assert {row["k"]: row["t"] for row in await world.rows()} == {
        "a": "1x",
        "b'c": "new",
        "ü": "3x",
        "d": "newest",
        "e": "5x",
    }


async def test_replace(world: World) -> None:
    await world.file(world.write("a.csv", "k,t\n1,a\n2,b\n"), id_column="k")
    said = await world.file(world.write("b.csv", "k,t\n2,c\n"), mode="replace")
    assert said[0] == DatasetAppended("d", "primary", 1, 1, 1, 2, "m2", said[0].source)  # type: ignore[attr-defined]
    assert await world.rows() == [{"k": 2, "t": "c"}]


async def test_upsert_and_delete_rows(world: World) -> None:
    await world.file(world.write("a.csv", 'k,t,v\n1,a,"[1,0.5]"\n2,b,"[0,1]"\n'), id_column="k")
    rows = [{"k": 2, "t": "B", "v": [0.5, 0.5]}, {"k": 3, "t": "c", "v": [1, 1]}, {"k": 4, "t": "d", "v": [1]}]
    said = list(await world.ingest.on_upsert(UpsertRows("d", rows), world.next()))
    assert (report(said).rows, report(said).total_rows) == (2, 3)
    assert [(r.file, r.line, r.column) for r in report(said).rejects] == [("rows", 3, "v")]
    assert {row["k"]: row["t"] for row in await world.rows()} == {1: "a", 2: "B", 3: "c"}

    origin = world.next()
    gone = RowsDeleted("d", "primary", 2, 2, 1)
    for _ in range(2):  # the second delivery says the same
        assert await world.ingest.on_delete(DeleteRows("d", [1, "3", 99, "no number"]), origin) == [gone]
    assert [row["k"] for row in await world.rows()] == [2]
    assert await world.ingest.on_delete(DeleteRows("d", ["x"]), world.next()) == [RowsDeleted("d", "primary", 2, 0, 1)]
    assert refusal(await world.ingest.on_delete(DeleteRows("nope", [1]), world.next())).status == "not_found"
    assert refusal(await world.ingest.on_upsert(UpsertRows("nope", []), world.next())).status == "not_found"


async def test_rows_may_name_generated_ids(world: World) -> None:
    await world.file(world.write("a.csv", "t\nx\ny\n"))
    ids = {row["t"]: row[GENERATED_ID] for row in await world.rows()}
    said = await world.ingest.on_upsert(UpsertRows("d", [{GENERATED_ID: ids["x"], "t": "X"}]), world.next())
    assert report(said).rows == 1
    assert {row["t"]: row[GENERATED_ID] for row in await world.rows()} == {"y": ids["y"], "X": ids["x"]}
    strange = "it's \0 \N{SNOWMAN}"
    await world.ingest.on_upsert(UpsertRows("d", [{GENERATED_ID: strange, "t": "z"}]), world.next())
    (deleted,) = await world.ingest.on_delete(DeleteRows("d", [strange]), world.next())
    assert isinstance(deleted, RowsDeleted)
    assert deleted.rows == 1


async def test_redelivery_says_the_same_and_does_nothing(world: World) -> None:
    path = world.write("a.csv", "k,t\n1,a\n2,b\n2,c\n")
    first = await world.file(path, id="same", id_column="k")
    version = (await world.tables.state(loading.table_of("primary", "d"))).version  # type: ignore[union-attr]
    world.remove(path)  # an upload may be gone by now
    await world.restart()
    assert await world.file(path, id="same", id_column="k") == first
    assert (await world.tables.state(loading.table_of("primary", "d"))).version == version  # type: ignore[union-attr]
    rejects = await world.tables.read(loading.rejects_of("primary", "d"))
    assert rejects.num_rows == 1


@pytest.mark.parametrize("where", ["table", "rejects"])
async def test_a_failure_in_the_middle_leaves_no_trace_and_redelivery_mends_it(world: World, where: str) -> None:
    path = world.write("a.csv", "k,t\n" + "".join(f"{n},x\n" for n in range(20_000)) + "oops,y\n")
    world.tables.fails = where
    with pytest.raises(Transient):
        await world.file(path, id="once", id_column="k")
    assert await world.ingest.on_list(ListDatasets()) == [DatasetList([])]
    assert isinstance((await world.ingest.on_get(GetDataset("d")))[0], Refusal)
    await world.restart()
    said = await world.file(path, id="once", id_column="k")
    assert (report(said).rows, report(said).rejected) == (20_000, 1)
    assert (await world.tables.read(loading.rejects_of("primary", "d"))).num_rows == 1
    stages = world.folder / "uploads" / ".stages"
    assert list(stages.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "command", "status", "words"),
    [
        ("a.csv", "k\nx\ny\n1,2\n1,2\n1,2\n", {}, "invalid", "3 of 5 rows are bad (line 4, column -: expected 1"),
        ("a.csv", "", {}, "invalid", "is empty"),
        ("a.csv", "a,b\n", {}, "invalid", "holds no rows"),
        ("a.csv", "a,A\n1,2\n", {}, "invalid", "columns 'a' and 'A' have the same name"),
        ("a.csv", "_row\n1\n", {}, "invalid", "'_row' is reserved"),
        ("a.csv", "a\n1\n", {"id_column": "b"}, "invalid", "no column 'b' to take ids from"),
        ("a.csv", "a\n1\n", {"bucket": "moon"}, "not_found", "no bucket moon"),
        ("a.jsonl", '{"v":[0.5]}\n', {"id_column": "v"}, "invalid", "an id is an integer or text"),
        ("a.xls", "x", {}, "invalid", "format of"),
        ("a.csv.gz", "x", {}, "invalid", "is compressed (.gz)"),
        ("a.parquet", "PAR1nonsense", {}, "invalid", "not a readable Parquet file"),
        ("a.arrow", "ARROW1nonsense", {}, "invalid", "not a readable Arrow IPC file"),
    ],
)
async def test_a_bad_file_is_refused_and_leaves_no_trace(
    world: World, name: str, content: str, command: dict[str, Any], status: str, words: str
) -> None:
    said = await world.file(world.write(name, content), **command)
    assert [type(message) for message in said] == [IngestRejected, Refusal]
    assert refusal(said).status == status
    assert words in refusal(said).reason
    assert world.everything() == []
    assert await world.registry.load(DatasetDocument, "d") is None


async def test_a_file_must_fit_its_dataset(world: World) -> None:
    await world.file(world.write("a.jsonl", '{"k":1,"t":"a","v":[1.5,2]}\n'), id_column="k")

    async def no(name: str, content: str | bytes, **command: Any) -> str:
        found = refusal(await world.file(world.write(name, content), **command))
        assert found.status in ("conflict", "invalid")
        return found.reason

    assert await no("b.csv", "k,t,v,w\n1,2,3,4\n") == "column 'w' is not in dataset d (it has k, t, v)"
    assert await no("b.csv", "k,t\n1,2\n") == "the file lacks column 'v', the vector column of d"
    assert await no("b.csv", 't,v\n1,"[1,2]"\n') == "the file lacks column 'k', the id column of d"
    assert "3 dimensions, the dataset's have 2" in await no("b.jsonl", '{"k":1,"t":"a","v":[1.5,2,3]}\n')
    assert "has id column 'k', not 't'" in await no("b.jsonl", '{"k":9}\n', id_column="t")
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"k": [1], "t": [5], "v": [[0.5, 1.0]]}), out)
    assert await no("b.parquet", out.getvalue().to_pybytes()) == "column 't' is int64, the dataset's is string"
    # What fits is cast to the dataset's types, cell by cell.
    said = await world.file(world.write("c.csv", 'v,k\n"[1,2]",7\n"[1,2]",x\n'))
    assert [(r.line, r.column) for r in report(said).rejects] == [(3, "k")]
    assert (await world.rows())[1] == {"k": 7, "t": None, "v": [1.0, 2.0]}


async def test_only_allowed_files_are_read(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    link = tmp_path / "in" / "link.csv"
    link.symlink_to(secret)
    uploads = tmp_path / "uploads"
    for path in (secret, link, tmp_path / "in" / ".." / "secret.csv", "/nowhere/at/all.csv", tmp_path / "input.csv"):
        no = refusal(await world.file(str(path)))
        assert (no.status, "ingest.allowed_roots" in no.hint) == ("forbidden", True)
    assert refusal(await world.file("in/a.csv")).status == "malformed"
    assert refusal(await world.file(str(tmp_path / "in" / "missing.csv"))).status == "not_found"
    (tmp_path / "in" / "folder.csv").mkdir()
    assert "not a regular file" in refusal(await world.file(str(tmp_path / "in" / "folder.csv"))).reason
    (uploads / "u-1").write_text("a\n1\n")
    assert report(await world.file(str(uploads / "u-1"), source="mine.csv")).rows == 1
    inside = tmp_path / "in" / "inside.csv"
    inside.symlink_to(world.write("real.csv", "a\n2\n"))
    assert report(await world.file(str(inside))).rows == 1


async def test_drop(world: World) -> None:
    await world.file(world.write("a.csv", "t,n\nx,1\ny,2\nz,oops\nw,4\n"))
    index = IndexDocument(
        index="docs",
        dataset="d",
        column="t",
        metric="cosine",
        backend="hnsw",
        bucket="primary",
        target_recall=0.95,
        embedder=EmbedderSpec(),
        embedder_key=None,
        dim=384,
        config=HnswConfig(),
        created=0.0,
    )
    revision = await world.registry.save("docs", index, expected=None)
    no = refusal(await world.ingest.on_drop(DropDataset("d"), world.next()))
    assert (no.status, no.reason) == ("conflict", "1 index(es) stand on dataset d: docs")
    await world.registry.delete(IndexDocument, "docs", expected=revision)
    origin = world.next()
    assert await world.ingest.on_drop(DropDataset("d"), origin) == [DatasetDropped("d")]
    assert refusal(await world.ingest.on_drop(DropDataset("d"), origin)).status == "not_found"
    redelivered = msgspec.structs.replace(origin, delivery=2)
    assert await world.ingest.on_drop(DropDataset("d"), redelivered) == [DatasetDropped("d")]
    assert [name for name in world.everything() if ".parquet" in name] == []
    assert report(await world.file(world.write("b.csv", "other\n1\n"))).rows == 1


async def test_writers_take_turns(world: World) -> None:
    """Ten files into one new dataset at once: no row is lost or doubled."""
    paths = [world.write(f"{n}.csv", "k\n" + "".join(f"r{i}\n" for i in range(n * 10, n * 10 + 20))) for n in range(10)]
    said = await asyncio.gather(*(world.file(path, mode="upsert", id_column="k") for path in paths))
    assert sorted(row["k"] for row in await world.rows()) == sorted(f"r{i}" for i in range(110))
    assert sorted(report(s).version for s in said) == list(range(10))


async def test_two_processes_make_one_dataset(world: World) -> None:
    """The loser of the race for the document loads into the winner's dataset."""
    other = World.__new__(World)
    other.__dict__.update(world.__dict__)
    await other.restart()
    a, b = world.write("a.csv", "t\nx\n"), world.write("b.csv", "t\ny\n")
    await asyncio.gather(world.file(a, id="a"), other.file(b, id="b"))
    await world.restart()
    assert sorted(row["t"] for row in await world.rows()) == ["x", "y"]


async def test_progress_is_signalled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_PROGRESS_S", 0.005)
    heard: list[Progress] = []

    async def listen() -> None:
        async for envelope in world.bus.listen("lakehouse.sig.>"):
            assert isinstance(envelope.message, Progress)
            heard.append(envelope.message)

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0.01)
    content = "k,t\n" + "".join(f"{n},some text\n" for n in range(100_000))
    path = world.write("a.csv", content)
    await world.file(path, id="job-1")
    listener.cancel()
    assert {p.job for p in heard} == {"job-1"}
    read = [p for p in heard if p.phase == "read"]
    assert read
    assert all(p.unit == "bytes" and p.total == len(content) for p in read)
    assert [p.done for p in read] == sorted(p.done for p in read)


async def test_a_cancelled_ingest_stops_and_leaves_nothing(world: World) -> None:
    path = world.write("a.csv", "k,t\n" + "".join(f"{n},some text\n" for n in range(300_000)))
    task = asyncio.create_task(world.file(path))
    stages = world.folder / "uploads" / ".stages"
    while not (stages.exists() and any(stages.iterdir())):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.everything() == []


columns = {
    "n": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5),
    "x": st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=5, max_size=5),
    "t": st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=5, max_size=5),
}


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "arrow"])
@given(values=st.fixed_dictionaries(columns))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, format: str, values: dict[str, list[Any]]
) -> None:
    """Rows with vectors, through a file of each format, into a dataset of known types and out again."""
    world = World(tmp_path_factory.mktemp("world"))
    await world.restart()
    seed = '{"k":-1,"n":0,"x":0.5,"t":"t","v":[0.5,1]}\n'
    await world.file(world.write("seed.jsonl", seed), id_column="k")
    vectors = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32).tolist()
    rows = [{"k": k, **{name: values[name][k] for name in values}, "v": vectors[k]} for k in range(5)]
    table = pa.Table.from_pylist(
        rows,
        pa.schema({"k": pa.int64(), "n": pa.int64(), "x": pa.float64(), "t": pa.string(), "v": pa.list_(pa.float32())}),
    )
    path = str(world.folder / "in" / f"rows.{format}")
    if format == "csv":
        text = pa.array([msgspec.json.encode(vector).decode() for vector in vectors])
        pyarrow.csv.write_csv(table.set_column(4, "v", text), path)
    elif format == "jsonl":
        world.write("rows.jsonl", msgspec.json.Encoder().encode_lines(rows))
    elif format == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(path, "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    assert report(await world.file(path)).rejected == 0
    assert (await world.rows("d", "k", "n", "x", "t", "v"))[1:] == table.to_pylist()
