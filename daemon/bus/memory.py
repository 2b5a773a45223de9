"""A bus within one process that behaves as NATS does: bytes are encoded and decoded, messages
are stored once per id, delivered until acked, put off, terminated, refused when a queue is full.

`MemoryServer` is what survives; a `MemoryBus` is one process's connection to it, and `cut()`
takes it away as a crash does. Time is the Clock's, so simulations run it on a virtual one.
For tests and simulations: nothing is durable.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import anyio

from actors.errors import Refused, Unavailable
from actors.ports import Clock
from daemon.bus import wire
from daemon.bus.base import Consumer, Delivery, MessageBus, Raw, Stored, queue_full
from daemon.bus.streams import DEAD, DUPLICATE_WINDOW_S, STREAMS, Durable, Stream
from daemon.clock import SystemClock

MAX_PAYLOAD = 1024 * 1024
LISTEN_BUFFER = 1000

Respond = Callable[[Raw], Awaitable[tuple[bytes, wire.Headers]]]


class _Kept:
    """A stored message."""

    __slots__ = ("body", "headers", "seq", "subject", "time")

    def __init__(self, seq: int, subject: str, body: bytes, headers: wire.Headers, time: float) -> None:
        self.seq, self.subject, self.body, self.headers, self.time = seq, subject, body, headers, time


class _Durable:
    """A consumer's state: what it has yet to see, and what it has in hand."""

    def __init__(self, spec: Durable) -> None:
        self.spec = spec
        self.waiting: deque[int] = deque()
        self.deliveries: dict[int, int] = {}  # seq in hand → times delivered
        self.due: dict[int, float] = {}  # seq in hand → when it is delivered again

    def take(self, now: float) -> int | None:
        """The next seq to deliver: one that is overdue, else a new one if there is room."""
        overdue = [seq for seq, due in self.due.items() if due <= now]
        if overdue:
            seq = min(overdue)
        elif self.waiting and len(self.due) < self.spec.max_ack_pending:
            seq = self.waiting.popleft()
        else:
            return None
        self.deliveries[seq] = self.deliveries.get(seq, 0) + 1
        self.due[seq] = now + self.spec.ack_wait_s
        return seq

    def drop(self, seq: int) -> None:
        self.due.pop(seq, None)
        self.deliveries.pop(seq, None)


class _StreamState:
    def __init__(self, spec: Stream) -> None:
        self.spec = spec
        self.kept: dict[int, _Kept] = {}
        self.last_seq = 0
        self.ids: dict[str, float] = {}  # message id → when it was stored
        self.durables: dict[str, _Durable] = {}


