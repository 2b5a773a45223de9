"""What GPU memory is in use: how fast the daemon says so, and whether it is true.

    python -m benchmarks.vram [--requests 500]        how fast, on any machine
    python -m benchmarks.vram --allocate 4GiB         how true, on a machine with an NVIDIA GPU

Speed: `GET /admin/vram` of a real daemon over HTTP, where no model server answers and beside an
Ollama (the tests' one) with a model loaded, in turn with `GET /health` of the same daemon, with
Ollama's own `/api/ps`, and with nvidia-smi where there is one.

Truth: a process takes so much memory through the CUDA driver alone and gives it back. NVML, nvidia-smi
and our reading are shown before, with the process's context alone, while it holds the memory, and after.
"""

import argparse
import asyncio
import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daemon.config import LogConfig
from daemon.gpu.reading import Unreadable
from daemon.gpu.smi import read_smi
from daemon.gpu.system import SystemGpus
from daemon.logs import setup
from schemas.events.profile import Gpu

MIB, GIB = 1 << 20, 1 << 30
GOAL_MS = 10.0
CONTEXT_MOST = 2 * GIB
"""What a CUDA context may take beside what is allocated: some hundred MiB on today's cards."""
NOISE = 64 * MIB


# --- how fast ------------------------------------------------------------------------------------


def speed(requests: int) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from benchmarks.http_search import Connection
    from tests.integration.house import house

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        ollama = running.enter_context(played_ollama())
        away = "http://127.0.0.1:9"  # discard: nobody listens
        alone = running.enter_context(house(folder / "alone", models__ollama_url=away, models__llamacpp_url=away))
        beside_it = running.enter_context(
            house(
                folder / "beside",
                models__ollama_url=f"http://127.0.0.1:{ollama}",
                models__llamacpp_url=away,
            )
        )
        beside_it.call("POST", "/admin/preload", {"model": "llama3", "keep_alive": "1h"})
        here, there = (Connection(made.port, {"Authorization": f"Bearer {made.token}"}) for made in (alone, beside_it))
        server = Connection(ollama)
        asked: dict[str, Callable[[], Any]] = {
            "GET /health": lambda: here.call("GET", "/health"),
            "GET /admin/vram, no model server there": lambda: here.call("GET", "/admin/vram"),
            "GET /admin/vram, beside an Ollama": lambda: there.call("GET", "/admin/vram"),
            "that Ollama's GET /api/ps": lambda: server.call("GET", "/api/ps"),
        }
        if shutil.which("nvidia-smi"):
            asked["nvidia-smi"] = lambda: subprocess.run(["nvidia-smi"], capture_output=True, check=False)
        times: dict[str, list[float]] = {name: [] for name in asked}
        for number in range(requests + 20):
            for what, ask in asked.items():
                if what == "nvidia-smi" and number % 50:
                    continue
                began = time.perf_counter()
                ask()
                if number >= 20:  # the first ones warm up
                    times[what].append((time.perf_counter() - began) * 1000)
        report = here.json("GET", "/admin/vram")
    table = Table(
        "", "p50, ms", "p95, ms", "n", title=f"GET /admin/vram; goal p50 at most {GOAL_MS:g} ms without a GPU"
    )
    for what, took in times.items():
        p50, p95 = np.percentile(took, [50, 95])
        table.add_row(what, f"{p50:.2f}", f"{p95:.2f}", str(len(took)))
    Console().print(table)
    print(f"GPUs read by {report['source']}: {len(report['gpus'])}" + f" ({report['reason']})" * bool(report["reason"]))


@contextlib.contextmanager
def played_ollama() -> Iterator[int]:
    """The tests' Ollama in a process of its own; its port."""
    from benchmarks.http_search import child, free_port, wait_for_port

    port = free_port()
    command = [sys.executable, "-m", "tests.ollama_server", "--port", str(port), "--play", '{"load_s": 0.05}']
    with child(command, stdout=subprocess.DEVNULL):
        wait_for_port(port)
        yield port


# --- how true ------------------------------------------------------------------------------------


class Cuda:
    """The few calls of the CUDA driver that take memory. They raise RuntimeError with its words."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"the CUDA driver can't be loaded: {error}") from error
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)

    def uuid(self) -> str:
        """As NVML and nvidia-smi write it: CUDA counts the GPUs in an order of its own."""
        raw = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid", raw, self._device)
        return f"GPU-{uuid.UUID(bytes=bytes(raw))}"

    def context(self) -> None:
        self._call("cuCtxCreate_v2", ctypes.byref(ctypes.c_void_p()), 0, self._device)

    def take(self, size: int) -> None:
        """Allocated, and written to."""
        at = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
        self._call("cuMemsetD8_v2", at, ctypes.c_ubyte(1), ctypes.c_size_t(size))
        self._call("cuCtxSynchronize")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            words = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(words))
            raise RuntimeError(f"{name}: {(words.value or b'unknown error').decode()} ({code})")


def hold(size: int) -> None:
    """The child: says which GPU it uses, then takes a step with every line that it is sent."""
    try:
        cuda = Cuda()
        print(cuda.uuid(), flush=True)
        for step in (cuda.context, lambda: cuda.take(size)):
            sys.stdin.readline()
            step()
            print("done", flush=True)
        sys.stdin.readline()
    except RuntimeError as error:
        print(error, flush=True)


Look = dict[str, tuple[int | None, int | None]]
"""By who says so: bytes in use on the GPU, and of them the process's (None: not told, not listed)."""


