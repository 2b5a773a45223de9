"""The Compute port: one niced worker process per lane, spawned at its first job.

A job is a generator function that the worker imports by name; what it yields streams back. The
process is the unit of cancellation: closing the stream kills it, the next job gets a fresh one.
What runs inside the worker is `daemon.worker`.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from actors.errors import Transient
from daemon.worker import DONE, FAILED, HEADER, ITEM, JOB, dumps

T = TypeVar("T")

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""BLAS reads these when numpy is imported. A worker must leave the other cores to queries."""

READ_LIMIT = 1 << 24  # bytes buffered before the worker has to wait


class WorkerCompute:
    """Runs jobs one at a time, first come first served, in a process of its own.

    Use it from the main thread's event loop only: the worker is set to die with the thread that
    spawned it.
    """

    def __init__(self, lane: str, nice: int = 10, env: Mapping[str, str] | None = None) -> None:
        self.lane = lane
        self._nice = nice
        self._env = dict(env or {})
        # A semaphore, since a Lock must be released by the task that took it and a stream may be
        # closed by another (the event loop does that to an abandoned one).
        self._turn = anyio.Semaphore(1)
        self._worker: _Worker | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is one."""
        return self._worker.process.pid if self._worker else None

    async def stream(self, job: Callable[..., Iterator[T]], *args: Any) -> AsyncGenerator[T, None]:
        """What the job yields. See `actors.ports.Compute`."""
        name = _name_of(job)
        async with self._turn:
            if self._closed:
                raise Transient(f"the {self.lane} worker is shut down")
            worker = await self._ready()
            over = False
            try:
                await worker.send(JOB, dumps((name, args)))
                while True:
                    kind, payload = await worker.receive()
                    if kind == ITEM:
                        yield pickle.loads(payload)
                    elif kind == DONE:
                        over = True
                        return
                    elif kind == FAILED:
                        over = True
                        raise _exception(name, payload)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise Transient(f"{name}: the {self.lane} worker died: {await self._kill(worker)}") from error
            finally:
                if not over:
                    await self._kill(worker)

    async def aclose(self) -> None:
        """Kills the worker; a job in the middle raises Transient to whoever reads it."""
        self._closed = True
        if self._worker is not None:
            await self._kill(self._worker)

    async def _ready(self) -> "_Worker":
        if self._worker is not None and self._worker.process.poll() is not None:  # died while idle
            await self._kill(self._worker)
        if self._worker is None:
            process, connection = _spawn(self._nice, self._env)
            with anyio.CancelScope(shield=True):
                streams = await asyncio.open_connection(sock=connection, limit=READ_LIMIT)
            self._worker = _Worker(process, *streams)
        return self._worker

    async def _kill(self, worker: "_Worker") -> str:
        """Makes sure that the process and its children are gone, and says how it ended."""
        if self._worker is worker:
            self._worker = None
        if worker.process.returncode is None:
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.writer.close()
        with anyio.CancelScope(shield=True):
            # Not on the loop: the kernel needs a while to give gigabytes back.
            code = await anyio.to_thread.run_sync(worker.process.wait)
            with contextlib.suppress(ConnectionError):
                await worker.writer.wait_closed()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


class _Worker:
    """A running worker process and the socket to it."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer

    async def send(self, kind: int, payload: bytes) -> None:
        self.writer.write(HEADER.pack(len(payload), kind))
        self.writer.write(payload)
        await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        length, kind = HEADER.unpack(await self.reader.readexactly(HEADER.size))
        return kind, await self.reader.readexactly(length)


def _spawn(nice: int, env: Mapping[str, str]) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """The process and our end of the socket to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            # -P: a `daemon` folder or a json.py where the user stands must not be imported.
            [sys.executable, "-P", "-m", "daemon.worker", str(theirs.fileno()), str(os.getpid()), str(nice)],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C in the terminal goes to the daemon alone
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), **env},
        )
    return process, ours


def _name_of(job: Callable[..., Any]) -> str:
    module, qualname = job.__module__, job.__qualname__
    if module == "__main__" or "<" in qualname:
        raise TypeError(f"{module}:{qualname} can't be imported by a worker: a job is a module's function")
    return f"{module}:{qualname}"


def _exception(name: str, payload: bytes) -> BaseException:
    pickled, words, text = pickle.loads(payload)
    try:
        error = pickle.loads(pickled) if pickled else RuntimeError(words)
    except Exception:  # its class can't be imported here
        error = RuntimeError(words)
    assert isinstance(error, BaseException)
    error.add_note(f"raised in the worker by {name}:\n{text}")
    return error
