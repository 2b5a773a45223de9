"""What the bus costs: `python -m benchmarks.bus`.

From an event's publication to its handler's first line over an embedded nats-server that syncs
every write to disk, beside a bare JetStream pull consumer; and an ask in one process, beside
awaiting the handler itself.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Never

import numpy as np
import structlog
from rich.console import Console
from rich.table import Table

from actors.base import Actor, handles
from daemon.bus.base import MessageBus
from daemon.bus.memory import MemoryBus
from daemon.bus.nats import NatsBus
from daemon.bus.server import NatsServer
from daemon.runtime import Runtime
from schemas.events.base import Event, Query, Reply

ROUNDS = 1000
CALLS = 20_000


class Ticked(Event, tag="bench.ticked"):
    sent: float


class Echo(Reply, tag="bench.echo"):
    n: int


class Say(Query[Echo], tag="bench.say"):
    n: int


class Listener(Actor):
    """Notes how long each event was under way, in seconds."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.heard = asyncio.Event()

    @handles
    async def on_ticked(self, event: Ticked) -> Sequence[Never]:
        self.took.append(time.perf_counter() - event.sent)
        self.heard.set()
        return []

    @handles
    async def on_say(self, query: Say) -> Sequence[Echo]:
        return [Echo(query.n)]


async def each_us(call: Callable[[], Awaitable[object]], calls: int) -> list[float]:
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1e6)
    return took


async def events_us(bus: MessageBus) -> list[float]:
    """Publication → handler running, one event at a time, so that nothing queues."""
    listener = Listener()
    async with Runtime(bus, [listener]):
        for _ in range(ROUNDS):
            listener.heard.clear()
            await bus.publish(Ticked(time.perf_counter()))
            await listener.heard.wait()
            await asyncio.sleep(0.001)
    return [took * 1e6 for took in listener.took]


async def bare_us(bus: NatsBus) -> list[float]:
    """The same with nats-py alone: js.publish and a pull subscription's fetch."""
    took: list[float] = []
    subscription = await bus.js.pull_subscribe("lakehouse.evt.bench.bare", stream="LAKEHOUSE_EVT")
    heard = asyncio.Event()

    async def consume() -> None:
        while len(took) < ROUNDS:
            (message,) = await subscription.fetch(1, timeout=2)
            took.append((time.perf_counter() - float(message.data)) * 1e6)
            heard.set()
            await message.ack()

    consuming = asyncio.create_task(consume())
    await asyncio.sleep(0.1)
    for _ in range(ROUNDS):
        heard.clear()
        await bus.js.publish("lakehouse.evt.bench.bare", repr(time.perf_counter()).encode())
        await heard.wait()
        await asyncio.sleep(0.001)
    await consuming
    return took


async def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rows: list[tuple[str, list[float], str]] = []
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats", Path(folder) / "password")
        await server.start()
        bus = await NatsBus.connect(server.url, server.password)
        other = await NatsBus.connect(server.url, server.password)
        rows.append(("event → handler, NATS", await events_us(bus), "goal p50 ≤ 3,000"))
        rows.append(("event → handler, bare nats-py", await bare_us(bus), "peer"))
        listener = Listener()
        async with Runtime(bus, [listener]):
            rows.append(("publish until acked, NATS", await each_us(lambda: bus.publish(Ticked(0.0)), ROUNDS), ""))
            rows.append(("ask another process's actor", await each_us(lambda: other.ask(Say(1)), ROUNDS), ""))
            rows.append(("ask an actor in this process", await each_us(lambda: bus.ask(Say(1)), CALLS), "goal ≤ 60"))
            rows.append(("await the handler itself", await each_us(lambda: listener.on_say(Say(1)), CALLS), "peer"))
        await other.close()
        await bus.close()
        await server.stop()
    rows.append(("event → handler, memory", await events_us(MemoryBus()), ""))

    table = Table("µs", "p50", "p95", "p99", "", title="The bus")
    for name, took, note in rows:
        p50, p95, p99 = np.percentile(took, [50, 95, 99])
        table.add_row(name, f"{p50:,.1f}", f"{p95:,.1f}", f"{p99:,.1f}", note)
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
