"""A world for the slot on virtual time: daemons that die and come back, model servers with weather,
people who send orders. The truth is kept by model_play.py, what must hold by slot_witness.py.

A daemon that dies takes its connections with it, as SIGKILL does: nothing that it does later has
an effect. There are no zombies: one daemon holds the state directory's lock, and a second hand on
the model servers is outside of what a slot can promise.
"""

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from unittest.mock import patch

import msgspec
import structlog

from actors.base import Actor, concurrent, handles
from actors.errors import Conflict, Refused, Transient, Unavailable
from actors.profile import swap
from actors.profile.config import SlotConfig
from actors.profile.slot import VramSlot
from daemon import life
from daemon.bus.memory import MemoryBus, MemoryServer
from daemon.bus.streams import COMMANDS, DEAD
from daemon.runtime import Runtime
from schemas.config import HnswConfig
from schemas.documents.base import Document, kind_of_document
from schemas.documents.index import IndexDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Refusal, Request
from schemas.events.index import EmbedderSpec, IndexServed, ServeIndex
from schemas.events.profile import GetSlot, ModelRef, SlotChanged, SlotInfo
from schemas.names import BucketName
from tests.unit.model_play import HANG_S, PlayGpu, PlayServer
from tests.unit.simulation import EPOCH, VirtualClock, simulate
from tests.unit.slot_cast import LLAMACPP, OLLAMA, TOTAL, Order, cast_of, draw_request
from tests.unit.slot_witness import Witness
from tests.unit.weather import FAULTS, Weather

D = TypeVar("D", bound=Document)
T = TypeVar("T")

CONFIG = SlotConfig(load_deadline_s=30.0)
IDLE_S = 600.0
"""How often a consumer that hears nothing turns its loop: not worth simulating every two seconds."""
POLL_SHARE, LAST_POLL_S = 0.2, 1.0
"""The slot polls rarer than it really does: half of a world's time would go into that."""
ROUTES = classmethod(functools.cache(Actor.routes.__func__))  # type: ignore[attr-defined]
"""Read off the type hints once, not in every life."""
PATIENCE_S = 900.0
"""Every order is answered in so long: each waits for those before it, and each step has its deadline."""


class DictRegistry:
    """The port `Registry` with a disk's delays. Documents are encoded, as on disk."""

    def __init__(self, weather: Weather, witness: Witness) -> None:
        self.weather, self.rng, self.witness = weather, weather.rng, witness
        self.stored: dict[tuple[str, str], tuple[bytes, int]] = {}

    async def load(self, kind: type[D], name: str) -> tuple[D, int] | None:
        await asyncio.sleep(self.rng.uniform(0, 0.001))
        found = self.stored.get((kind_of_document(kind), name))
        return (msgspec.json.decode(found[0], type=kind), found[1]) if found else None

    async def save(self, name: str, document: D, *, expected: int | None, bucket: BucketName = "primary") -> int:
        await asyncio.sleep(self.rng.uniform(0.001, 0.005))
        if self.weather.strikes("registry"):
            self.witness.unsaved = asyncio.get_running_loop().time()
            raise Transient("the registry can't be reached", 1.0)
        key = (kind_of_document(type(document)), name)
        current = self.stored[key][1] if key in self.stored else None
        if current != expected:
            raise Conflict(f"{key} is at revision {current}, not {expected}")
        self.put(name, document, (current or 0) + 1)
        self.witness.saved(document)
        await asyncio.sleep(self.rng.uniform(0, 0.002))
        return (current or 0) + 1

    async def delete(self, kind: type[D], name: str, *, expected: int | None = None) -> None:
        self.stored.pop((kind_of_document(kind), name), None)

    async def all(self, kind: type[D]) -> list[tuple[str, D, int]]:
        await asyncio.sleep(self.rng.uniform(0, 0.001))
        tag = kind_of_document(kind)
        named = sorted((name, *value) for (found, name), value in self.stored.items() if found == tag)
        return [(name, msgspec.json.decode(body, type=kind), revision) for name, body, revision in named]

    def put(self, name: str, document: Document, revision: int = 1) -> None:
        self.stored[kind_of_document(type(document)), name] = (msgspec.json.encode(document), revision)


class NoBuckets:
    """Of the port `Buckets`, what the slot uses; no profile here has a bucket."""

    async def provision(self, bucket: BucketName) -> bool:
        return False


class Indexes(Actor):
    """Owns what the slot asks for a profile's indexes."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather

    @concurrent(16)
    @handles
    async def on_serve(self, command: ServeIndex) -> Sequence[IndexServed | Refusal]:
        await asyncio.sleep(self.weather.rng.uniform(0, 0.02))
        if self.weather.strikes("index"):
            return [Refusal("unavailable", "its dataset is being written")]
        return [IndexServed(command.index, command.default or HnswConfig(), 1)]


ORDER: ContextVar[Order | None] = ContextVar("ORDER", default=None)
"""What the daemon is at work on, where that was asked: an asked handler runs in the asker's context."""


ASYNC: dict[tuple[type, str], bool] = {}


