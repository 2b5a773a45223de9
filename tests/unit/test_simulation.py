"""Two actors under crashes, zombies and redelivery, in virtual time, over many seeds: each job
takes effect exactly once when it is fenced by compare-and-set, and its event is stored once."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import structlog

from actors.base import Actor, Origin, concurrent, handles
from actors.errors import Conflict, Transient
from daemon.bus import wire
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus, MemoryServer
from daemon.runtime import Runtime
from schemas.events.base import Command, Event
from tests.unit.simulation import EPOCH, SimulatedLoop, VirtualClock, simulate

JOBS = 12


class Wanted(Event, tag="simtest.wanted"):
    job: int


class DoJob(Command, tag="simtest.do"):
    job: int


class JobDone(Event, tag="simtest.done"):
    job: int


class Agent(Actor):
    """Turns what is wanted into jobs, and counts what it hears is done."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    @handles
    async def on_wanted(self, event: Wanted) -> Sequence[DoJob]:
        return [DoJob(event.job)]

    @handles
    async def on_done(self, event: JobDone, origin: Origin) -> Sequence[Event]:
        self.done.append(origin.id)
        return []


class Lab(Actor):
    """Does jobs that take longer than a lease, and notes each effect."""

    role = "work"

    def __init__(self, heads: MemoryHeads, effects: list[int], rng: random.Random, *, fenced: bool) -> None:
        self.heads, self.effects, self.rng, self.fenced = heads, effects, rng, fenced

    @concurrent(2)
    @handles
    async def on_do(self, command: DoJob, origin: Origin) -> Sequence[JobDone]:
        key = f"effect.{command.job}"
        if await self.heads.get(key) is None:
            await asyncio.sleep(self.rng.uniform(1, 90))
            if self.rng.random() < 0.1:
                raise Transient("not now", 2.0)
            try:
                if self.fenced:
                    await self.heads.set(key, origin.id.encode(), None)
                self.effects.append(command.job)
            except Conflict:
                pass  # another delivery was first: its effect is ours
            if not self.fenced:
                with contextlib.suppress(Conflict):
                    await self.heads.set(key, origin.id.encode(), None)
        return [JobDone(command.job)]


class World:
    """What survives crashes, and what came of it all."""

    def __init__(self, clock: VirtualClock) -> None:
        self.server = MemoryServer(clock)
        self.heads = MemoryHeads()
        self.effects: list[int] = []
        self.done: list[str] = []
        self.crashes = 0

    def stored(self, kind: type[Event]) -> list[int]:
        """The jobs named by stored events of a kind."""
        kept = self.server.streams["LAKEHOUSE_EVT"].kept.values()
        return [wire.decode(kind, k.body).job for k in kept if wire.type_of(k.subject) is kind]  # type: ignore[attr-defined]


async def process(world: World, role: str, rng: random.Random, until: asyncio.Event, *, fenced: bool) -> None:
    """A process that is cut off, lingers as a zombie, dies and comes back, until `until`."""
    while not until.is_set():
        bus = MemoryBus(world.server)
        actors = [Agent(world.done), Lab(world.heads, world.effects, rng, fenced=fenced)]
        runtime = Runtime(bus, actors, roles={role}, rng=rng)  # type: ignore[arg-type]
        life = asyncio.create_task(runtime.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(10, 150)):
                await until.wait()
                runtime.drain()
                await life
                return
        world.crashes += 1
        bus.cut()
        await asyncio.sleep(rng.uniform(0, 120))  # a zombie: its handlers go on, nothing they say arrives
        life.cancel()
        await asyncio.wait([life])


def world_of(seed: int, *, fenced: bool) -> World:
    async def main(clock: VirtualClock, rng: random.Random) -> World:
        world, finished = World(clock), asyncio.Event()
        user = MemoryBus(world.server)
        processes = [
            asyncio.create_task(process(world, role, random.Random(rng.random()), finished, fenced=fenced))
            for role in ("control", "work", "work")
        ]
        for job in range(JOBS):
            await user.publish(Wanted(job), id=f"wanted-{job}")
            await user.publish(Wanted(job), id=f"wanted-{job}")  # a publisher that saw no ack
        while len(set(world.done)) < JOBS:  # noqa: ASYNC110
            await asyncio.sleep(10)
        await asyncio.sleep(200)  # long enough for every redelivery that is still to come
        finished.set()
        await asyncio.gather(*processes)
        return world

    return simulate(main, seed)


@pytest.fixture(autouse=True)
def _quiet() -> object:
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize("seed", range(25))
def test_each_job_takes_effect_exactly_once(seed: int) -> None:
    world = world_of(seed, fenced=True)
    assert world.crashes > 0
    assert Counter(world.effects) == Counter(range(JOBS))
    assert sorted(world.stored(JobDone)) == list(range(JOBS)), "derived ids: told once, however often done"


def test_without_the_fence_jobs_take_effect_twice() -> None:
    """The simulation can see the fault that the fence is there to prevent."""
    assert any(max(Counter(world_of(seed, fenced=False).effects).values()) > 1 for seed in range(10))


def test_a_seed_replays_exactly() -> None:
    first, second, other = world_of(1, fenced=True), world_of(1, fenced=True), world_of(2, fenced=True)
    assert (first.effects, first.done, first.crashes) == (second.effects, second.done, second.crashes)
    assert first.effects != other.effects


def test_hours_pass_in_no_time() -> None:
    async def main(clock: VirtualClock, _: random.Random) -> float:
        await clock.sleep(36_000)
        return clock.now()

    assert simulate(main, 0) == EPOCH + 36_000


def test_a_deadlock_is_found() -> None:
    loop = SimulatedLoop(random.Random(0))
    task = loop.create_task(asyncio.Event().wait())
    with pytest.raises(RuntimeError, match="deadlock"):
        loop.run_until_complete(task)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
