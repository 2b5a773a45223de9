"""Closes connections on which no request ever arrived whole: aiohttp waits for a header for
ever, and a few hundred silent clients would take the descriptors that the daemon needs.

A body that stalls is cut off where it is read (app.py, upload.py); a connection that waits for
its next request is closed by aiohttp's keep-alive timeout.
"""

import asyncio
from typing import Any

from aiohttp import web


class Silent:
    """The connections that have not asked yet."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._asked: set[Any] = set()
        self._since: dict[Any, float] = {}  # connection → when it was seen first

    def asked(self, request: web.Request) -> None:
        """A request's header has arrived."""
        self._asked.add(request.protocol)

    async def watch(self, server: web.Server) -> None:
        """Close the silent, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._patience_s / 2)
            now, connected = loop.time(), set(server.connections)
            self._asked &= connected
            self._since = {each: self._since.get(each, now) for each in connected - self._asked}
            for connection, since in self._since.items():
                if now - since >= self._patience_s:
                    connection.force_close()
