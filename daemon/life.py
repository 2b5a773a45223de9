"""One life of one actor, from `start` to `stop`: its consumers, its periodic methods, its beat.

What a handler raises is decided in daemon/retry.py and carried out in `_settle`. When anything
else fails (the bus, `start`), the life ends with an exception and the supervisor begins another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
import structlog

from actors.base import Actor, Period
from actors.errors import Conflict, Poison, Transient, Unavailable
from actors.ports import Clock
from daemon import retry
from daemon.answers import Answers
from daemon.bus import wire
from daemon.bus.base import Consumer, Delivery, MessageBus
from daemon.bus.streams import Durable, durable_of
from daemon.handling import Handler, emit
from daemon.unheard import unheard
from daemon.unsettled import MAX_CRASHES, Unsettled
from schemas.events.base import DeadLettered, Refusal, tag_of

log = structlog.get_logger("lakehouse.runtime")

T = TypeVar("T")

Observe = Callable[[str, str, float], None]
"""Told of every delivery: its durable, what became of it (acked, again, dead, returned), and the seconds it took."""

FETCH_S = 2.0
"""A consumer that hears nothing turns its loop this often, so that its heartbeat stays fresh."""
STOP_S = 5.0
"""How long `stop` and the closing of consumers may take."""


class Drain:
    """Says when to take nothing new, and cuts short the waits for it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._waits: dict[anyio.CancelScope, None] = {}  # ordered, so that simulations replay

    def begin(self) -> None:
        self.begun.set()
        for scope in list(self._waits):
            scope.cancel()

    async def unless(self, wait: Awaitable[T]) -> T | None:
        """What `wait` gives; None when the drain begins first, or has begun."""
        with anyio.CancelScope() as scope:
            if self.begun.is_set():
                scope.cancel()
            self._waits[scope] = None
            try:
                return await wait
            finally:
                self._waits.pop(scope, None)
        return None


