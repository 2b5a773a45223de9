"""The process's life: lock the state directory, start NATS, HTTP and the actors, say so, wait
for a signal, drain, and stop everything in the opposite order.

What is wired to what is daemon/wiring.py; what a configuration may say is daemon/config.py.
"""

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from actors.base import Role
from actors.errors import CorruptState, Transient, Unavailable
from daemon import notify, topology
from daemon.bus.nats import NatsBus
from daemon.bus.server import NatsServer, ServerError
from daemon.config import Config
from daemon.disk import Disk, watch
from daemon.http.route import ProcessStatus
from daemon.http.server import HttpServer, PortTaken
from daemon.metrics import Metrics
from daemon.runtime import HOLD_S, Runtime
from daemon.state_dir import Runtime as Note
from daemon.state_dir import StateDir
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.durable import DiskFailure
from daemon.storage.repair import repair as repair_heads
from daemon.supervisor import CrashedTooOften, first_of
from daemon.unsettled import Unsettled
from daemon.wiring import ACTORS, House, build, open_buckets

log = structlog.get_logger("lakehouse")

JOBS_S = 3.0
"""At stop, trials and builds get so long; then the worker is killed and its job goes back to
the queue. They can take minutes, and nobody waits for those at Ctrl-C."""
CLOSE_S = 10.0
LOCK_S = 5.0
"""A killed daemon's NATS child holds the lock until it has seen its parent's death."""
STALE_S = 3 * HOLD_S
"""An actor without a sign of life for so long is hung: the watchdog is no longer fed."""


class CannotRun(Exception):
    """The daemon can't start; one sentence that says what, where and how to mend it."""


KNOWN = (CannotRun, ServerError, PortTaken, Unavailable, CrashedTooOften, CorruptState, Transient, DiskFailure)
"""What ends the process with one sentence instead of a traceback."""


def run(config: Config, roles: Collection[Role]) -> int:
    """Runs until SIGTERM or SIGINT; the exit code."""
    return _exit_code(_serve, config, frozenset(roles))


def repair(config: Config) -> int:
    """Rebuilds the heads of registry documents from the buckets and prints what was done. The
    daemon must be stopped. The exit code is 1 when something is bad or lost."""
    return _exit_code(_repair, config)


