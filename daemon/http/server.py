"""The HTTP server's life: start, serve, stop within a deadline. What it answers is in app.py."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from aiohttp import web

from actors.ports import Bus
from daemon.bus.letters import DeadLetters
from daemon.http import app, upload
from daemon.http.config import HttpConfig
from daemon.http.errors import ClientMistakes
from daemon.http.guard import Guard
from daemon.http.route import Closing, Process, Services
from daemon.http.silent import Silent
from daemon.metrics import Metrics
from daemon.sql.engine import DuckEngine

log = logging.getLogger(__name__)
logging.getLogger("aiohttp.server").addFilter(ClientMistakes())

KEEPALIVE_S = 75.0
"""A connection without a request is kept for so long after its last one."""


class PortTaken(Exception):
    """The address can't be listened on. The daemon says so in one sentence and exits."""


class HttpServer:
    """Serves the table of routes.

    async with HttpServer(…).running() as server: ...   # server.url
    """

    def __init__(
        self,
        bus: Bus,
        dead: DeadLetters,
        process: Process,
        metrics: Metrics,
        config: HttpConfig,
        *,
        token: str,
        uploads: Path,
        sql: DuckEngine,
    ) -> None:
        self._config = config
        self._uploads = uploads
        services = Services(bus, process, dead, metrics, config, uploads, sql, Closing())
        guard = Guard(token, config.allowed_hosts, config.allowed_origins)
        self._silent = Silent(config.read_timeout_s)
        self._runner = web.AppRunner(
            app.build(services, guard, self._silent),
            access_log=None,
            shutdown_timeout=config.shutdown_s,
            keepalive_timeout=KEEPALIVE_S,
            handle_signals=False,
        )
        self._watch: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        host = self._config.host
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listens from its return on. Raises PortTaken."""
        self._uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
        upload.remove_stale(self._uploads)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._config.host, self._config.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise PortTaken(_sentence(error, self._config)) from error
        self.port = self._runner.addresses[0][1]
        assert self._runner.server is not None
        self._watch = asyncio.create_task(self._silent.watch(self._runner.server))
        log.info("listening on %s", self.url)

    async def stop(self) -> None:
        """No new connections; streams are ended, requests in flight get `shutdown_s`."""
        if self._watch is not None:
            self._watch.cancel()
        await self._runner.cleanup()

    @asynccontextmanager
    async def running(self) -> "AsyncIterator[HttpServer]":
        """Started, until the block ends."""
        await self.start()
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):  # a cancelled block still lets requests finish
                await self.stop()


def _sentence(error: OSError, config: HttpConfig) -> str:
    where = f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return f"HTTP can't listen on {where}: another process does; set [http] port, or stop it"
    if error.errno == errno.EACCES:
        return f"HTTP can't listen on {where}: not allowed; set [http] port to one over 1023"
    return f"HTTP can't listen on {where}: {error.strerror or error}; set [http] host and port"
