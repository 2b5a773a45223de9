"""HTTP as every model server is spoken to: one request, its deadline, and what its failure means.

    no connection, no answer in time                 Unavailable
    429, 503: alive, but it takes no request now     Transient
    any other status over 299                        Answered: a ModelServerError with status and words
    an answer of another shape than was asked for    ModelServerError

What a server's paths, bodies and words mean is the servers' own modules' business.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import anyio
import msgspec

from actors.errors import ModelServerError, Transient, Unavailable
from actors.urls import address
from daemon.embedding.config import EmbeddingConfig
from schemas.events.index import EmbedderKind
from schemas.names import ServerName

T = TypeVar("T")

Sessions = Callable[[], aiohttp.ClientSession]


class SharedSession:
    """A session for many servers, made at its first use because it must be made inside the event
    loop. Close it with `aclose`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def __call__(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No connection is kept: a server that closes an idle one just when it is used again
            # would look as if it were away. No limit: a question never waits behind generations.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class Answered(ModelServerError):
    """The server says no. `words` are its own."""

    def __init__(self, who: str, status: int, words: str) -> None:
        super().__init__(f"{who}: {status} {words}")
        self.status = status
        self.words = words


class ServerHttp:
    """One server at one URL. `name` is what people call it in messages: `Ollama`."""

    def __init__(self, name: str, url: str, sessions: Sessions, timeout_s: float, key: str = "") -> None:
        self.url = url.rstrip("/")
        self.who = f"{name} at {self.url}"
        self.timeout_s = timeout_s
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._sessions = sessions

    async def call(self, method: str, path: str, body: Any = None, *, patient: bool = False) -> bytes:
        """The body of a good answer. `patient`: only connecting has a deadline, the answer takes
        as long as the caller waits. Raises Unavailable, Transient, Answered."""
        timeout = aiohttp.ClientTimeout(total=None if patient else self.timeout_s, connect=self.timeout_s)
        headers, data = dict(self.headers), None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        try:
            async with self._sessions().request(
                method, self.url + path, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                answer = await response.read()
                status = response.status
                retry_after = response.headers.get("Retry-After", "")
                location = response.headers.get("Location", "")
        except TimeoutError:
            raise Unavailable(f"{self.who}: no answer within {self.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise Unavailable(f"{self.who}: {_why(error)}") from error
        if status < 300:
            return answer
        if status in (429, 503):
            delay_s = float(retry_after) if retry_after.isdecimal() else 1.0
            raise Transient(f"{self.who}: {status} {words(answer)}", delay_s=delay_s)
        # Following it would turn a POST into a GET, and a model server doesn't move by itself.
        raise Answered(self.who, status, f"moved to {location}" if location else words(answer))

    async def ask(self, method: str, path: str, type: type[T], body: Any = None, *, patient: bool = False) -> T:
        """As `call`, read as `type`. Raises ModelServerError too, for an answer of another shape."""
        answer = await self.call(method, path, body, patient=patient)
        try:
            return msgspec.json.decode(answer, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelServerError(f"{self.who}: its answer to {path} can't be read: {error}") from None


def words(answer: bytes) -> str:
    """The server's own words: `{"error": "…"}` or `{"error": {"message": "…"}}`."""
    try:
        error = msgspec.json.decode(answer, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else answer[:200].decode(errors="replace").strip()


def default_for(server: ServerName, url: str, embedding: EmbeddingConfig) -> frozenset[EmbedderKind]:
    """Which kinds of embedder go to a server when they name no URL (embedding/factory.py): Ollama's to Ollama,
    and OpenAI's to whatever is at `[embedding] openai_url`."""
    kinds: set[EmbedderKind] = {"ollama"} if server == "ollama" else set()
    if address(embedding.openai_url) == address(url):
        kinds.add("openai")
    return frozenset(kinds)


async def read_key(file: str, setting: str) -> str:
    """An API key from its file; none for no file. Raises ValueError that names the setting."""
    if not file:
        return ""
    try:
        return (await anyio.Path(file).read_text()).strip()
    except OSError as error:
        raise ValueError(f"{setting}: {file} can't be read: {error.strerror}") from None


def _why(error: aiohttp.ClientError) -> str:
    """aiohttp's words for a refused connection are about sockets; people want `connection refused`."""
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return "this is no URL; http://host:port is meant"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        if number is not None and number > 0:
            return os.strerror(number).lower()
        return str(error.os_error.strerror or error.os_error)
    return str(error) or type(error).__name__
