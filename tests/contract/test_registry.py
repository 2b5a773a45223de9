"""The contract of the port `Registry`, with heads in memory and on a real nats-server."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import nats
import pytest

from actors.errors import Conflict, CorruptState, Transient
from daemon.bus.heads import Heads, MemoryHeads, NatsHeads
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import KEEP_REVISIONS, DocumentRegistry
from daemon.storage.repair import repair
from schemas.documents.base import Document


class Counter(Document, frozen=True, kw_only=True, tag="counter"):
    value: int


class Label(Document, frozen=True, kw_only=True, tag="label"):
    text: str


SERVER = Path(sys.executable).with_name("nats-server")


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "nats.conf"
    ports = tmp_path / "ports"
    ports.mkdir()
    config.write_text(
        f"""
        listen: 127.0.0.1:-1
        ports_file_dir: {ports}
        jetstream {{ store_dir: {tmp_path}/js, sync_interval: always }}
        """
    )
    server = subprocess.Popen(
        [str(SERVER) if SERVER.exists() else str(shutil.which("nats-server")), "-c", str(config)],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            files = list(ports.glob("*.ports"))
            if files and files[0].stat().st_size:
                break
            time.sleep(0.01)
        yield json.loads(files[0].read_text())["nats"][0]
    finally:
        server.kill()
        server.wait()


@pytest.fixture
async def nats_heads(nats_url: str) -> AsyncIterator[Heads]:
    client = await nats.connect(nats_url)
    yield await NatsHeads.open(client.jetstream())
    await client.close()


@pytest.fixture(params=["memory", "nats"])
def heads(request: pytest.FixtureRequest) -> Heads:
    if request.param == "memory":
        return MemoryHeads()
    found: Heads = request.getfixturevalue("nats_heads")
    return found


@pytest.fixture
def buckets(tmp_path: Path) -> ObjectBuckets:
    return ObjectBuckets(
        {name: (tmp_path / "buckets" / name).as_uri() for name in ("primary", "rescue")}, tmp_path / "cache"
    )


@pytest.fixture
def registry(buckets: ObjectBuckets, heads: Heads) -> DocumentRegistry:
    return DocumentRegistry(buckets, heads)


async def revisions(buckets: ObjectBuckets, bucket: str = "primary") -> list[Path]:
    folder = (await buckets.location(bucket)).folder
    assert folder is not None
    return sorted((folder / "registry").rglob("*.json"))


async def test_save_and_load(registry: DocumentRegistry) -> None:
    assert await registry.load(Counter, "hits") is None
    assert await registry.save("hits", Counter(value=1), expected=None) == 1
    assert await registry.save("hits", Counter(value=2), expected=1) == 2
    assert await registry.load(Counter, "hits") == (Counter(value=2), 2)


async def test_another_process_reads_the_same(registry: DocumentRegistry, buckets: ObjectBuckets, heads: Heads) -> None:
    await registry.save("hits", Counter(value=1), expected=None)
    other = DocumentRegistry(buckets, heads)
    assert await other.load(Counter, "hits") == (Counter(value=1), 1)
    await other.save("hits", Counter(value=2), expected=1)
    assert await registry.load(Counter, "hits") == (Counter(value=2), 2)


async def test_heads_that_others_moved_are_read_again(
    registry: DocumentRegistry, buckets: ObjectBuckets, heads: Heads
) -> None:
    other = DocumentRegistry(buckets, heads)
    for value in range(1, 6):
        writer = registry if value % 2 else other
        assert await writer.save("hits", Counter(value=value), expected=value - 1 or None) == value
    with pytest.raises(Conflict):  # where it left the head itself
        await other.save("hits", Counter(value=9), expected=4)
    (key, (head, revision)) = next(iter((await heads.all()).items()))
    await heads.set(key, head + b" ", revision)  # a repair writes the same head anew
    assert await registry.save("hits", Counter(value=6), expected=5) == 6
    assert await other.load(Counter, "hits") == (Counter(value=6), 6)
    assert len(await revisions(buckets)) == 6, "nothing is left of what lost"


@pytest.mark.parametrize("expected", [None, 1, 3])
async def test_a_stale_expectation_is_a_conflict(registry: DocumentRegistry, expected: int | None) -> None:
    await registry.save("hits", Counter(value=1), expected=None)
    await registry.save("hits", Counter(value=2), expected=1)
    with pytest.raises(Conflict):
        await registry.save("hits", Counter(value=9), expected=expected)
    assert await registry.load(Counter, "hits") == (Counter(value=2), 2)


async def test_all_of_a_kind_by_name(registry: DocumentRegistry) -> None:
    await registry.save("zoo", Label(text="zoo"), expected=None)
    await registry.save("docs", Label(text="docs"), expected=None, bucket="rescue")
    await registry.save("hits", Counter(value=1), expected=None)
    assert await registry.all(Label) == [
        ("docs", Label(text="docs"), 1),
        ("zoo", Label(text="zoo"), 1),
    ]


async def test_delete_and_make_again(registry: DocumentRegistry) -> None:
    await registry.delete(Counter, "hits")
    await registry.save("hits", Counter(value=1), expected=None)
    with pytest.raises(Conflict):
        await registry.delete(Counter, "hits", expected=7)
    await registry.delete(Counter, "hits", expected=1)
    await registry.delete(Counter, "hits")
    assert await registry.load(Counter, "hits") is None
    assert await registry.all(Counter) == []
    assert await registry.save("hits", Counter(value=5), expected=None) == 3
    assert await registry.load(Counter, "hits") == (Counter(value=5), 3)


async def test_eight_writers_lose_no_increment(
    registry: DocumentRegistry, buckets: ObjectBuckets, heads: Heads
) -> None:
    await registry.save("hits", Counter(value=0), expected=None)

    async def increment(mine: DocumentRegistry) -> None:
        while True:
            loaded = await mine.load(Counter, "hits")
            assert loaded is not None
            document, revision = loaded
            try:
                await mine.save("hits", Counter(value=document.value + 1), expected=revision)
                return
            except Conflict:
                continue

    async def writer() -> None:
        mine = DocumentRegistry(buckets, heads)
        for _ in range(25):
            await increment(mine)

    await asyncio.gather(*(writer() for _ in range(8)))
    assert await registry.load(Counter, "hits") == (Counter(value=200), 201)
    # the losers took their revisions away again, and old ones are pruned
    numbers = [int(path.name[:8]) for path in await revisions(buckets)]
    assert len(numbers) == len(set(numbers)) <= KEEP_REVISIONS + 10
    assert max(numbers) == 201


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"value":2', b'"value":7'))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(("damage", "says"), [(flip, "fails its checksum"), (truncate, "can't be read")])
async def test_a_damaged_revision_is_refused_then_repaired(
    buckets: ObjectBuckets, heads: Heads, registry: DocumentRegistry, damage: Callable[[Path], None], says: str
) -> None:
    await registry.save("hits", Counter(value=1), expected=None)
    await registry.save("hits", Counter(value=2), expected=1)
    damage((await revisions(buckets))[1])
    before = (await revisions(buckets))[1].read_bytes()
    fresh = DocumentRegistry(buckets, heads)
    with pytest.raises(CorruptState, match=rf"registry/counter/hits/00000002-\w+\.json {says}.*lakehouse repair"):
        await fresh.load(Counter, "hits")
    report = await repair(buckets, heads)
    assert [finding.what for finding in report] == ["bad", "moved"]
    assert await fresh.load(Counter, "hits") == (Counter(value=1), 1)
    assert (await revisions(buckets))[1].read_bytes() == before  # evidence stays
    looked: list[str] = []
    assert await repair(buckets, heads, look=looked.append) == []
    assert looked == ["bucket primary", "bucket rescue", "counter hits: 2 revisions"]


async def test_a_damaged_document_does_not_hide_the_others(
    buckets: ObjectBuckets, heads: Heads, registry: DocumentRegistry
) -> None:
    await registry.save("hits", Counter(value=1), expected=None)
    truncate((await revisions(buckets))[0])
    await registry.save("misses", Counter(value=2), expected=None)
    fresh = DocumentRegistry(buckets, heads)
    assert await fresh.all(Counter) == [("misses", Counter(value=2), 1)]
    with pytest.raises(CorruptState):
        await fresh.load(Counter, "hits")


async def test_a_newer_format_is_never_touched(
    buckets: ObjectBuckets, heads: Heads, registry: DocumentRegistry
) -> None:
    await registry.save("hits", Counter(value=1), expected=None)
    await registry.save("hits", Counter(value=2), expected=1)
    newest = (await revisions(buckets))[1]
    newest.write_bytes(re.sub(rb'"format":1', b'"format":2,"new":true', newest.read_bytes()))
    before = newest.read_bytes()
    fresh = DocumentRegistry(buckets, heads)
    with pytest.raises(CorruptState, match=r"format 2, written by a newer lakehouse.*Upgrade"):
        await fresh.load(Counter, "hits")
    assert [finding.what for finding in await repair(buckets, heads)] == ["newer"]
    with pytest.raises(CorruptState):
        await fresh.load(Counter, "hits")
    assert newest.read_bytes() == before


async def test_a_head_that_is_just_being_made_is_no_lost_one(buckets: ObjectBuckets) -> None:
    """Another process has written its revision and moves the head a moment later."""

    begun = asyncio.Event()

    class Slow(MemoryHeads):
        async def set(self, key: str, value: bytes, expected: int | None) -> int:
            begun.set()
            await asyncio.sleep(0.3)
            return await super().set(key, value, expected)

    heads = Slow()
    first, second = DocumentRegistry(buckets, heads), DocumentRegistry(buckets, heads)
    saving = asyncio.create_task(first.save("hits", Counter(value=1), expected=None))
    await begun.wait()
    with pytest.raises(Conflict, match="made meanwhile"):
        await second.save("hits", Counter(value=2), expected=None)
    assert await saving == 1
    assert await second.load(Counter, "hits") == (Counter(value=1), 1)


async def test_heads_are_rebuilt_from_buckets(buckets: ObjectBuckets, registry: DocumentRegistry) -> None:
    for value in range(1, 4):
        await registry.save("hits", Counter(value=value), expected=value - 1 or None)
    await registry.save("docs", Label(text="docs"), expected=None, bucket="rescue")
    await registry.save("gone", Label(text="gone"), expected=None)
    await registry.delete(Label, "gone")
    lost = MemoryHeads()
    rebuilt = DocumentRegistry(buckets, lost)
    with pytest.raises(CorruptState, match="no head; run `lakehouse repair`"):
        await rebuilt.save("hits", Counter(value=9), expected=None)
    report = await repair(buckets, lost)
    assert [(finding.document, finding.what) for finding in report] == [
        ("counter hits", "moved"),
        ("label docs", "moved"),
        ("label gone", "moved"),
    ]
    assert await rebuilt.load(Counter, "hits") == (Counter(value=3), 3)
    assert await rebuilt.load(Label, "docs") == (Label(text="docs"), 1)
    assert await rebuilt.load(Label, "gone") is None
    assert await rebuilt.save("hits", Counter(value=4), expected=3) == 4


async def test_a_lost_answer_keeps_the_revision(buckets: ObjectBuckets) -> None:
    """The head moved but nobody heard: the object that it points to must not be cleaned up."""

    class Deaf(MemoryHeads):
        async def set(self, key: str, value: bytes, expected: int | None) -> int:
            await super().set(key, value, expected)
            raise Transient("no answer")

    heads = Deaf()
    with pytest.raises(Transient):
        await DocumentRegistry(buckets, heads).save("hits", Counter(value=1), expected=None)
    assert await DocumentRegistry(buckets, heads).load(Counter, "hits") == (Counter(value=1), 1)


async def test_a_missing_object_is_corrupt_state(
    buckets: ObjectBuckets, registry: DocumentRegistry, heads: Heads
) -> None:
    await registry.save("hits", Counter(value=1), expected=None)
    for path in await revisions(buckets):
        path.unlink()
    with pytest.raises(CorruptState, match="is missing from bucket primary"):
        await DocumentRegistry(buckets, heads).load(Counter, "hits")
    assert [finding.what for finding in await repair(buckets, heads)] == ["bad", "lost"]


class Behind(MemoryHeads):
    """After a head is read, or all of them are, somebody else is quicker."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def get(self, key: str) -> tuple[bytes, int] | None:
        found = await super().get(key)
        await self._let_go()
        return found

    async def all(self, prefix: str = "") -> dict[str, tuple[bytes, int]]:
        found = await super().all(prefix)
        await self._let_go()
        return found

    async def _let_go(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()


async def test_what_moves_while_it_is_read_is_read_where_it_went(buckets: ObjectBuckets) -> None:
    heads = Behind()
    registry, other = DocumentRegistry(buckets, heads), DocumentRegistry(buckets, heads)
    await registry.save("hits", Counter(value=1), expected=None)

    async def there() -> None:
        await other.rehome(Counter, "hits", "primary", "rescue")

    async def back() -> None:
        await other.rehome(Counter, "hits", "rescue", "primary")

    async def gone() -> None:
        await other.rehome(Counter, "hits", "primary", "rescue")
        await other.delete(Counter, "hits")

    fresh = DocumentRegistry(buckets, heads)
    heads.meanwhile = there
    assert await fresh.load(Counter, "hits") == (Counter(value=1), 2)
    fresh = DocumentRegistry(buckets, heads)
    heads.meanwhile = back
    assert await fresh.all(Counter) == [("hits", Counter(value=1), 3)]
    fresh = DocumentRegistry(buckets, heads)
    heads.meanwhile = gone
    assert await fresh.load(Counter, "hits") is None
