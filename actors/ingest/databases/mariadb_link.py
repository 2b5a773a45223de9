"""What a connection to MariaDB runs on: an event loop of its own, and TLS as the DSN says."""

import asyncio
import socket
import ssl
from typing import Any

from actors.ingest.core import BadFile

RECEIVED = 512 * 1024
"""Bytes that the kernel holds of what the server sends."""


class ConnectionLoop(asyncio.SelectorEventLoop):
    """Of one reader. It dials the address that was judged, whatever the name means by now: certificates are
    still for the name. It knows its connections: asyncmy leaves the plain one open below a TLS one.

    asyncmy's protocol never pauses reading and doubles its buffer as it fills: a slow consumer would
    find the whole table in memory. So the kernel holds no more than a batch takes: a turn of the loop
    reads at most that, and a batch is more than its turns bring."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._connections: list[Any] = []

    async def create_connection(self, *args: Any, **kw: Any) -> Any:
        if "host" in kw or len(args) > 1:  # otherwise an open socket is upgraded to TLS
            args = (*args[:1], self._address, kw.pop("port") if "port" in kw else args[2])
            kw.pop("host", None)
        made = await super().create_connection(*args, **kw)
        if (held := made[0].get_extra_info("socket")) is not None:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
        self._connections.append(made[0])
        return made

    async def create_unix_connection(self, *args: Any, **kw: Any) -> Any:
        made = await super().create_unix_connection(*args, **kw)
        self._connections.append(made[0])
        return made

    def drop(self) -> None:
        """Every connection, at once."""
        for transport in self._connections:
            transport.abort()
        self.run_until_complete(asyncio.sleep(0.01))


def tls_of(options: dict[str, str]) -> ssl.SSLContext | None:
    """ssl = false (default), true (encrypted), verify (and the server's certificate is checked)."""
    wanted = options.get("ssl", "verify" if "ssl_ca" in options else "false")
    if wanted not in ("false", "true", "verify"):
        raise BadFile("the DSN's option ssl is neither false, true nor verify")
    if wanted == "false":
        return None
    context = ssl.create_default_context(cafile=options.get("ssl_ca"))
    if wanted == "true":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl_cert" in options:
        context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    return context
