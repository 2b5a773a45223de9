"""A text index's vectors follow its dataset, wherever the work is broken off."""

import numpy as np
import pyarrow as pa
import pytest

from actors.errors import Transient
from actors.index import catchup
from actors.index.artifacts import vectors_table
from actors.index.catchup import CatchUp
from actors.ports import ROW, TableRef
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.snapshots import TableSnapshots
from daemon.storage.tables import DeltaTables
from schemas.config import HnswConfig
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.dataset import ColumnInfo, CommitInfo
from schemas.events.index import EmbedderSpec

DATASET = DatasetDocument(
    dataset="data",
    bucket="primary",
    path="datasets/data/table",
    id_column="id",
    generated_id=False,
    columns=[ColumnInfo("id", "string", "id"), ColumnInfo("text", "string", "text")],
    created=1.0,
)
INDEX = IndexDocument(
    index="docs",
    dataset="data",
    column="text",
    metric="l2",
    backend="hnsw",
    bucket="primary",
    target_recall=0.95,
    embedder=EmbedderSpec("lexical"),
    embedder_key="k",
    dim=2,
    config=HnswConfig(),
    created=1.0,
)


class Lengths:
    """Embeds a text as its length; breaks down after so many texts."""

    dim, identity = 2, "lengths"

    def __init__(self):
        self.embedded, self.breaks_after = 0, 10**9

    async def revision(self):
        return ""

    async def embed(self, texts):
        if self.embedded + len(texts) > self.breaks_after:
            raise Transient("the model server is away")
        self.embedded += len(texts)
        return np.array([[len(text), 1] for text in texts], np.float32)


class Desk:
    def __init__(self, folder):
        buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        self.tables = DeltaTables(buckets, folder / "cache")
        self.registry = DocumentRegistry(buckets, MemoryHeads())
        self.snapshots = TableSnapshots(self.tables, self.registry, folder / "cache")
        bus = MemoryBus()
        self.catch_up = CatchUp(self.tables, self.snapshots, bus, bus.clock, embed_batch=7)
        self.embedder = Lengths()
        self.commits = 0

    async def commit(self, texts, remove=()):
        self.commits += 1
        table = pa.table({"id": [f"{self.commits}-{i}" for i in range(len(texts))], "text": texts})
        table = table.cast(pa.schema([("id", pa.string()), ("text", pa.string())]))
        note = CommitInfo(0, 0.0, "append", 0, f"c{self.commits}")
        where = TableRef("primary", DATASET.path)
        return await self.tables.commit(where, table.to_batches(), note, remove=remove, schema=table.schema)

    async def run(self):
        return await self.catch_up.run(INDEX, DATASET, self.embedder)

    async def check(self):
        """The snapshot has exactly the dataset's rows, each with its own text's vector."""
        snapshot = await self.snapshots.snapshot("docs")
        table = await self.tables.read(TableRef("primary", DATASET.path), ["text"], version=snapshot.version)
        np.testing.assert_array_equal(np.load(snapshot.rows_path), table[ROW].to_numpy())
        lengths = [len(text or "") for text in table["text"].to_pylist()]
        assert np.load(snapshot.vectors_path)[:, 0].tolist() == lengths
        return snapshot.version


@pytest.fixture
async def desk(tmp_path, monkeypatch):
    monkeypatch.setattr(catchup, "COMMIT_ROWS", 20)
    desk = Desk(tmp_path)
    await desk.registry.save("data", DATASET, expected=None)
    await desk.registry.save("docs", INDEX, expected=None)
    return desk


async def test_rows_that_came_are_embedded_once_and_rows_that_went_are_taken_out(desk):
    state = await desk.commit([f"{'x' * i}" for i in range(50)])
    covered = await desk.run()
    assert (covered.version, covered.rows, covered.added, covered.deleted) == (state.version, 50, 50, 0)
    state = await desk.commit([None, "yy"], remove=[3, 4, 5])
    covered = await desk.run()
    assert (covered.version, covered.rows, covered.added, covered.deleted) == (state.version, 49, 2, 3)
    assert desk.embedder.embedded == 52
    assert await desk.check() == state.version
    assert (await desk.run()).added == 0
    assert desk.embedder.embedded == 52


async def test_a_commit_that_only_deletes_moves_the_covered_version_on(desk):
    await desk.commit(["a", "bb"])
    await desk.run()
    state = await desk.commit([], remove=[0])
    assert (await desk.run()).deleted == 1
    assert await desk.check() == state.version


async def test_broken_off_in_the_middle_it_covers_what_it_did_and_goes_on_from_there(desk):
    first = await desk.commit(["a"] * 10)
    await desk.run()
    second = await desk.commit([f"{'x' * i}" for i in range(60)], remove=[0])
    desk.embedder.breaks_after = 10 + 45
    with pytest.raises(Transient):
        await desk.run()
    assert await desk.snapshots.covered("docs") == first.version
    table = await desk.tables.read(vectors_table(INDEX), ["source_row"])
    assert table.num_rows == 10 + 40  # two commits of 20 stay
    assert await desk.check() == first.version  # a snapshot of the version before is still whole
    desk.embedder.breaks_after = 10**9
    covered = await desk.run()
    assert (covered.version, covered.rows, covered.added, covered.deleted) == (second.version, 69, 20, 1)
    assert await desk.check() == second.version


async def test_an_empty_dataset_is_covered(desk):
    state = await desk.commit([])
    covered = await desk.run()
    assert (covered.version, covered.rows) == (state.version, 0)
    assert await desk.check() == state.version