def _is_async(port: type, name: str, method: Any) -> bool:
    if (port, name) not in ASYNC:
        ASYNC[port, name] = asyncio.iscoroutinefunction(method)
    return ASYNC[port, name]


class Line:
    """A port as one daemon holds it: it ends with the daemon."""

    def __init__(self, port: Any, process: "Process") -> None:
        self._port, self._process = port, process

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if not _is_async(type(self._port), name, value):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._process.check()
            if name in ("load", "unload") and hasattr(self._port, "canonical"):
                self._process.note(name, ModelRef(self._port.name, self._port.canonical(args[0])))
                return await self._process.held(value(*args, **kwargs))
            answer = await value(*args, **kwargs)
            self._process.check()
            return answer

        setattr(self, name, call)
        return call


class Process:
    """A daemon from its start to its death."""

    def __init__(self, world: "World") -> None:
        self.world, self.dead = world, False
        self.calls: set[asyncio.Task[Any]] = set()
        self.asks: set[asyncio.Task[None]] = set()
        self.bus = MemoryBus(world.server)
        self.bus.clock = self._line(world.clock)
        servers = {server.name: self._line(world.eyes(server)) for server in world.servers}
        ports = (self._line(world.registry), servers, self._line(world.eyes(world.gpu)), self._line(NoBuckets()))
        slot = world.slot(*ports, self.bus, self._line(world.clock), world.config)
        runtime = Runtime(self.bus, [slot, Indexes(world.weather)], rng=world.rng)
        self.drain, self.ready_at = runtime.drain, float("inf")
        self.life = asyncio.create_task(runtime.run(task_status=self))

    def started(self, _: None = None) -> None:
        """Its actors have started (a `TaskStatus`)."""
        self.ready_at = self.world.clock.monotonic()

    def _line(self, port: Any) -> Any:
        return Line(port, self)

    def check(self) -> None:
        if self.dead:
            raise asyncio.CancelledError

    def note(self, what: str, ref: ModelRef) -> None:
        order = ORDER.get()
        if order is not None:
            order.calls.append((self.world.clock.monotonic(), what, ref))
        if what == "load":
            self.world.witness.loads.append((self.world.clock.monotonic(), ref))
        else:
            self.world.witness.unloading(order, ref, lambda: not self.dead)

    async def held(self, call: Coroutine[Any, Any, T]) -> T:
        """A request that the server sees broken off when this process dies."""
        task = asyncio.create_task(call)
        self.calls.add(task)
        try:
            return await task
        finally:
            self.calls.discard(task)

    async def die(self) -> None:
        self.dead = True
        self.bus.cut()
        for task in [*self.calls, *self.asks]:
            task.cancel()
        self.life.cancel()
        await asyncio.wait([self.life])


