"""Files that land in a watched folder: read once each, when they have settled, also after a restart."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.ingest.actor import Ingest
from actors.ingest.config import IngestConfig, WatchConfig
from actors.ingest.core_watch import Sighting, Stamp, ready, wanted, watched
from actors.ingest.watcher import Watcher
from actors.ports import TableRef
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.runtime import Runtime
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.seen_files import TableSeenFiles
from daemon.storage.tables import DeltaTables


class World:
    def __init__(self, folder: Path, **watch: Any) -> None:
        self.inbox = folder / "in"
        self.inbox.mkdir()
        self.folder = folder
        self.heads = MemoryHeads()
        self.bus = MemoryBus()  # one: its message ids count on
        self.watch = WatchConfig(**{"path": str(self.inbox), "dataset": "t", "settle_s": 0.3, **watch})
        self.buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        self.tables = DeltaTables(self.buckets, folder / "cache")
        self.seen = TableSeenFiles(self.tables)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        bus = self.bus
        registry = DocumentRegistry(self.buckets, self.heads)
        config = IngestConfig(allowed_roots=[str(self.inbox)])
        ingest = Ingest(self.tables, registry, self.buckets, bus, SystemClock(), config, self.folder / "uploads")
        async with Runtime(bus, [ingest, Watcher(self.seen, bus, SystemClock(), [self.watch])]):
            yield

    async def rows(self) -> list[int]:
        table = TableRef("primary", "datasets/t/table")
        if await self.tables.state(table) is None:
            return []
        return sorted((await self.tables.read(table, ["n"]))["n"].to_pylist())

    async def until(self, rows: list[int]) -> None:
        async with asyncio.timeout(20):
            while await self.rows() != rows:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def dealt_with(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(await self.seen.all()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def lines(*numbers: int) -> str:
    return "".join(f'{{"n": {number}}}\n' for number in numbers)


async def test_new_and_grown_files_are_read_once(tmp_path: Path) -> None:
    world = World(tmp_path, pattern="*.jsonl")
    (world.inbox / "deep").mkdir()
    async with world.running():
        (world.inbox / "deep" / "a.jsonl").write_text(lines(1, 2))
        (world.inbox / "a.txt").write_text("not wanted")
        (world.inbox / ".hidden.jsonl").write_text(lines(9))
        await world.until([1, 2])
        with (world.inbox / "deep" / "a.jsonl").open("a") as file:
            file.write(lines(3))
        await world.until([1, 2, 3])
        await world.dealt_with(2)
    version = await world.tables.state(TableRef("primary", "datasets/t/table"))
    (world.inbox / "deep" / "a.jsonl").touch()
    async with world.running():  # after a restart, and touched: the same path and content
        (world.inbox / "b.jsonl").write_text(lines(4))
        await world.until([1, 2, 3, 4])
        await world.dealt_with(3)
    after = await world.tables.state(TableRef("primary", "datasets/t/table"))
    assert version is not None
    assert after is not None
    assert after.version == version.version + 1


async def test_a_file_that_was_committed_but_not_noted_is_not_read_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.running():
        (world.inbox / "a.jsonl").write_text(lines(1))
        await world.dealt_with(1)
    shutil.rmtree(tmp_path / "primary" / "system")
    world.tables = DeltaTables(world.buckets, tmp_path / "cache")
    world.seen = TableSeenFiles(world.tables)
    async with world.running():
        await world.dealt_with(1)
    assert len(await world.tables.history(TableRef("primary", "datasets/t/table"))) == 1


async def test_a_watched_folder_has_a_policy_for_personal_data(tmp_path: Path) -> None:
    world = World(tmp_path, pii="refuse")
    async with world.running():
        (world.inbox / "a.jsonl").write_text("".join(f'{{"n": {n}, "m": "u{n}@example.com"}}\n' for n in range(9)))
        (world.inbox / "b.jsonl").write_text(lines(4))
        await world.until([4])
        await world.dealt_with(2)
    (reason,) = (tmp_path / "in").rglob("*.reason")
    assert "column 'm': email, 100% of the values" in reason.read_text()
    assert "@example.com" not in reason.read_text()


async def test_a_half_written_file_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, settle_s=0.6)
    async with world.running():
        with (world.inbox / "a.jsonl").open("w") as file:
            for number in range(12):
                file.write(lines(number)[:5])
                file.flush()
                await asyncio.sleep(0.1)
                file.write(lines(number)[5:])
                file.flush()
                assert await world.rows() == []
        await world.until(list(range(12)))
    assert len(await world.tables.history(TableRef("primary", "datasets/t/table"))) == 1


async def test_bad_files_are_set_aside_with_the_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.running():
        (world.inbox / "bad.parquet").write_text("this is no Parquet")
        (world.inbox / "good.jsonl").write_text(lines(1))
        await world.until([1])
        await world.dealt_with(2)
        (world.inbox / "bad.parquet").write_text("nor is this")
        await world.dealt_with(3)
    rejected = world.inbox / "rejected"
    assert sorted(path.name for path in rejected.iterdir()) == [
        "bad.1.parquet", "bad.1.parquet.reason", "bad.parquet", "bad.parquet.reason"
    ]  # fmt: skip
    assert "Parquet" in (rejected / "bad.parquet.reason").read_text()
    assert not (world.inbox / "bad.parquet").exists()


def test_which_files_are_wanted() -> None:
    assert wanted("a.jsonl", "*.jsonl")
    assert wanted("x/y/a.jsonl", "*.jsonl")
    assert wanted("x/a.csv", "x/*.csv")
    for unwanted in ("a.csv", ".a.jsonl", "rejected/a.jsonl", "x/.git/a.jsonl", "a.jsonl.part", "a.jsonl.reason"):
        assert not wanted(unwanted, "*.jsonl")


STAMPS = st.builds(Stamp, st.integers(0, 3), st.integers(0, 3), st.just(1))


@given(
    st.lists(st.tuples(st.floats(0.01, 2), st.dictionaries(st.sampled_from("ab"), STAMPS)), min_size=1), st.floats(0, 3)
)
def test_what_is_ready_has_not_changed_for_so_long(
    looks: list[tuple[float, dict[str, Stamp]]], settle_s: float
) -> None:
    sightings: dict[str, Sighting] = {}
    history: list[tuple[float, dict[str, Stamp]]] = []
    now = 0.0
    for passed, found in looks:
        now += passed
        history.append((now, found))
        sightings = watched(sightings, found, now)
        for path in ready(sightings, {}, now, settle_s):
            first = next(i for i in range(len(history)) if all(h[1].get(path) == found[path] for h in history[i:]))
            assert now - history[first][0] >= settle_s
