"""A machine with GPUs for tests: a driver library compiled from libnvidia_ml.c and an nvidia-smi,
both told what to say, and a process that reads them as the daemon does. The process finds them as
it would find NVIDIA's: through the loader's path and PATH.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from daemon.config import LogConfig
from daemon.gpu.system import SystemGpus
from daemon.logs import setup
from schemas.events.profile import GpuReading

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
REMEMBER_S = 0.3


class Heard(msgspec.Struct):
    """Readings that were asked for at once."""

    readings: list[GpuReading]
    took_s: float
    threads: int  # of the reading process that are with the driver, afterwards
    imported: bool  # nvidia-ml-py, which a machine without a driver doesn't need

    @property
    def reading(self) -> GpuReading:
        (only,) = self.readings
        return only


class Machine:
    """Bare at first: no library, no nvidia-smi."""

    def __init__(self, folder: Path) -> None:
        self.libraries, self.programs = folder / "lib", folder / "bin"
        self.libraries.mkdir()
        self.programs.mkdir()
        self._nvml, self._smi, self._smi_calls = folder / "nvml", folder / "smi.json", folder / "smi.calls"
        self._smi_calls.touch()
        self.log = folder / "log"  # of the reading process
        self.source = "auto"  # [slot] gpus
        self._process: subprocess.Popen[str] | None = None

    def install_driver(self, *flags: str) -> None:
        """The library. Flag `-DOLD`: from before 510."""
        target = self.libraries / "libnvidia-ml.so.1"
        target.with_suffix(".new").write_bytes(compiled(flags))
        target.with_suffix(".new").rename(target)

    def driver_says(self, numbers: Mapping[str, int]) -> None:
        new = self._nvml.with_suffix(".new")
        new.write_text("".join(f"{key} {number}\n" for key, number in numbers.items()))
        new.rename(self._nvml)

    def install_smi(self) -> None:
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!{sys.executable} -SE\n{SMI.format(state=str(self._smi), calls=str(self._smi_calls))}")
        program.chmod(0o755)

    def smi_says(
        self,
        gpus: Sequence[Mapping[str, str]] = (),
        apps: Sequence[Mapping[str, str]] = (),
        *,
        words: str = "",
        code: int = 0,
        stuck: bool = False,
    ) -> None:
        """Rows by nvidia-smi's field names, or words and an exit code."""
        state = {"gpu": list(gpus), "compute-apps": list(apps), "words": words, "code": code, "stuck": stuck}
        self._smi.write_text(json.dumps(state))

    @property
    def smi_pids(self) -> list[int]:
        """Of every nvidia-smi that was run."""
        return [int(pid) for pid in self._smi_calls.read_text().split()]

    def read(self, at_once: int = 1, cancelled: int = 0) -> Heard:
        """What readers hear that ask at the same time, beside some that are cancelled while they wait."""
        if self._process is None:
            environment = {
                **os.environ,
                "LD_LIBRARY_PATH": str(self.libraries),
                "PATH": str(self.programs),
                "FAKE_NVML": str(self._nvml),
            }
            command = [sys.executable, "-m", "tests.contract.gpu_machine", self.source]
            pipe = subprocess.PIPE
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True
                )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(at_once, cancelled, file=self._process.stdin, flush=True)
        return msgspec.json.decode(self._process.stdout.readline(), type=Heard)

    def close(self) -> int:
        """The reading process's exit code, within 5 s however stuck the driver is."""
        if self._process is None:
            return 0
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            return self._process.wait(5)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None


SMI = """
import json, os, sys, time
with open({calls!r}, "a") as calls:
    print(os.getpid(), file=calls)
state = json.load(open({state!r}))
if state["stuck"]:
    time.sleep(60)
query, how = sys.argv[1:]
assert how == "--format=csv,noheader,nounits", how
what, _, fields = query.removeprefix("--query-").partition("=")
if state["words"]:
    print(state["words"])
for row in state[what]:
    # A row without fields is a word of nvidia-smi's own: "[Not Supported]".
    print(row["words"] if "words" in row else ", ".join(row[field] for field in fields.split(",")))
sys.exit(state["code"])
"""


@cache
def compiled(flags: tuple[str, ...]) -> bytes:
    """The library. g++ since that is there where hnswlib was compiled."""
    command = ["g++", "-x", "c", "-std=c99", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = str(Path(__file__).with_name("libnvidia_ml.c"))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "library"
        made = subprocess.run([*command, *flags, source, "-o", str(target)], capture_output=True)
        assert made.returncode == 0, made.stderr.decode()
        return target.read_bytes()


async def main() -> None:
    """The reading process: a line "at_once cancelled" in, a Heard out."""
    setup(LogConfig())  # to stderr: stdout is for the answers
    gpus = SystemGpus(sys.argv[1], remember_s=REMEMBER_S)  # type: ignore[arg-type]
    while line := await asyncio.to_thread(sys.stdin.readline):
        at_once, cancelled = map(int, line.split())
        began = time.monotonic()
        leaving = [asyncio.create_task(gpus.read()) for _ in range(cancelled)]
        staying = [asyncio.create_task(gpus.read()) for _ in range(at_once)]
        await asyncio.sleep(0)
        for reader in leaving:
            reader.cancel()
        readings = list(await asyncio.gather(*staying))
        took_s = time.monotonic() - began
        await asyncio.gather(*leaving, return_exceptions=True)
        threads = sum(thread.name == "gpus" for thread in threading.enumerate())
        heard = Heard(readings, took_s, threads, "pynvml" in sys.modules)
        print(msgspec.json.encode(heard).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
