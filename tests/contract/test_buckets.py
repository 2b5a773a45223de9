"""The contract of the port `Buckets`, over a local directory and over object stores."""

import asyncio
import errno
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from actors.errors import CorruptState, Transient
from actors.ports import TableRef
from daemon.bus.heads import MemoryHeads
from daemon.storage import durable
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.known import MARKER
from daemon.storage.registry import DocumentRegistry
from daemon.storage.repair import repair
from daemon.storage.tables import DeltaTables
from schemas.documents.promotion import PromotionDocument
from schemas.events.dataset import CommitInfo
from tests.s3_server import s3_api


class Place:
    """Where buckets are; `open` is what another process, or this one after a restart, sees."""

    def __init__(self, kind: str, folder: Path, options: dict[str, str]) -> None:
        self.durable = kind != "memory"
        base = {"file": folder.as_uri(), "memory": "memory://", "s3": "s3://bucket/house"}[kind]
        self.primary, self.profiles = f"{base}/primary", f"{base}/profiles"
        self._folder, self._options, self._opened = folder, options, 0

    def open(self) -> ObjectBuckets:
        self._opened += 1
        cache = self._folder / f"cache{self._opened}"
        return ObjectBuckets(
            {"primary": self.primary},
            cache,
            {"primary": self._options},
            profile_root=self.profiles,
            profile_options=self._options,
        )