class World:
    """Everything there is. `slot`, `eyes` (a server or the GPU as the slot sees it) and the slot's
    `config` are there to be sabotaged."""

    def __init__(
        self,
        clock: VirtualClock,
        rng: random.Random,
        slot: Callable[..., Actor] = VramSlot,
        eyes: Callable[[Any], Any] = lambda port: port,
        config: SlotConfig = CONFIG,
    ) -> None:
        self.clock, self.rng, self.slot, self.eyes, self.config = clock, rng, slot, eyes, config
        chances = {"registry": 0.01, "index": 0.05}
        for fault in rng.sample(FAULTS, rng.randint(0, 3)):
            chances[fault] = rng.choice((0.05, 0.2, 0.5))
        self.weather = Weather(random.Random(rng.random()), chances)
        self.gpu = PlayGpu(TOTAL, self.weather.rng, readable=rng.random() < 0.8)
        recipes = (("ollama", OLLAMA), ("llamacpp", LLAMACPP))
        self.servers = [PlayServer(cast(Any, name), self.gpu, known, self.weather) for name, known in recipes]
        self.profiles = cast_of(rng)
        self.witness = Witness(self.profiles, self.gpu, CONFIG)
        self.registry = DictRegistry(self.weather, self.witness)
        self.server = MemoryServer(clock)
        self.user = MemoryBus(self.server)
        self.process: Process | None = None
        self.begun: list[asyncio.Task[Any]] = []
        self.deaths = self.crashes = 0
        for name in ("docs", "code"):
            self.registry.put(name, _index(name))
        for profile in self.profiles.values():
            self.registry.put(profile.id, ProfileDocument(profile=profile, created=EPOCH, changed=EPOCH))

    async def run(self) -> None:
        rng, over, last = self.rng, asyncio.Event(), asyncio.Event()
        listening = asyncio.create_task(self._listen())
        daemon = asyncio.create_task(self._daemon(random.Random(rng.random()), over, last, rng.choice((1, 1, 2, 3))))
        for _ in range(rng.randint(1, 3)):
            self._begin(self._person(random.Random(rng.random()), rng.randint(1, 4)))
        for _ in range(rng.choice((0, 0, 1, 2))):
            self._begin(self._trouble(random.Random(rng.random())))
        await asyncio.wait([*self.begun, asyncio.ensure_future(last.wait())], timeout=PATIENCE_S)
        await asyncio.sleep(rng.uniform(0, 4))
        for server in self.servers:
            server.clear()
        await self._all_answered()
        await asyncio.sleep(HANG_S + 2 * CONFIG.reconcile_s + 2)
        self.witness.at_rest()
        look = await self.ask(GetSlot(look=True))
        if isinstance(look.answer, SlotInfo):
            self.witness.looked(look.answer)
        else:
            self.witness.violated(f"no look at rest: {look}")
        self.witness.in_turn()
        self.witness.at_once()
        if buried := self.server.streams[DEAD.name].kept:
            self.witness.violated(f"{len(buried)} commands were buried")
        over.set()
        await daemon
        listening.cancel()

    async def ask(self, request: Request[Any]) -> Order:
        order = Order(request, self.clock.monotonic(), self.process)
        self.witness.orders.append(order)
        task = asyncio.create_task(self._ask(order))
        if self.process is not None:
            self.process.asks.add(task)
        await asyncio.wait([task])
        order.answered_at = self.clock.monotonic()
        self.witness.answered(order)
        return order

    async def _ask(self, order: Order) -> None:
        ORDER.set(order)
        try:
            order.answer = await self.user.ask(order.request, timeout_s=2 * PATIENCE_S)
        except Refused as refused:
            order.answer = refused.refusal
        except Unavailable:
            pass  # the daemon is dead or stopping, or says so of a server

    async def _person(self, rng: random.Random, orders: int) -> None:
        for _ in range(orders):
            await asyncio.sleep(rng.choice((0.0, rng.uniform(0, 2), rng.uniform(0, 7))))
            request = draw_request(rng, self.profiles)
            if rng.random() < 0.3 and not isinstance(request, GetSlot):
                await self.user.publish(request)
            elif rng.random() < 0.7:
                await self.ask(request)
            else:  # and on, without waiting
                self._begin(self.ask(request))

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        self.begun.append(asyncio.create_task(work))

    async def _daemon(self, rng: random.Random, over: asyncio.Event, last: asyncio.Event, lives: int) -> None:
        """It is killed and started again; its last life lasts until all is over."""
        for _ in range(lives - 1):
            self.process = Process(self)
            await asyncio.sleep(rng.uniform(0.1, 15))
            self.deaths += 1
            dying, self.process = self.process, None
            await dying.die()
            await asyncio.sleep(rng.uniform(0, 3))
        self.process = Process(self)
        last.set()
        await over.wait()
        self.process.drain()
        await self.process.life

    async def _trouble(self, rng: random.Random) -> None:
        """A server crashes, or is out of reach for a while."""
        await asyncio.sleep(rng.uniform(0, 15))
        self.crashes += 1
        server = rng.choice(self.servers)
        await (server.crash if rng.random() < 0.6 else server.cut)(rng.uniform(0, 8))

    async def _listen(self) -> None:
        heard = cast(Any, self.user.listen("lakehouse.evt.slot.changed"))
        async with contextlib.aclosing(heard):
            async for envelope in heard:
                slot = cast(SlotChanged, envelope.message).slot
                if slot.state == "ready":
                    self.witness.said_ready("an event", slot.profile, slot.since - EPOCH)

    async def _all_answered(self) -> None:
        commands, until = self.server.streams[COMMANDS.name].kept, self.clock.monotonic() + PATIENCE_S
        while self.clock.monotonic() < until:
            if all(task.done() for task in self.begun) and not commands:
                for task in self.begun:
                    task.result()
                return
            await asyncio.sleep(1)
        waiting = [order for order in self.witness.orders if order.answered_at is None]
        self.witness.violated(f"never answered: {waiting}, and {len(commands)} that were published")


def _index(name: str) -> IndexDocument:
    return IndexDocument(
        index=name, dataset="notes", column="text", metric="cosine", backend="hnsw", bucket="primary",
        target_recall=0.95, embedder=EmbedderSpec("none"), embedder_key=None, dim=8, config=HnswConfig(), created=EPOCH,
    )  # fmt: skip


@contextlib.contextmanager
def errors_to(noted: list[str]) -> Iterator[None]:
    """Of what is logged, the errors: in a sound daemon there are none."""

    def note(_: Any, __: str, event: Any) -> Any:
        noted.append(f"the log has an error: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(40))
    try:
        yield
    finally:
        structlog.configure(**before)


def world_of(seed: int, **sabotage: Any) -> World:
    """The world of a seed, after its end."""

    async def main(clock: VirtualClock, rng: random.Random) -> World:
        world = World(clock, rng, **sabotage)
        with errors_to(world.witness.broken):
            await world.run()
        return world

    with contextlib.ExitStack() as cheaper:
        for patched in (
            patch.object(life, "FETCH_S", IDLE_S),
            patch.object(Actor, "routes", ROUTES),
            patch.object(swap, "POLL_SHARE", POLL_SHARE),
            patch.object(swap, "LAST_POLL_S", LAST_POLL_S),
        ):
            cheaper.enter_context(patched)
        return simulate(main, seed)
