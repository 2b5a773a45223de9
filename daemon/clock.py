"""The Clock port on the machine's own clocks."""

import asyncio
import time

from schemas.names import Timestamp


class SystemClock:
    def now(self) -> Timestamp:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
