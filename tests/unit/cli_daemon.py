"""A daemon for the CLI's tests: a real HTTP server that checks every request against the real
route table (path, parameters, body, token) and answers with real replies, given by the test.
"""

import re
import threading
from collections.abc import Callable
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from daemon.http.fields import converted
from daemon.http.route import Route
from daemon.http.routes import ROUTES
from schemas.http import ErrorBody, IngestFileBody

TOKEN = "a-token"
Run = Callable[..., tuple[int, str, str]]
"""A command line; its exit code, stdout and stderr."""
Answer = msgspec.Struct | dict[str, Any] | tuple[int, ErrorBody] | list[bytes]


class CliDaemon:
    """`answers` maps "METHOD /path/{template}" to what is sent, or to what makes it; `seen` holds (template, params,
    body, multipart) of every request that fitted its route."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[], Answer]] = {}
        self.seen: list[tuple[str, Any, Any]] = []
        self.uploaded = b""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = daemon._answer(self)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, msgspec.json.encode(ErrorBody("unauthorized", "a valid bearer token is missing", "the token"))
        url = urlsplit(request.path)
        route, names = find(request.command, url.path)
        params = converted({**names, **dict(parse_qsl(url.query))}, route.params)
        self.seen.append((f"{route.method} {route.path}", params, self._decoded(route, request.headers, body)))
        given = self.answers[f"{route.method} {route.path}"]
        answer = given() if callable(given) else given
        if isinstance(answer, tuple):
            return answer[0], msgspec.json.encode(answer[1])
        return route.status, b"".join(answer) if isinstance(answer, list) else msgspec.json.encode(answer)

    def _decoded(self, route: Route, headers: Message, body: bytes) -> Any:
        if headers.get("Content-Type", "").startswith("multipart/"):
            form = BytesParser().parsebytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body)
            parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}  # type: ignore[union-attr]
            self.uploaded = parts.pop("file").get_payload(decode=True)  # type: ignore[union-attr, assignment]
            fields = {name: part.get_payload() for name, part in parts.items()}  # type: ignore[union-attr]
            return converted({**fields, "path": "uploaded"}, IngestFileBody)  # type: ignore[dict-item]
        return msgspec.json.decode(body, type=route.body) if route.body else None


def find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a request and its path parameters. Raises LookupError."""
    for route in ROUTES:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)
        if route.method == method and (match := re.fullmatch(pattern, path)):
            return route, {name: unquote(value) for name, value in match.groupdict().items()}
    raise LookupError(f"{method} {path} is no route of the daemon")


def ndjson(*messages: msgspec.Struct) -> list[bytes]:
    return [msgspec.json.encode(message) + b"\n" for message in messages]
