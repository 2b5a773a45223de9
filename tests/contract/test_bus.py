"""One contract for every bus: MemoryBus, and NatsBus on a real nats-server.

A suite of abstract tests; each implementation says only how to connect and how a foreign
client publishes bytes.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import nats
import pytest

from actors.base import Actor, Origin, every, handles
from actors.errors import Conflict, Failed, Poison, Refused, Transient, Unavailable
from actors.ports import Envelope
from daemon.bus.base import MessageBus
from daemon.bus.letters import DeadLetter
from daemon.bus.memory import MemoryBus, MemoryServer
from daemon.bus.nats import NatsBus
from daemon.bus.server import NatsServer
from daemon.bus.streams import COMMANDS, STREAMS, Durable, Stream
from daemon.runtime import Runtime
from schemas.events.base import Event, Message, Query, Refusal, Reply, Request, Signal, subject_of
from schemas.names import MessageId, Timestamp

ACK_WAIT_S = 0.4
UNLUCKY = 1313
BUSY_S = 3.0  # far more than anything here takes on an idle machine


class Poured(Event, tag="bustest.poured"):
    n: int
    text: str = ""


class Answered(Reply, tag="bustest.answered"):
    n: int


class Doubt(Query[Answered], tag="bustest.doubt"):
    n: int


class Pour(Request[Poured], tag="bustest.pour"):
    n: int


class Hint(Signal, tag="bustest.hint"):
    n: int


def durable(kind: type[Message], name: str = "reader", **more: object) -> Durable:
    stream = "LAKEHOUSE_CMD" if issubclass(kind, Pour) else "LAKEHOUSE_EVT"
    base = Durable(name=name, stream=stream, subject=subject_of(kind), ack_wait_s=ACK_WAIT_S)
    return msgspec.structs.replace(base, **more)


class Tap(Actor):
    """Owns Pour and Doubt. What it does depends on n."""

    def __init__(self) -> None:
        self.origins: list[Origin] = []
        self.slow = asyncio.Event()

    @handles
    async def on_pour(self, command: Pour, origin: Origin) -> Sequence[Poured | Refusal]:
        self.origins.append(origin)
        match command.n:
            case -1:
                return [Refusal("invalid", "less than nothing", "pour more")]
            case -2:
                raise Poison("undrinkable")
            case -3 if origin.delivery < 3:
                raise Transient("the tap is dry", 0.05)
            case -4 if origin.delivery < 3:
                raise Conflict("someone else poured")
            case -5:
                raise RuntimeError("the glass broke")
        return [Poured(command.n)]

    @handles
    async def on_doubt(self, query: Doubt) -> Sequence[Answered | Refusal]:
        if query.n == -6:
            await self.slow.wait()
        if query.n < 0:
            return [Refusal("not_found", "no such thing")]
        return [Answered(query.n * 2)]


class Drinker(Actor):
    """Hears Poured; fails at UNLUCKY until it is `sober`."""

    def __init__(self) -> None:
        self.drunk: list[int] = []
        self.origins: list[Origin] = []
        self.sober = False

    @handles
    async def on_poured(self, event: Poured, origin: Origin) -> Sequence[Event]:
        if event.n == UNLUCKY and not self.sober:
            raise Poison("unlucky")
        self.drunk.append(event.n)
        self.origins.append(origin)
        return []


class Lazy(Actor):
    """Speaks by itself."""

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s

    @every("period_s")
    async def on_wake(self) -> Sequence[Poured]:
        return [Poured(7)]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(BUSY_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def buried(bus: MessageBus, without: Sequence[str] = ()) -> list[DeadLetter]:
    """Wait until dead letters lie there, of other messages than `without`."""
    async with asyncio.timeout(BUSY_S):
        while not (letters := [each for each in await bus.dead_list() if each.id not in without]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return letters


class BusContract(ABC):
    @abstractmethod
    async def connect(self, streams: tuple[Stream, ...] = STREAMS) -> MessageBus:
        """Another connection to the same server."""

    @abstractmethod
    async def foreign(self, subject: str, body: bytes, **headers: str) -> None:
        """Publish as `nats pub` does: a body, and the headers that were given with -H."""

    @pytest.fixture
    async def bus(self) -> AsyncIterator[MessageBus]:
        bus = await self.connect()
        yield bus
        await bus.close()

    # --- streams and consumers -----------------------------------------------------------------

    async def test_an_event_is_delivered_once_with_its_origin(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured))
        cause = Origin(id="c-1", cause="c-0", time=1.0)
        id = await bus.publish(Poured(1, "é"), cause=cause)
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        assert msgspec.json.decode(delivery.body) == {"type": "bustest.poured", "n": 1, "text": "é"}
        assert (delivery.origin.id, delivery.origin.cause, delivery.origin.delivery) == (id, "c-1", 1)
        await delivery.ack()
        await asyncio.sleep(ACK_WAIT_S * 1.5)
        assert await consumer.next(0.05) is None
        await consumer.close()

    async def test_a_message_published_before_its_durable_was_made_is_delivered(self, bus: MessageBus) -> None:
        await bus.publish(Poured(1))
        consumer = await bus.subscribe(durable(Poured))
        assert await consumer.next(BUSY_S) is not None
        await consumer.close()

    async def test_a_new_only_durable_hears_what_comes_from_now_on(self, bus: MessageBus) -> None:
        await bus.publish(Poured(1))
        consumer = await bus.subscribe(durable(Poured, new_only=True))
        await bus.publish(Poured(2))
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        assert msgspec.json.decode(delivery.body)["n"] == 2
        await consumer.close()

    async def test_a_durable_goes_on_where_it_stopped(self, bus: MessageBus) -> None:
        first = await bus.subscribe(durable(Poured))
        await bus.publish(Poured(1))
        await bus.publish(Poured(2))
        delivery = await first.next(BUSY_S)
        assert delivery is not None
        await delivery.ack()
        await first.close()
        second = await (await self.connect()).subscribe(durable(Poured))
        delivery = await second.next(BUSY_S)
        assert delivery is not None
        assert msgspec.json.decode(delivery.body)["n"] == 2

    async def test_an_unacked_message_comes_again(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured))
        await bus.publish(Poured(1))
        first = await consumer.next(BUSY_S)
        again = await consumer.next(BUSY_S)
        assert first is not None
        assert again is not None
        assert again.origin == msgspec.structs.replace(first.origin, delivery=2)
        await consumer.close()

    async def test_a_message_in_progress_is_not_given_to_another(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured))
        await bus.publish(Poured(1))
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        for _ in range(12):
            await asyncio.sleep(ACK_WAIT_S / 4)
            await delivery.in_progress()
        assert await consumer.next(0.05) is None
        await delivery.ack()
        await consumer.close()

    async def test_nak_puts_off_and_holds_up_what_is_behind(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured))
        await bus.publish(Poured(1))
        await bus.publish(Poured(2))
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        await delivery.nak(0.3)
        assert await consumer.next(0.1) is None, "order: the second waits for the first"
        seen = []
        for _ in range(2):
            delivery = await consumer.next(BUSY_S)
            assert delivery is not None
            seen.append(msgspec.json.decode(delivery.body)["n"])
            await delivery.ack()
        assert seen == [1, 2]
        await consumer.close()

    async def test_a_terminated_message_does_not_come_again(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured))
        await bus.publish(Poured(1))
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        await delivery.term()
        assert await consumer.next(ACK_WAIT_S * 1.5) is None
        await consumer.close()

    async def test_the_same_id_twice_is_one_message(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured))
        assert await bus.publish(Poured(1), id="same") == "same"
        assert await bus.publish(Poured(1), id="same") == "same"
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        await delivery.ack()
        assert await consumer.next(0.1) is None
        await consumer.close()

    async def test_cancelling_a_wait_loses_nothing(self, bus: MessageBus) -> None:
        consumer = await bus.subscribe(durable(Poured, max_ack_pending=100))
        publishing = asyncio.create_task(self.pour_many(bus, 40))
        seen: list[int] = []
        async with asyncio.timeout(20):
            while len(seen) < 40:
                try:
                    async with asyncio.timeout(0.003):
                        delivery = await consumer.next(1.0)
                except TimeoutError:
                    continue
                assert delivery is not None
                assert delivery.origin.delivery == 1, "lost at a cancellation, and delivered again"
                seen.append(msgspec.json.decode(delivery.body)["n"])
                await asyncio.shield(delivery.ack())
        await publishing
        assert sorted(seen) == list(range(40))
        await consumer.close()

    async def pour_many(self, bus: MessageBus, n: int) -> None:
        for i in range(n):
            await bus.publish(Poured(i))

    async def test_a_command_is_handled_by_one_of_two_processes(self, bus: MessageBus) -> None:
        other = await self.connect()
        consumers = [await each.subscribe(durable(Pour, max_ack_pending=10)) for each in (bus, other)]
        for n in range(10):
            await bus.publish(Pour(n))
        seen = []
        while len(seen) < 10:
            for consumer in consumers:
                if (delivery := await consumer.next(0.02)) is not None:
                    seen.append(msgspec.json.decode(delivery.body)["n"])
                    await delivery.ack()
        assert sorted(seen) == list(range(10))
        for consumer in consumers:
            await consumer.close()
        await other.close()

    async def test_what_is_too_large_is_refused_and_the_connection_lives_on(self, bus: MessageBus) -> None:
        with pytest.raises(ValueError, match="bucket"):
            await bus.publish(Poured(1, "x" * 1024 * 1024))
        await bus.publish(Poured(1, "x" * 1_000_000))

    async def test_a_full_command_queue_refuses(self) -> None:
        small = tuple(
            msgspec.structs.replace(stream, max_per_subject=2) if stream is COMMANDS else stream for stream in STREAMS
        )
        bus = await self.connect(small)
        await bus.publish(Pour(1))
        await bus.publish(Pour(2), id="two")
        with pytest.raises(Refused, match="full") as refused:
            await bus.publish(Pour(3))
        assert refused.value.refusal.status == "busy"
        assert refused.value.refusal.retry_after_s
        consumer = await bus.subscribe(durable(Pour))
        delivery = await consumer.next(BUSY_S)
        assert delivery is not None
        await delivery.ack()
        await bus.publish(Pour(3))
        await consumer.close()
        await bus.close()

    async def test_only_events_and_commands_are_published(self, bus: MessageBus) -> None:
        for message in (Doubt(1), Answered(1), Hint(1)):
            with pytest.raises(TypeError):
                await bus.publish(message)

    # --- handled by the runtime ----------------------------------------------------------------

    async def test_a_command_is_handled_and_its_event_heard(self, bus: MessageBus) -> None:
        tap, drinker = Tap(), Drinker()
        async with Runtime(bus, [tap, drinker]):
            id = await bus.publish(Pour(1))
            await until(lambda: drinker.drunk == [1])
        assert drinker.origins[0].cause == id
        assert tap.origins == [Origin(id, id, tap.origins[0].time, 1, asked=False)]

    async def test_a_body_from_a_shell_is_handled(self, bus: MessageBus) -> None:
        tap, drinker = Tap(), Drinker()
        async with Runtime(bus, [tap, drinker]):
            await self.foreign("lakehouse.cmd.bustest.pour", b'{"n": 5, "unknown": true}')
            await until(lambda: drinker.drunk == [5])
        origin = tap.origins[0]
        assert origin.id == origin.cause == "LAKEHOUSE_CMD:1"
        assert drinker.origins[0].cause == origin.id

    @pytest.mark.parametrize("time", ["yesterday", "nan", "inf", "-1"])
    async def test_foreign_headers_become_an_origin_that_messages_may_carry(self, bus: MessageBus, time: str) -> None:
        tap, drinker = Tap(), Drinker()
        async with Runtime(bus, [tap, drinker]):
            long = "x" * 1000
            await self.foreign(
                "lakehouse.cmd.bustest.pour",
                b'{"n": 5}',
                Nats_Msg_Id=long,
                Lakehouse_Cause=long + "y",
                Lakehouse_Time=time,
            )
            await until(lambda: drinker.drunk == [5])
        for origin in tap.origins + drinker.origins:
            assert msgspec.convert(origin.id, MessageId) == origin.id
            assert msgspec.convert(origin.cause, MessageId) == origin.cause
            assert msgspec.convert(origin.time, Timestamp) > 1_000_000_000
        assert drinker.origins[0].cause == tap.origins[0].id != tap.origins[0].cause

    async def test_events_are_handled_in_order(self, bus: MessageBus) -> None:
        drinker = Drinker()
        for n in range(30):
            await bus.publish(Poured(n))
        async with Runtime(bus, [drinker]):
            await until(lambda: len(drinker.drunk) == 30)
        assert drinker.drunk == list(range(30))

    @pytest.mark.parametrize("n", [-3, -4])
    async def test_what_is_not_ready_comes_again(self, bus: MessageBus, n: int) -> None:
        tap, drinker = Tap(), Drinker()
        async with Runtime(bus, [tap, drinker]):
            await bus.publish(Pour(n))
            await until(lambda: drinker.drunk == [n])
        assert [origin.delivery for origin in tap.origins] == [1, 2, 3]
        assert await bus.dead_list() == []

    async def test_a_refused_command_from_the_stream_is_told_to_all(self, bus: MessageBus) -> None:
        async with Runtime(bus, [Tap()]), aclosing(bus.listen("lakehouse.evt.>")) as heard:
            first = asyncio.create_task(anext(heard))
            await asyncio.sleep(0.05)
            id = await bus.publish(Pour(-1))
            envelope = await asyncio.wait_for(first, BUSY_S)
        assert envelope.subject == "lakehouse.evt.command.refused"
        assert envelope.message.reason == "less than nothing"  # type: ignore[attr-defined]
        assert envelope.origin.cause == id

    # --- dead letters --------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "body",
        [
            b"no json",
            b'{"n": "five"}',
            b'{"type":"another.tag","n":1}',
            b"\xff\xfe",
            b"",
            b'{"unknown": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        ],
        ids=lambda body: body[:20].decode(errors="replace"),
    )
    async def test_what_cannot_be_read_becomes_a_dead_letter(self, bus: MessageBus, body: bytes) -> None:
        tap, drinker = Tap(), Drinker()
        async with Runtime(bus, [tap, drinker]), aclosing(bus.listen("lakehouse.evt.message.*")) as heard:
            first = asyncio.create_task(anext(heard))
            await asyncio.sleep(0.05)
            await self.foreign("lakehouse.cmd.bustest.pour", body)
            await bus.publish(Pour(1))
            await until(lambda: drinker.drunk == [1])
            news = await asyncio.wait_for(first, BUSY_S)
        (letter,) = await bus.dead_list()
        assert letter.subject == "lakehouse.cmd.bustest.pour"
        assert letter.durable == "tap__bustest_pour"
        assert letter.body == body.decode(errors="backslashreplace")
        assert letter.id == news.origin.cause == "LAKEHOUSE_CMD:1"
        assert tap.origins[0].id != letter.id

    async def test_poison_is_buried_retried_and_dropped(self, bus: MessageBus) -> None:
        drinker = Drinker()
        async with Runtime(bus, [drinker]):
            cause = Origin("root", "root", 0.0)
            await bus.publish(Poured(UNLUCKY), cause=cause)
            await bus.publish(Poured(14))
            await until(lambda: drinker.drunk == [14])
            (letter,) = await bus.dead_list()
            assert (letter.reason, letter.deliveries, letter.cause) == ("unlucky", 1, "root")
            assert await bus.dead_show(letter.seq) == letter

            again = await bus.dead_retry(letter.seq)  # still unlucky: back again, under a new number
            assert again != letter.id
            (letter,) = await buried(bus, without=[letter.id])
            assert letter.id == again
            drinker.sober = True
            await bus.dead_retry(letter.seq)
            await until(lambda: drinker.drunk == [14, UNLUCKY])
            assert drinker.origins[-1].cause == "root"
            assert await bus.dead_list() == []

            drinker.sober = False
            await bus.publish(Poured(UNLUCKY))
            letters = await buried(bus)
            await bus.dead_drop(letters[0].seq)
            assert await bus.dead_list() == []
            for missing in (bus.dead_show, bus.dead_retry, bus.dead_drop):
                with pytest.raises(KeyError):
                    await missing(letters[0].seq)

    async def test_only_who_failed_at_an_event_hears_it_again(self, bus: MessageBus) -> None:
        class Sipper(Drinker):
            """Another actor that hears the same."""

        class Guest(Drinker):
            """One in each process."""

            fanout = True

        failed, guest, sipper = Drinker(), Guest(), Sipper()
        sipper.sober = True
        async with Runtime(bus, [failed, guest, sipper]):
            await bus.publish(Poured(UNLUCKY))
            await until(lambda: sipper.drunk == [UNLUCKY])
            async with asyncio.timeout(BUSY_S):
                while len(await bus.dead_list()) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        later = await self.connect()  # the next process: the guest's durable has another name
        failed.sober = guest.sober = True
        async with Runtime(later, [failed, guest, sipper]):
            for letter in await later.dead_list():
                await later.dead_retry(letter.seq)
            await later.publish(Poured(1))
            for drinker in (failed, guest, sipper):
                await until(lambda drinker=drinker: drinker.drunk[-1:] == [1])
        assert (failed.drunk, guest.drunk, sipper.drunk) == ([UNLUCKY, 1], [UNLUCKY, 1], [UNLUCKY, 1])
        assert await later.dead_list() == []
        await later.close()

    # --- asks ----------------------------------------------------------------------------------

    @pytest.fixture(params=["here", "elsewhere"])
    async def asker(self, request: pytest.FixtureRequest, bus: MessageBus) -> AsyncIterator[MessageBus]:
        """Asks from the owner's process, and from another one."""
        async with Runtime(bus, [Tap(), Drinker()], drain_s=0.3):
            if request.param == "here":
                yield bus
            else:
                other = await self.connect()
                yield other
                await other.close()

    async def test_an_ask_gets_its_reply(self, asker: MessageBus) -> None:
        assert await asker.ask(Doubt(21)) == Answered(42)

    async def test_many_asks_at_once_each_get_their_own_reply(self, asker: MessageBus) -> None:
        replies = await asyncio.gather(*(asker.ask(Doubt(n)) for n in range(50)))
        assert replies == [Answered(2 * n) for n in range(50)]

    async def test_an_asked_commands_event_is_durable_before_the_reply(self, asker: MessageBus) -> None:
        assert await asker.ask(Pour(3)) == Poured(3)
        consumer = await asker.subscribe(durable(Poured, "late"))
        delivery = await consumer.next(0.5)
        assert delivery is not None
        await consumer.close()

    async def test_an_ask_may_bring_its_id(self, asker: MessageBus) -> None:
        await asker.ask(Pour(3), id="mine")
        consumer = await asker.subscribe(durable(Poured, "late"))
        delivery = await consumer.next(0.5)
        assert delivery is not None
        assert delivery.origin.cause == "mine"
        await consumer.close()

    async def test_a_refusal_is_raised_at_the_asker(self, asker: MessageBus) -> None:
        with pytest.raises(Refused) as refused:
            await asker.ask(Pour(-1))
        assert refused.value.refusal == Refusal("invalid", "less than nothing", "pour more")

    @pytest.mark.parametrize(("n", "status"), [(-2, "malformed"), (-3, "unavailable"), (-4, "conflict")])
    async def test_what_a_handler_raises_is_a_refusal_to_the_asker(
        self, asker: MessageBus, n: int, status: str
    ) -> None:
        with pytest.raises(Refused) as refused:
            await asker.ask(Pour(n))
        assert refused.value.refusal.status == status
        assert (refused.value.refusal.retry_after_s == 0.05) == (n == -3)

    async def test_a_bug_in_a_handler_is_failed_to_the_asker(self, asker: MessageBus) -> None:
        with pytest.raises(Failed, match="the glass broke") as failed:
            await asker.ask(Pour(-5))
        assert failed.value.id, "under which the log has the traceback"

    async def test_an_ask_gives_up_in_time(self, asker: MessageBus) -> None:
        with pytest.raises(Unavailable, match="within"):
            await asker.ask(Doubt(-6), timeout_s=0.1)

    async def test_an_ask_that_nobody_owns_is_unavailable_at_once(self, bus: MessageBus) -> None:
        with pytest.raises(Unavailable, match="nobody"):
            await bus.ask(Doubt(1), timeout_s=30)

    async def test_actors_of_other_roles_are_asked_elsewhere(self, bus: MessageBus) -> None:
        other = await self.connect()
        async with Runtime(bus, [Tap()], roles={"serve"}):
            with pytest.raises(Unavailable):
                await bus.ask(Doubt(1))
            async with Runtime(other, [Tap()], roles={"control"}):
                assert await bus.ask(Doubt(1)) == Answered(2)
        await other.close()

    # --- listening -----------------------------------------------------------------------------

    async def test_a_listener_hears_what_comes_from_now_on(self, bus: MessageBus) -> None:
        await bus.publish(Poured(0))
        heard: list[Envelope] = []

        async def listen() -> None:
            async with aclosing(bus.listen("lakehouse.evt.bustest.*", "lakehouse.sig.>")) as envelopes:
                async for envelope in envelopes:
                    heard.append(envelope)

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.1)
        other = await self.connect()
        id = await other.publish(Poured(1), cause=Origin("c", "c", 0.0))
        await other.signal(Hint(2))
        await self.foreign("lakehouse.evt.bustest.poured", b"not json")
        await self.foreign("lakehouse.evt.bustest.unknown", b"{}")
        await other.publish(Pour(3))
        await other.publish(Poured(4))
        await until(lambda: len(heard) >= 3)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert [(type(e.message), e.message.n) for e in heard] == [(Poured, 1), (Hint, 2), (Poured, 4)]  # type: ignore[attr-defined]
        assert (heard[0].origin.id, heard[0].origin.cause) == (id, "c")
        await other.close()

    async def test_a_periodic_method_speaks_by_itself(self, bus: MessageBus) -> None:
        drinker = Drinker()
        async with Runtime(bus, [Lazy(0.05), drinker]):
            await until(lambda: len(drinker.drunk) >= 3)
        ids = [origin.id for origin in drinker.origins]
        assert len(set(ids)) == len(ids)
        assert [origin.cause for origin in drinker.origins] == ids


