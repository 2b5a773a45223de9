"""Jobs that the compute tests send to a worker."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.errors import Transient


def count(n: int) -> Iterator[int]:
    yield from range(n)


def nothing() -> Iterator[int]:
    return iter(())


def slow(pid_file: Path | None = None) -> Iterator[int]:
    """First item at once, the second in a minute."""
    if pid_file is not None:
        pid_file.write_text(str(os.getpid()))
    yield os.getpid()
    time.sleep(60)
    yield 0


def spin(child_file: Path) -> Iterator[int]:
    """Never yields control, and has a child of its own."""
    child = subprocess.Popen(["sleep", "60"])
    child_file.write_text(str(child.pid))
    yield os.getpid()
    while True:
        pass


def noisy() -> Iterator[str]:
    print("on stdout")
    os.write(1, b"straight to fd 1\n")
    sys.stderr.write("on stderr\n")
    yield "clean"


def double(array: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    yield array * 2


def environment() -> Iterator[tuple[str | None, int]]:
    yield os.environ.get("OPENBLAS_NUM_THREADS"), os.nice(0)


def marked(path: Path, mark: str) -> Iterator[str]:
    """Appends its mark to a file at start and end: shows overlap."""
    with path.open("a") as f:
        f.write(f"+{mark}")
    time.sleep(0.02)
    with path.open("a") as f:
        f.write(f"-{mark}")
    yield mark


def fail_after_one() -> Iterator[int]:
    yield 1
    raise ValueError("the second item is bad")


def fail_transient() -> Iterator[int]:
    raise Transient("disk is full", delay_s=7.0)
    yield


class Awkward(Exception):
    """Pickles, but can't be unpickled: __init__ needs more than `args` holds."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")


def fail_awkwardly() -> Iterator[int]:
    raise Awkward(1, 2)
    yield


def exit_hard(code: int) -> Iterator[int]:
    yield 1
    os._exit(code)
