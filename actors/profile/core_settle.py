"""When the memory of unloaded models counts as free.

A server stops listing a model before the driver has its memory back, and may never give it back.
So two equal readings aren't enough: what the models held must have come free. A server may also
have claimed more than it held, or hold it on another machine's GPU: both are allowed for.
"""

from collections.abc import Sequence

import msgspec

from schemas.events.profile import GpuReading, LoadedModel
from schemas.names import Bytes, Seconds

SURE = 0.9
"""Of what the models claimed to hold: so much freed is all of it."""

LIKELY = 0.5
"""So much freed may be all of it, when nothing more comes for STEADY_S: servers report estimates."""

STEADY_S = 2.0

BLIND_S = 1.0
"""Where GPU memory can't be read, so long after an unload a load is tried once more that came up partly on the CPU:
a model's memory comes free up to about half a second after its server has stopped listing it."""


class Owed(msgspec.Struct, frozen=True):
    """Memory that unloaded models owe. `expected` None: nobody knows how much."""

    before: GpuReading
    expected: Bytes | None  # all that they may hold
    reported: Bytes = 0  # of that, what their servers say is on the GPU
    unlisted: bool = False  # more may be held by loads that no server lists


class Sample(msgspec.Struct, frozen=True):
    """A reading and when it was taken."""

    at: Seconds
    gpus: GpuReading


def owed(before: GpuReading, leaving: Sequence[LoadedModel], *, unlisted: bool = False) -> Owed:
    """What `leaving` hold on these GPUs by their servers' reports; unknown when a server says
    nothing, and when the GPUs hold less than that in all: then the models are elsewhere."""
    used = before.used
    reported = sum(model.size_vram or 0 for model in leaving)
    held = sum((model.size or 0) if model.size_vram is None else model.size_vram for model in leaving)
    if used is None or held == 0 or held * SURE > used:
        return Owed(before, None, unlisted=unlisted)
    return Owed(before, held, reported, unlisted)


def taken(baseline: GpuReading | None, now: GpuReading, leaving: Sequence[LoadedModel]) -> Owed:
    """As `owed`, for models whose load was broken off: they may hold memory that no list tells of.
    What has gone since the `baseline`, taken before the load, is theirs."""
    debt = owed(now, leaving)
    gone = None if baseline is None else freed(now, baseline)
    if gone is None or gone <= 0:
        return debt
    return Owed(now, max(gone, debt.expected or 0), max(gone, debt.reported))


def freed(before: GpuReading, now: GpuReading) -> Bytes | None:
    """How much more is free; what programs took that weren't there before is no loss of ours."""
    if before.free is None or now.free is None:
        return None
    known = {process.pid for gpu in before.gpus for process in gpu.processes or ()}
    readable = all(gpu.processes is not None for gpu in before.gpus)
    new = [process for gpu in now.gpus for process in gpu.processes or () if readable and process.pid not in known]
    return now.free - before.free + sum(process.used or 0 for process in new)


def settled(debt: Owed, samples: Sequence[Sample], tolerance: Bytes, others: int = 0) -> bool:
    """Whether memory has come to rest, and enough of it is free. Memory that was unreadable from the
    beginning is at rest: then the servers' lists are all that can be known. `others`: bytes that came free meanwhile
    because other models left; negative when some came."""
    if not samples:
        return False
    if debt.before.free is None:
        return True
    latest = freed(debt.before, samples[-1].gpus)
    if latest is None:
        return False  # a driver that fell silent in the middle says nothing about rest
    if len(samples) < 2 or not _near(freed(debt.before, samples[-2].gpus), latest, tolerance):
        return False
    paid = debt.expected is None or latest >= debt.expected * SURE + others - tolerance
    if paid and not debt.unlisted:
        return True
    if not paid and latest < debt.reported * LIKELY + others - tolerance:
        return False
    return samples[-1].at - _steady_since(debt, samples, latest, tolerance) >= STEADY_S


def awaited(debt: Owed) -> Bytes | None:
    """Free memory from which on the debt is taken to be paid, to be remembered over a restart: it may
    be all that there is to come."""
    if debt.expected is None or debt.before.free is None:
        return None
    return debt.before.free + int(debt.reported * LIKELY)


def shortfall(debt: Owed, now: GpuReading) -> tuple[Bytes, Bytes] | None:
    """What came free and what should have; None when nobody knows."""
    amount = freed(debt.before, now)
    return None if amount is None or debt.expected is None else (max(0, amount), debt.expected)


def _near(one: Bytes | None, other: Bytes, tolerance: Bytes) -> bool:
    return one is not None and abs(one - other) <= tolerance


def _steady_since(debt: Owed, samples: Sequence[Sample], latest: Bytes, tolerance: Bytes) -> Seconds:
    """From which sample on all are near the last."""
    since = samples[-1].at
    for sample in reversed(samples):
        if not _near(freed(debt.before, sample.gpus), latest, tolerance):
            break
        since = sample.at
    return since
