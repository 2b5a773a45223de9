"""What every bus does with messages. MemoryBus and NatsBus add only how bytes are moved.

Actors see `publish`, `ask`, `signal` and `listen` (the Bus port); the runtime also sees
`answer`, `subscribe` and `bury`; operators see the dead letters.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar, cast

from actors.base import Origin
from actors.errors import Failed, Poison, Refused, Unavailable
from actors.ports import Clock, Envelope
from daemon.bus import letters, wire
from daemon.bus.letters import DeadLetter
from daemon.bus.streams import EVENTS, Durable
from daemon.within import within
from schemas.events.base import (
    Command,
    Event,
    Message,
    Query,
    Refusal,
    Request,
    Signal,
    ask_subject_of,
    replies_of,
    subject_of,
)
from schemas.names import MessageId

R = TypeVar("R")

Answer = Callable[[Any, Origin], Coroutine[Any, Any, Any]]
"""The owner's side of an ask: a reply, or raises Refused, Unavailable or Failed, nothing else."""

OUTCOME = "Lakehouse-Outcome"
"""Header of a remote reply: ok, refused (a Refusal), failed or unavailable (words)."""


class Raw(NamedTuple):
    """A message as bytes."""

    subject: str
    body: bytes
    headers: wire.Headers


class Stored(NamedTuple):
    """A message in a stream."""

    seq: int
    body: bytes
    headers: wire.Headers


class Delivery(ABC):
    """One message in a consumer's hands, until it is acked, nacked or terminated. Losing any of
    these calls is harmless: the message comes again after `ack_wait`."""

    subject: str
    body: bytes
    origin: Origin
    only_for: str | None

    @abstractmethod
    async def ack(self) -> None:
        """Done with; a work queue forgets it."""

    @abstractmethod
    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver it again, `delay_s` from now."""

    @abstractmethod
    async def term(self) -> None:
        """Never deliver it again."""

    @abstractmethod
    async def in_progress(self) -> None:
        """Still at it: `ack_wait` begins anew."""


class ConsumerGone(Exception):
    """The server no longer knows a consumer. The actor starts anew and makes another."""


class Consumer(ABC):
    @abstractmethod
    async def next(self, wait_s: float) -> Delivery | None:
        """The next message, or None when none came in `wait_s`. Cancelling loses nothing."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what was fetched and not handled."""


