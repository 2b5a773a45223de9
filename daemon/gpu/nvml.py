"""Reads the GPUs through NVML, the driver's own library, by nvidia-ml-py. Every call may block for
as long as the driver likes: system.py gives it a thread.

`used` is what processes and their contexts hold, as nvidia-smi shows it: without what the driver
keeps for itself (hundreds of MiB on a data-centre card), so total = used + free + reserved. A driver
before 510 doesn't tell these apart; there, `used` has both. MIG: the physical GPU is reported.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from daemon.gpu.reading import Unreadable, name_of, one_a_process
from schemas.events.profile import Gpu, GpuProcess, GpuReading

LIBRARY = "libnvidia-ml.so.1"

NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, VERSION_MISMATCH = 3, 4, 13, 25
"""NVML's codes for "this GPU doesn't", "you may not" and "this driver is too old to be asked so"."""

SENTENCES = {
    NO_PERMISSION: "the NVIDIA driver refuses this user (it needs access to /dev/nvidiactl and /dev/nvidia*)",
    9: "the NVIDIA driver's library is here, but its kernel module isn't loaded",
    15: "the GPU is lost to the NVIDIA driver: it fell off the bus, which a reboot mends",
    17: "the operating system keeps this process from the GPU's devices (a container's device rules?)",
    18: "the NVIDIA driver's library and its loaded kernel module are of different versions: reboot, or reload it",
}
"""What NVML's commonest errors mean to whoever has to mend them, by code."""


class Nvml:
    """NVML, opened at the first reading and again after a failure. One reading at a time."""

    def __init__(self) -> None:
        self._open = False

    def read(self) -> GpuReading:
        """Every GPU whose memory is told; `reason` names the others. Raises Unreadable when there is none."""
        pynvml = _library()
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._close(pynvml)
            raise Unreadable(_sentence(error)) from error
        if not count:
            raise Unreadable("the NVIDIA driver lists no GPU")
        gpus, notes, stale = [], [], False
        for index in range(count):
            try:
                gpu, note = _gpu(pynvml, index)
            except pynvml.NVMLError as error:
                stale |= error.value not in (NOT_SUPPORTED, NO_PERMISSION)
                notes.append(f"GPU {index} tells no memory: {_sentence(error)}")
                continue
            gpus.append(gpu)
            notes.extend(note)
        if stale:
            self._close(pynvml)  # a GPU that was lost or reset is only seen again from a fresh start
        if not gpus:
            raise Unreadable("; ".join(notes))
        return GpuReading(gpus, "nvml", "; ".join(notes))

    def _close(self, pynvml: Any) -> None:
        if self._open:
            self._open = False
            _or_none(pynvml, pynvml.nvmlShutdown)


def _library() -> Any:
    """nvidia-ml-py, which is only imported where there is a driver to ask. Raises Unreadable."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if "No such file" in str(error):
            raise Unreadable(f"no NVIDIA driver library ({LIBRARY}) is on this machine") from error
        raise Unreadable(f"the NVIDIA driver library can't be loaded: {error}") from error
    import pynvml

    return pynvml


def _gpu(pynvml: Any, index: int) -> tuple[Gpu, list[str]]:
    """A GPU, and what about it isn't read. Raises NVMLError when its memory isn't told."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    total, used, free = _memory(pynvml, handle)
    compute = _processes(pynvml, handle, "Compute")
    graphics = _processes(pynvml, handle, "Graphics")
    gpu = Gpu(
        index=index,
        name=_or_none(pynvml, pynvml.nvmlDeviceGetName, handle) or "",
        uuid=_or_none(pynvml, pynvml.nvmlDeviceGetUUID, handle) or "",
        total=total,
        used=used,
        free=free,
        processes=None if compute is None else one_a_process(graphics or [], compute),
    )
    mig = _or_none(pynvml, pynvml.nvmlDeviceGetMigMode, handle)
    if mig and mig[0]:
        return gpu, [f"GPU {index} is split into MIG instances: its memory is read as a whole, not by instance"]
    return gpu, []


def _memory(pynvml: Any, handle: Any) -> tuple[int, int, int]:
    """Total, used and free, in bytes."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        if error.value not in (FUNCTION_NOT_FOUND, VERSION_MISMATCH):
            raise
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return memory.total, memory.used, memory.free
    # Of drivers, some count the reserved memory into `used`, as NVIDIA's own pages for 525 say, and
    # most don't: what is left of the total is the same figure at both.
    return memory.total, max(memory.total - memory.free - memory.reserved, 0), memory.free


def _processes(pynvml: Any, handle: Any, kind: str) -> list[GpuProcess] | None:
    """None where the driver refuses: in some containers and in virtual machines with a part of a GPU."""
    found = None
    for version in ("v3", "v2"):  # v3 since driver 510
        ask: Callable[[Any], list[Any]] = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}")
        try:
            found = ask(handle)
            break
        except pynvml.NVMLError as error:
            if error.value != FUNCTION_NOT_FOUND:
                return None
    if found is None:
        return None
    return [GpuProcess(row.pid, _process_name(pynvml, row.pid), row.usedGpuMemory) for row in found]


def _process_name(pynvml: Any, pid: int) -> str:
    name = _or_none(pynvml, pynvml.nvmlSystemGetProcessName, pid) or b""
    return (name.decode(errors="replace") if isinstance(name, bytes) else name) or name_of(pid)


def _or_none(pynvml: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where the driver has none: for what a reading can do without."""
    try:
        return ask(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _sentence(error: Any) -> str:
    return SENTENCES.get(error.value) or f"the NVIDIA driver says: {error} (code {error.value})"
