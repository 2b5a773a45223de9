"""The streams and durables, as values. Which messages are kept, where, and for how long is
decided here alone; the buses make it so and daemon/topology.py prints it.
"""

from collections.abc import Sequence

import msgspec

from actors.base import Actor, Route
from schemas.events.base import PREFIX, Command, Event, Query, kind_of, subject_of

DAY_S = 86_400.0
ACK_WAIT_S = 30.0
"""A delivery that is neither acked nor reported in progress for so long is delivered again."""
DUPLICATE_WINDOW_S = 3600.0
"""For so long a second message with the same id is dropped. Beyond it, handlers' idempotency
alone keeps effects from happening twice."""
SHARED_PENDING = 1000
"""Deliveries in flight for a durable that several processes share."""


class Stream(msgspec.Struct, frozen=True):
    """A JetStream stream."""

    name: str
    subject: str  # what it stores
    work_queue: bool = False  # a message is gone once it is acked; a full queue refuses more
    max_age_s: float | None = None
    max_per_subject: int | None = None


EVENTS = Stream("LAKEHOUSE_EVT", f"{PREFIX}.evt.>", max_age_s=7 * DAY_S)
COMMANDS = Stream("LAKEHOUSE_CMD", f"{PREFIX}.cmd.>", work_queue=True, max_per_subject=10_000)
DEAD = Stream("LAKEHOUSE_DEAD", f"{PREFIX}.dead.>", max_age_s=90 * DAY_S)
STREAMS = (EVENTS, COMMANDS, DEAD)


class Durable(msgspec.Struct, frozen=True):
    """A consumer of one subject. With `max_ack_pending` 1, messages are handled strictly in
    order: one that is put off holds up those behind it."""

    name: str
    stream: str
    subject: str
    max_ack_pending: int = 1
    ack_wait_s: float = ACK_WAIT_S
    new_only: bool = False  # of one process, gone with it; hears what comes from now on

    def is_meant(self, only_for: str | None) -> bool:
        """Whether a message for this durable alone, or for all (None), is to be handled here. What
        a process's own durable failed at is for its successors, whose names differ at the end."""
        if only_for is None or only_for == self.name:
            return True
        return self.new_only and only_for.rpartition("__")[0] == self.name.rpartition("__")[0]


def durable_of(actor: type[Actor], route: Route, process: str = "") -> Durable | None:
    """The consumer of a route; None for a query, which is only asked. A fan-out actor's
    consumers belong to `process`, and only control actors, of which there is one, keep order:
    for others, the processes of a role share what is pending."""
    if issubclass(route.takes, Query):
        return None
    stream = COMMANDS if kind_of(route.takes) is Command else EVENTS
    fanout = actor.fanout and issubclass(route.takes, Event)
    return Durable(
        name=f"{route.durable}__{process}" if fanout and process else route.durable,
        stream=stream.name,
        subject=subject_of(route.takes),
        max_ack_pending=route.concurrency if fanout or actor.role == "control" else SHARED_PENDING,
        new_only=fanout,
    )


def durables_of(actors: Sequence[type[Actor]]) -> list[Durable]:
    """Every durable, actor by actor."""
    found = [durable_of(actor, route) for actor in actors for route in actor.routes()]
    return [durable for durable in found if durable is not None]
