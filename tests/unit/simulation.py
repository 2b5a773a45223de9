"""Deterministic simulation: an event loop on virtual time that runs ready callbacks in an order
drawn from a seed. Hours pass in moments, and a seed replays exactly.

    simulate(main, seed)     runs `main(clock, rng)` on such a loop

No thread, socket or process may be used inside.
"""

import asyncio
import heapq
import random
import selectors
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_700_000_000.0


class NothingComes(selectors.SelectSelector):
    """There are no sockets to wait for; not asking the kernel at every turn saves a tenth."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time stands still while there is something to run, then jumps to the next timer."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(NothingComes())
        self._rng = rng
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready:
            if not self._scheduled:
                raise RuntimeError("deadlock: nothing is ready and nothing is scheduled")
            self._now = max(self._now, self._scheduled[0]._when)
        if len(self._ready) > 1:
            ready = list(self._ready)
            self._rng.shuffle(ready)
            self._ready = deque(ready)
        super()._run_once()  # type: ignore[misc]


class VirtualClock:
    """The Clock port on the running loop's time."""

    def now(self) -> float:
        return EPOCH + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def simulate(main: Callable[[VirtualClock, random.Random], Awaitable[T]], seed: int) -> T:
    """Run `main` to its end in virtual time. The generator it gets is another one than the
    scheduler's, so that drawing from it doesn't change the schedule."""
    order = random.Random(f"{seed}/order")

    async def run() -> T:
        return await main(VirtualClock(), random.Random(f"{seed}/main"))

    def loop() -> Any:
        return SimulatedLoop(order)

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(run())
