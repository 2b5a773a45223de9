"""Uploads: streamed to disk, bounded, and gone afterwards whatever happened."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.integration.http_house import House, house, until


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, max_upload_mb=4, read_timeout_s=0.5) as made:
        yield made


def form(data: bytes, name: str = "rows.csv", **fields: str) -> aiohttp.FormData:
    made = aiohttp.FormData(quote_fields=False)
    for field, value in fields.items():
        made.add_field(field, value)
    made.add_field("file", io.BytesIO(data), filename=name)
    return made


async def test_an_upload_arrives_whole_and_is_removed_afterwards(here: House) -> None:
    data = bytes(range(256)) * 12_000  # 3 MB: several chunks
    upload = form(data, "my rows.csv.gz", dataset="notes", mode="upsert", id_column="key", pii="mask")
    status, body = await here.call("POST", "/ingest/file", data=upload)
    assert (status, body["rows"], body["ingest"]) == (200, len(data), hashlib.sha256(data).hexdigest())
    (command,) = here.files.seen
    assert (command.source, command.mode, command.id_column, command.pii) == ("my rows.csv.gz", "upsert", "key", "mask")
    assert Path(command.path).parent == here.uploads
    assert command.path.endswith(".csv.gz"), "the format is known by the name"
    assert list(here.uploads.iterdir()) == []


async def test_a_path_on_the_server_is_read_as_it_is(here: House, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    status, body = await here.call("POST", "/ingest/file", json={"path": str(file), "dataset": "notes"})
    assert (status, body["rows"]) == (200, 3)
    assert file.exists()
    assert (await here.call("POST", "/ingest/file", json={"path": "/nope", "dataset": "notes"}))[0] == 404
    odd = {"path": str(file), "dataset": "notes", "pii": "hide"}
    status, body = await here.call("POST", "/ingest/file", json=odd)
    assert (status, "$.pii" in body["reason"] + body["hint"], "refuse" in body["hint"]) == (422, True, True), body


async def test_a_file_name_never_leads_out_of_the_folder(here: House) -> None:
    for name in ("../../etc/passwd", "..\\..\\x.csv", "/etc/cron.d/x", ".bashrc", "a/../../b.csv"):
        status, _ = await here.call("POST", "/ingest/file", data=form(b"x", name, dataset="notes"))
        assert status == 200
    assert {Path(command.path).parent for command in here.files.seen} == {here.uploads}
    assert [command.source for command in here.files.seen] == ["passwd", "x.csv", "x", ".bashrc", "b.csv"]


async def test_a_file_over_the_limit_leaves_nothing(here: House) -> None:
    status, body = await here.call("POST", "/ingest/file", data=form(b"x" * (5 << 20), dataset="notes"))
    assert (status, body["error"], body["hint"]) == (413, "too_large", "[http] max_upload_mb")
    assert list(here.uploads.iterdir()) == []

    async def endless() -> AsyncIterator[bytes]:  # chunked: no Content-Length to judge by
        while True:
            yield b"x" * 65536

    made = aiohttp.FormData(quote_fields=False)
    made.add_field("dataset", "notes")
    made.add_field("file", endless(), filename="rows.csv")
    try:
        status, body = await here.call("POST", "/ingest/file", data=made)
        assert status == 413
    except aiohttp.ClientConnectionError:
        pass  # the server hung up while the client still sent: as good an answer
    await nothing_left(here)
    assert here.files.seen == []


async def test_a_disk_that_is_nearly_full_refuses_uploads(tmp_path: Path) -> None:
    async with house(tmp_path, min_free_mb=10**9) as full:
        status, body = await full.call("POST", "/ingest/file", data=form(b"x", dataset="notes"))
        assert (status, body["error"]) == (503, "unavailable")
        assert "MiB free" in body["reason"]


@pytest.mark.parametrize(
    ("made", "status", "reason"),
    [
        (form(b"x"), 400, "missing required field `dataset`"),
        (form(b"x", dataset="../x"), 422, "`$.dataset`"),
        (form(b"x", dataset="notes", mod="upsert"), 400, "unknown field `mod`"),
        (form(b"x", dataset="notes", mode="merge"), 422, "Invalid enum value 'merge'"),
        (form(b"x", dataset="n" * 70_000), 413, "form field"),
    ],
)
async def test_fields_beside_the_file_are_checked(
    here: House, made: aiohttp.FormData, status: int, reason: str
) -> None:
    got, body = await here.call("POST", "/ingest/file", data=made)
    assert got == status
    assert reason in body["reason"]
    assert list(here.uploads.iterdir()) == []


async def test_a_form_without_a_file_or_with_a_broken_boundary_is_malformed(here: House) -> None:
    made = aiohttp.FormData(default_to_multipart=True)
    made.add_field("dataset", "notes")
    assert (await here.call("POST", "/ingest/file", data=made))[0] == 400
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        status, body = await here.call("POST", "/ingest/file", data=b"no form", headers={"Content-Type": kind})
        assert (status, body["error"]) == (400, "malformed"), kind


HEAD = (
    "POST /ingest/file HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3000000\r\n\r\n"
    '--b\r\nContent-Disposition: form-data; name="file"; filename="rows.csv"\r\n\r\n'
)


async def begin(here: House) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An upload of which the server has begun to write the file."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.server.port)
    writer.write(HEAD.format(token=here.client.headers["Authorization"]).encode() + b"x" * 2_000_000)
    await writer.drain()
    await until(lambda: list(here.uploads.iterdir()))
    return reader, writer


async def nothing_left(here: House) -> None:
    await until(lambda: not list(here.uploads.iterdir()))


async def test_a_client_that_hangs_up_leaves_no_file(here: House) -> None:
    _, writer = await begin(here)
    writer.transport.abort()
    await nothing_left(here)
    assert here.files.seen == []


async def test_a_client_that_stalls_is_cut_off_and_leaves_no_file(here: House) -> None:
    reader, writer = await begin(here)
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    await nothing_left(here)
    writer.close()
    await writer.wait_closed()


async def test_what_a_killed_process_left_is_removed_at_start(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "upload-1.csv").write_text("half")
    (tmp_path / "uploads" / "kept.txt").write_text("mine")
    async with house(tmp_path):
        assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["kept.txt"]
