"""The worker process: runs one job after another for its parent and streams back what they yield.

Started by `daemon.compute` as `python -m daemon.worker FD PARENT_PID NICE`. Frames travel over the
socket FD, so whatever a job prints can't corrupt them; a frame is an 8-byte length, one byte of
kind, and a pickle. The process holds no state between jobs and may be killed at any moment.
"""

import ctypes
import gc
import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, BinaryIO

HEADER = struct.Struct(">QB")  # length of the pickle in bytes, kind
JOB, ITEM, DONE, FAILED = range(4)

_PR_SET_PDEATHSIG = 1


def dumps(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when the thread that spawned it ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def resolve(name: str) -> Callable[..., Iterator[Any]]:
    """The job called `module:qualname`."""
    module, _, qualname = name.partition(":")
    job: Callable[..., Iterator[Any]] = attrgetter(qualname)(importlib.import_module(module))
    return job


def failure(error: BaseException) -> bytes:
    """What a failed job sends: the exception where it can be pickled, its words, its traceback."""
    text = "".join(traceback.format_exception(error))
    words = f"{type(error).__name__}: {error}"
    try:
        pickled = dumps(error)
        pickle.loads(pickled)  # an exception whose __init__ needs more than `args` fails only here
    except Exception:
        pickled = b""
    return dumps((pickled, words, text))


def serve(connection: socket.socket) -> None:
    """Runs jobs until the parent hangs up."""
    frames: BinaryIO = connection.makefile("rb")

    def send(kind: int, payload: bytes) -> None:
        try:
            connection.sendall(HEADER.pack(len(payload), kind))
            connection.sendall(payload)
        except OSError:  # the parent is gone
            os._exit(1)

    while header := frames.read(HEADER.size):
        length, _ = HEADER.unpack(header)
        try:
            name, args = pickle.loads(frames.read(length))
            for item in resolve(name)(*args):
                send(ITEM, dumps(item))
        except Exception as error:
            send(FAILED, failure(error))
        else:
            send(DONE, b"")
        item = args = None
        gc.collect()  # graphs and arrays of this job must not stand beside those of the next


def main() -> None:
    fd, parent, nice = map(int, sys.argv[1:4])
    die_with_parent(parent)
    # Ctrl-C and `systemctl stop` reach the parent too, which decides what becomes of the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(nice)  # the kernel derives the I/O priority from it
    serve(socket.socket(fileno=fd))


if __name__ == "__main__":
    main()
