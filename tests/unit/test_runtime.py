"""The runtime's promises, in virtual time on the memory bus: starting, draining, holding, asking,
retrying. What every bus must do is in tests/contract/test_bus.py."""

# ruff: noqa: ARG001 - what the tests hand to `simulated` and to doors has one signature

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Never

import pytest
import structlog

from actors.base import Actor, Origin, concurrent, handles
from actors.errors import CorruptState, Refused, Transient, Unavailable
from daemon.bus.memory import MemoryBus, MemoryServer
from daemon.runtime import HOLD_S, Runtime
from daemon.supervisor import CrashedTooOften
from schemas.events.base import Event, Message, Query, Refusal, Reply, Request
from tests.unit.simulation import VirtualClock, simulate


class Knocked(Event, tag="runtest.knocked"):
    n: int


class Opened(Event, tag="runtest.opened"):
    n: int


class Here(Reply, tag="runtest.here"):
    pass


class Open(Request[Opened], tag="runtest.open"):
    n: int


class Anyone(Query[Here], tag="runtest.anyone"):
    pass


Handling = Callable[[int, Origin], Awaitable[None]]


async def nothing(n: int, origin: Origin) -> None:
    pass


class Door(Actor):
    """Does what the test says for each message, and keeps a diary."""

    def __init__(self, doing: Handling = nothing) -> None:
        self.doing = doing
        self.diary: list[str] = []

    async def start(self) -> Sequence[Message]:
        self.diary.append("start")
        return [Opened(0)]

    async def stop(self) -> None:
        self.diary.append("stop")

    @handles
    async def on_open(self, command: Open, origin: Origin) -> Sequence[Opened | Refusal]:
        self.diary.append(f"{command.n}#{origin.delivery}")
        await self.doing(command.n, origin)
        return [Opened(command.n)]

    @handles
    async def on_anyone(self, query: Anyone) -> Sequence[Here]:
        return [Here()]


class Ear(Actor):
    def __init__(self) -> None:
        self.heard: list[int] = []

    @handles
    async def on_opened(self, event: Opened) -> Sequence[Never]:
        self.heard.append(event.n)
        return []


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as logs:
        yield logs


def simulated(test: Callable[[VirtualClock, MemoryBus], Awaitable[None]]) -> Callable[[], None]:
    """Runs a test's coroutine in virtual time, under several schedules."""

    def run() -> None:
        for seed in range(3):

            async def main(clock: VirtualClock, _: random.Random) -> None:
                await test(clock, MemoryBus(MemoryServer(clock)))

            simulate(main, seed)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@simulated
async def test_start_comes_before_the_first_message_and_stop_after_the_last(
    clock: VirtualClock, bus: MemoryBus
) -> None:
    door, ear = Door(), Ear()
    await bus.publish(Open(1))
    async with Runtime(bus, [door, ear]):
        await clock.sleep(1)
    assert door.diary == ["start", "1#1", "stop"]
    assert ear.heard == [0, 1], "what start returned was published"


@simulated
async def test_a_start_that_is_not_ready_is_no_crash(clock: VirtualClock, bus: MemoryBus) -> None:
    class Sleepy(Door):
        async def start(self) -> Sequence[Message]:
            await super().start()
            if len(self.diary) < 20:
                raise Transient("no model server yet", 0.5)
            return []

    door = Sleepy()
    async with Runtime(bus, [door]):
        assert clock.monotonic() > 9
        assert await bus.ask(Open(1)) == Opened(1)


@simulated
async def test_a_full_disk_is_waited_for_and_told_to_who_asks(clock: VirtualClock, bus: MemoryBus) -> None:
    full = True

    async def write(n: int, origin: Origin) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", "/state/file")

    door = Door(write)
    async with Runtime(bus, [door]):
        with pytest.raises(Refused, match=r"the disk is full \(/state/file\)") as refused:
            await bus.ask(Open(1))
        assert refused.value.refusal.status == "unavailable"
        await bus.publish(Open(2))
        await clock.sleep(200)
        assert not await bus.dead_list(), "more deliveries than a bug gets"
        full = False
        await clock.sleep(40)
    assert door.diary.count("2#1") == 1
    assert door.diary[-2].startswith("2#")


@simulated
async def test_an_actor_that_cannot_start_ends_the_daemon_with_a_sentence(clock: VirtualClock, bus: MemoryBus) -> None:
    class Broken(Door):
        async def start(self) -> Sequence[Message]:
            raise OSError("no such device")

    with pytest.raises(CrashedTooOften, match="broken crashed 6 times in 60 s, last with OSError: no such device"):
        async with Runtime(bus, [Broken(), Ear()]):
            pass


@simulated
async def test_an_ask_waits_for_its_owner_to_start(clock: VirtualClock, bus: MemoryBus) -> None:
    class Slow(Door):
        async def start(self) -> Sequence[Message]:
            await clock.sleep(5)
            return []

    runtime = Runtime(bus, [Slow()])
    running = asyncio.create_task(runtime.run())
    await clock.sleep(1)
    assert await bus.ask(Anyone()) == Here()
    assert clock.monotonic() == pytest.approx(5)
    runtime.drain()
    await running


