"""What can't be written waits in `rescue` and is brought home, over a folder that is pulled away and an S3 that is
stopped. `Outage` is the place; a second `open` is another process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.errors import Transient
from actors.ports import TableRef
from daemon.bus.heads import MemoryHeads
from daemon.storage import rescue as rescue_module
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.rescue import CONFLICTS
from daemon.storage.tables import DeltaTables
from schemas.documents.promotion import PromotionDocument
from schemas.events.dataset import CommitInfo
from tests.s3_server import S3Api, s3_api


class Outage:
    def __init__(self, folder: Path, api: S3Api | None) -> None:
        self._folder, self._api, self._opened = folder, api, 0
        self._disk, self._away = folder / "disk", folder / "away"
        self._disk.mkdir()

    def open(self) -> ObjectBuckets:
        self._opened += 1
        urls = {name: (self._folder / name).as_uri() for name in ("primary", "rescue")}
        urls["far"] = "s3://bucket/far" if self._api else self._disk.as_uri()
        options = {"far": self._api.options} if self._api else {}
        return ObjectBuckets(urls, self._folder / f"cache{self._opened}", options)

    def begins(self) -> None:
        if self._api:
            self._api.stop()
        else:
            self._disk.rename(self._away)

    def ends(self) -> None:
        if self._api:
            self._api.start()
        else:
            self._away.rename(self._disk)


@pytest.fixture(params=["file", "s3"])
def outage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    monkeypatch.setattr("daemon.storage.remote_store.RETRY_S", 0.3)
    monkeypatch.setattr(rescue_module, "LOOK_S", 0.0)
    if request.param == "file":
        yield Outage(tmp_path, None)
        return
    with s3_api() as api:
        yield Outage(tmp_path, api)


async def test_what_is_put_meanwhile_is_read_and_brought_home(outage: Outage, tmp_path: Path) -> None:
    here, there = outage.open(), outage.open()
    outage.begins()
    artifact = await here.put("far", "graphs/1", b"small")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    uploaded = await here.upload("far", "graphs/2", big)
    for buckets in (here, there):
        assert await buckets.get("far", "graphs/1") == b"small"
        assert (await buckets.fetch("far", "graphs/1", artifact.sha256)).read_bytes() == b"small"
        assert (await buckets.fetch("far", "graphs/2", uploaded.sha256)).stat().st_size == 3_000_000
    (waiting,) = await there.waiting()
    assert (waiting.bucket, waiting.objects, waiting.bytes) == ("far", 2, 3_000_005)
    assert "bucket far" in waiting.reason
    with pytest.raises(Transient):
        await here.bring_home("far")
    outage.ends()
    brought = await here.bring_home("far")
    assert (brought.objects, brought.bytes) == (2, 3_000_005)
    assert await here.waiting() == []
    assert await here.list("rescue", "") == []
    fresh = outage.open()
    assert await fresh.list("far", "") == ["graphs/1", "graphs/2"]
    assert await fresh.get("far", "graphs/1") == b"small"
    assert (await fresh.fetch("far", "graphs/2", uploaded.sha256)).stat().st_size == 3_000_000
    assert (await here.bring_home("far")).objects == 0


async def test_the_newest_counts_and_the_order_stays(outage: Outage) -> None:
    buckets = outage.open()
    await buckets.put("far", "a", b"before")
    await buckets.put("far", "gone", b"before")
    await buckets.put("far", "again", b"before")
    outage.begins()
    with pytest.raises(Transient):
        await buckets.get("far", "a")
    await buckets.put("far", "a", b"first", overwrite=True)
    await buckets.put("far", "a", b"second", overwrite=True)
    await buckets.delete("far", "gone")
    await buckets.delete("far", "again")
    await buckets.put("far", "again", b"anew")
    with pytest.raises(FileExistsError):
        await buckets.put("far", "again", b"another")
    with pytest.raises(FileNotFoundError):
        await buckets.get("far", "gone")
    outage.ends()
    assert await buckets.list("far", "") == ["a", "again"], "as it will be, though nothing was brought home yet"
    assert await buckets.get("far", "a") == b"second"
    await buckets.put("far", "a", b"third", overwrite=True)
    assert await buckets.get("far", "a") == b"third"
    await buckets.bring_home("far")
    fresh = outage.open()
    assert await fresh.list("far", "") == ["a", "again"]
    assert (await fresh.get("far", "a"), await fresh.get("far", "again")) == (b"third", b"anew")


async def test_killed_while_it_brings_home_nothing_is_lost_or_doubled(outage: Outage) -> None:
    """Before each single change of it."""

    class Killed(BaseException):
        pass

    buckets = outage.open()
    outage.begins()
    for n in range(3):
        await buckets.put("far", f"a/{n}", b"%d" % n)
    outage.ends()
    step, done = 0, False
    while not done:
        left, process = step, outage.open()
        for store in (await process._store("far"), await process._store("rescue")):
            for name in ("upload", "delete", "put"):
                change = getattr(store, name)

                async def mortal(*args: Any, change: Any = change, **more: Any) -> Any:
                    nonlocal left
                    if left == 0:
                        raise Killed
                    left -= 1
                    return await change(*args, **more)

                setattr(store, name, mortal)
        try:
            await process.bring_home("far")
            done = True
        except Killed:
            pass
        survivor = outage.open()
        assert [key for key in await survivor.list("far", "") if key.startswith("a/")] == ["a/0", "a/1", "a/2"]
        assert [await survivor.get("far", f"a/{n}") for n in range(3)] == [b"0", b"1", b"2"]
        step += 1
    assert step > 3
    assert await outage.open().waiting() == []


async def test_what_arrived_after_all_is_not_doubled_and_nothing_older_is_overwritten(outage: Outage) -> None:
    buckets, other = outage.open(), outage.open()
    outage.begins()
    await buckets.put("far", "same", b"1")
    await buckets.put("far", "different", b"late")
    outage.ends()
    store = await other._store("far")
    await store.put("same", b"1", False)  # the put arrived, its answer didn't
    await store.put("different", b"early", False)
    await buckets.bring_home("far")
    fresh = outage.open()
    assert (await fresh.get("far", "same"), await fresh.get("far", "different")) == (b"1", b"early")
    assert await fresh.waiting() == []
    (aside,) = await fresh.list("rescue", CONFLICTS)
    assert await fresh.get("rescue", aside) == b"late"


async def test_documents_go_on_and_come_home(outage: Outage) -> None:
    heads = MemoryHeads()
    registry = DocumentRegistry(outage.open(), heads)
    revision = await registry.save("docs", PromotionDocument(index="docs"), expected=None, bucket="far")
    outage.begins()
    changed = PromotionDocument(index="other")
    await registry.save("docs", changed, expected=revision, bucket="far")
    assert await DocumentRegistry(outage.open(), heads).load(PromotionDocument, "docs") == (changed, revision + 1)
    outage.ends()
    await outage.open().bring_home("far")
    assert await DocumentRegistry(outage.open(), heads).load(PromotionDocument, "docs") == (changed, revision + 1)


async def test_a_table_waits_for_its_bucket(outage: Outage, tmp_path: Path) -> None:
    """Of two processes one makes a version, and only the bucket can say which."""
    buckets = outage.open()
    tables = DeltaTables(buckets, tmp_path / "tables")
    table, batch = TableRef("far", "datasets/d/table"), pa.record_batch({"id": ["x"]})
    await tables.commit(table, [batch], CommitInfo(0, 0, "append", 1, "m1"))
    outage.begins()
    with pytest.raises(Transient):
        await tables.commit(table, [batch], CommitInfo(0, 0, "append", 1, "m2"))
    outage.ends()
    assert (await tables.commit(table, [batch], CommitInfo(0, 0, "append", 1, "m2"))).rows == 2
    for waiting in await buckets.waiting():  # files that the failed commit had written are to be deleted
        await buckets.bring_home(waiting.bucket)
    fresh = DeltaTables(outage.open(), tmp_path / "fresh")
    assert (await fresh.read(table, ["id"]))["id"].to_pylist() == ["x", "x"]
    assert len([key for key in await buckets.list("far", "datasets") if "part-" in key]) == 2


async def test_without_room_in_rescue_the_first_reason_is_told(tmp_path: Path) -> None:
    urls = {name: (tmp_path / name).as_uri() for name in ("far", "rescue")}
    buckets = ObjectBuckets(urls, tmp_path / "cache")
    for name in urls:
        (tmp_path / name).rmdir()
    with pytest.raises(Transient, match="bucket far: the directory"):
        await buckets.put("far", "a", b"")


async def test_nothing_is_rescued_from_rescue_itself(tmp_path: Path) -> None:
    buckets = ObjectBuckets({"rescue": (tmp_path / "rescue").as_uri()}, tmp_path / "cache")
    (tmp_path / "rescue").rmdir()
    with pytest.raises(Transient, match="bucket rescue"):
        await buckets.put("rescue", "a", b"")
