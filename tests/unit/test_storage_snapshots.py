"""Snapshots against what the tables hold: text and vector indexes, appends, deletes, restarts."""

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.from_thread
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from actors.index.artifacts import vectors_table
from actors.ports import Snapshot, TableRef
from daemon.bus.heads import MemoryHeads
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.snapshot_files import SnapshotWriter
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.config import DEFAULT_CONFIG
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.dataset import CommitInfo
from schemas.events.index import EmbedderSpec
from schemas.names import Metric

DATASET = TableRef("primary", "datasets/docs/table")
DIM = 4


class World:
    """A dataset `docs` with an index `docs` on it."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, self.cache)
        self.tables = DeltaTables(buckets, self.cache)
        self.registry = DocumentRegistry(buckets, MemoryHeads())
        self.snapshots = self.restarted()
        self.commits = 0

    def restarted(self) -> TableSnapshots:
        return TableSnapshots(self.tables, self.registry, self.cache)

    async def make(self, kind: str, metric: Metric = "l2", created: float = 1.0, expected: int | None = None) -> None:
        if expected is None:
            dataset = DatasetDocument(
                dataset="docs",
                bucket="primary",
                path=DATASET.path,
                id_column="id",
                generated_id=False,
                columns=[],
                created=1.0,
            )
            await self.registry.save("docs", dataset, expected=None)
        self.document = IndexDocument(
            index="docs",
            dataset="docs",
            column="v",
            metric=metric,
            backend="hnsw",
            bucket="primary",
            target_recall=0.95,
            embedder=EmbedderSpec(kind="none" if kind == "vector" else "lexical"),
            embedder_key=None,
            dim=DIM,
            config=DEFAULT_CONFIG,
            created=created,
        )
        await self.registry.save("docs", self.document, expected=expected)

    async def commit(
        self,
        vectors: Sequence[NDArray[np.float32] | None],
        remove: Sequence[int] = (),
        source: str = "",
        text: bool = False,
    ) -> int:
        self.commits += 1
        schema = pa.schema([("v", pa.string() if text else pa.list_(pa.float32()))])
        rows = [{"v": None if v is None else "x" if text else v.tolist()} for v in vectors]
        note = CommitInfo(version=0, time=0, operation="append", rows=0, message=f"c{self.commits}", source=source)
        batch = pa.RecordBatch.from_pylist(rows, schema=schema)
        return (await self.tables.commit(DATASET, [batch], note, remove=remove, schema=schema)).version

    async def embed(self, vectors: dict[int, NDArray[np.float32]], covers: int) -> None:
        self.commits += 1
        schema = pa.schema([("source_row", pa.int64()), ("vector", pa.list_(pa.float32()))])
        rows = [{"source_row": row, "vector": v.tolist()} for row, v in vectors.items()]
        note = CommitInfo(version=0, time=0, operation="append", rows=0, message=f"e{self.commits}", source=str(covers))
        batch = pa.RecordBatch.from_pylist(rows, schema=schema)
        await self.tables.commit(vectors_table(self.document), [batch], note, schema=schema)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def random_vectors(n: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def folders(world: World) -> list[Path]:
    return list((world.cache / "snapshots" / "docs").glob("*"))


def read(snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rows, vectors = np.load(snapshot.rows_path), np.load(snapshot.vectors_path)
    assert rows.dtype == np.int64
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.shape == (snapshot.rows, snapshot.dim) == (len(rows), DIM)
    return rows, vectors


async def test_a_vector_dataset(world: World) -> None:
    await world.make("vector")
    assert await world.snapshots.covered("docs") == -1
    with pytest.raises(FileNotFoundError, match="cover dataset docs up to version -1"):
        await world.snapshots.snapshot("docs")
    v = random_vectors(20)
    await world.commit(list(v[:10]))
    await world.commit(list(v[10:]), remove=[3, 4])
    assert await world.snapshots.covered("docs") == 1
    newest = await world.snapshots.snapshot("docs")
    assert newest.version == 1
    rows, vectors = read(newest)
    live = np.setdiff1d(np.arange(20), [3, 4])
    np.testing.assert_array_equal(rows, live)
    np.testing.assert_array_equal(vectors, v[live])
    rows, vectors = read(await world.snapshots.snapshot("docs", 0))
    np.testing.assert_array_equal(rows, np.arange(10))
    np.testing.assert_array_equal(vectors, v[:10])
    with pytest.raises(FileNotFoundError):
        await world.snapshots.snapshot("docs", 2)
    with pytest.raises(FileNotFoundError, match="no index nope"):
        await world.snapshots.snapshot("nope")


async def test_a_text_index_covers_what_is_embedded(world: World) -> None:
    await world.make("text")
    v = random_vectors(10)
    await world.commit([v[0]] * 4, text=True)
    assert await world.snapshots.covered("docs") == -1
    await world.embed({2: v[2], 0: v[0], 1: v[1], 3: v[3]}, covers=0)
    await world.commit([v[0]] * 2, remove=[1], text=True)
    assert await world.snapshots.covered("docs") == 0
    rows, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_array_equal(rows, [0, 1, 2, 3])
    np.testing.assert_array_equal(vectors, v[:4])
    with pytest.raises(FileNotFoundError, match="up to version 0, not 1"):
        await world.snapshots.snapshot("docs", 1)
    await world.embed({5: v[5], 4: v[4]}, covers=1)
    rows, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_array_equal(rows, [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(vectors, v[[0, 2, 3, 4, 5]])
    rows, _ = read(await world.snapshots.snapshot("docs", 0))
    np.testing.assert_array_equal(rows, [0, 1, 2, 3])


async def test_cosine_is_stored_normalised_and_zero_stays_zero(world: World) -> None:
    await world.make("vector", "cosine")
    v = random_vectors(5)
    v[2] = 0
    await world.commit(list(v))
    _, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(vectors[0] * np.linalg.norm(v[0]), v[0], rtol=1e-5)


async def test_rows_without_a_vector_are_left_out(world: World) -> None:
    await world.make("vector")
    v = random_vectors(4)
    await world.commit([v[0], None, v[2], None])
    rows, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_array_equal(rows, [0, 2])
    np.testing.assert_array_equal(vectors, v[[0, 2]])
    await world.commit([None, v[3]])
    rows, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_array_equal(rows, [0, 2, 5])
    np.testing.assert_array_equal(vectors, v[[0, 2, 3]])


async def test_an_emptied_dataset(world: World) -> None:
    await world.make("vector")
    await world.commit(list(random_vectors(3)))
    await world.commit([], remove=[0, 1, 2])
    snapshot = await world.snapshots.snapshot("docs")
    assert (snapshot.rows, snapshot.dim) == (0, DIM)
    read(snapshot)


async def test_many_steps_read_like_the_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incremental snapshots over appends, deletes and restarts equal the dataset itself; chunks
    are made small so that several are read."""
    monkeypatch.setattr("daemon.storage.snapshot_files.CHUNK_BYTES", 4 * DIM * 7)
    await world.make("vector")
    generator = np.random.default_rng(3)
    for step in range(12):
        state = await world.tables.state(DATASET)
        end = state.next_row if state else 0
        remove = generator.choice(end, size=min(end, 3), replace=False).tolist() if step % 3 == 2 else []
        await world.commit(list(random_vectors(int(generator.integers(0, 30)), seed=step)), remove=remove)
        if step % 4 == 3:
            world.snapshots = world.restarted()
        rows, vectors = read(await world.snapshots.snapshot("docs"))
        table = await world.tables.read(DATASET, ["v"])
        np.testing.assert_array_equal(rows, table["_row"].to_numpy())
        np.testing.assert_array_equal(vectors, np.array(table["v"].to_pylist(), np.float32).reshape(-1, DIM))
        assert len(list((world.cache / "snapshots" / "docs").iterdir())) <= 2


