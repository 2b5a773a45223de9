"""The storage desk over real storage: what it says of buckets, and what it does for those that were away."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.errors import Refused
from daemon.storage.repair import repair
from schemas.documents.dataset import DatasetDocument
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import IndexDocument
from schemas.events.dataset import DropDataset, GetDataset, IngestFile
from schemas.events.index import DropIndex, ListIndexes
from schemas.events.storage import (
    BucketDegraded,
    BucketProvisioned,
    BucketRestored,
    Clash,
    GetBucket,
    Home,
    ListBuckets,
    MoveDataset,
    ProvisionBucket,
    RemoveBucket,
)
from tests.integration.moving_house import House

HOMES = [Home("dataset", "notes"), Home("generation", "docs"), Home("harness", "docs"), Home("index", "docs")]


@pytest.fixture
async def house(tmp_path: Path) -> House:
    urls = {name: (tmp_path / name).as_uri() for name in ("primary", "rescue", "here", "there")}
    house = await House(tmp_path, urls, {}).restart()
    await house.fill()
    return house


async def test_a_list_says_what_lies_where(house: House) -> None:
    listed = await house.bus.ask(ListBuckets())
    assert [(one.bucket, one.health) for one in listed.buckets] == [
        ("here", "ok"), ("primary", "ok"), ("rescue", "ok"), ("there", "ok"),
    ]  # fmt: skip
    here, there = listed.buckets[0], listed.buckets[3]
    files = [path for path in (house.folder / "here").rglob("*") if path.is_file()]
    assert (here.objects, here.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert here.homes == [*HOMES, Home("promotion", "docs")]
    assert (there.objects, there.bytes, there.homes, listed.clashes) == (0, 0, [], [])


async def test_a_copied_bucket_is_a_clash_and_the_head_decides(house: House) -> None:
    for key in await house.buckets.list("here", "registry/index"):
        await house.buckets.copy("here", key, "there")
    listed = await house.bus.ask(ListBuckets())
    assert listed.clashes == [Clash("index", "docs", "here", ["there"])]
    assert [info.index for info in (await house.bus.ask(ListIndexes())).indexes] == ["docs"]
    await house.bus.ask(DropIndex("docs"))
    listed = await house.bus.ask(ListBuckets())
    assert listed.clashes == [Clash("index", "docs", None, ["there"])], "its copy is nobody's now"


async def test_a_bucket_that_does_not_answer_is_down_and_holds_nobody_up(house: House) -> None:
    (house.folder / "there").rmdir()
    there = await house.bus.ask(GetBucket("there"))
    assert (there.health, there.objects) == ("down", None)
    assert "is its disk mounted?" in there.reason
    assert (await house.bus.ask(GetBucket("here"))).health == "ok"


async def test_made_and_removed_and_made_again(house: House, tmp_path: Path) -> None:
    url = (tmp_path / "made-later").as_uri()
    (handler_said, event) = await house.desk.on_provision(ProvisionBucket("later", url))
    assert (handler_said.bucket, event) == ("later", BucketProvisioned("later", url))  # type: ignore[union-attr]
    (again,) = await house.desk.on_provision(ProvisionBucket("later", url))
    assert again.bucket == "later"  # type: ignore[union-attr]
    await house.bus.ask(MoveDataset("notes", "later"))
    with pytest.raises(Refused, match="home to dataset notes"):
        await house.bus.ask(RemoveBucket("later"))
    await house.restart()  # another process
    assert (await house.bus.ask(GetDataset("notes"))).bucket == "later"
    await house.bus.ask(MoveDataset("notes", "here"))
    await house.desk.on_sweep()
    await house.bus.ask(RemoveBucket("later"))
    with pytest.raises(Refused, match="there is no bucket 'later'"):
        await house.bus.ask(RemoveBucket("later"))
    assert "later" not in await house.buckets.names()
    await house.bus.ask(ProvisionBucket("later"))
    assert (await house.bus.ask(GetBucket("later"))).url == (tmp_path / "made" / "later").as_uri()


async def test_a_removed_bucket_leaves_repair_nothing_to_mend(house: House, tmp_path: Path) -> None:
    await house.bus.ask(ProvisionBucket("later", (tmp_path / "made-later").as_uri()))
    path = tmp_path / "one.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n')
    await house.bus.ask(IngestFile(str(path), "short", bucket="later", id_column="id"))
    await house.registry.save("docs2", await document(house), expected=None, bucket="later")
    await house.registry.delete(IndexDocument, "docs2")
    await house.bus.ask(DropDataset("short"))
    await house.bus.ask(RemoveBucket("later"))
    assert await repair(house.buckets, house.heads) == []


async def document(house: House) -> IndexDocument:
    found = await house.registry.load(IndexDocument, "docs")
    assert found is not None
    return msgspec.structs.replace(found[0], index="docs2")


async def test_degraded_and_restored_are_told_once(house: House) -> None:
    assert await house.desk.on_mend() == []
    away = house.folder / "away"
    (house.folder / "there").rename(away)
    await house.buckets.put("there", "a", b"12")
    await house.buckets.put("there", "b", b"345")
    (degraded,) = await house.desk.on_mend()
    assert isinstance(degraded, BucketDegraded)
    assert (degraded.bucket, degraded.waiting, degraded.bytes) == ("there", 2, 5)
    assert await house.desk.on_mend() == []
    with pytest.raises(Refused, match="is degraded"):
        await house.bus.ask(MoveDataset("notes", "there"))
    away.rename(house.folder / "there")
    assert await house.desk.on_mend() == [BucketRestored("there", 2, 5)]
    assert await house.desk.on_mend() == []
    assert await house.buckets.list("there", "") == ["a", "b"]


@pytest.mark.parametrize("kind", [DatasetDocument, IndexDocument, HarnessDocument])
async def test_records_from_before_the_field_read_as_primary(house: House, kind: type) -> None:
    found = await house.registry.load(kind, "notes" if kind is DatasetDocument else "docs")
    assert found is not None
    fields = msgspec.to_builtins(found[0])
    del fields["bucket"]
    assert msgspec.convert(fields, kind).bucket == "primary"  # type: ignore[attr-defined]


async def test_a_bucket_that_is_removed_while_it_is_looked_at_is_none(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.bus.ask(ProvisionBucket("later"))
    names, waiting = house.buckets.names, house.buckets.waiting

    async def removed() -> Any:
        monkeypatch.setattr(house.buckets, "waiting", waiting)
        await house.bus.ask(RemoveBucket("later"))
        return await waiting()

    monkeypatch.setattr(house.buckets, "waiting", removed)
    with pytest.raises(Refused, match="there is no bucket 'later'"):
        await house.bus.ask(GetBucket("later"))
    await house.bus.ask(ProvisionBucket("later"))
    looked = 0

    async def and_removed() -> list[str]:
        nonlocal looked
        found, looked = await names(), looked + 1
        if looked == 2:  # the list's own was the first, this is of the search for copies
            monkeypatch.setattr(house.buckets, "names", names)
            await house.bus.ask(RemoveBucket("later"))
        return found

    monkeypatch.setattr(house.buckets, "names", and_removed)
    listed = await house.bus.ask(ListBuckets())
    assert [one.bucket for one in listed.buckets][:2] == ["here", "later"]
    assert listed.clashes == []
