"""Who may ask: Host, then Origin, then the bearer token.

The Host list comes before authentication: a web page that rebinds its DNS name to 127.0.0.1
reaches the port with its own Host (CVE-2024-28224), and is turned away before anything else.
"""

import hashlib
import hmac

from aiohttp import web

from daemon.http.errors import HttpError

OPEN_PATHS = frozenset({"/health"})
"""Answered without a token, so that a supervisor can ask whether the process lives."""


class Guard:
    """Checks every request. `token` is the admin token."""

    def __init__(self, token: str, hosts: tuple[str, ...], origins: tuple[str, ...]) -> None:
        if not token:
            raise ValueError("the admin token is empty")
        self._token = _digest(token.encode())
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def check(self, request: web.Request) -> None:
        """Raises HttpError: forbidden (Host, Origin) or unauthorized."""
        headers = request.headers
        host = headers.get("Host", "")
        if _without_port(host).lower() not in self._hosts:
            raise HttpError("forbidden", f"host {host!r} is not answered here", "[http] allowed_hosts")
        origin = headers.get("Origin")
        if origin is not None and origin.lower() not in self._origins:
            raise HttpError("forbidden", f"origin {origin!r} is not answered here", "[http] allowed_origins")
        if request.path in OPEN_PATHS:
            return
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        # Digests are compared: compare_digest refuses str beyond ASCII, and hides no lengths.
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            _digest(token.strip().encode("utf-8", "surrogateescape")), self._token
        ):
            raise HttpError(
                "unauthorized",
                "a valid bearer token is missing",
                "send `Authorization: Bearer <token>`; `lakehouse env` says where the token is",
                {"WWW-Authenticate": "Bearer"},
            )


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _without_port(host: str) -> str:
    if host.startswith("["):  # [::1]:8700
        return host[: host.find("]") + 1]
    return host.partition(":")[0]