class MessageBus(ABC):
    """The Bus and DeadLetters ports over whatever moves the bytes."""

    def __init__(self, name: str, clock: Clock, max_payload: int) -> None:
        self.name = name
        """Names this process's part of the bus; no two are the same."""
        self.clock = clock
        self._max_body = max_payload - wire.HEADROOM
        self._ids = itertools.count(1)
        self._answers: dict[type[Message], Answer] = {}

    def new_id(self) -> MessageId:
        return f"{self.name}-{next(self._ids)}"

    # --- the Bus port --------------------------------------------------------------------------

    async def publish(self, message: Message, *, cause: Origin | None = None, id: MessageId | None = None) -> MessageId:
        """As in the port. Raises Refused (busy) when the command's queue is full."""
        if not isinstance(message, Event | Command) or isinstance(message, Query):
            raise TypeError(f"{type(message).__name__} is neither event nor command: it can't be published")
        origin = self._origin(cause, id)
        await self._store(subject_of(type(message)), self._fit(message), wire.headers_of(origin))
        return origin.id

    async def ask(
        self,
        request: Request[R],
        *,
        cause: Origin | None = None,
        timeout_s: float = 60.0,
        id: MessageId | None = None,
    ) -> R:
        answer = self._answers.get(type(request))
        origin = self._origin(cause, id, asked=True)
        if answer is None:
            return cast(R, await self._ask_elsewhere(request, origin, timeout_s))
        try:
            return cast(R, await within(timeout_s, answer(request, origin)))
        except TimeoutError:
            raise _late(type(request), timeout_s) from None

    async def signal(self, message: Message) -> None:
        if not isinstance(message, Signal):
            raise TypeError(f"{type(message).__name__} is no signal")
        await self._tell(subject_of(type(message)), self._fit(message), wire.headers_of(self._origin(None, None)))

    async def listen(self, *subjects: str) -> AsyncIterator[Envelope]:
        async with aclosing(self._hear(subjects)) as heard:
            async for subject, body, headers in heard:
                kind = wire.type_of(subject)
                if kind is None:
                    continue
                try:
                    message = wire.decode(kind, body)
                except Poison:
                    continue  # its consumer buries it
                yield Envelope(message, wire.origin_of(headers, self.new_id(), self.clock.now()), subject)

    # --- for the runtime -----------------------------------------------------------------------

    async def answer(self, request: type[Message], answer: Answer) -> None:
        """This process owns `request`: asks for it, from here or elsewhere, go to `answer`."""
        self._answers[request] = answer

        async def respond(raw: Raw) -> tuple[bytes, wire.Headers]:
            try:
                try:
                    message = wire.decode(request, raw.body)
                except Poison as error:
                    raise Refused(Refusal("malformed", str(error))) from error
                origin = wire.origin_of(raw.headers, self.new_id(), self.clock.now())
                reply = await answer(message, Origin(origin.id, origin.cause, origin.time, 1, True))
                return self._fit(reply), {OUTCOME: "ok"}
            except Refused as refused:
                return wire.encode(refused.refusal), {OUTCOME: "refused"}
            except Failed as error:
                return str(error).encode(), {OUTCOME: "failed", wire.ID: error.id}
            except (Unavailable, ValueError) as error:
                return str(error).encode(), {OUTCOME: "unavailable"}

        await self._serve(ask_subject_of(request), respond)

    @abstractmethod
    async def stop_answering(self) -> None:
        """Take no more asks from other processes and finish those in hand."""

    @abstractmethod
    async def subscribe(self, durable: Durable) -> Consumer:
        """A consumer; the durable is made when it is missing."""

    async def bury(self, delivery: Delivery, durable: str, reason: str) -> None:
        """Store a dead letter. Only then may the delivery be terminated, for that deletes."""
        letter = letters.write(delivery.subject, delivery.body, delivery.origin, durable, reason, self._max_body)
        await self._store(*letter)

    # --- dead letters --------------------------------------------------------------------------

    async def dead_list(self) -> list[DeadLetter]:
        return [letters.read(*stored) async for stored in self._letters()]

    async def dead_show(self, seq: int) -> DeadLetter:
        return letters.read(*await self._letter(seq))

    async def dead_retry(self, seq: int) -> MessageId:
        stored = await self._letter(seq)
        letter = letters.read(*stored)
        if letter.cut:
            raise ValueError(f"letter {seq} was too large to be kept whole: publish it anew")
        id = f"retry-{letter.durable}-{seq}"  # a retry whose drop was lost is no second message
        origin = Origin(id, letter.cause, self.clock.now())
        headers = wire.headers_of(origin)
        if wire.matches(EVENTS.subject, letter.subject):
            headers[wire.ONLY_FOR] = letter.durable
        await self._store(letter.subject, stored.body, headers)
        await self.dead_drop(seq)
        return id

    @abstractmethod
    async def dead_drop(self, seq: int) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """Flush what was said and leave."""

    # --- moving bytes --------------------------------------------------------------------------

    @abstractmethod
    async def _store(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        """Durably, once per id. Raises Unavailable, Refused (busy)."""

    @abstractmethod
    async def _tell(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        """To whoever listens now. Never raises."""

    @abstractmethod
    def _hear(self, subjects: tuple[str, ...]) -> AsyncGenerator[Raw, None]:
        """Everything on the subjects from now on, the oldest dropped when reading is slow."""

    @abstractmethod
    async def _request(self, subject: str, body: bytes, headers: wire.Headers, timeout_s: float) -> Raw:
        """Raises Unavailable when nobody serves the subject, TimeoutError."""

    @abstractmethod
    async def _serve(self, subject: str, respond: Callable[[Raw], Awaitable[tuple[bytes, wire.Headers]]]) -> None:
        """Answer what other processes ask on the subject, several at once."""

    @abstractmethod
    async def _letter(self, seq: int) -> Stored:
        """Raises KeyError."""

    @abstractmethod
    def _letters(self) -> AsyncIterator[Stored]: ...

    # --- private -------------------------------------------------------------------------------

    def _origin(self, cause: Origin | None, id: MessageId | None, *, asked: bool = False) -> Origin:
        id = id or self.new_id()
        return Origin(id, cause.id if cause else id, self.clock.now(), 1, asked)

    def _fit(self, message: Message) -> bytes:
        body = wire.encode(message)
        if len(body) > self._max_body:
            raise ValueError(
                f"{type(message).__name__} is {len(body):,} bytes, the bus carries {self._max_body:,}: "
                "put the data into a bucket and send its key and sha256"
            )
        return body

    async def _ask_elsewhere(self, request: Message, origin: Origin, timeout_s: float) -> Any:
        kind = type(request)
        try:
            reply = await self._request(ask_subject_of(kind), self._fit(request), wire.headers_of(origin), timeout_s)
        except TimeoutError:
            raise _late(kind, timeout_s) from None
        outcome = reply.headers.get(OUTCOME)
        if outcome == "refused":
            raise Refused(wire.decode(Refusal, reply.body))
        if outcome == "failed":
            raise Failed(reply.body.decode(errors="replace"), reply.headers.get(wire.ID, ""))
        if outcome != "ok":
            raise Unavailable(reply.body.decode(errors="replace"))
        replies = replies_of(kind)
        return wire.decode_any(replies, reply.body)


def _late(request: type[Message], timeout_s: float) -> Unavailable:
    return Unavailable(f"no answer to {request.__struct_config__.tag} within {timeout_s:g} s")


def queue_full(subject: str) -> Refusal:
    """What a publisher hears when a work queue is full."""
    return Refusal("busy", f"the queue {subject} is full", "try again when its owner has caught up", 5.0)
