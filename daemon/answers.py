"""The owner's side of asks: what an actor answers, to this process and to others.

Whatever a handler raises becomes Refused or Unavailable here, the same for an asker next door
and one behind NATS. A query is a plain call. An asked command runs in a task of its own: it
goes on to its end, events included, when the asker stops waiting.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from actors.base import Actor, Origin
from actors.errors import Conflict, CorruptState, Failed, Poison, Refused, Transient, Unavailable
from daemon.bus.base import MessageBus
from daemon.handling import Handler, emit
from schemas.events.base import Message, Refusal, Reply

log = structlog.get_logger("lakehouse.runtime")


class Answers:
    """Answers for one actor, once it has started."""

    def __init__(self, actor: Actor, bus: MessageBus, ready: asyncio.Event) -> None:
        self._actor = actor
        self._bus = bus
        self._ready = ready
        self._running: set[asyncio.Task[Message]] = set()
        self._closing = False

    async def open(self, handlers: Sequence[Handler]) -> None:
        """Take asks for every request among the handlers."""
        for handler in handlers:
            if handler.replies:
                await self._bus.answer(handler.takes, partial(self.answer, handler))

    async def finish(self) -> None:
        """Wait for asked commands in hand; cancelled, cancel them. Once the actor has stopped,
        asks are refused instead of waiting for it to start again."""
        self._closing = True
        try:
            while self._running:
                await asyncio.wait(self._running)
        finally:
            for task in self._running:
                task.cancel()

    async def answer(self, handler: Handler, request: Message, origin: Origin) -> Message:
        if not self._ready.is_set():
            if self._closing:
                raise Unavailable("the daemon is stopping")
            await self._ready.wait()
        if handler.is_query:
            return await self._reply(handler, request, origin)
        task = asyncio.create_task(self._reply(handler, request, origin))
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Message]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though nobody may wait any more

    async def _reply(self, handler: Handler, request: Message, origin: Origin) -> Message:
        try:
            said = await handler(request, origin)
            if len(said) != 1 or not isinstance(said[0], Reply):
                await self._publish(said, origin, handler)
        except (Refused, Unavailable):
            raise
        except Poison as error:
            raise Refused(Refusal("malformed", str(error))) from error
        except Transient as error:
            raise Refused(Refusal("unavailable", str(error), retry_after_s=error.delay_s)) from error
        except Conflict as error:
            raise Refused(Refusal("conflict", str(error) or "someone else changed it first", "try again")) from error
        except CorruptState as error:
            raise Refused(Refusal("unavailable", str(error), "see `lakehouse repair`")) from error
        except asyncio.CancelledError:
            if handler.is_query:
                raise
            raise Unavailable("the daemon is stopping") from None
        except Exception as error:
            log.exception("handler failed", actor=handler.route.actor, handler=handler.route.method, id=origin.id)
            raise Failed(
                f"{handler.route.actor}.{handler.route.method} failed: {type(error).__name__}: {error}", origin.id
            ) from error
        for message in said:
            if isinstance(message, handler.replies):
                return message
            if isinstance(message, Refusal):
                raise Refused(message)
        raise Unavailable(f"{handler.route.actor}.{handler.route.method} returned no reply")

    async def _publish(self, said: Sequence[Message], origin: Origin, handler: Handler) -> None:
        """What an asked command did is done: nothing will deliver it again, so its events must
        get out, however long the bus is away."""
        while True:
            try:
                return await emit(self._bus, said, origin, handler.said_by)
            except (Unavailable, Transient) as error:
                log.warning("an asked command's events wait for the bus", id=origin.id, reason=str(error))
                await self._bus.clock.sleep(1.0)
