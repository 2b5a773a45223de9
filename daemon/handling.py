"""A handler made ready to be called, and the publishing of what it returns.

Everything that reflection can tell is looked up once, here, so that a call costs a call.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from actors.base import Actor, Origin, Route
from actors.errors import Refused, Transient
from daemon.bus import wire
from daemon.bus.base import MessageBus
from schemas.events.base import Command, Event, Message, Query, Signal, replies_of, tag_of

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_RETRY_S = 30.0


class Handler:
    """One actor's handler of one message type.

    Messages of a type are handled at most `concurrency` at a time, whether they came from the
    stream or were asked; queries change nothing and don't queue.
    """

    __slots__ = ("_call", "_turns", "_wants_origin", "is_query", "replies", "route", "said_by", "takes")

    def __init__(self, actor: Actor, route: Route, process: str) -> None:
        self.route = route
        self.takes = route.takes
        self.is_query = issubclass(route.takes, Query)
        self.replies = replies_of(route.takes)
        # Part of the ids of what it returns: two actors may answer one event with the same
        # words, and so may one fan-out actor in two processes.
        self.said_by = (route.actor, process) if actor.fanout else (route.actor,)
        self._call: Callable[..., Awaitable[Sequence[Message]]] = getattr(actor, route.method)
        self._wants_origin = route.wants_origin
        self._turns = asyncio.Semaphore(route.concurrency)

    async def __call__(self, message: Any, origin: Origin) -> Sequence[Message]:
        """Call it when its turn comes. Raises whatever the handler raises; a full disk, which
        any handler may meet anywhere, is Transient."""
        try:
            if self.is_query:
                return await (self._call(message, origin) if self._wants_origin else self._call(message))
            async with self._turns:
                return await (self._call(message, origin) if self._wants_origin else self._call(message))
        except OSError as error:
            if error.errno not in FULL:
                raise
            where = f" ({error.filename})" if error.filename else ""
            raise Transient(f"the disk is full{where}: free some space", FULL_RETRY_S) from error


async def emit(
    bus: MessageBus, messages: Sequence[Message], cause: Origin | None = None, said_by: Sequence[str] = ()
) -> None:
    """Publish events and commands and send signals, in order. Under a cause their ids derive
    from it, so that handling it again publishes nothing twice. Raises Unavailable, Transient."""
    for ordinal, message in enumerate(messages):
        if isinstance(message, Signal):
            await bus.signal(message)
        elif isinstance(message, Event | Command) and not isinstance(message, Query):
            id = wire.derived_id(cause.id, *said_by, tag_of(type(message)), ordinal) if cause else None
            try:
                await bus.publish(message, cause=cause, id=id)
            except Refused as full:
                raise Transient(str(full), full.refusal.retry_after_s or 1.0) from full
