"""Reads the GPUs by running nvidia-smi: the fallback where the driver's library can't be used, as
after an upgrade of the driver under a running daemon. A value that nvidia-smi can't tell is a word
in brackets ([N/A], [Not Supported], [Insufficient Permissions], [GPU is lost]); memory is in MiB;
only processes that compute are listed, and none of it says anything about MIG instances.
"""

import contextlib
import os
import shutil
import subprocess
import time

import msgspec

from daemon.gpu.reading import Unreadable, name_of, one_a_process
from schemas.events.profile import Gpu, GpuProcess, GpuReading

PROGRAM = "nvidia-smi"
# Names come last: they may hold commas, which nvidia-smi doesn't quote.
GPU_FIELDS = "index,uuid,memory.total,memory.used,memory.free,name"
APP_FIELDS = "gpu_uuid,pid,used_memory,process_name"
QUERIES = (f"gpu={GPU_FIELDS}", f"compute-apps={APP_FIELDS}")
MIB = 1 << 20


def read_smi(timeout_s: float) -> GpuReading:
    """Every GPU whose memory is told; `reason` has nvidia-smi's words about the others. Blocks for at
    most `timeout_s`, if the kernel lets nvidia-smi be killed. Raises Unreadable."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise Unreadable(f"no {PROGRAM} is on the daemon's PATH")
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as running:
        try:
            asked = [running.enter_context(_query(program, what)) for what in QUERIES]
        except OSError as error:
            raise Unreadable(f"{program} can't be run: {error.strerror or error}") from error
        try:
            answers = [process.communicate(timeout=max(deadline - time.monotonic(), 0)) for process in asked]
        except subprocess.TimeoutExpired:
            raise Unreadable(f"{program} has not answered within {timeout_s:.1f} s") from None
        finally:
            for process in asked:
                process.kill()  # does nothing to one that has ended
    gpus, notes = parse_gpus(answers[0][0])
    if not gpus:
        words = "; ".join(notes) or " ".join(answers[0][1].split()) or f"it ended with {asked[0].returncode}, wordless"
        raise Unreadable(f"{PROGRAM} shows no GPU: {words[:500]}")
    if asked[1].returncode:
        return GpuReading(gpus, "nvidia-smi", "; ".join(notes))
    return GpuReading(with_processes(gpus, answers[1][0]), "nvidia-smi", "; ".join(notes))


def _query(program: str, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program, f"--query-{what}", "--format=csv,noheader,nounits"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )


def parse_gpus(text: str) -> tuple[list[Gpu], list[str]]:
    """The GPUs in an answer to GPU_FIELDS, and a sentence for each line that gives none."""
    gpus, notes = [], []
    for line in _lines(text):
        fields = _fields(line, 6)
        if len(fields) < 6 or not fields[0].isdecimal():
            notes.append(line)  # nvidia-smi's own complaint
            continue
        index, uuid, *memory, name = fields
        total, used, free = map(_bytes, memory)
        if total is None or used is None or free is None:
            notes.append(f"GPU {index} tells no memory: {PROGRAM} shows {', '.join(memory)} for total, used and free")
            continue
        gpus.append(Gpu(int(index), name, uuid, total, used, free))
    return gpus, notes


def with_processes(gpus: list[Gpu], text: str) -> list[Gpu]:
    """The GPUs with their processes from an answer to APP_FIELDS. A line that can't be read makes
    those of its GPU unknown, or of all of them when it doesn't say which GPU's."""
    lists: dict[str, list[GpuProcess] | None] = {gpu.uuid: [] for gpu in gpus}
    for line in _lines(text):
        uuid, *rest = _fields(line, 4)
        if uuid not in lists:
            if not uuid.startswith("GPU-"):  # a complaint, or an instance of who knows which GPU
                lists.update(dict.fromkeys(lists))
        elif len(rest) < 3 or not rest[0].isdecimal():
            lists[uuid] = None
        elif (listed := lists[uuid]) is not None:
            pid, used, name = int(rest[0]), rest[1], rest[2]
            listed.append(GpuProcess(pid, name_of(pid) if name.startswith("[") else name, _bytes(used)))
    known = {uuid: None if listed is None else one_a_process(listed) for uuid, listed in lists.items()}
    return [msgspec.structs.replace(gpu, processes=known[gpu.uuid]) for gpu in gpus]


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _fields(line: str, most: int) -> list[str]:
    return [field.strip() for field in line.split(",", most - 1)]


def _bytes(mib: str) -> int | None:
    return int(mib) * MIB if mib.isdecimal() else None
