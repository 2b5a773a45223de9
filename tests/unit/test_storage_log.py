"""A table's log while it is read and written at the same time, and when parts of it are bad."""

import asyncio
import itertools
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from actors.errors import CorruptState
from actors.ports import TableRef
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.tables import DeltaTables
from schemas.events.dataset import CommitInfo

TABLE = TableRef("primary", "t")
messages = itertools.count()


def note() -> CommitInfo:
    return CommitInfo(version=0, time=0, operation="append", rows=0, message=f"m{next(messages)}")


def open_tables(folder: Path) -> DeltaTables:
    return DeltaTables(ObjectBuckets({"primary": (folder / "p").as_uri()}, folder / "c"), folder / "c")


async def append(tables: DeltaTables, *numbers: int) -> None:
    await tables.commit(TABLE, [pa.record_batch({"n": pa.array(numbers, pa.int64())})], note())


@pytest.mark.slow
async def test_readers_during_commits_leave_no_gap_in_the_log(tmp_path: Path) -> None:
    """A reader that met a commit at its entry once counted it twice, and the next commit left
    a version out: nobody could open the table again."""
    tables = open_tables(tmp_path)
    await append(tables, 0)
    over = False

    async def look() -> None:
        while not over:
            await tables.state(TABLE)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(look()) for _ in range(3)]
    for n in range(1, 120):
        await append(tables, n)
    over = True
    await asyncio.gather(*readers)
    state = await tables.state(TABLE)
    assert state is not None
    assert (state.version, state.rows) == (119, 120)
    entries = sorted(path.name for path in (tmp_path / "p" / "t" / "_delta_log").glob("*.json"))
    assert entries == [f"{n:020d}.json" for n in range(120)]
    assert DeltaTable(tmp_path / "p" / "t").version() == 119
    assert (await open_tables(tmp_path).read(TABLE))["n"].to_pylist() == list(range(120))