def _exit_code(work: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    try:
        return anyio.run(work, *arguments)
    except BaseException as error:
        cause = first_of(error)
        if not isinstance(cause, KNOWN):
            raise
        print(f"lakehouse: {cause}", file=sys.stderr)
        return 1


async def _serve(config: Config, roles: Collection[Role]) -> int:
    state = _open_state(config)
    stop = anyio.Event()
    with _locked(state) as lock:
        async with anyio.create_task_group() as group, _nats(config, state, lock, group) as (bus, url):
            group.start_soon(_signals, stop, group.cancel_scope)
            await _live(config, roles, state, bus, url, stop)
            group.cancel_scope.cancel()
    return 0


async def _live(
    config: Config, roles: Collection[Role], state: StateDir, bus: NatsBus, nats_url: str, stop: anyio.Event
) -> None:
    """From an open bus to the end of the actors' drain."""
    buckets, heads = _buckets(config, state), await bus.heads(replicas=config.nats.replicas)
    if not await heads.all():  # a new NATS store; the buckets may know better
        for finding in await repair_heads(buckets, heads):
            log.warning("head rebuilt", document=finding.document, what=finding.what, text=finding.text)
    name = config.daemon.name or socket.gethostname()
    house = build(config, state, bus, heads, buckets, name)
    process, metrics = Process(bus, config, roles, Disk(state.path)), Metrics()
    runtime = Runtime(
        bus,
        house.actors,
        roles,
        drain_s=config.daemon.drain_s,
        observe=metrics.handled,
        unsettled=Unsettled(state.unsettled),
    )
    http = HttpServer(
        bus, bus, process, metrics, config.http, token=_token(state), uploads=state.uploads, sql=house.sql
    )
    async with _closed(house.aclose), http.running():
        async with anyio.create_task_group() as living:

            async def actors(*, task_status: TaskStatus[None]) -> None:
                await runtime.run(task_status=task_status)
                living.cancel_scope.cancel()

            living.start_soon(metrics.listen, bus)
            living.start_soon(_wind_down, stop, http, runtime, house)
            await living.start(actors)
            if not stop.is_set():
                process.starting = False
                state.write_runtime(Note(http.url, nats_url, os.getpid(), name))
                living.start_soon(_feed_watchdog, runtime, bus)
                notify.ready(f"{http.url}, roles {', '.join(sorted(roles))}")
                log.info("ready", http=http.url, nats=nats_url, roles=sorted(roles))
        state.runtime_file.unlink(missing_ok=True)
    log.info("stopped")


async def _wind_down(stop: anyio.Event, http: HttpServer, runtime: Runtime, house: House) -> None:
    """After the signal: no new requests, then no new messages, then no more patience with jobs."""
    await stop.wait()
    notify.stopping()
    log.info("stopping")
    await http.stop()
    runtime.drain()
    await anyio.sleep(JOBS_S)
    await house.give_up_jobs()


async def _feed_watchdog(runtime: Runtime, bus: NatsBus) -> None:
    """Tells systemd that all is well, as long as every actor's heartbeat is fresh."""
    interval_s = notify.watchdog_interval_s()
    while interval_s is not None:
        now = bus.clock.monotonic()
        hung = [name for name, beat in runtime.heartbeats().items() if now - beat > STALE_S]
        if hung:
            log.error("no sign of life", actors=hung)
        else:
            notify.watchdog()
        await anyio.sleep(interval_s)


async def _signals(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    """The first signal drains, the second doesn't wait for it."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for _ in received:
            if stop.is_set():
                log.warning("told twice: what is in hand goes back to the queue")
                scope.cancel()
            stop.set()


class Process:
    """What HTTP tells of the process."""

    def __init__(self, bus: NatsBus, config: Config, roles: Collection[Role], disk: Disk) -> None:
        self._bus = bus
        self._disk = disk
        self._embedded = not config.nats.url
        self._roles = sorted(roles)
        self._started = time.time()
        self.starting = True

    def status(self) -> ProcessStatus:
        nats = {"connected": self._bus.connected, "embedded": self._embedded}
        return ProcessStatus(version("lakehouse"), self._started, list(self._roles), nats)

    def down(self) -> dict[str, str]:
        found = {}
        if self.starting:
            found["actors"] = "they are starting"
        if not self._bus.connected:
            found["nats"] = "not connected; the daemon keeps trying"
        if full := self._disk.full():
            found["disk"] = full
        return found

    def topology(self) -> str:
        return topology.mermaid(ACTORS)

    def asyncapi(self) -> dict[str, Any]:
        return topology.asyncapi(ACTORS)


# --- what the process stands on -----------------------------------------------------------------


def _open_state(config: Config) -> StateDir:
    state = StateDir(config.state_dir)
    try:
        state.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.cache.mkdir(exist_ok=True)
    except OSError as error:
        raise CannotRun(
            f"the state directory {state.path} can't be made: {error.strerror}; "
            "set [daemon] state_dir to a writable one"
        ) from error
    return state


def _buckets(config: Config, state: StateDir) -> ObjectBuckets:
    try:
        return open_buckets(config, state)
    except ValueError as error:  # a credential that is named isn't there
        raise CannotRun(f"{error}; see [storage] in lakehouse.toml") from error


@contextlib.contextmanager
def _locked(state: StateDir) -> Iterator[int]:
    """The locked descriptor: one daemon per state directory. Raises CannotRun."""
    try:
        lock = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotRun(f"{state.lock} can't be opened: {error.strerror}") from error
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                note = state.runtime()
                if note is not None or time.monotonic() > deadline:
                    who = f"the daemon with pid {note.pid}" if note else "another process"
                    raise CannotRun(
                        f"{who} uses the state directory {state.path}; stop it, or set [daemon] state_dir to another"
                    ) from None
                time.sleep(0.05)
        yield lock
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def _nats(config: Config, state: StateDir, lock: int, group: TaskGroup) -> AsyncIterator[tuple[NatsBus, str]]:
    """An open bus and its URL: over a nats-server child of ours, or the one that is configured."""
    settings, disk = config.nats, Disk(state.path)
    password_file = Path(settings.password_file) if settings.password_file else state.nats_password
    if settings.url:
        credentials = Path(settings.credentials_file) if settings.credentials_file else None
        password = _password(settings.password_file)
        try:
            bus = await NatsBus.connect(
                settings.url, password, user=settings.user, credentials=credentials, replicas=settings.replicas
            )
        except Unavailable as error:
            raise CannotRun(f"{error}; [nats] url names the server, left empty lakehouse starts its own") from error
        async with _closed(bus.close):
            group.start_soon(watch, disk, bus.clock)
            yield bus, settings.url
        return
    server = NatsServer(state.nats, password_file, port=max(settings.port, 0), lock_fd=lock)
    async with _closed(server.stop):
        await server.start()
        group.start_soon(server.run)
        bus = await NatsBus.connect(server.url, server.password, disk=disk)
        async with _closed(bus.close):
            group.start_soon(watch, disk, bus.clock, server)
            yield bus, server.url


@contextlib.asynccontextmanager
async def _closed(close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Closes at the end, also when cancelled, and doesn't wait for ever."""
    try:
        yield
    finally:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await close()


def _password(file: str) -> str | None:
    if not file:
        return None
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise CannotRun(f"[nats] password_file {file} can't be read: {error.strerror}") from error


def _token(state: StateDir) -> str:
    """The admin token: systemd's credential `admin.token`, or a generated one, kept at 0600."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (given := Path(credentials) / state.admin_token.name).is_file():
        return given.read_text().strip()
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(state.admin_token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    token = state.admin_token.read_text().strip()
    if not token:
        raise CannotRun(f"{state.admin_token} is empty; remove it and a new token is made")
    return token


async def _repair(config: Config) -> int:
    state = _open_state(config)
    with _locked(state) as lock:
        async with anyio.create_task_group() as group, _nats(config, state, lock, group) as (bus, _):
            buckets, heads = _buckets(config, state), await bus.heads(replicas=config.nats.replicas)
            findings = await repair_heads(buckets, heads, look=lambda what: print(f"looking at {what}", flush=True))
            group.cancel_scope.cancel()
    for finding in findings:
        print(f"{finding.document}: {finding.what}: {finding.text}")
    bad = [finding for finding in findings if finding.what != "moved"]
    print(f"{len(findings) - len(bad)} heads moved, {len(bad)} bad" if findings else "every head is right")
    return 1 if bad else 0
