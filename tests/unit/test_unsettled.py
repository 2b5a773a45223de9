"""A message that takes the process with it at every delivery is given up after a few; one that is
merely put off, or was in hand when the daemon was stopped, is not."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Never

from actors.base import Actor, Origin, handles
from actors.errors import Transient
from daemon.bus.memory import MemoryBus, MemoryServer
from daemon.bus.streams import ACK_WAIT_S
from daemon.runtime import Runtime
from daemon.unsettled import MAX_CRASHES, Unsettled
from schemas.events.base import Command
from tests.unit.simulation import VirtualClock, simulate


class Lift(Command, tag="unsettledtest.lift"):
    """kind: heavy (never ends), early (not ready yet), light."""

    kind: str


class Lifter(Actor):
    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.seen: list[tuple[str, int]] = []

    @handles
    async def on_lift(self, command: Lift, origin: Origin) -> Sequence[Never]:
        self.seen.append((command.kind, origin.delivery))
        if command.kind == "heavy":
            await self.clock.sleep(10 * ACK_WAIT_S)
        if command.kind == "early":
            raise Transient("not yet", 0.1)
        return []


async def life(server: MemoryServer, clock: VirtualClock, folder: Path, seconds: float, *, crash: bool) -> Lifter:
    """One process's: stopped in order, or cut off as by a kill."""
    bus, lifter = MemoryBus(server), Lifter(clock)
    async with Runtime(bus, [lifter], drain_s=0.1, unsettled=Unsettled(folder) if not crash else Dying(folder, bus)):
        await clock.sleep(seconds)
        if crash:
            bus.cut()
    return lifter


def marks(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


class Dying(Unsettled):
    """A killed process writes nothing more."""

    def __init__(self, folder: Path, bus: MemoryBus) -> None:
        super().__init__(folder)
        self._bus = bus

    def end(self, durable: str, origin: Origin, *, again: bool) -> None:
        if not self._bus.is_cut:
            super().end(durable, origin, again=again)


def test_a_message_that_kills_the_process_is_buried_and_the_next_is_handled(tmp_path: Path) -> None:
    async def main(clock: VirtualClock, _: random.Random) -> None:
        server = MemoryServer(clock)
        operator = MemoryBus(server)
        await operator.publish(Lift("heavy"))
        await operator.publish(Lift("light"))
        for crash in range(1, MAX_CRASHES + 1):
            lifter = await life(server, clock, tmp_path, 5, crash=True)
            assert lifter.seen == [("heavy", crash)]
            await clock.sleep(ACK_WAIT_S)
        lifter = await life(server, clock, tmp_path, 5, crash=False)
        assert lifter.seen == [("light", 1)]
        (letter,) = await operator.dead_list()
        assert letter.reason == f"the process ended {MAX_CRASHES} times while it had this message in hand"
        assert marks(tmp_path) == []

    simulate(main, 1)


def test_neither_stops_nor_patience_count_as_crashes(tmp_path: Path) -> None:
    async def main(clock: VirtualClock, _: random.Random) -> None:
        server = MemoryServer(clock)
        operator = MemoryBus(server)
        await operator.publish(Lift("heavy"))
        for stop in range(1, 3 * MAX_CRASHES):
            lifter = await life(server, clock, tmp_path, 5, crash=False)
            assert lifter.seen == [("heavy", stop)]
        assert marks(tmp_path) == []

        patient = MemoryServer(clock)
        await MemoryBus(patient).publish(Lift("early"))
        lifter = await life(patient, clock, tmp_path, 60, crash=False)
        assert len(lifter.seen) > 3 * MAX_CRASHES
        assert marks(tmp_path) == []
        assert await MemoryBus(patient).dead_list() == await operator.dead_list() == []

    simulate(main, 2)