@pytest.fixture(params=["file", "memory", "s3"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param != "s3":
        yield Place(request.param, tmp_path, {})
        return
    with s3_api() as api:
        yield Place(request.param, tmp_path, api.options)


@pytest.fixture
async def buckets(place: Place) -> ObjectBuckets:
    return place.open()


async def test_what_was_put_can_be_read(buckets: ObjectBuckets) -> None:
    artifact = await buckets.put("primary", "a/b.txt", b"hello")
    assert artifact.bytes == 5
    assert await buckets.get("primary", "a/b.txt") == b"hello"
    path = await buckets.fetch("primary", "a/b.txt", artifact.sha256)
    assert path.read_bytes() == b"hello"
    assert await buckets.fetch("primary", "a/b.txt", artifact.sha256) == path


async def test_a_put_takes_no_place_unless_told(buckets: ObjectBuckets) -> None:
    await buckets.put("primary", "a", b"1")
    with pytest.raises(FileExistsError, match="a exists already in bucket primary"):
        await buckets.put("primary", "a", b"2")
    assert await buckets.get("primary", "a") == b"1"
    await buckets.put("primary", "a", b"3", overwrite=True)
    assert await buckets.get("primary", "a") == b"3"
    assert await buckets.list("primary", "") == ["a"]


async def test_of_many_creators_one_wins(buckets: ObjectBuckets) -> None:
    results = await asyncio.gather(
        *(buckets.put("primary", "contested", b"%d" % i) for i in range(16)), return_exceptions=True
    )
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert sum(isinstance(result, FileExistsError) for result in results) == 15


async def test_upload(buckets: ObjectBuckets, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    artifact = await buckets.upload("primary", "big", source)
    source.write_bytes(b"changed")
    assert artifact.bytes == 3_000_000
    assert (await buckets.fetch("primary", "big", artifact.sha256)).stat().st_size == 3_000_000
    with pytest.raises(FileExistsError):
        await buckets.upload("primary", "big", source)
    await buckets.upload("primary", "big", source, overwrite=True)
    assert await buckets.get("primary", "big") == b"changed"


async def test_an_overwritten_object_is_fetched_anew(buckets: ObjectBuckets) -> None:
    await buckets.put("primary", "a", b"first")
    assert (await buckets.fetch("primary", "a")).read_bytes() == b"first"
    await buckets.put("primary", "a", b"other", overwrite=True)
    assert (await buckets.fetch("primary", "a")).read_bytes() == b"other"


async def test_list_goes_by_folders(buckets: ObjectBuckets) -> None:
    for key in ("x/1", "x/y/2", "xy/3", "z"):
        await buckets.put("primary", key, b"")
    assert await buckets.list("primary", "x") == ["x/1", "x/y/2"]
    assert await buckets.list("primary", "x/") == ["x/1", "x/y/2"]
    assert await buckets.list("primary", "") == ["x/1", "x/y/2", "xy/3", "z"]
    assert await buckets.list("primary", "nothing") == []


async def test_delete(buckets: ObjectBuckets) -> None:
    for key in ("x/1", "x/y/2", "xy/3"):
        await buckets.put("primary", key, b"")
    await buckets.delete("primary", "xy/3")
    await buckets.delete("primary", "xy/3")
    await buckets.delete_prefix("primary", "x")
    await buckets.delete_prefix("primary", "x")
    assert await buckets.list("primary", "") == []


async def test_a_folder_goes_while_others_write_into_it(buckets: ObjectBuckets) -> None:
    async def write(to: int) -> None:
        for n in range(100):
            with suppress(FileNotFoundError):  # its folder went
                await buckets.put("primary", f"x/{to}/{n}", b"")

    async with asyncio.TaskGroup() as group:
        for to in range(4):
            group.create_task(write(to))
        for _ in range(40):
            await buckets.delete_prefix("primary", "x")
            await asyncio.sleep(0.001)
    await buckets.delete_prefix("primary", "x")
    assert await buckets.list("primary", "") == []


async def test_missing_objects_and_buckets(buckets: ObjectBuckets) -> None:
    for missing in (buckets.get("primary", "a/b"), buckets.fetch("primary", "a/b")):
        with pytest.raises(FileNotFoundError, match="no object a/b in bucket primary"):
            await missing
    with pytest.raises(KeyError, match="no bucket 'cellar'; known are primary"):
        await buckets.get("cellar", "a")


@pytest.mark.parametrize("key", ["../a", "a/../b", "/a", "a//b", "a/", "", ".", ".a", "a\0b", "a\\..\\b", "a/.."])
async def test_no_key_leaves_the_bucket(buckets: ObjectBuckets, key: str) -> None:
    for attempt in (buckets.put("primary", key, b""), buckets.get("primary", key), buckets.delete("primary", key)):
        with pytest.raises(ValueError, match="no object key"):
            await attempt


async def test_a_wrong_checksum_is_corrupt_state(buckets: ObjectBuckets) -> None:
    await buckets.put("primary", "graph", b"flipped bit")
    with pytest.raises(CorruptState, match="object graph in bucket primary fails its checksum"):
        await buckets.fetch("primary", "graph", "0" * 64)


async def test_damage_after_the_first_fetch_is_seen(tmp_path: Path) -> None:
    buckets = ObjectBuckets({"primary": (tmp_path / "p").as_uri()}, tmp_path / "cache")
    artifact = await buckets.put("primary", "graph", b"good")
    path = await buckets.fetch("primary", "graph", artifact.sha256)
    path.write_bytes(b"evil")
    os.utime(path, (1, 1))
    with pytest.raises(CorruptState):
        await buckets.fetch("primary", "graph", artifact.sha256)


async def test_an_unmounted_disk_is_transient(tmp_path: Path) -> None:
    buckets = ObjectBuckets({"rescue": (tmp_path / "disk").as_uri()}, tmp_path / "cache")
    (tmp_path / "disk").rmdir()
    with pytest.raises(Transient, match="is its disk mounted"):
        await buckets.put("rescue", "a", b"")
    assert not (tmp_path / "disk").exists()


async def test_an_unreachable_server_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.storage.remote_store.RETRY_S", 0.2)
    options = {"endpoint": "http://127.0.0.1:9", "region": "r", "access_key_id": "a", "secret_access_key": "b"}
    buckets = ObjectBuckets({"far": "s3://bucket/prefix"}, tmp_path, {"far": options})
    for attempt in (buckets.put("far", "a", b""), buckets.get("far", "a"), buckets.list("far", "")):
        with pytest.raises(Transient, match="bucket far can't be reached"):
            await attempt


def test_an_unknown_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be file:///directory or s3"):
        ObjectBuckets({"primary": "ftp://host/x"}, tmp_path)


@pytest.mark.parametrize("write", [durable.write, durable.create])
async def test_a_full_disk_leaves_the_old_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    buckets = ObjectBuckets({"primary": (tmp_path / "p").as_uri()}, tmp_path / "cache")
    await buckets.put("primary", "a", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Transient, match="bucket primary is full"):
        await buckets.put("primary", "a" if write is durable.write else "b", b"new", overwrite=write is durable.write)
    monkeypatch.undo()
    assert await buckets.list("primary", "") == ["a"]
    assert await buckets.get("primary", "a") == b"old"
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["a"]


async def test_a_failed_fsync_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = ObjectBuckets({"primary": (tmp_path / "p").as_uri()}, tmp_path / "cache")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(durable.DiskFailure, match="Input/output error"):
        await buckets.put("primary", "a", b"")
    assert not issubclass(durable.DiskFailure, Exception)


@pytest.mark.needs("strace")
def test_a_put_is_synced_file_first_then_directory(tmp_path: Path) -> None:
    """The order of system calls that FACTS' power cuts found lossless, seen from outside."""
    program = f"""
        from pathlib import Path
        from daemon.storage import durable
        durable.create(Path({str(tmp_path)!r}) / "d" / "object", b"x")
    """
    trace = tmp_path / "trace"
    calls = "trace=fsync,link,linkat,rename"
    subprocess.run(
        ["strace", "-y", "-f", "-e", calls, "-o", trace, sys.executable, "-c", textwrap.dedent(program)], check=True
    )
    seen = [
        re.sub(r"-[0-9a-f]{32}", "", line.split(maxsplit=1)[1].replace(str(tmp_path), ""))
        for line in trace.read_text().splitlines()
        if str(tmp_path) in line
    ]
    assert [re.sub(r"\(\d+", "(", line.rsplit(" = ")[0]) for line in seen] == [
        "fsync(<>)",
        "fsync(</d/.tmp>)",
        'link("/d/.tmp", "/d/object")',
        "fsync(</d>)",
    ]


# --- provisioned -------------------------------------------------------------------------------


async def test_a_provisioned_bucket_is_a_bucket(buckets: ObjectBuckets) -> None:
    assert await buckets.provision("coder") is True
    assert await buckets.names() == ["coder", "primary"]
    await buckets.put("coder", "a/b", b"1")
    assert await buckets.get("coder", "a/b") == b"1"
    assert await buckets.list("coder", "a") == ["a/b"]
    assert await buckets.list("primary", "") == []
    assert (await buckets.location("coder")).url.endswith("/profiles/coder")


async def test_a_bucket_is_made_once_and_a_configured_one_never(buckets: ObjectBuckets) -> None:
    made = await asyncio.gather(*(buckets.provision("coder") for _ in range(8)))
    assert sorted(made) == [False] * 7 + [True]
    await buckets.put("coder", "a", b"1")
    assert await buckets.provision("coder") is False
    assert await buckets.provision("primary") is False
    assert await buckets.get("coder", "a") == b"1"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "Coder", ".hidden", "-a", "a\n", "a" * 64])
async def test_what_is_no_bucket_name_is_neither_made_nor_looked_for(buckets: ObjectBuckets, name: str) -> None:
    with pytest.raises(ValueError, match="is no bucket name"):
        await buckets.provision(name)
    with pytest.raises(KeyError, match="there is no bucket"):
        await buckets.get(name, "a")
    assert await buckets.names() == ["primary"]


async def test_every_process_knows_it_however_it_comes_across_it(place: Place) -> None:
    if not place.durable:
        return  # memory ends with its process
    here, there = place.open(), place.open()
    with pytest.raises(KeyError, match="no bucket 'coder'; known are primary"):
        await there.get("coder", "a")
    await here.provision("coder")
    await here.put("coder", "a", b"1")
    assert await there.get("coder", "a") == b"1"
    assert await place.open().names() == ["coder", "primary"]
    assert await place.open().location("coder") == await here.location("coder")
    assert await place.open().provision("coder") is False


async def test_of_two_processes_one_makes_it(place: Place) -> None:
    if not place.durable:
        return
    processes = [place.open() for _ in range(4)]
    made = await asyncio.gather(*(process.provision("coder") for process in processes))
    assert sorted(made) == [False, False, False, True]


async def test_a_fresh_registry_finds_what_lies_in_provisioned_buckets(place: Place) -> None:
    if not place.durable:
        return
    buckets = place.open()
    await buckets.provision("coder")
    document = PromotionDocument(index="docs")
    await DocumentRegistry(buckets, MemoryHeads()).save("docs", document, expected=None, bucket="coder")
    again, heads = place.open(), MemoryHeads()
    (finding,) = await repair(again, heads)
    assert (finding.what, "bucket coder" in finding.text) == ("moved", True)
    assert await DocumentRegistry(again, heads).load(PromotionDocument, "docs") == (document, 1)


async def test_a_table_lies_in_a_provisioned_bucket(tmp_path: Path) -> None:
    place = Place("file", tmp_path, {})
    await place.open().provision("coder")
    tables = DeltaTables(place.open(), tmp_path / "cache")
    table, rows = TableRef("coder", "datasets/d/table"), pa.record_batch({"id": ["x"]})
    state = await tables.commit(table, [rows], CommitInfo(0, 0, "append", 1, "m1"))
    assert state.rows == 1
    assert (tmp_path / "profiles/coder/datasets/d/table/_delta_log").is_dir()
    with pytest.raises(KeyError, match="no bucket 'other'"):
        await tables.state(TableRef("other", "datasets/d/table"))


async def test_only_the_marker_makes_a_folder_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "profiles" / "stray").mkdir(parents=True)
    (tmp_path / "profiles" / "Lost+Found").mkdir()
    place = Place("file", tmp_path, {})
    assert await place.open().names() == ["primary"]
    with pytest.raises(KeyError):
        await place.open().put("stray", "a", b"")
    assert await place.open().provision("stray") is True
    assert (tmp_path / "profiles" / "stray" / MARKER).is_file()
    with pytest.raises(KeyError):
        await place.open().get("unknown", "a")
    assert not (tmp_path / "profiles" / "unknown").exists(), "looking for a bucket makes none"


async def test_without_a_profile_root_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no storage\.profile_root"):
        await ObjectBuckets({"primary": "memory://"}, tmp_path).provision("coder")


async def test_an_unreachable_profile_root_is_transient_and_hurts_no_other_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.storage.remote_store.RETRY_S", 0.2)
    options = {"endpoint": "http://127.0.0.1:9", "region": "r", "access_key_id": "a", "secret_access_key": "b"}
    buckets = ObjectBuckets({"near": "memory://"}, tmp_path, profile_root="s3://b/p", profile_options=options)
    await buckets.put("near", "a", b"1")
    assert await buckets.provision("near") is False
    for attempt in (buckets.provision("coder"), buckets.get("coder", "a"), buckets.names()):
        with pytest.raises(Transient, match=r"bucket storage\.profile_root can't be reached"):
            await attempt
