"""What a route is: a row (method, path, handler, summary) whose handler's hints say the rest.

    async def search(call: Call[NoParams, SearchBody]) -> SearchResult: ...

Parameters and body are decoded before the handler runs, its answer is encoded after it; both
happen in app.py. The rows themselves are in daemon/http/routes/.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import web

from actors.ports import Bus
from daemon.bus.letters import DeadLetters
from daemon.http.config import HttpConfig
from daemon.metrics import Metrics
from daemon.sql.engine import DuckEngine
from schemas.events.base import Request
from schemas.secret import decode_hook, encode_hook

P = TypeVar("P")
B = TypeVar("B")
R = TypeVar("R")
M = TypeVar("M", bound=msgspec.Struct)

Media = Literal["application/json", "application/x-ndjson", "text/event-stream", "text/plain"]


class ProcessStatus(msgspec.Struct, frozen=True):
    version: str
    started: float  # Unix time
    roles: list[str]
    nats: dict[str, Any]  # url, connected, embedded …


class Process(Protocol):
    """What the server asks of the process that it runs in."""

    def status(self) -> ProcessStatus: ...
    def down(self) -> dict[str, str]:
        """What isn't ready, and why; empty when all is well."""
        ...

    def topology(self) -> str:
        """The wiring as mermaid text."""
        ...

    def asyncapi(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers may use."""

    bus: Bus
    process: Process
    dead: DeadLetters
    metrics: Metrics
    config: HttpConfig
    uploads: Path
    sql: DuckEngine
    closing: "Closing"


class Closing:
    """Told to streams when the server stops, so that they end by themselves."""

    def __init__(self) -> None:
        self._callbacks: set[Callable[[], None]] = set()
        self.begun = False

    def begin(self) -> None:
        self.begun = True
        for callback in list(self._callbacks):
            callback()

    def add(self, callback: Callable[[], None]) -> None:
        self._callbacks.add(callback)

    def remove(self, callback: Callable[[], None]) -> None:
        self._callbacks.discard(callback)


@dataclass(frozen=True, slots=True)
class Call(Generic[P, B]):
    """One request, decoded."""

    services: Services
    request: web.Request
    params: P
    body: B

    async def ask(self, message: Request[R], *, long: bool = False) -> R:
        """The owner's reply. Raises Refused, Unavailable."""
        config = self.services.config
        timeout_s = config.long_timeout_s if long else config.ask_timeout_s
        return await self.services.bus.ask(message, timeout_s=timeout_s)


Handler = Callable[[Call[Any, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """A row of the table."""

    method: str
    path: str
    handler: Handler
    summary: str
    status: int = 200
    media: Media = "application/json"
    items: Any = None  # what a stream is made of
    accepted: Any = None  # what those get instead, with a 202, who ask not to wait for it
    upload: Handler | None = None  # takes the request when it is a multipart form

    @property
    def params(self) -> type[msgspec.Struct]:
        """Its path and query parameters."""
        return self._hints()[0]

    @property
    def body(self) -> type[msgspec.Struct] | None:
        """Its JSON body; None when it takes none."""
        return self._hints()[1]

    @property
    def reply(self) -> Any:
        """The type of its JSON answer; None where `items` or the medium say it."""
        if self.items is not None or self.media != "application/json":
            return None
        return get_type_hints(self.handler)["return"]

    def _hints(self) -> tuple[type[msgspec.Struct], type[msgspec.Struct] | None]:
        hints = get_type_hints(self.handler)
        call = next(iter(hints.values()))
        if get_origin(call) is not Call:
            raise TypeError(f"{self.handler.__name__} must take one Call[Params, Body]")
        params, body = get_args(call)
        return params, None if body is type(None) else body


def message(kind: type[M], body: msgspec.Struct, **more: Any) -> M:
    """The bus message with a body's fields. Raises TypeError when the two don't fit."""
    fields = {name: value for name in kind.__struct_fields__ if (value := getattr(body, name, more)) is not more}
    builtins = msgspec.to_builtins(fields, enc_hook=encode_hook)
    return msgspec.convert({**builtins, **more}, kind, dec_hook=decode_hook)
