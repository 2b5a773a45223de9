"""The disk of the state directory runs full under a real daemon: it says so, loses nothing that it
acknowledged, and goes on by itself when there is room again."""

import asyncio
import contextlib
import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from daemon.bus.nats import NatsBus
from daemon.bus.server import NatsServer
from daemon.bus.streams import DEAD
from daemon.disk import RESTART_S, SETTLE_S, Disk, watch
from tests.conftest import missing
from tests.integration.house import House, HttpError, house
from tests.integration.test_main_road import parquet
from tests.integration.test_service import attempt, one_sentence
from tests.unit.simulation import VirtualClock, simulate

MIB = 1 << 20
BATCH = 4000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `data` is a file system of 64 MiB."""
    data = tmp_path / "data"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(data)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:  # not a missing program: root in a container may not mount either
        missing(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


@pytest.mark.slow
@pytest.mark.needs("mount")
def test_a_full_disk_is_told_loses_nothing_and_is_forgotten_once_there_is_room(small_disk: Path) -> None:
    with house(small_disk, agent__enabled=False) as made:
        ballast = made.state / "ballast"
        ballast.write_bytes(bytes(20 * MIB))
        made.ingest(parquet(made.folder / "few.parquet", 500, seed=1), "few", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "few", "dataset": "few", "column": "embedding"})
        made.index_ready("few", 500)

        made.ingest(parquet(made.folder / "first.parquet", 100, 3, 2_000_000), "points", id_column="id")
        made.call("POST", "/vectors/indexes", {"name": "points", "dataset": "points", "column": "embedding"})
        whole: list[range] = [range(2_000_000, 2_000_100)]
        unknown: list[range] = []  # refused: either all of it is there or nothing
        while not unknown:
            ids = range(len(whole) * BATCH, (len(whole) + 1) * BATCH)
            assert len(whole) < 100, "64 MiB hold more than they can"
            try:
                made.ingest(parquet(made.folder / "more.parquet", BATCH, ids[0], ids[0]), "points", id_column="id")
                whole.append(ids)
            except HttpError as error:
                refused(error, "disk is full")
                unknown.append(ids)
        filler = fill(made.state / "filler")
        assert down(made) == {"disk": f"the disk of {made.state} is full: free some space"}
        with pytest.raises(HttpError) as full:
            enqueue_for_ever(made, filler)
        refused(full.value, f"the disk of {made.state} is full: free some space")
        assert words(made, "disk full") == 1
        before = nats(made)

        ballast.unlink()
        filler.unlink()
        made.until(lambda: nats(made) not in ([], before), "NATS is restarted", 30)
        made.until(lambda: not down(made), "nothing is down", 10)
        made.call("POST", "/vectors/agent/enqueue/few")
        ids = range(1_000_000, 1_000_500)
        last = parquet(made.folder / "last.parquet", len(ids), 2, ids[0])
        made.ingest(last, "points", id_column="id")
        whole.append(ids)
        made.ingest(last, "few", id_column="id")
        made.index_ready("few", 1000)
        made.index_ready("points", made.call("GET", "/datasets/points")["rows"])
        assert words(made, "disk full") == words(made, "the disk has room again") == 1

        there = Counter(stored(made))
        assert there.total() == len(there), "rows are there twice"
        assert all(id in there for ids in whole for id in ids), "acknowledged rows are gone"
        for ids in unknown:
            assert sum(id in there for id in ids) in (0, len(ids)), "half a file is there"
        assert there.total() - sum(map(len, whole)) in (0, BATCH)
        assert made.call("GET", "/dead")["letters"] == []
        assert made.stop() == 0


@pytest.mark.needs("mount")
def test_the_floor_is_a_hundredth_within_bounds(small_disk: Path) -> None:
    disk = Disk(small_disk / "data")
    assert disk.full() is None
    (small_disk / "data" / "most").write_bytes(bytes(59 * MIB))
    assert disk.full() is None
    (small_disk / "data" / "more").write_bytes(bytes(2 * MIB))
    assert disk.full() == f"the disk of {small_disk / 'data'} is full: free some space"
    assert Disk(small_disk / "gone").full() is None


@pytest.mark.needs("mount")
def test_a_start_on_a_full_disk_is_refused_in_one_sentence(small_disk: Path) -> None:
    fill(small_disk / "data" / "filler")
    one_sentence(attempt(House(small_disk), "run"), str(small_disk / "data"), "No space left", "free some space")


@pytest.mark.needs("mount")
async def test_nats_started_with_little_room_takes_more_once_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "data" / "filler"
    filler.write_bytes(bytes(57 * MIB))
    server = NatsServer(small_disk / "data" / "nats", small_disk / "password")
    await server.start()
    try:
        filler.unlink()
        bus = await NatsBus.connect(server.url, server.password)
        for _ in range(20):
            await bus.js.publish(DEAD.subject.replace(">", "x"), bytes(MIB - 1024))
        assert (await bus.js.stream_info(DEAD.name)).state.messages == 20
        await bus.close()
    finally:
        await server.stop()


class Scripted(Disk):
    """Full in the given seconds of virtual time."""

    def __init__(self, clock: VirtualClock, *full: range) -> None:
        super().__init__(Path("/"))
        self._clock, self._full = clock, full

    def full(self) -> str | None:
        return "full" if any(int(self._clock.monotonic()) in span for span in self._full) else None


class Store:
    def __init__(self, clock: VirtualClock, off_for: int) -> None:
        self._clock, self._off_for = clock, off_for
        self.restarts: list[float] = []

    def met_full_disk(self) -> bool:
        return len(self.restarts) < self._off_for

    async def restart(self) -> None:
        self.restarts.append(self._clock.monotonic())


@pytest.mark.parametrize(
    ("full", "off_for", "expected"),
    [
        ((), 1, [0.0]),  # a burst that no look at the disk saw
        ((range(20),), 1, [19 + SETTLE_S]),
        ((range(20), range(21, 30)), 1, [29 + SETTLE_S]),  # never while it flutters
        ((range(5),), 3, [4 + SETTLE_S, 4 + SETTLE_S + RESTART_S, 4 + SETTLE_S + 2 * RESTART_S]),
        ((range(5),), 0, []),
    ],
)
def test_a_store_is_restarted_once_there_is_room(full: tuple[range, ...], off_for: int, expected: list[float]) -> None:
    async def main(clock: VirtualClock, _: random.Random) -> list[float]:
        disk, store = Scripted(clock, *full), Store(clock, off_for)
        watching = asyncio.create_task(watch(disk, clock, store))
        await clock.sleep(100)
        watching.cancel()
        return store.restarts

    assert simulate(main, 1) == pytest.approx(expected)


def refused(error: HttpError, *expected: str) -> None:
    """503, in one sentence that holds these words."""
    assert error.status == 503, error
    reason = error.body["reason"]
    assert "\n" not in reason, reason
    for each in expected:
        assert each in reason, reason


def enqueue_for_ever(made: House, filler: Path) -> None:
    """The last page of NATS's file takes a few more after the disk is full; what the daemon frees
    meanwhile, a graph that is served no longer, is filled up too."""
    for time in range(1000):
        if time % 50 == 49:
            fill(filler)
        made.call("POST", "/vectors/agent/enqueue/few")


def down(made: House) -> Any:
    """What /ready calls down."""
    try:
        return made.call("GET", "/ready")["down"]
    except HttpError as error:
        return error.body["down"]


def fill(path: Path) -> Path:
    """A file that takes every byte that is left."""
    for size in (MIB, 1):
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            while file.write(bytes(size)):
                pass
    assert os.statvfs(path).f_bavail == 0
    return path


def nats(made: House) -> list[int]:
    """The pids of its NATS children."""
    assert made.process is not None
    children = Path(f"/proc/{made.process.pid}/task/{made.process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if _program(pid).endswith("nats-server")]


def _program(pid: int) -> str:
    """Empty for a process that has ended meanwhile."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return ""


def words(made: House, event: str) -> int:
    """How often the log says it."""
    lines = made.log.read_text().splitlines()
    return sum(json.loads(line).get("event") == event for line in lines if line.startswith("{"))


def stored(made: House) -> list[int]:
    """Every id in the table, by another reader than the daemon's."""
    table = DeltaTable(str(made.state / "buckets/primary/datasets/points/table"))
    return list(table.to_pyarrow_table(columns=["id"])["id"].to_pylist())