@simulated
async def test_a_long_handler_keeps_its_message(clock: VirtualClock, bus: MemoryBus) -> None:
    async def long(n: int, origin: Origin) -> None:
        await clock.sleep(1000)

    door = Door(long)
    async with Runtime(bus, [door]) as runtime:
        await bus.publish(Open(1))
        for _ in range(100):
            await clock.sleep(10)
            assert clock.monotonic() - runtime.heartbeats()["door"] <= HOLD_S + 2
        await clock.sleep(60)
    assert door.diary == ["start", "1#1", "stop"]


@simulated
async def test_a_drain_lets_handlers_finish_and_takes_nothing_new(clock: VirtualClock, bus: MemoryBus) -> None:
    async def slow(n: int, origin: Origin) -> None:
        await clock.sleep(5)

    door, ear = Door(slow), Ear()
    async with Runtime(bus, [door, ear], drain_s=10):
        await bus.publish(Open(1))
        await bus.publish(Open(2))
        await clock.sleep(1)
    assert clock.monotonic() == pytest.approx(5, abs=0.1)
    assert door.diary == ["start", "1#1", "stop"]
    async with Runtime(bus, [Door(), ear]):
        await clock.sleep(1)
    assert ear.heard == [0, 1, 0, 2]


@simulated
async def test_a_drain_past_its_deadline_gives_messages_back_at_once(clock: VirtualClock, bus: MemoryBus) -> None:
    async def stuck(n: int, origin: Origin) -> None:
        if origin.delivery == 1:
            await clock.sleep(10_000)

    door = Door(stuck)
    async with Runtime(bus, [door], drain_s=10):
        await bus.publish(Open(1))
        await clock.sleep(1)
    assert clock.monotonic() == pytest.approx(11, abs=0.1)
    async with Runtime(bus, [door]):
        await clock.sleep(0.1)
    assert door.diary == ["start", "1#1", "stop", "start", "1#2", "stop"]


@simulated
async def test_an_unforeseen_error_is_tried_five_times_then_buried(clock: VirtualClock, bus: MemoryBus) -> None:
    async def broken(n: int, origin: Origin) -> None:
        raise ZeroDivisionError("division by zero")

    door = Door(broken)
    async with Runtime(bus, [door]):
        await bus.publish(Open(1))
        await clock.sleep(300)
        (letter,) = await bus.dead_list()
        assert (letter.reason, letter.deliveries) == ("ZeroDivisionError: division by zero", 5)
    assert door.diary == ["start", "1#1", "1#2", "1#3", "1#4", "1#5", "stop"]


@pytest.mark.slow
@simulated
async def test_a_message_that_waits_for_something_outside_is_not_buried(clock: VirtualClock, bus: MemoryBus) -> None:
    async def away(n: int, origin: Origin) -> None:
        if clock.monotonic() < 3600:
            raise Transient("the model server is away", 2.0)

    ear = Ear()
    async with Runtime(bus, [Door(away), ear]):
        await bus.publish(Open(1))
        await clock.sleep(3700)
        assert ear.heard == [0, 1]
        assert await bus.dead_list() == []


@simulated
async def test_a_lost_ack_publishes_nothing_twice(clock: VirtualClock, bus: MemoryBus) -> None:
    first = MemoryBus(bus.server)
    await bus.publish(Open(7))
    store = first._store

    async def store_then_cut(*letter: object) -> None:
        await store(*letter)  # type: ignore[arg-type]
        if b"7" in letter[1]:  # type: ignore[operator]
            first.cut()  # the event is stored; the ack of the command will not arrive

    first._store = store_then_cut  # type: ignore[method-assign, assignment]
    async with Runtime(first, [Door()], drain_s=1):
        await clock.sleep(5)
    again, ear = Door(), Ear()
    async with Runtime(bus, [again, ear]):
        await clock.sleep(60)
    assert "7#2" in again.diary, "the ack was lost, so it was handled again"
    assert ear.heard.count(7) == 1


@simulated
async def test_handlers_run_at_most_so_many_at_a_time(clock: VirtualClock, bus: MemoryBus) -> None:
    running = 0
    most = {"one": 0, "three": 0}

    async def busy(kind: str) -> None:
        nonlocal running
        running += 1
        most[kind] = max(most[kind], running)
        await clock.sleep(1)
        running -= 1

    class One(Door):
        @handles
        async def on_open(self, command: Open, origin: Origin) -> Sequence[Opened | Refusal]:
            await busy("one")
            return []

    class Three(Door):
        @concurrent(3)
        @handles
        async def on_open(self, command: Open, origin: Origin) -> Sequence[Opened | Refusal]:
            await busy("three")
            return []

    for kind, seconds in ((One, 9), (Three, 3)):
        for n in range(6):
            await bus.publish(Open(n))
        began = clock.monotonic()
        async with Runtime(bus, [kind()]):
            # Three asked ones take turns with the six from the stream.
            asks = [asyncio.create_task(bus.ask(Open(10 + n), timeout_s=30)) for n in range(3)]
            await asyncio.wait(asks)
            for ask in asks:
                assert isinstance(ask.exception(), Unavailable)  # it returned no reply
        await clock.sleep(0)
        assert clock.monotonic() - began <= seconds + 0.1
    assert most == {"one": 1, "three": 3}


