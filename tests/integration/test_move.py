"""Datasets and indexes move between buckets: whole in one place at every step, whatever dies when."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.errors import Refused
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.dataset import DropDataset, IngestFile
from schemas.events.index import CreateIndex, DropIndex, RebuildIndex
from schemas.events.storage import DatasetMoved, IndexMoved, MoveDataset, MoveIndex
from tests.integration.moving_house import TEXTS, House, Killed
from tests.s3_server import s3_api

ORDERS: dict[str, Any] = {"dataset": MoveDataset("notes", "there"), "index": MoveIndex("docs", "there")}
FOLDERS = {"dataset": "datasets/notes", "index": "indexes/docs"}


def urls(folder: Path) -> dict[str, str]:
    return {name: (folder / name).as_uri() for name in ("primary", "rescue", "here", "there")}


@pytest.fixture(params=["file", "s3"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    """`there` is a folder, or S3."""
    if request.param == "file":
        made = await House(tmp_path, urls(tmp_path), {}).restart()
        await made.fill()
        yield made
        return
    with s3_api() as api:
        options = {"there": api.options}
        made = await House(tmp_path, {**urls(tmp_path), "there": "s3://bucket/there"}, options).restart()
        await made.fill()
        yield made


@pytest.mark.parametrize("what", ["dataset", "index"])
async def test_there_and_back(house: House, what: str) -> None:
    before = await house.contents()
    moved = await house.bus.ask(ORDERS[what])
    assert (moved.source, moved.bucket) == ("here", "there")
    assert moved.objects > 1
    assert await house.home(what) == "there"
    assert await house.contents() == before
    await house.desk.on_sweep()
    assert await house.leftovers("here", FOLDERS[what]) == []
    assert await house.contents() == before
    assert await house.registry.census() == []
    back = MoveDataset("notes", "here") if what == "dataset" else MoveIndex("docs", "here")
    await house.bus.ask(back)
    await house.desk.on_sweep()
    assert await house.contents() == before
    assert await house.leftovers("there", FOLDERS[what]) == []


async def test_back_at_once_before_the_old_place_was_cleared(house: House) -> None:
    house.desk.moving.linger_s = 3600.0
    before = await house.contents()
    await house.bus.ask(MoveIndex("docs", "there"))
    assert await house.leftovers("here", "indexes/docs")
    await house.bus.ask(MoveIndex("docs", "here"))
    assert await house.home("index") == "here"
    assert await house.contents() == before


async def test_the_same_again_changes_nothing(house: House) -> None:
    await house.bus.ask(MoveDataset("notes", "there"))
    again = await house.bus.ask(MoveDataset("notes", "there"))
    assert again == DatasetMoved("notes", "here", "there", 0, 0)
    await house.desk.on_sweep()
    assert await house.bus.ask(MoveDataset("notes", "there")) == DatasetMoved("notes", "there", "there", 0, 0)
    assert await house.bus.ask(MoveIndex("docs", "here")) == IndexMoved("docs", "here", "here", 0, 0)


async def test_rows_that_come_afterwards_go_to_the_new_home(house: House, tmp_path: Path) -> None:
    await house.bus.ask(MoveDataset("notes", "there"))
    await house.desk.on_sweep()
    path = tmp_path / "more.jsonl"
    path.write_text('{"id": "more", "text": "one more"}\n')
    report = await house.bus.ask(IngestFile(str(path), "notes", id_column="id"))
    assert (report.total_rows, report.version) == (len(TEXTS) + 1, 1)
    assert await house.leftovers("here", "datasets/notes") == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dataset", "index"])
async def test_killed_at_any_step_it_is_whole_in_one_place(tmp_path: Path, what: str) -> None:
    """Before each single change that a move makes, until one goes through."""
    step = 0
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        house = await House(folder, urls(folder), {}).restart()
        await house.fill()
        before = await house.contents()
        house.life.dies_before = house.life.changes + step
        try:
            await house.bus.ask(ORDERS[what])
            await house.desk.on_sweep()
            died = False
        except* Killed:
            died = True
        await house.restart()
        assert await house.contents() == before, f"before change {step}: it can be read at once"
        await house.recover()
        home = await house.home(what)
        assert await house.contents() == before
        other = "here" if home == "there" else "there"
        assert await house.leftovers(other, FOLDERS[what]) == [], f"before change {step}: half is in {other}"
        assert [lying for lying in await house.registry.census() if lying.kind != "move"] == []
        assert await house.moves() == []
        assert home == ("there" if step > 1 else "here"), "once it was noted, it is carried out"
        await house.bus.ask(ORDERS[what])
        assert (await house.home(what), await house.contents()) == ("there", before)
        if not died:
            break
        step += 1
    assert step > 10


@pytest.mark.slow
async def test_killed_twice(tmp_path: Path) -> None:
    """In the middle of a move, and again in the middle of going on with it."""
    for second in range(0, 30, 3):
        folder = tmp_path / str(second)
        folder.mkdir()
        house = await House(folder, urls(folder), {}).restart()
        await house.fill()
        before = await house.contents()
        for step in (8, second):
            house.life.dies_before = house.life.changes + step
            try:
                if step == 8 and not await house.moves():
                    await house.bus.ask(MoveIndex("docs", "there"))
                await house.recover()
            except* Killed:
                pass
            await house.restart()
            assert await house.contents() == before
        await house.recover()
        assert (await house.home("index"), await house.contents()) == ("there", before)
        assert await house.leftovers("here", "indexes/docs") == []


async def test_a_damaged_copy_is_no_move(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await house.contents()
    upload = type(house.buckets).upload

    async def bad(self: Any, bucket: str, key: str, path: Path, **how: Any) -> Any:
        artifact = await upload(self, bucket, key, path, **how)
        if bucket == "there" and key.endswith("graph.hnsw"):
            await self.put(bucket, key, b"bits fell over", overwrite=True)
        return artifact

    monkeypatch.setattr(type(house.buckets), "upload", bad)
    with pytest.raises(Refused, match="fails its checksum"):
        await house.bus.ask(MoveIndex("docs", "there"))
    assert (await house.home("index"), await house.contents()) == ("here", before)
    assert (await house.moves(), await house.leftovers("there", "indexes/docs")) == ([], [])
    monkeypatch.undo()
    await house.bus.ask(MoveIndex("docs", "there"))
    assert (await house.home("index"), await house.contents()) == ("there", before)


async def test_what_cannot_be_moved_is_refused_and_leaves_nothing(house: House) -> None:
    for order, words in (
        (MoveIndex("docs", "nowhere"), "there is no bucket 'nowhere'"),
        (MoveIndex("ghost", "there"), "there is no index 'ghost'"),
        (MoveDataset("ghost", "there"), "there is no dataset 'ghost'"),
        (MoveDataset("notes", "rescue"), "rescue is for"),
    ):
        with pytest.raises(Refused, match=words):
            await house.bus.ask(order)
    house.desk.moving.patience_s = 0.0
    await house.bus.ask(RebuildIndex("docs"))
    with pytest.raises(Refused, match="is being built"):
        await house.bus.ask(MoveIndex("docs", "there"))
    assert await house.moves() == []
    assert await house.leftovers("there", "indexes/docs") == []


async def test_a_new_one_of_the_name_inherits_nothing_from_the_old_place(house: House, tmp_path: Path) -> None:
    """Dropped while its leftovers lie in the old place, and made again there."""
    house.desk.moving.linger_s = 3600.0
    await house.bus.ask(MoveIndex("docs", "there"))
    await house.bus.ask(MoveDataset("notes", "there"))
    await house.bus.ask(DropIndex("docs"))
    await house.bus.ask(DropDataset("notes"))
    path = tmp_path / "one.jsonl"
    path.write_text('{"id": "only", "text": "one row"}\n')
    report = await house.bus.ask(IngestFile(str(path), "notes", bucket="here", id_column="id"))
    assert (report.total_rows, report.version) == (1, 0)
    await house.bus.ask(CreateIndex("docs", "notes", "text"))
    assert [key for key in await house.buckets.list("here", "indexes/docs") if "generations" in key] == []
    house.desk.moving.linger_s = 0.0
    await house.desk.on_sweep()
    assert await house.moves() == []
    assert (await house.registry.load(IndexDocument, "docs") or (None,))[0].bucket == "here"  # type: ignore[union-attr]
    assert await house.buckets.list("here", "indexes/docs")
    assert (await house.registry.load(DatasetDocument, "notes") or (None,))[0].bucket == "here"  # type: ignore[union-attr]
    assert (await house.bus.ask(IngestFile(str(path), "notes", mode="upsert"))).total_rows == 1
