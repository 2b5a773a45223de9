"""Killed with -9: the NATS child while publishing, and a daemon that has one."""

# ruff: noqa: ASYNC110 - nothing tells when another process is done

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Never

import nats.errors
import pytest
from nats.js.errors import NotFoundError

from actors.base import Actor, handles
from actors.errors import Unavailable
from daemon.bus.nats import NatsBus
from daemon.bus.server import NatsServer, ServerError
from daemon.bus.streams import EVENTS, Durable
from daemon.runtime import Runtime
from schemas.events.base import Event, subject_of


class Ticked(Event, tag="chaostest.ticked"):
    n: int


class Counter(Actor):
    def __init__(self) -> None:
        self.heard: list[int] = []

    @handles
    async def on_ticked(self, event: Ticked) -> Sequence[Never]:
        self.heard.append(event.n)
        return []


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int, at_most_s: float = 10.0) -> bool:
    until = time.monotonic() + at_most_s
    while alive(pid) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return not alive(pid)


async def test_no_acked_message_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", tmp_path / "password")
    await server.start()
    url, keeping = server.url, asyncio.create_task(server.run())
    bus = await NatsBus.connect(url, server.password)
    counter = Counter()
    acked: list[int] = []
    ended = asyncio.Event()

    async def publish(first: int) -> None:
        n = first
        while not ended.is_set():
            await bus.publish(Ticked(n))  # tries again through the outage, under the same id
            acked.append(n)
            n += 4

    async with Runtime(bus, [counter]):
        publishing = [asyncio.create_task(publish(first)) for first in range(4)]
        killed = []
        for _ in range(3):
            await asyncio.sleep(0.5)
            before, pid = len(acked), server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            async with asyncio.timeout(20):
                while len(acked) < before + 20:
                    await asyncio.sleep(0.02)
        ended.set()
        await asyncio.gather(*publishing)
        async with asyncio.timeout(60):
            while len(set(counter.heard)) < len(acked):
                await asyncio.sleep(0.05)
    assert server.pid not in killed
    assert server.url == url, "clients reconnect where they were connected"

    info = await bus.js.stream_info(EVENTS.name)
    assert info.state.messages == len(acked), "each stored once, though some were published twice"
    assert set(counter.heard) == set(acked)
    await bus.close()
    await server.stop()
    await keeping


async def test_a_consumer_that_the_server_forgot_is_made_anew(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", tmp_path / "password")
    await server.start()
    bus = await NatsBus.connect(server.url, server.password)
    counter = Counter()
    async with Runtime(bus, [counter]):
        await bus.publish(Ticked(1))
        async with asyncio.timeout(60):
            while counter.heard != [1]:
                await asyncio.sleep(0.01)
            await _forgotten(bus, "counter__chaostest_ticked")
            await bus.publish(Ticked(2))
            while 2 not in counter.heard:
                await asyncio.sleep(0.01)
    await bus.close()
    await server.stop()


async def _forgotten(bus: NatsBus, durable: str) -> None:
    """The server's answer may be late on a busy disk."""
    while True:
        with suppress(nats.errors.TimeoutError):
            with suppress(NotFoundError):
                await bus.js.delete_consumer(EVENTS.name, durable)
            return


async def test_publishing_without_a_server_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.bus.nats.PUBLISH_TIMEOUT_S", 1.0)
    server = NatsServer(tmp_path / "nats", tmp_path / "password")
    await server.start()
    bus = await NatsBus.connect(server.url, server.password)
    await server.stop()
    with pytest.raises(Unavailable, match="no ack"):
        await bus.publish(Ticked(1))
    await server.start()
    consumer = await bus.subscribe(Durable("reader", EVENTS.name, subject_of(Ticked)))
    await bus.publish(Ticked(2))
    assert await consumer.next(5.0) is not None
    await consumer.close()
    await bus.close()
    await server.stop()


DAEMON = textwrap.dedent(
    """
    import asyncio, fcntl, os, sys
    from pathlib import Path
    from daemon.bus.server import NatsServer

    async def main() -> None:
        state = Path(sys.argv[1])
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server = NatsServer(state / "nats", state / "password", lock_fd=lock)
        await server.start()
        print("READY", server.pid, server.url, server.password, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
    """
)


@contextmanager
def daemon(state: Path) -> Iterator[tuple[int, str, str, Callable[[], None]]]:
    """A process that has a NATS child: the child's pid, URL and password, and how to kill it."""
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(state)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if line.startswith("READY"))
            pid, url, password = ready.split()[1:]
            yield int(pid), url, password, process.kill
        finally:
            process.kill()


async def test_no_nats_server_outlives_a_killed_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path) as (child, url, password, kill):
        bus = await NatsBus.connect(url, password)
        id = await bus.publish(Ticked(1))
        assert alive(child)
        kill()
        assert await gone(child), "an orphan"
        await bus.close()

    # The lock went with the child, the password stayed, and so did what was acked.
    with daemon(tmp_path) as (child, url, again, kill):
        assert again == password
        bus = await NatsBus.connect(url, password)
        consumer = await bus.subscribe(Durable("reader", EVENTS.name, subject_of(Ticked)))
        delivery = await consumer.next(5.0)
        assert delivery is not None
        assert delivery.origin.id == id
        await consumer.close()
        await bus.close()
        kill()
        assert await gone(child)


async def test_while_a_child_lives_its_state_stays_locked(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    server = NatsServer(tmp_path / "nats", tmp_path / "password", lock_fd=lock)
    await server.start()
    os.close(lock)
    with (tmp_path / "lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await server.stop()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_what_keeps_the_server_from_starting_is_one_sentence(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", tmp_path / "password")
    await server.start()
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ServerError, match=f"port {port} for NATS is taken"):
        await NatsServer(tmp_path / "other", tmp_path / "password", port=port).start()
    await server.stop()

    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match=r"can't keep its state in .*/file"):
        await NatsServer(tmp_path / "file", tmp_path / "password").start()

    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "store").touch()
    with pytest.raises(ServerError, match="JetStream"):
        await NatsServer(tmp_path / "odd", tmp_path / "password").start()


async def test_secrets_are_private_and_stay(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", tmp_path / "password")
    await server.start()
    await server.stop()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "nats", tmp_path / "password")}
    modes["nats.conf"] = (tmp_path / "nats" / "nats.conf").stat().st_mode & 0o777
    assert modes == {"nats": 0o700, "password": 0o600, "nats.conf": 0o600}
    again = NatsServer(tmp_path / "nats", tmp_path / "password")
    await again.start()
    assert again.password == server.password
    await again.stop()
