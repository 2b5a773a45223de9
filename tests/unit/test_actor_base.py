"""Routes are read from signatures, and a signature that says too little is refused."""

from collections.abc import Sequence
from typing import Any

import pytest

from actors.base import Actor, Origin, concurrent, every, handles, owners
from schemas.events.base import Command, Event, Query, Refusal, Reply, Request, ask_subject_of, replies_of, subject_of


class Made(Event, tag="basetest.made"):
    pass


class Shown(Reply, tag="basetest.shown"):
    pass


class Make(Request[Made | Shown], tag="basetest.make"):
    pass


class Show(Query["Shown"], tag="basetest.show"):
    pass


class PotteryWheel(Actor):
    period_s = 1.0

    @concurrent(3)
    @handles
    async def on_make(self, command: Make, origin: Origin) -> Sequence[Made | Refusal]:
        return []

    @handles
    async def on_show(self, query: Show) -> Sequence[Shown]:
        return []

    @every("period_s")
    async def on_turn(self) -> Sequence[Made]:
        return []


def test_routes_and_periods_are_read_from_signatures() -> None:
    make, show = PotteryWheel.routes()
    assert (make.actor, make.method, make.takes, make.gives) == ("pottery_wheel", "on_make", Make, (Made, Refusal))
    assert (make.wants_origin, make.concurrency, make.durable) == (True, 3, "pottery_wheel__basetest_make")
    assert (show.takes, show.gives, show.wants_origin, show.concurrency) == (Show, (Shown,), False, 1)
    (period,) = PotteryWheel.periods()
    assert (period.method, period.seconds, period.gives) == ("on_turn", "period_s", (Made,))


def test_subjects_come_from_kind_and_tag() -> None:
    assert subject_of(Made) == "lakehouse.evt.basetest.made"
    assert subject_of(Make) == "lakehouse.cmd.basetest.make"
    assert ask_subject_of(Show) == "lakehouse.ask.basetest.show"
    with pytest.raises(TypeError, match="no tag"):
        subject_of(Event)


def test_replies_come_from_the_requests_parameter() -> None:
    assert replies_of(Make) == (Made, Shown)
    assert replies_of(Show) == (Shown,)
    assert replies_of(Made) == ()


def test_a_command_has_one_owner() -> None:
    class Rival(Actor):
        @handles
        async def on_make(self, command: Make) -> Sequence[Made]:
            return []

    assert owners([PotteryWheel])[Make].actor == "pottery_wheel"
    with pytest.raises(TypeError, match="Make is owned by pottery_wheel and by rival"):
        owners([PotteryWheel, Rival])


def test_any_number_may_hear_an_event() -> None:
    class One(Actor):
        @handles
        async def on_made(self, event: Made) -> Sequence[Event]:
            return []

    class Two(Actor):
        @handles
        async def on_made(self, event: Made) -> Sequence[Event]:
            return []

    assert owners([One, Two]) == {}


class TakesNothing(Actor):
    @handles
    async def on_it(self) -> Sequence[Made]:
        return []


class TakesAnything(Actor):
    @handles
    async def on_it(self, message: Any) -> Sequence[Made]:
        return []


class SaysNothing(Actor):
    @handles
    async def on_it(self, message: Make):  # type: ignore[no-untyped-def]
        return []


class SaysNoMessage(Actor):
    @handles
    async def on_it(self, message: Make) -> Sequence[int]:  # type: ignore[type-var]
        return []


class SaysAQuery(Actor):
    @handles
    async def on_it(self, message: Make) -> Sequence[Show]:
        return []


class WantsSomethingElse(Actor):
    @handles
    async def on_it(self, message: Make, more: int) -> Sequence[Made]:
        return []


class IsNotAsync(Actor):
    @handles
    def on_it(self, message: Make) -> Sequence[Made]:  # type: ignore[type-var]
        return []


@pytest.mark.parametrize(
    "actor", [TakesNothing, TakesAnything, SaysNothing, SaysNoMessage, SaysAQuery, WantsSomethingElse, IsNotAsync]
)
def test_a_signature_that_says_too_little_is_refused(actor: type[Actor]) -> None:
    with pytest.raises(TypeError, match=rf"{actor.__name__}\.on_it"):
        actor.routes()


def test_a_command_without_a_reply_is_no_request() -> None:
    class Plain(Command, tag="basetest.plain"):
        pass

    assert replies_of(Plain) == ()