@simulated
async def test_an_asked_command_ends_though_nobody_waits(clock: VirtualClock, bus: MemoryBus) -> None:
    async def slow(n: int, origin: Origin) -> None:
        assert origin.asked
        await clock.sleep(5)

    ear = Ear()
    async with Runtime(bus, [Door(slow), ear]):
        with pytest.raises(Unavailable, match=r"no answer to runtest\.open within 1 s"):
            await bus.ask(Open(1), timeout_s=1)
        asking = asyncio.create_task(bus.ask(Open(2)))
        await clock.sleep(0.1)
        asking.cancel()
        await clock.sleep(15)
        assert ear.heard == [0, 1, 2]


@simulated
async def test_an_asked_commands_events_outlast_an_outage_of_the_bus(clock: VirtualClock, bus: MemoryBus) -> None:
    async def outage(n: int, origin: Origin) -> None:
        bus.is_cut = True

    ear = Ear()
    async with Runtime(bus, [Door(outage), ear]):
        asking = asyncio.create_task(bus.ask(Open(1)))
        await clock.sleep(20)
        assert not asking.done()
        bus.is_cut = False
        assert await asking == Opened(1)
        await clock.sleep(5)
        assert ear.heard == [0, 1]


@simulated
async def test_asks_after_a_drain_are_refused_at_once(clock: VirtualClock, bus: MemoryBus) -> None:
    async with Runtime(bus, [Door()]):
        await bus.ask(Anyone())
    with pytest.raises(Unavailable, match="stopping"):
        await bus.ask(Anyone())
    assert clock.monotonic() < 1


@simulated
async def test_a_long_start_has_a_heartbeat(clock: VirtualClock, bus: MemoryBus) -> None:
    class Slow(Door):
        async def start(self) -> Sequence[Message]:
            await clock.sleep(500)
            return []

    runtime = Runtime(bus, [Slow()])
    running = asyncio.create_task(runtime.run())
    for _ in range(40):
        await clock.sleep(10)
        assert clock.monotonic() - runtime.heartbeats()["slow"] <= HOLD_S
    runtime.drain()
    await running


@simulated
async def test_corrupt_state_is_a_refusal_to_the_asker(clock: VirtualClock, bus: MemoryBus) -> None:
    async def corrupt(n: int, origin: Origin) -> None:
        raise CorruptState("document index.docs fails its checksum")

    async with Runtime(bus, [Door(corrupt)]):
        with pytest.raises(Refused, match="fails its checksum") as refused:
            await bus.ask(Open(1))
        assert refused.value.refusal.status == "unavailable"


class Searcher(Actor):
    """Every process's own."""

    role = "serve"
    fanout = True

    def __init__(self) -> None:
        self.heard: list[int] = []

    @handles
    async def on_knocked(self, event: Knocked) -> Sequence[Opened]:
        self.heard.append(event.n)
        return [Opened(event.n)]


@simulated
async def test_every_process_of_a_fanout_actor_hears_and_says_everything(clock: VirtualClock, bus: MemoryBus) -> None:
    other, ear = MemoryBus(bus.server), Ear()
    await bus.publish(Knocked(0))
    here, there = Searcher(), Searcher()
    async with Runtime(bus, [here, ear]), Runtime(other, [there]):
        await bus.publish(Knocked(1))
        await clock.sleep(1)
    assert here.heard == there.heard == [1], "what was before its start, start has seen to"
    assert ear.heard == [1, 1], "both said so"
    await bus.close()
    await other.close()
    assert not [name for name in bus.server.streams["LAKEHOUSE_EVT"].durables if name.startswith("searcher")]


@simulated
async def test_an_actor_that_is_only_asked_has_a_heartbeat(clock: VirtualClock, bus: MemoryBus) -> None:
    class Oracle(Actor):
        @handles
        async def on_anyone(self, query: Anyone) -> Sequence[Here]:
            return [Here()]

    async with Runtime(bus, [Oracle(), Ear()]) as runtime:
        await clock.sleep(100)
        beats = runtime.heartbeats()
        assert set(beats) == {"oracle", "ear"}
        assert all(clock.monotonic() - beat <= 2.1 for beat in beats.values())


@simulated
async def test_two_handlers_of_one_message_in_an_actor_are_refused(clock: VirtualClock, bus: MemoryBus) -> None:
    class Twice(Ear):
        @handles
        async def on_opened_too(self, event: Opened) -> Sequence[Never]:
            return []

    with pytest.raises(TypeError, match="twice__runtest_opened"):
        Runtime(bus, [Twice()])


@simulated
async def test_a_second_owner_is_refused_whatever_the_roles(clock: VirtualClock, bus: MemoryBus) -> None:
    class Rival(Door):
        role = "work"

    with pytest.raises(TypeError, match="exactly one owner"):
        Runtime(bus, [Door(), Rival()], roles={"serve"})