class TestMemoryBus(BusContract):
    @pytest.fixture(autouse=True)
    def server(self) -> None:
        self.memory: MemoryServer | None = None

    async def connect(self, streams: tuple[Stream, ...] = STREAMS) -> MemoryBus:
        if self.memory is None:
            self.memory = MemoryServer(streams=streams)
        return MemoryBus(self.memory)

    async def foreign(self, subject: str, body: bytes, **headers: str) -> None:
        assert self.memory is not None
        self.memory.store(subject, body, {name.replace("_", "-"): value for name, value in headers.items()})


class TestNatsBus(BusContract):
    @pytest.fixture(autouse=True)
    async def server(self, tmp_path: Path) -> AsyncIterator[None]:
        self.nats = NatsServer(tmp_path / "nats", tmp_path / "password")
        await self.nats.start()
        yield
        await self.nats.stop()

    async def connect(self, streams: tuple[Stream, ...] = STREAMS) -> NatsBus:
        return await NatsBus.connect(self.nats.url, self.nats.password, streams=streams)

    async def foreign(self, subject: str, body: bytes, **headers: str) -> None:
        client = await nats.connect(self.nats.url, user="lakehouse", password=self.nats.password)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        await client.publish(subject, body, headers=given or None)
        await client.drain()

    async def test_a_command_passes_to_its_new_owner(self) -> None:
        bus = await self.connect()
        old = await bus.subscribe(durable(Pour, "old_name"))
        await bus.publish(Pour(1))
        await old.close()
        new = await bus.subscribe(durable(Pour, "new_name"))
        assert await new.next(BUSY_S) is not None
        await new.close()
        await bus.close()

    async def test_limits_of_an_older_version_are_brought_up_to_date(self) -> None:
        old = tuple(msgspec.structs.replace(stream, max_age_s=7200.0) for stream in STREAMS)
        await (await self.connect(old)).close()
        bus = await self.connect()
        assert (await bus.js.stream_info("LAKEHOUSE_DEAD")).config.max_age == 90 * 86_400
        await bus.close()

    async def test_a_wrong_password_is_one_sentence(self) -> None:
        with pytest.raises(Unavailable, match="Authorization"):
            await NatsBus.connect(self.nats.url, "wrong", timeout_s=1.0)

    async def test_a_message_as_large_as_the_server_takes_is_buried_without_killing_the_client(self) -> None:
        bus = await self.connect()
        async with Runtime(bus, [Tap()]):
            await self.foreign("lakehouse.cmd.bustest.pour", b"x" * 1024 * 1024)
            letters = await buried(bus)
            assert letters[0].cut
            with pytest.raises(ValueError, match="too large"):
                await bus.dead_retry(letters[0].seq)
            assert await bus.ask(Pour(1)) == Poured(1)
        await bus.close()
