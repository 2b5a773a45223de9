"""The Gpus port: this machine's GPUs, asked in a thread of their own, since a driver that is stuck
can't be cancelled. While one reading is stuck no other is begun: readers are told so at once, and
everything is as before when it comes back.
"""

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import Literal

import structlog

from daemon.gpu.nvml import Nvml
from daemon.gpu.reading import Unreadable
from daemon.gpu.smi import read_smi
from schemas.events.profile import GpuReading

log = structlog.get_logger("lakehouse.gpu")


class SystemGpus:
    """NVML, else nvidia-smi, else nothing and why.

    One that found nothing is believed for `remember_s`, so that a machine without a GPU pays
    nothing for being asked often, and a driver that is installed meanwhile is found.
    """

    def __init__(
        self,
        source: Literal["auto", "nvml", "nvidia-smi", "none"] = "auto",
        *,
        timeout_s: float = 1.8,
        remember_s: float = 5.0,
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._remember_s = remember_s
        self._nvml = Nvml()
        self._reading: Future[GpuReading] | None = None  # the newest, which may be under way
        self._began = 0.0
        self._nothing: tuple[float, GpuReading] | None = None  # found nothing; until when that is believed
        self._said: tuple[str, str] | None = None

    async def read(self) -> GpuReading:
        """See `actors.ports.Gpus`. Readers at the same time share a reading."""
        now = time.monotonic()
        if self._nothing is not None and now < self._nothing[0]:
            return self._nothing[1]
        if self._reading is None or self._reading.done():
            self._reading, self._began = Future(), now
            threading.Thread(target=self._work, args=(self._reading,), name="gpus", daemon=True).start()
        reading, left = self._reading, self._began + self._timeout_s - now
        if left > 0:
            await asyncio.wait([asyncio.wrap_future(reading)], timeout=left)
        if not reading.done():
            waited = time.monotonic() - self._began
            return self._say(_nothing(f"the NVIDIA driver has not answered for {waited:.1f} s"), "driver stuck")
        found = reading.result()
        if found.source == "none":
            self._nothing = (time.monotonic() + self._remember_s, found)
        return self._say(found, found.reason)

    def _work(self, reading: Future[GpuReading]) -> None:
        """The thread, which ends with the reading."""
        try:
            found = self._ask()
        except Exception as error:  # no reader may fail for a driver's sake
            log.exception("reading the GPUs failed")
            found = _nothing(f"reading the GPUs failed: {type(error).__name__}: {error}")
        reading.set_result(found)

    def _ask(self) -> GpuReading:
        began = time.monotonic()
        if self._source == "none":
            return _nothing("[slot] gpus says that none are read")
        try:
            if self._source == "nvidia-smi":
                raise Unreadable("[slot] gpus says so")
            return self._nvml.read()
        except Unreadable as error:
            why = str(error)
        if self._source == "nvml":
            return _nothing(why)
        # Enough is left for killing nvidia-smi before the readers are told that all is stuck.
        left = 0.9 * self._timeout_s - (time.monotonic() - began)
        try:
            found = read_smi(max(left, 0.1))
        except Unreadable as error:
            return _nothing(f"{why}; {error}")
        note = f"read by nvidia-smi: {why}"
        return GpuReading(found.gpus, found.source, f"{note}; {found.reason}" if found.reason else note)

    def _say(self, found: GpuReading, what: str) -> GpuReading:
        """Logs a reading that differs from the last in kind, not in figures."""
        if self._said != (found.source, what):
            self._said = (found.source, what)
            log.info("GPUs", source=found.source, gpus=[gpu.name for gpu in found.gpus], reason=found.reason)
        return found


def _nothing(reason: str) -> GpuReading:
    return GpuReading([], "none", reason)
