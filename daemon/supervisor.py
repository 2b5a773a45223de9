"""Keeps a task running: starts it again after a crash, and gives up when it crashes on and on.

After Erlang/OTP's restart intensity. Only `Exception` is caught: cancellation passes through.
"""

import random
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from actors.ports import Clock

log = structlog.get_logger("lakehouse.supervisor")


class CrashedTooOften(Exception):
    """The daemon ends with this sentence, and systemd starts it again."""


class Restarts(msgspec.Struct, frozen=True):
    """How often, and how soon."""

    most: int = 5  # crashes that are survived …
    within_s: float = 60.0  # … in so long
    first_pause_s: float = 0.05
    longest_pause_s: float = 5.0


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    clock: Clock,
    *,
    restarts: Restarts = Restarts(),
    rng: random.Random | None = None,
) -> None:
    """Run `run` until it returns. When it raises, run it again after a pause that doubles with
    each crash of the last `within_s` and is jittered by half. Raises CrashedTooOften."""
    rng = rng or random.Random()
    crashes: deque[float] = deque()
    while True:
        try:
            await run()
            return
        except Exception as error:
            now = clock.monotonic()
            crashes.append(now)
            while crashes[0] < now - restarts.within_s:
                crashes.popleft()
            log.exception("crashed", task=name, crashes=len(crashes))
            if len(crashes) > restarts.most:
                root = first_of(error)
                raise CrashedTooOften(
                    f"{name} crashed {len(crashes)} times in {restarts.within_s:g} s, "
                    f"last with {type(root).__name__}: {root}"
                ) from error
        pause = min(restarts.longest_pause_s, restarts.first_pause_s * 2 ** (len(crashes) - 1))
        await clock.sleep(pause * rng.uniform(0.5, 1.0))


def first_of(error: BaseException) -> BaseException:
    """The first thing that went wrong inside nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
