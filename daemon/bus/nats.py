"""The bus on NATS: JetStream for what must not be lost, core NATS for asks and signals.

Publishing awaits the ack and tries again under the same id; consuming pulls one message at a
time, so nothing waits unhandled in this process. Only here and in heads.py is nats-py used.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors
import nats.js.errors
import structlog
from nats.js import api

from actors.errors import Refused, Unavailable
from actors.ports import Clock
from daemon.bus import wire
from daemon.bus.base import Consumer, MessageBus, Raw, Stored, queue_full
from daemon.bus.heads import UNREACHABLE, NatsHeads
from daemon.bus.pull import PullConsumer
from daemon.bus.streams import COMMANDS, DEAD, DUPLICATE_WINDOW_S, STREAMS, Durable, Stream
from daemon.clock import SystemClock
from daemon.disk import Disk

log = structlog.get_logger("lakehouse.bus")

CALL_TIMEOUT_S = 2.0
PUBLISH_TIMEOUT_S = 15.0
LISTEN_BUFFER = 1000
ASKS_AT_ONCE = 256

# Error codes of the JetStream API (server/errors.json).
STREAM_EXISTS, STORE_FAILED, NO_CONSUMER, QUEUE_TAKEN = 10058, 10077, 10014, 10100

Respond = Callable[[Raw], Awaitable[tuple[bytes, wire.Headers]]]


class NatsBus(MessageBus):
    """Made by `connect`, ended by `close`."""

    def __init__(self, client: Any, clock: Clock, disk: Disk | None = None) -> None:
        """disk: where the server stores, when that is here."""
        super().__init__(secrets.token_hex(6), clock, client.max_payload)
        self.client = client
        self._disk = disk
        self.js = client.jetstream(timeout=CALL_TIMEOUT_S)
        self._asks = asyncio.Semaphore(ASKS_AT_ONCE)
        self._answering: set[asyncio.Task[None]] = set()
        self._served: list[Any] = []
        self._own: list[Durable] = []

    @classmethod
    async def connect(
        cls,
        url: str,
        password: str | None = None,
        *,
        user: str = "lakehouse",
        credentials: Path | None = None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        streams: tuple[Stream, ...] = STREAMS,
        replicas: int = 1,
        timeout_s: float = 10.0,
    ) -> "NatsBus":
        """Connect to one or more servers (`url` may list several, with commas) and make the
        streams. Raises Unavailable with one sentence when that doesn't work in `timeout_s`."""
        options: dict[str, Any] = {"user": user, "password": password} if password is not None else {}
        if credentials is not None:
            options["user_credentials"] = str(credentials)
        complaints: list[str] = []
        client = nats.aio.client.Client()

        async def complain(error: Exception) -> None:
            words = str(error) or type(error).__name__
            log.debug("nats complains", error=words)
            # What the server said ("Authorization Violation") tells more than the socket that it
            # then closes ("Connection reset by peer").
            if isinstance(error, nats.errors.Error) or not complaints:
                complaints[:] = [words]

        async def disconnected() -> None:
            if not client.is_closed:
                log.warning("nats is away", server=_redacted(url))

        async def reconnected() -> None:
            log.info("nats is back", server=_redacted(url))

        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(
                    servers=[server.strip() for server in url.split(",")],
                    name="lakehouse",
                    error_cb=complain,
                    disconnected_cb=disconnected,
                    reconnected_cb=reconnected,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.5,
                    connect_timeout=2,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    **options,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            reason = complaints[-1] if complaints else str(error) or "no answer"
            raise Unavailable(f"no NATS server can be used at {_redacted(url)}: {reason}") from error
        bus = cls(client, clock or SystemClock(), disk)
        try:
            for stream in streams:
                await bus._make_stream(stream, replicas)
        except (nats.errors.Error, TimeoutError) as error:
            await client.close()
            raise Unavailable(f"the NATS server at {_redacted(url)} keeps no streams: {error}") from error
        return bus

    @property
    def connected(self) -> bool:
        return bool(self.client.is_connected)

    async def heads(self, *, replicas: int = 1) -> NatsHeads:
        """The Heads port on this connection."""
        return await NatsHeads.open(self.js, replicas=replicas, disk=self._disk)

    async def subscribe(self, durable: Durable) -> Consumer:
        config = api.ConsumerConfig(
            name=durable.name,
            durable_name=durable.name,
            deliver_policy=api.DeliverPolicy.NEW if durable.new_only else api.DeliverPolicy.ALL,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=durable.ack_wait_s,
            max_deliver=-1,  # the runtime counts: a message that hit a limit here would just lie there
            max_ack_pending=durable.max_ack_pending,
            filter_subject=durable.subject,
            # Not an ephemeral one: those don't outlive a restart of the server.
            inactive_threshold=3600.0 if durable.new_only else None,
        )
        try:
            await self._make_durable(durable, config)
        except UNREACHABLE as error:
            raise Unavailable(f"the NATS server does not answer: {error}") from error
        if durable.new_only:
            self._own.append(durable)
        consumer = PullConsumer(self.client, self.js, durable)
        await consumer.open()
        return consumer

    async def stop_answering(self) -> None:
        for subscription in self._served:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        self._served.clear()
        if self._answering:
            await asyncio.wait(self._answering)

    async def close(self) -> None:
        for task in self._answering:
            task.cancel()
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                if self.client.is_connected:
                    for durable in self._own:
                        await self.js.delete_consumer(durable.stream, durable.name)
                    await self.client.flush(CALL_TIMEOUT_S)
        await self.client.close()

    async def dead_drop(self, seq: int) -> None:
        await self._letter(seq)
        await self.js.delete_msg(DEAD.name, seq)

    # --- moving bytes --------------------------------------------------------------------------

    async def _store(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        until = self.clock.monotonic() + PUBLISH_TIMEOUT_S
        pause = 0.05
        while True:
            try:
                await self.js.publish(subject, body, headers=dict(headers))
                return
            except nats.js.errors.APIError as error:
                if error.err_code == STORE_FAILED and wire.matches(COMMANDS.subject, subject):
                    raise Refused(queue_full(subject)) from error
                last: Exception = error
            except UNREACHABLE as error:
                last = error
            if self._disk is not None and (full := self._disk.full()):
                raise Unavailable(full) from last
            if self.clock.monotonic() + pause > until:
                raise Unavailable(f"NATS gave no ack for {subject} in {PUBLISH_TIMEOUT_S:g} s: {last}") from last
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _tell(self, subject: str, body: bytes, headers: wire.Headers) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self.client.publish(subject, body, headers=dict(headers))

    async def _hear(self, subjects: tuple[str, ...]) -> AsyncGenerator[Raw, None]:
        heard: deque[Raw] = deque(maxlen=LISTEN_BUFFER)
        arrived = asyncio.Event()

        async def take(message: Any) -> None:
            heard.append(Raw(message.subject, message.data, message.headers or {}))
            arrived.set()

        subscriptions = [await self.client.subscribe(subject, cb=take) for subject in subjects]
        await self.client.flush()
        try:
            while True:
                while heard:
                    yield heard.popleft()
                arrived.clear()
                await arrived.wait()
        finally:
            for subscription in subscriptions:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    async def _request(self, subject: str, body: bytes, headers: wire.Headers, timeout_s: float) -> Raw:
        try:
            reply = await self.client.request(subject, body, timeout=timeout_s, headers=dict(headers))
        except nats.errors.NoRespondersError:
            raise Unavailable(f"nobody answers {subject}: is a process with its owner's role running?") from None
        except TimeoutError:
            raise
        except nats.errors.Error as error:
            raise Unavailable(f"NATS can't carry {subject}: {error}") from error
        return Raw(reply.subject, reply.data, reply.headers or {})

    async def _serve(self, subject: str, respond: Respond) -> None:
        async def reply(message: Any) -> None:
            try:
                body, headers = await respond(Raw(subject, message.data, message.headers or {}))
                with contextlib.suppress(nats.errors.Error):
                    await self.client.publish(message.reply, body, headers=dict(headers))
            finally:
                self._asks.release()

        async def take(message: Any) -> None:  # one by one, so the work gets a task of its own
            if not message.reply:
                return
            await self._asks.acquire()
            task = asyncio.create_task(reply(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        self._served.append(await self.client.subscribe(subject, queue="owners", cb=take))
        await self.client.flush()

    async def _letter(self, seq: int) -> Stored:
        try:
            raw = await self.js.get_msg(DEAD.name, seq=seq)
        except nats.js.errors.NotFoundError:
            raise KeyError(f"no dead letter {seq}") from None
        except UNREACHABLE as error:
            raise Unavailable(f"the NATS server does not answer: {error}") from error
        return Stored(raw.seq, raw.data or b"", raw.headers or {})

    async def _letters(self) -> AsyncIterator[Stored]:
        seq = 1
        while True:
            try:
                raw = await self.js.get_msg(DEAD.name, seq=seq, subject=DEAD.subject, next=True)
            except nats.js.errors.NotFoundError:
                return
            except UNREACHABLE as error:
                raise Unavailable(f"the NATS server does not answer: {error}") from error
            yield Stored(raw.seq, raw.data or b"", raw.headers or {})
            seq = raw.seq + 1

    # --- making streams and durables -----------------------------------------------------------

    async def _make_stream(self, stream: Stream, replicas: int) -> None:
        config = api.StreamConfig(
            name=stream.name,
            subjects=[stream.subject],
            retention=api.RetentionPolicy.WORK_QUEUE if stream.work_queue else api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW if stream.work_queue else api.DiscardPolicy.OLD,
            discard_new_per_subject=stream.max_per_subject is not None,
            max_msgs_per_subject=stream.max_per_subject or -1,
            max_age=stream.max_age_s or 0,
            duplicate_window=DUPLICATE_WINDOW_S,
            storage=api.StorageType.FILE,
            num_replicas=replicas,
        )
        try:
            await self.js.add_stream(config)
        except nats.js.errors.BadRequestError as error:
            if error.err_code != STREAM_EXISTS:
                raise
            await self.js.update_stream(config)  # of an older version, or with other limits

    async def _make_durable(self, durable: Durable, config: api.ConsumerConfig) -> None:
        try:
            await self.js.add_consumer(durable.stream, config)
        except nats.js.errors.BadRequestError as error:
            if error.err_code != QUEUE_TAKEN:
                raise
            # The command had another owner in an older version; its queue passes to the new one.
            for info in await self.js.consumers_info(durable.stream):
                if info.config.filter_subject == durable.subject and info.name != durable.name:
                    await self.js.delete_consumer(durable.stream, info.name)
            await self.js.add_consumer(durable.stream, config)


def _redacted(url: str) -> str:
    """The servers without user and password."""
    parts = [urlsplit(server.strip()) for server in url.split(",")]
    return ", ".join(f"{part.scheme}://{part.hostname}:{part.port or 4222}" for part in parts)