class MemoryServer:
    """Streams, durables and subscriptions. Several buses may share one."""

    def __init__(self, clock: Clock | None = None, streams: tuple[Stream, ...] = STREAMS) -> None:
        self.clock = clock or SystemClock()
        self.streams = {spec.name: _StreamState(spec) for spec in streams}
        self.listeners: list[tuple[tuple[str, ...], deque[Raw], asyncio.Event]] = []
        self.responders: dict[str, list[Respond]] = {}
        self.buses = 0
        self._changed = asyncio.Event()

    def store(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        stream = next((s for s in self.streams.values() if wire.matches(s.spec.subject, subject)), None)
        if stream is None:
            raise Unavailable(f"no stream takes {subject}")
        now, id = self.clock.monotonic(), headers.get(wire.ID)
        if id is not None:
            if now - stream.ids.get(id, float("-inf")) <= DUPLICATE_WINDOW_S:
                return
            stream.ids[id] = now
        limit = stream.spec.max_per_subject
        if limit is not None and sum(kept.subject == subject for kept in stream.kept.values()) >= limit:
            if id is not None:
                del stream.ids[id]
            raise Refused(queue_full(subject))
        stream.last_seq += 1
        kept = _Kept(stream.last_seq, subject, bytes(body), dict(headers), self.clock.now())
        stream.kept[kept.seq] = kept
        for durable in stream.durables.values():
            if durable.spec.subject == subject:
                durable.waiting.append(kept.seq)
        self.tell(Raw(subject, body, headers))
        self.wake()

    def tell(self, raw: Raw) -> None:
        for subjects, heard, arrived in self.listeners:
            if any(wire.matches(pattern, raw.subject) for pattern in subjects):
                heard.append(raw)
                arrived.set()

    def durable(self, spec: Durable) -> tuple[_StreamState, _Durable]:
        stream = self.streams[spec.stream]
        if spec.name not in stream.durables:
            made = stream.durables[spec.name] = _Durable(spec)
            if not spec.new_only:
                made.waiting.extend(kept.seq for kept in stream.kept.values() if kept.subject == spec.subject)
        return stream, stream.durables[spec.name]

    def wake(self) -> None:
        """Something changed that consumers may wait for."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, at_most_s: float) -> None:
        changed = self._changed
        with anyio.move_on_after(at_most_s):
            await changed.wait()


class MemoryBus(MessageBus):
    def __init__(self, server: MemoryServer | None = None, *, clock: Clock | None = None) -> None:
        self.server = server or MemoryServer(clock)
        self.server.buses += 1
        super().__init__(f"m{self.server.buses}", self.server.clock, MAX_PAYLOAD)
        self.is_cut = False
        self._served: list[tuple[str, Respond]] = []
        self._own: list[Durable] = []

    def cut(self) -> None:
        """From now on this process is cut off: nothing it says arrives, and it hears nothing."""
        self.is_cut = True
        self._leave()

    def check(self) -> None:
        if self.is_cut:
            raise Unavailable("the bus is cut")

    async def subscribe(self, durable: Durable) -> Consumer:
        self.check()
        if durable.new_only:
            self._own.append(durable)
        return _MemoryConsumer(self, *self.server.durable(durable))

    async def stop_answering(self) -> None:
        self._leave()

    async def close(self) -> None:
        self._leave()
        for durable in self._own:
            self.server.streams[durable.stream].durables.pop(durable.name, None)

    async def dead_drop(self, seq: int) -> None:
        await self._letter(seq)
        del self.server.streams[DEAD.name].kept[seq]

    async def _store(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        self.check()
        await asyncio.sleep(0)  # a publish is never instant: others may run before its ack
        self.check()
        self.server.store(subject, body, headers)

    async def _tell(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        if not self.is_cut:
            self.server.tell(Raw(subject, body, headers))

    async def _hear(self, subjects: tuple[str, ...]) -> AsyncGenerator[Raw, None]:
        heard: deque[Raw] = deque(maxlen=LISTEN_BUFFER)
        arrived = asyncio.Event()
        entry = (subjects, heard, arrived)
        self.server.listeners.append(entry)
        try:
            while True:
                while heard:
                    yield heard.popleft()
                arrived.clear()
                await arrived.wait()
        finally:
            self.server.listeners.remove(entry)

    async def _request(self, subject: str, body: bytes, headers: wire.Headers, timeout_s: float) -> Raw:
        self.check()
        responders = self.server.responders.get(subject)
        if not responders:
            raise Unavailable(f"nobody answers {subject}")
        responders.append(responders.pop(0))  # a queue group: each in turn
        async with asyncio.timeout(timeout_s):
            reply, outcome = await responders[-1](Raw(subject, body, headers))
        return Raw(subject, reply, outcome)

    async def _serve(self, subject: str, respond: Respond) -> None:
        self.server.responders.setdefault(subject, []).append(respond)
        self._served.append((subject, respond))

    async def _letter(self, seq: int) -> Stored:
        kept = self.server.streams[DEAD.name].kept[seq]
        return Stored(seq, kept.body, kept.headers)

    async def _letters(self) -> AsyncIterator[Stored]:
        for kept in list(self.server.streams[DEAD.name].kept.values()):
            yield Stored(kept.seq, kept.body, kept.headers)

    def _leave(self) -> None:
        for subject, respond in self._served:
            self.server.responders[subject].remove(respond)
        self._served.clear()


class _MemoryConsumer(Consumer):
    def __init__(self, bus: MemoryBus, stream: _StreamState, durable: _Durable) -> None:
        self._bus, self._stream, self._durable = bus, stream, durable

    async def next(self, wait_s: float) -> Delivery | None:
        clock, until = self._bus.clock, self._bus.clock.monotonic() + wait_s
        while True:
            now = clock.monotonic()
            if self._bus.is_cut:
                await clock.sleep(wait_s)
                return None
            seq = self._durable.take(now)
            if seq is not None and seq in self._stream.kept:
                return _MemoryDelivery(self._bus, self._stream, self._durable, self._stream.kept[seq])
            if seq is not None:
                self._durable.drop(seq)  # dropped from the stream meanwhile
            elif now >= until:
                return None
            else:
                soonest = min(self._durable.due.values(), default=until)
                await self._bus.server.changed(max(0.0, min(until, soonest) - now))

    async def close(self) -> None:
        pass  # nothing is fetched ahead


class _MemoryDelivery(Delivery):
    def __init__(self, bus: MemoryBus, stream: _StreamState, durable: _Durable, kept: _Kept) -> None:
        self._bus, self._stream, self._durable, self._kept = bus, stream, durable, kept
        self.subject, self.body, self.only_for = kept.subject, kept.body, kept.headers.get(wire.ONLY_FOR)
        self.origin = wire.origin_of(
            kept.headers, f"{stream.spec.name}:{kept.seq}", kept.time, durable.deliveries[kept.seq]
        )

    async def ack(self) -> None:
        self._end()

    async def term(self) -> None:
        self._end()

    async def nak(self, delay_s: float = 0.0) -> None:
        self._postpone(delay_s)

    async def in_progress(self) -> None:
        self._postpone(self._durable.spec.ack_wait_s)

    def _end(self) -> None:
        if self._bus.is_cut:
            return
        self._durable.drop(self._kept.seq)
        if self._stream.spec.work_queue:
            self._stream.kept.pop(self._kept.seq, None)
        self._bus.server.wake()

    def _postpone(self, delay_s: float) -> None:
        if not self._bus.is_cut and self._kept.seq in self._durable.due:
            self._durable.due[self._kept.seq] = self._bus.clock.monotonic() + delay_s
            self._bus.server.wake()
