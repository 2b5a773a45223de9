"""What a handler may raise. The runtime alone turns these into ack, nak or dead letter."""

from schemas.events.base import Refusal


class Poison(Exception):
    """The message can never be handled. The daemon puts it into the dead-letter stream with
    this reason and goes on with the next; an asker gets 400."""


class Transient(Exception):
    """Something outside is not ready. The daemon delivers the message again after `delay_s`;
    an asker gets 503 with Retry-After."""

    def __init__(self, reason: str, delay_s: float = 1.0) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


class Conflict(Exception):
    """A compare-and-set lost its race. Load again and decide again. Unhandled, the daemon
    delivers the message again at once; an asker gets 409."""


class Refused(Exception):
    """The owner of an asked request said no. Raised by `bus.ask` at the asker."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class CorruptState(Exception):
    """Stored state fails its checksum or is of a newer format. The daemon refuses to use or
    overwrite it; the message names the object and says what to run."""


class Unavailable(Exception):
    """Nobody answers an ask in time, or the bus is down. An asker gets 503."""


class Failed(Unavailable):
    """The owner's handler broke while it answered. The log has the traceback under `id`; an
    asker over HTTP gets 500 with the id and nothing of the inside."""

    def __init__(self, reason: str, id: str) -> None:
        super().__init__(reason)
        self.id = id


class Unfit(ValueError):
    """Something is wrong with what was asked; said before any work is done. Names the parameter,
    the numbers, and what would be right."""


class ModelServerError(Exception):
    """A model server answered that it can't; its own words. The slot leaves or restores what
    was there and refuses with them."""


class UnknownAdapter(LookupError):
    """A model server doesn't have an adapter that a profile names, or has it twice."""
