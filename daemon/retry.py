"""What becomes of a message whose handler raised: a table from the error to a decision.

Pure. The runtime carries the decision out; nothing else in the house catches broadly.

Poison                    dead letter at once
Transient, Unavailable    again after its delay; growing to a minute, given up after hundreds
Conflict                  again at once; a little later each time when it keeps losing
anything else             a bug: traceback, again with backoff, dead letter after 5 deliveries
"""

import msgspec

from actors.errors import Conflict, Poison, Refused, Transient, Unavailable

MAX_DELIVERIES = 5
"""Of a message whose handler raises something unforeseen."""
MAX_PATIENCE = 300
"""Deliveries of a message that waits for something outside; some five hours."""
PATIENT = 10
"""Deliveries after which its delay begins to grow, to a minute at most."""


class Again(msgspec.Struct, frozen=True):
    """Deliver it again after `delay_s`."""

    delay_s: float
    reason: str
    unforeseen: bool = False  # worth a traceback


class GiveUp(msgspec.Struct, frozen=True):
    """Put it into the dead-letter stream."""

    reason: str
    unforeseen: bool = False


def decide(error: Exception, delivery: int) -> Again | GiveUp:
    """`delivery` counts from 1."""
    match error:
        case Poison():
            return GiveUp(str(error))
        case Transient() | Unavailable():
            reason = str(error) or type(error).__name__
            if delivery >= MAX_PATIENCE:
                return GiveUp(f"not ready after {delivery} deliveries: {reason}")
            delay = error.delay_s if isinstance(error, Transient) else 1.0
            grown = min(60.0, delay * (delivery - PATIENT + 1)) if delivery > PATIENT else delay
            return Again(max(delay, grown), reason)
        case Conflict():
            if delivery >= MAX_PATIENCE:
                return GiveUp(f"lost every race of {delivery} deliveries: {error}")
            return Again(0.0 if delivery < MAX_DELIVERIES else min(5.0, 0.05 * delivery), str(error))
        case _:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, Refused):
                reason = f"refused by another actor: {error}"
            if delivery >= MAX_DELIVERIES:
                return GiveUp(reason, unforeseen=True)
            return Again(min(30.0, 0.2 * 4 ** (delivery - 1)), reason, unforeseen=True)