def look(gpu: str, pid: int) -> Look:
    """What everybody says once our reading has settled."""
    before, ours = -1, asyncio.run(SystemGpus().read())
    deadline = time.monotonic() + 5
    while (ours.used or 0) != before and time.monotonic() < deadline:
        before = ours.used or 0
        time.sleep(0.3)
        ours = asyncio.run(SystemGpus().read())
    found = {f"lakehouse ({ours.source})": _of(ours.gpus, gpu, pid)}
    with contextlib.suppress(Unreadable):
        found["lakehouse (nvidia-smi)"] = _of(read_smi(20).gpus, gpu, pid)
    return {**nvml_itself(gpu, pid), **smi_itself(gpu, pid), **found}


def _of(gpus: list[Gpu], which: str, pid: int) -> tuple[int | None, int | None]:
    for gpu in gpus:
        if gpu.uuid == which:
            return gpu.used, next((process.used for process in gpu.processes or [] if process.pid == pid), None)
    return None, None


def nvml_itself(gpu: str, pid: int) -> Look:
    """Past our reading of it: both figures that the driver has."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
        listed = {row.pid: row.usedGpuMemory for row in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        second = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return {
            "NVML v1: its own share in it": (pynvml.nvmlDeviceGetMemoryInfo(handle).used, listed.get(pid)),
            f"NVML v2: {second.reserved / MIB:.0f} MiB apart": (second.used, listed.get(pid)),
        }
    except pynvml.NVMLError as error:
        return {f"NVML: {error}": (None, None)}


def smi_itself(gpu: str, pid: int) -> Look:
    if not shutil.which("nvidia-smi"):
        return {"nvidia-smi: not here": (None, None)}

    def ask(query: str) -> list[list[str]]:
        command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return [[field.strip() for field in line.split(",")] for line in said.splitlines()]

    used = next((int(row[1]) * MIB for row in ask("gpu=uuid,memory.used") if row[0] == gpu), None)
    apps = ask("compute-apps=pid,used_memory")
    return {"nvidia-smi": (used, next((int(row[1]) * MIB for row in apps if row[0] == str(pid)), None))}


def truth(size: int) -> int:
    """The exit code: 0 when all readings told the truth."""
    setup(LogConfig(level="error"))
    reading = asyncio.run(SystemGpus().read())
    if not reading.gpus:
        return _cannot(f"No GPU can be read on this machine: {reading.reason}")
    command = [sys.executable, "-m", "benchmarks.vram", "--hold", str(size)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        gpu = child.stdout.readline().strip()
        if not gpu.startswith("GPU-"):
            return _cannot(f"No memory can be taken: {gpu}")
        looks = {"before": look(gpu, child.pid)}
        for stage in ("context alone", f"{size / GIB:g} GiB held"):
            print("go on", file=child.stdin, flush=True)
            if (answer := child.stdout.readline().strip()) != "done":
                return _cannot(f"No memory can be taken: {answer}")
            looks[stage] = look(gpu, child.pid)
        child.stdin.close()
        child.wait()
    looks["after"] = look(gpu, child.pid)
    name = next((one.name for one in reading.gpus if one.uuid == gpu), "a GPU that isn't listed")
    print(f"{name}, {gpu}. MiB in use; in brackets the process's, - where it isn't listed")
    print(f"{'':30}" + "".join(f"{stage:>20}" for stage in looks))
    for who in looks["before"]:
        print(f"{who:30}" + "".join(f"{_cell(*told.get(who, (None, None))):>20}" for told in looks.values()))
    return report(size, *looks.values())


def report(size: int, before: Look, context: Look, holding: Look, after: Look) -> int:
    """What is right and what is wrong with our readings; 1 when anything is. Other programs that
    take or free memory meanwhile make it wrong, too."""
    wrong = 0
    for who in [who for who in before if who.startswith("lakehouse")]:
        told = [stage.get(who, (None, None)) for stage in (before, context, holding, after)]
        start, bare, full, end = (used if used is not None else -GIB for used, _ in told)
        listed = told[2][1]
        for right, what in (
            (abs(full - bare - size) <= NOISE, f"used memory rose by {(full - bare) / MIB:.0f} MiB"),
            (abs(end - start) <= NOISE, f"and came back to {(end - start) / MIB:+.0f} MiB of where it was"),
            (
                listed is not None and size <= listed <= size + CONTEXT_MOST,
                "the process isn't listed" if listed is None else f"the process is listed with {listed / MIB:.0f} MiB",
            ),
        ):
            wrong += not right
            print(f"{'right' if right else 'WRONG'}: {who}: {what}")
    return int(wrong > 0)


def _cell(used: int | None, process: int | None) -> str:
    of = "-" if process is None else f"{process / MIB:.0f}"
    return "?" if used is None else f"{used / MIB:.0f} [{of}]"


def _cannot(why: str) -> int:
    print(f"{why}.", file=sys.stderr)
    return 1


def size_of(text: str) -> int:
    """Bytes of "4GiB" or "512MiB". Raises ValueError."""
    found = re.fullmatch(r"([0-9.]+)\s*(MiB|GiB)", text)
    if not found:
        raise ValueError(text)
    return int(float(found[1]) * {"MiB": MIB, "GiB": GIB}[found[2]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--allocate", type=size_of, help="how much GPU memory to take: 4GiB, 512MiB")
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        hold(options.hold)
    elif options.allocate:
        return truth(options.allocate)
    else:
        speed(options.requests)
    return 0


if __name__ == "__main__":
    sys.exit(main())