@pytest.mark.slow
def test_a_table_opens_while_another_process_writes_fast(tmp_path: Path) -> None:
    """A directory of thousands of names is read in parts, so its listing may show an entry and
    not the one before it: deltalake's own listing failed nine times in ten here."""
    asyncio.run(append(open_tables(tmp_path), 0))
    log = tmp_path / "p" / "t" / "_delta_log"
    program = """
        import os, sys, time
        log = sys.argv[1]
        info = open(f"{log}/{0:020d}.json").readlines()[0]
        for n in range(1, 8000):
            with open(f"{log}/.tmp-{n}", "w") as file:
                file.write(info)
            os.rename(f"{log}/.tmp-{n}", f"{log}/{n:020d}.json")
            if n == 2000:
                print("go", flush=True)
            if n > 2000:
                time.sleep(0.0005)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(log)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(5):
            state = asyncio.run(open_tables(tmp_path).state(TABLE))
            assert state is not None
            assert (state.rows, state.next_row) == (1, 1)
            assert state.version >= 2000
        writer.kill()


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("bad", ["torn", "binary", "missing", "foreign"])
async def test_a_bad_log_is_corrupt_state_to_every_reader(tmp_path: Path, bad: str) -> None:
    """Its own CorruptState, that says what to do; the other tables go on."""
    tables = open_tables(tmp_path)
    for n in range(3):
        await append(tables, n)
    other = TableRef("primary", "other")
    await tables.commit(other, [pa.record_batch({"n": [1]})], note())
    entry = tmp_path / "p" / "t" / "_delta_log" / f"{1:020d}.json"
    match bad:
        case "torn":
            _tear(entry)
        case "binary":
            entry.write_bytes(bytes(range(256)))
        case "missing":
            entry.unlink()
        case "foreign":  # a file added by another program, without row numbers
            add = '"path":"x.parquet","size":1,"partitionValues":{},"modificationTime":1,"dataChange":true'
            entry.write_text(f'{{"add":{{{add}}}}}\n')
    again = open_tables(tmp_path)
    words = "table t in bucket primary can't be opened: .*Restore"
    for _ in range(2):
        with pytest.raises(CorruptState, match=words) as raised:
            await again.state(TABLE)
        assert len(str(raised.value)) < 400
    with pytest.raises(CorruptState, match=words):
        await again.read(TABLE)
    with pytest.raises(CorruptState, match=words):
        await append(again, 9)
    assert (await again.read(other)).num_rows == 1
    assert len(list(entry.parent.glob("*.json"))) == (2 if bad == "missing" else 3)  # and nothing was changed


@pytest.mark.parametrize("version", [2, 1])
async def test_an_empty_entry_is_corrupt_state(tmp_path: Path, version: int) -> None:
    """deltalake opens the table as if that commit had written nothing: its rows were lost in
    silence, and the next commit gave their row numbers to others."""
    tables = open_tables(tmp_path)
    for n in range(3):
        await append(tables, n)
    behind = open_tables(tmp_path)
    name = f"{version:020d}.json"
    (tmp_path / "p" / "t" / "_delta_log" / name).write_bytes(b"")
    readers = [behind, open_tables(tmp_path)] + ([tables] if version == 2 else [])  # it has version 1 at hand
    for reader in readers:
        with pytest.raises(
            CorruptState, match=f"table t in bucket primary can't be opened: .*{name} is empty.*Restore"
        ):
            await reader.state(TABLE)
        with pytest.raises(CorruptState, match=name):
            await append(reader, 9)
        with pytest.raises(CorruptState, match=name):
            await reader.read(TABLE, version=2)
        older = await reader.read(TABLE, version=version - 1)
        assert older["n"].to_pylist() == list(range(version))


async def test_an_empty_entry_after_the_version_at_hand_is_corrupt_state(tmp_path: Path) -> None:
    tables, reader = open_tables(tmp_path), open_tables(tmp_path)
    await append(tables, 0)
    await reader.state(TABLE)
    await append(tables, 1)
    (tmp_path / "p" / "t" / "_delta_log" / f"{1:020d}.json").write_bytes(b"")
    with pytest.raises(CorruptState, match=f"{1:020d}.json is empty"):
        await reader.state(TABLE)
    assert (await reader.read(TABLE, version=0))["n"].to_pylist() == [0]


async def test_an_entry_that_turns_bad_under_a_reader(tmp_path: Path) -> None:
    tables, reader = open_tables(tmp_path), open_tables(tmp_path)
    await append(tables, 0)
    await reader.state(TABLE)
    await append(tables, 1)
    entry = tmp_path / "p" / "t" / "_delta_log" / f"{1:020d}.json"
    good = entry.read_bytes()
    _tear(entry)
    with pytest.raises(CorruptState, match="Restore"):
        await reader.state(TABLE)
    entry.write_bytes(good)  # restored: it goes on without a restart
    assert (await reader.read(TABLE))["n"].to_pylist() == [0, 1]


@pytest.mark.parametrize("bad", ["torn", "bytes", "missing"])
async def test_a_bad_data_file_is_corrupt_state(tmp_path: Path, bad: str) -> None:
    """Not the caller's fault (ValueError), and not a missing table (FileNotFoundError)."""
    tables = open_tables(tmp_path)
    await append(tables, *range(5000))
    (file,) = (tmp_path / "p" / "t").glob("*.parquet")
    match bad:
        case "torn":
            _tear(file)
        case "bytes":
            content = bytearray(file.read_bytes())
            content[4:5000] = b"x" * 4996
            file.write_bytes(content)
        case "missing":
            file.unlink()
    words = f"a data file of table t in bucket primary can't be read: .*{file.name}.*Restore"
    with pytest.raises(CorruptState, match=words):
        await tables.read(TABLE)
    with pytest.raises(CorruptState, match=r"of table t in bucket primary can't be read: .*Restore"):
        await tables.match(TABLE, "n > 3")
    with pytest.raises(CorruptState, match=words):
        await tables.commit(TABLE, [], note(), remove=[7])
    await append(tables, 9)  # what needs no old row goes on
    assert (await tables.read(TABLE, min_row=5000))["n"].to_pylist() == [9]


async def test_a_read_that_meets_a_drop_finds_no_table(tmp_path: Path) -> None:
    tables, other = open_tables(tmp_path), open_tables(tmp_path)
    await append(tables, 1)
    await tables.drop(TABLE)
    with pytest.raises(FileNotFoundError, match="no table t"):
        await tables.read(TABLE)
    await append(tables, 1)
    await other.state(TABLE)
    shutil.rmtree(tmp_path / "p" / "t")  # another process drops it; `other` has its version at hand
    with pytest.raises(FileNotFoundError, match="no table t"):
        await other.read(TABLE)
