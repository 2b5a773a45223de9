"""The HTTP API from the command line: the standard library's http.client, because a command
starts in a fraction of the time that an async client takes to import.

One request per connection. Every refusal of the daemon becomes a CliError with its own words.
"""

import contextlib
import http.client
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError

CHUNK = 256 * 1024
TIMEOUT_S = 120.0
Progress = Callable[[int, int], None]  # bytes sent, bytes in all


class Client:
    """`to` finds the daemon when the first request is made."""

    def __init__(self, to: Connection) -> None:
        self.url = to.address()
        self._headers = {"Accept": "application/json", "User-Agent": "lakehouse-cli"}
        if token := to.token():
            self._headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, *, timeout_s: float | None = TIMEOUT_S, **query: Any) -> Any:
        return self._json("GET", path, None, query, timeout_s)

    def post(self, path: str, body: Any = None, *, timeout_s: float | None = TIMEOUT_S, **query: Any) -> Any:
        return self._json("POST", path, body, query, timeout_s)

    def post_raw(self, path: str, body: Any) -> bytes:
        """The answer as it is, of whatever medium."""
        with self._send("POST", path, body, timeout_s=None) as response:
            return bytes(response.read())

    def put(self, path: str, body: Any) -> Any:
        return self._json("PUT", path, body)

    def patch(self, path: str, body: Any, *, timeout_s: float | None = TIMEOUT_S) -> Any:
        return self._json("PATCH", path, body, None, timeout_s)

    def delete(self, path: str, body: Any = None) -> Any:
        return self._json("DELETE", path, body)

    def text(self, path: str) -> str:
        with self._send("GET", path) as response:
            return response.read().decode()

    def lines(self, path: str, body: Any) -> Iterator[Any]:
        """What a POST streams back as JSON lines."""
        with self._send("POST", path, body, timeout_s=None) as response:
            for line in response:
                if line.strip():
                    yield msgspec.json.decode(line)

    def server_sent(self, path: str, *, opened: Callable[[], None] | None = None, **query: Any) -> Iterator[Any]:
        """The data of server-sent events, until the daemon stops. What happens after `opened`
        was called is in it."""
        with self._send("GET", path, query=query, timeout_s=None) as response:
            if opened:
                opened()
            for line in response:
                if line.startswith(b"data:"):
                    yield msgspec.json.decode(line[5:])

    def upload(self, path: str, fields: Mapping[str, str], file: Path, progress: Progress) -> Any:
        """A multipart POST of one file, read as it is sent."""
        boundary = f"lakehouse-{secrets.token_hex(16)}"
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        filename = quote(file.name, safe=" ()[]+-_.,")
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        tail = f"\r\n--{boundary}--\r\n"
        try:
            size = file.stat().st_size
            source = file.open("rb")
        except OSError as error:
            raise CliError(f"{file} can't be read: {error.strerror}.", code=WRONG_USE) from None

        def parts() -> Iterator[bytes]:
            yield head.encode()
            sent = 0
            while chunk := source.read(CHUNK):
                yield chunk
                sent += len(chunk)
                progress(sent, size)
            yield tail.encode()

        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head.encode()) + size + len(tail)),
        }
        with source, self._send("POST", path, parts(), headers=headers, timeout_s=None) as response:
            return _decode(response)

    def _json(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> Any:
        with self._send(method, path, body, query, timeout_s=timeout_s) as response:
            return _decode(response)

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> http.client.HTTPResponse:
        """The answer to a request, its head read. Raises CliError for any that isn't 2xx."""
        given = {name: _query_value(value) for name, value in (query or {}).items() if value is not None}
        target = path + ("?" + urlencode(given) if given else "")
        sent = {**self._headers, **(headers or {})}
        data: Iterable[bytes] | bytes | None = body if headers else None
        if body is not None and not headers:
            try:
                data = msgspec.json.encode(body)
            except UnicodeEncodeError as error:
                sentence = f"{error.object[:60]!r} is no UTF-8 text: character {error.start}."
                raise CliError(sentence, "texts are sent as JSON; check the terminal's encoding", WRONG_USE) from None
            sent["Content-Type"] = "application/json"
        connection = self._connection(timeout_s)
        try:
            # A daemon that refuses before it has read everything hangs up; its answer is there to be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, data, sent)
            response = connection.getresponse()
        except TimeoutError:
            raise CliError(f"{self.url} didn't answer within {timeout_s:.0f} s.", "`lakehouse status`") from None
        except (OSError, http.client.HTTPException) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise CliError(
                f"The daemon at {self.url} can't be reached: {reason}.", "is it running? `lakehouse run` starts one"
            ) from None
        if response.status >= 300:
            with response:
                raise _refusal(response)
        return response

    def _connection(self, timeout_s: float | None) -> http.client.HTTPConnection:
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise CliError(f"{self.url!r} is no http address.", "such as http://127.0.0.1:8700", WRONG_USE)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        return kind(url.hostname, url.port, timeout=timeout_s)


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def _query_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decode(response: http.client.HTTPResponse) -> Any:
    data = response.read()
    return msgspec.json.decode(data) if data else None


def _refusal(response: http.client.HTTPResponse) -> CliError:
    """The daemon's `{error, reason, hint}` in its own words."""
    data = response.read()
    try:
        body = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        body = {"reason": f"the answer was {response.status} {response.reason}"}
    reason = str(body.get("reason") or response.reason)
    if "\nLINE " in reason:  # SQL: the line and its caret stand below each other
        return CliError(reason, body.get("hint", ""), status=response.status)
    reason = " ".join(reason.split())
    hint = str(body.get("hint") or "")
    if response.status == 401:
        hint = "name the daemon's token file with --token-file; $LAKEHOUSE_TOKEN_FILE may be another daemon's"
    if wait := response.getheader("Retry-After"):
        hint = f"{hint}; try again in {wait} s".lstrip("; ")
    return CliError(_sentence(reason), hint, status=response.status)


def refused(line: Mapping[str, Any]) -> CliError:
    """The refusal with which a stream ends."""
    return CliError(_sentence(" ".join(line["reason"].split())), line["hint"])


def _sentence(reason: str) -> str:
    """With a capital, unless it begins with the name of something: a tensor, a URL, a field."""
    first = reason.split(" ", 1)[0]
    begun = reason[:1].upper() + reason[1:] if first.rstrip(",;").isalpha() else reason
    return begun + ("" if reason.endswith((".", "?")) else ".")