class Life:
    """An actor and what it has in hand. `run` is one life; `beat` and `ready` outlive it."""

    def __init__(
        self,
        actor: Actor,
        bus: MessageBus,
        clock: Clock,
        drain: Drain,
        observe: Observe | None = None,
        unsettled: Unsettled | None = None,
    ) -> None:
        self.name = actor.name()
        self.ready = asyncio.Event()
        self.in_hand: dict[Delivery, None] = {}
        self.at_work = 0  # handlers, periodic methods and starts that run now
        self.beat = clock.monotonic()
        self._actor, self._bus, self._clock, self._drain = actor, bus, clock, drain
        self._observe, self._unsettled = observe, unsettled
        self._handlers = [Handler(actor, route, bus.name) for route in type(actor).routes()]
        self.answers = Answers(actor, bus, self.ready)

    async def open(self) -> None:
        """Take asks; they wait until the actor has started."""
        await self.answers.open(self._handlers)

    def turn(self) -> None:
        """A loop turned."""
        self.beat = self._clock.monotonic()

    @contextmanager
    def _working(self) -> Iterator[None]:
        self.turn()
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1
            self.turn()

    async def run(self) -> None:
        consumers: list[Consumer] = []
        try:
            fed: list[tuple[Handler, Durable, Consumer]] = []
            for handler in self._handlers:
                durable = durable_of(type(self._actor), handler.route, self._bus.name)
                if durable is not None:
                    # Before `start`: what comes while it reads the stored state is not missed.
                    consumers.append(await self._bus.subscribe(durable))
                    fed.append((handler, durable, consumers[-1]))
            if not await self._start():
                return
            async with anyio.create_task_group() as loops:
                for each in fed:
                    loops.start_soon(self._consume, *each)
                for period in type(self._actor).periods():
                    loops.start_soon(self._repeat, period)
                if not fed:
                    loops.start_soon(self._idle)
        finally:
            self.ready.clear()
            with anyio.move_on_after(STOP_S, shield=True):
                await self._stop(consumers)

    async def _start(self) -> bool:
        """False when the drain began first."""
        while not self._drain.begun.is_set():
            try:
                with self._working():
                    said = await self._actor.start()
            except (Transient, Conflict, Unavailable) as error:
                log.warning("not ready to start", actor=self.name, reason=str(error))
                await self._drain.unless(self._clock.sleep(getattr(error, "delay_s", 1.0)))
                continue
            await emit(self._bus, said)
            self.ready.set()
            log.debug("started", actor=self.name)
            return True
        return False

    async def _stop(self, consumers: list[Consumer]) -> None:
        for consumer in consumers:
            await consumer.close()
        try:
            await self._actor.stop()
        except Exception:
            log.exception("stop failed", actor=self.name)

    async def _consume(self, handler: Handler, durable: Durable, consumer: Consumer) -> None:
        slots = asyncio.Semaphore(handler.route.concurrency)
        async with anyio.create_task_group() as handling:
            while True:
                await slots.acquire()
                if self._drain.begun.is_set():
                    return
                self.turn()
                delivery = await self._drain.unless(consumer.next(FETCH_S))
                if delivery is None:
                    slots.release()
                else:
                    handling.start_soon(self._handle, handler, durable, delivery, slots)

    async def _handle(self, handler: Handler, durable: Durable, delivery: Delivery, slots: asyncio.Semaphore) -> None:
        self.in_hand[delivery] = None
        began, outcome = self._clock.monotonic(), "acked"
        try:
            with self._working():
                if durable.is_meant(delivery.only_for):
                    self._begin(durable, delivery)
                    message = wire.decode(handler.takes, delivery.body)
                    said = await handler(message, delivery.origin)
                    said = [unheard(message, each) if isinstance(each, Refusal) else each for each in said]
                    await emit(self._bus, said, delivery.origin, handler.said_by)
                await delivery.ack()
        except asyncio.CancelledError:
            outcome = "returned"
            with anyio.move_on_after(STOP_S, shield=True):
                await delivery.nak()
            raise
        except Exception as error:
            outcome = await self._settle(handler, durable, delivery, error)
        finally:
            del self.in_hand[delivery]
            slots.release()
            if self._unsettled is not None:
                self._unsettled.end(durable.name, delivery.origin, again=outcome in ("again", "returned"))
            if self._observe is not None:
                self._observe(durable.name, outcome, self._clock.monotonic() - began)

    def _begin(self, durable: Durable, delivery: Delivery) -> None:
        """Raises Poison for a message that takes the process with it again and again."""
        if self._unsettled is None:
            return
        crashes = self._unsettled.begin(durable.name, delivery.origin)
        if crashes >= MAX_CRASHES:
            raise Poison(f"the process ended {crashes} times while it had this message in hand")

    async def _settle(self, handler: Handler, durable: Durable, delivery: Delivery, error: Exception) -> str:
        """Carry out what becomes of a message whose handler raised; returns `again` or `dead`."""
        origin, tag = delivery.origin, tag_of(handler.takes)
        decision = retry.decide(error, origin.delivery)
        log.log(
            40 if decision.unforeseen or isinstance(decision, retry.GiveUp) else 30,
            "dead letter" if isinstance(decision, retry.GiveUp) else "not handled yet",
            message=tag,
            id=origin.id,
            durable=durable.name,
            delivery=origin.delivery,
            reason=decision.reason,
            exc_info=error if decision.unforeseen else None,
        )
        try:
            if isinstance(decision, retry.Again):
                await delivery.nak(decision.delay_s)
                return "again"
            await self._bus.bury(delivery, durable.name, decision.reason)
            news = DeadLettered(tag, durable.name, decision.reason[:1000], origin.delivery)
            await emit(self._bus, [news], origin, handler.said_by)
            await delivery.term()
        except Unavailable as away:
            log.warning("the bus is away: the message will come again", id=origin.id, reason=str(away))
            return "again"
        return "dead"

    async def _repeat(self, period: Period) -> None:
        seconds: float = getattr(self._actor, period.seconds)
        method = getattr(self._actor, period.method)
        while seconds > 0:
            await self._drain.unless(self._clock.sleep(seconds))
            if self._drain.begun.is_set():
                return
            try:
                with self._working():
                    said = await method()
            except (Transient, Conflict, Unavailable) as error:
                log.warning("will try again", actor=self.name, method=period.method, reason=str(error))
            except Exception:
                log.exception("periodic method failed", actor=self.name, method=period.method)
            else:
                await emit(self._bus, said)

    async def _idle(self) -> None:
        """An actor that is only asked still has a beat."""
        while not self._drain.begun.is_set():
            self.turn()
            await self._drain.unless(self._clock.sleep(FETCH_S))
