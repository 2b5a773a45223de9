"""A pull consumer that can be cancelled at any moment without losing a message.

nats-py's own `fetch` hands a message to a task; cancelled at the wrong time, the message is
gone until `ack_wait`. Here a callback puts it into a queue, and `next` takes it from there.
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from typing import Any

import nats.errors
import nats.js.errors

from daemon.bus import wire
from daemon.bus.base import Consumer, ConsumerGone, Delivery
from daemon.bus.heads import UNREACHABLE
from daemon.bus.streams import COMMANDS, Durable

PULL_S = 20.0
"""How long a pull waits at the server. After a reconnect it is made again."""
ACK_S = 2.0

RETRY_S = 0.2

NO_RESPONDERS, CONFLICT = "503", "409"  # of a pull; 404 and 408 just say that it is over


class PullConsumer(Consumer):
    def __init__(self, client: Any, js: Any, durable: Durable) -> None:
        self._client, self._js, self._durable = client, js, durable
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{durable.stream}.{durable.name}"
        self._inbox = client.new_inbox()
        self._arrived: deque[Any] = deque()
        self._acked: deque[str] = deque(maxlen=16)  # where the last messages were acked
        self._wake = asyncio.Event()
        self._pull_ends = 0.0  # monotonic; a pull waits at the server until then
        self._connection = -1  # of how many reconnects ago the pull is
        self._lost = False
        self._subscription: Any = None

    async def open(self) -> None:
        self._subscription = await self._client.subscribe(self._inbox, cb=self._take)

    async def next(self, wait_s: float) -> Delivery | None:
        until = time.monotonic() + wait_s
        while True:
            if self._arrived:
                return _NatsDelivery(self._arrived.popleft(), self._acked, self._durable.stream == COMMANDS.name)
            if self._lost:
                self._lost = False
                await self._find()
            now = time.monotonic()
            if now >= until:
                return None
            if now >= self._pull_ends or self._connection != self._client.stats["reconnects"]:
                await self._pull(now)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(until, self._pull_ends) - now):
                    await self._wake.wait()

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()
            while self._arrived:
                await self._arrived.popleft().nak()

    async def _pull(self, now: float) -> None:
        if not self._client.is_connected:
            self._pull_ends = now + RETRY_S
            return
        self._pull_ends = now + PULL_S
        request = {"batch": 1, "expires": int(PULL_S * 1e9)}
        try:
            if self._connection != self._client.stats["reconnects"]:
                self._connection = self._client.stats["reconnects"]
                # An ack that was on its way when the server died would hold up what is behind
                # its message until ack_wait. Acking twice does no harm.
                for reply in self._acked:
                    await self._client.publish(reply)
            await self._client.publish(self._next, json.dumps(request).encode(), self._inbox)
        except nats.errors.Error:
            self._pull_ends = now + RETRY_S

    async def _take(self, message: Any) -> None:
        headers = message.headers or {}
        status = headers.get("Status") if not message.data else None
        self._pull_ends = 0.0  # answered, one way or another
        if status is None:
            self._arrived.append(message)
        elif status == NO_RESPONDERS or "Consumer Deleted" in headers.get("Description", ""):
            self._lost = True
        elif status == CONFLICT:  # the server stops, the leader changes: no use asking at once
            self._pull_ends = time.monotonic() + RETRY_S
        self._wake.set()

    async def _find(self) -> None:
        """Nobody took the pull: JetStream is still starting, or the consumer is gone."""
        try:
            await self._js.consumer_info(self._durable.stream, self._durable.name)
        except nats.js.errors.ServiceUnavailableError:
            pass
        except nats.js.errors.NotFoundError as error:
            raise ConsumerGone(f"NATS no longer knows {self._durable.name}") from error
        except UNREACHABLE:
            pass
        await asyncio.sleep(RETRY_S)


class _NatsDelivery(Delivery):
    def __init__(self, message: Any, acked: deque[str], confirm: bool) -> None:
        """confirm: wait until the server has the ack. A command done twice costs a trial; an
        event heard twice costs little, and not waiting halves the time between two events."""
        self._message = message
        self._acked = acked
        self._confirm = confirm
        self.subject: str = message.subject
        self.body: bytes = message.data
        self.only_for: str | None = (message.headers or {}).get(wire.ONLY_FOR)
        metadata = message.metadata
        self.origin = wire.origin_of(
            message.headers,
            f"{metadata.stream}:{metadata.sequence.stream}",
            metadata.timestamp.timestamp(),
            metadata.num_delivered,
        )

    async def ack(self) -> None:
        self._acked.append(self._message.reply)
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            if self._confirm:
                await self._message.ack_sync(ACK_S)
            else:
                await self._message.ack()

    async def nak(self, delay_s: float = 0.0) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._message.nak(delay_s)

    async def term(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._message.term()

    async def in_progress(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._message.in_progress()
