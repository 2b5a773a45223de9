"""The contract of the port `Buckets`, over a local directory and over an object store."""

import asyncio
import errno
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.errors import CorruptState, Transient
from daemon.storage import durable
from daemon.storage.buckets import ObjectBuckets


@pytest.fixture(params=["file", "memory"])
def buckets(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectBuckets:
    url = (tmp_path / "primary").as_uri() if request.param == "file" else "memory://"
    return ObjectBuckets({"primary": url}, tmp_path / "cache")


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