async def test_callers_share_one_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.make("vector")
    await world.commit(list(random_vectors(50)))
    reads = 0
    read_table = world.tables.read

    async def counted(*args: object, **kwargs: object) -> pa.Table:
        nonlocal reads
        reads += 1
        return await read_table(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(world.tables, "read", counted)
    found = await asyncio.gather(*(world.snapshots.snapshot("docs") for _ in range(8)))
    assert all(snapshot == found[0] for snapshot in found)
    assert reads == 2  # live rows, then their vectors
    await world.restarted().snapshot("docs")  # on disk already
    assert reads == 2


async def test_a_mapped_snapshot_outlives_its_files(world: World) -> None:
    await world.make("vector")
    v = random_vectors(10)
    await world.commit(list(v))
    first = await world.snapshots.snapshot("docs")
    mapped = np.load(first.vectors_path, mmap_mode="r")
    for n in range(3):
        await world.commit(list(random_vectors(1, seed=n)))
        await world.snapshots.snapshot("docs")
    assert not first.vectors_path.exists()
    np.testing.assert_array_equal(mapped, v)


async def test_a_held_snapshot_stays_until_it_is_let_go(world: World) -> None:
    await world.make("vector")
    v = random_vectors(10)
    await world.commit(list(v))
    async with world.snapshots.held("docs") as first, world.snapshots.held("docs", 0) as again:
        assert again == first
        for n in range(4):
            await world.commit(list(random_vectors(1, seed=n)))
            async with world.snapshots.held("docs") as newer:
                assert newer.rows == 11 + n
        async with world.snapshots.held("docs", 0):
            pass
        rows, vectors = read(first)
        np.testing.assert_array_equal(rows, np.arange(10))
        np.testing.assert_array_equal(vectors, v)
        assert len(folders(world)) == 3
    assert not first.vectors_path.exists()
    assert len(folders(world)) == 2
    await world.commit(list(random_vectors(1)))
    await world.snapshots.snapshot("docs")
    assert len(folders(world)) == 2


async def test_a_held_snapshot_outlives_the_drop_of_its_index(world: World) -> None:
    await world.make("vector")
    await world.commit(list(random_vectors(10)))
    async with world.snapshots.held("docs") as snapshot:
        await world.snapshots.forget("docs")
        read(snapshot)
    assert folders(world) == []


async def test_many_hold_while_rows_come(world: World) -> None:
    """Whatever is handed out can be read to the end of its context."""
    await world.make("vector")
    await world.commit(list(random_vectors(10)))
    held = 0

    async def holder(number: int) -> None:
        nonlocal held
        for turn in range(6):
            async with world.snapshots.held("docs") as snapshot:
                await asyncio.sleep(0.001 * (number + turn))
                read(snapshot)
                held += 1

    async def writer() -> None:
        for n in range(10):
            await world.commit(list(random_vectors(1, seed=n)), remove=[n])

    await asyncio.gather(writer(), *(holder(number) for number in range(5)))
    assert held == 30
    await world.snapshots.snapshot("docs")
    assert len(folders(world)) <= 2


async def test_what_a_killed_process_left_is_swept_at_the_first_use(world: World) -> None:
    await world.make("vector")
    await world.commit(list(random_vectors(10)))
    async with world.snapshots.held("docs"):
        for n in range(3):
            await world.commit(list(random_vectors(1, seed=n)))
            await world.snapshots.snapshot("docs")
        (world.cache / "snapshots" / "docs" / ".tmp-half").mkdir()
        assert len(folders(world)) == 4  # killed here
        await world.restarted().snapshot("docs")
        assert len(folders(world)) == 2


async def test_an_index_made_anew_finds_no_old_files(world: World) -> None:
    await world.make("vector", "l2", created=1.0)
    v = random_vectors(10)
    await world.commit(list(v))
    await world.snapshots.snapshot("docs")
    await world.make("vector", "cosine", created=2.0, expected=1)
    _, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    await world.snapshots.forget("docs")
    assert not (world.cache / "snapshots" / "docs").exists()
    _, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


async def test_a_dataset_that_moves_while_a_snapshot_is_made_is_read_where_it_went(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.make("vector")
    v = random_vectors(10)
    await world.commit(list(v))
    read_table = world.tables.read

    async def moved(table: TableRef, *args: Any, **more: Any) -> pa.Table:
        monkeypatch.setattr(world.tables, "read", read_table)
        folder = world.cache.parent / "primary" / "datasets" / "docs"
        shutil.copytree(folder / "table", folder / "elsewhere")
        found = await world.registry.load(DatasetDocument, "docs")
        assert found is not None
        document = msgspec.structs.replace(found[0], path="datasets/docs/elsewhere")
        await world.registry.save("docs", document, expected=found[1])
        await world.tables.drop(table)
        return await read_table(table, *args, **more)

    monkeypatch.setattr(world.tables, "read", moved)
    _, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_array_equal(vectors, v)


async def test_a_snapshot_that_goes_while_the_next_one_is_made_is_done_without(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.make("vector")
    v = random_vectors(13)
    await world.commit(list(v[:10]))
    for n in (10, 11):
        await world.commit(list(v[n : n + 1]))
    started = SnapshotWriter.start

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(world.snapshots.held("docs"))
        for version in (0, 1):
            await world.snapshots.snapshot("docs", version)
        await world.commit(list(v[12:]))

        def start(writer: SnapshotWriter, rows: NDArray[np.int64], before: Path | None) -> NDArray[np.int64]:
            anyio.from_thread.run(stack.aclose)
            return started(writer, rows, before)

        monkeypatch.setattr(SnapshotWriter, "start", start)
        rows, vectors = read(await world.snapshots.snapshot("docs"))
    np.testing.assert_array_equal(rows, np.arange(13))
    np.testing.assert_array_equal(vectors, v)
