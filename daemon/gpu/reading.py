"""What both ways of reading the GPUs share: how a way says that it can't, one entry a process, and
the name of a process. How the driver is asked is in nvml.py and smi.py; who asks which, in system.py.
"""

from collections.abc import Iterable
from pathlib import Path

from schemas.events.profile import GpuProcess


class Unreadable(Exception):
    """This way gives no GPU; the sentence says why. The next way is tried, and its sentence added."""


def one_a_process(*lists: Iterable[GpuProcess]) -> list[GpuProcess]:
    """Each process once, by pid. Rows of one process in the same list are its parts on several MIG
    instances: added. In several lists (it computes and draws) it has the same figure in each: the
    largest counts, not the sum."""
    names: dict[int, str] = {}
    used: dict[int, list[int]] = {}  # in each of the lists that tell
    for listed in lists:
        here: dict[int, int] = {}
        for process in listed:
            names[process.pid] = process.name
            if process.used is not None:
                here[process.pid] = here.get(process.pid, 0) + process.used
        for pid, figure in here.items():
            used.setdefault(pid, []).append(figure)
    return [GpuProcess(pid, names[pid], max(used.get(pid, []), default=None)) for pid in sorted(names)]


def name_of(pid: int) -> str:
    """The process's short name; empty when there is none here of that id (another container's)."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
