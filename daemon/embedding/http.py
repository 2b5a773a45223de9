"""Embedders that ask a model server: Ollama's `/api/embed` and OpenAI's `/v1/embeddings`.

What both share lives in ServerEmbedder: batches, bounded concurrency, retries, and the checks that
keep a bad answer out of an index. Its `embed` is the port Embedder, which knows two failures: away
(Transient) and unusable (ValueError); its `vectors` tells them apart as the port ModelServer does.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import msgspec
import numpy as np
import stamina
from numpy.typing import NDArray

from actors.errors import ModelServerError, Transient, Unavailable
from daemon.embedding.config import EmbeddingConfig
from daemon.models import ollama_listing
from daemon.models.http import Answered, ServerHttp, Sessions

_BY_ONE_TEXT = ("NaN", "context length", "input length", "context size", "too large to process")
"""Words of an error that a single text of the batch causes: the batch is halved to find it. Ollama
answers 500 when a vector holds a NaN (ollama#9639) and 400 for a text over the model's context;
llama.cpp 400 for one over the context size and 500 for one over the physical batch size."""

_NOT_LOADED = "model is not loaded"
"""Words of a llama.cpp router, with 400, for a model that it may not load by itself. Another profile
has the GPU: what is to be embedded waits, nothing is wrong with it."""

AWAY_S = 5.0
"""When to come back to a server that is away, or hasn't the model in memory."""


class ServerEmbedder(ABC):
    """Texts to unit vectors through a server. Subclasses say how a request and an answer look."""

    kind: str
    path: str

    def __init__(
        self,
        sessions: Sessions,
        url: str,
        model: str,
        config: EmbeddingConfig,
        dim: int | None = None,
        key: str = "",
    ) -> None:
        self.model = model
        self._http = ServerHttp(f"{self.kind} model {model!r}", url, sessions, config.timeout_s, key)
        self._config = config
        self._slots = anyio.Semaphore(config.concurrency)
        self._set_dim(dim or 0)  # 0 until `probe`

    def _set_dim(self, dim: int) -> None:
        self.dim = dim
        self.identity = f"{self.kind}:{self._http.url}:{self.model}:{dim}"

    async def probe(self) -> None:
        """Finds the dimension by embedding a word."""
        with _as_embedder():
            self._set_dim((await self._embed(["dimension"])).shape[1])

    async def revision(self) -> str:
        """See `actors.ports.Embedder`."""
        with _as_embedder():
            return await self._revision()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `actors.ports.Embedder`."""
        with _as_embedder():
            return await self.vectors(texts)

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `embed`, but raises what a ModelServer does: Unavailable, Transient, ModelServerError."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        size = self._config.batch
        parts: dict[int, NDArray[np.float32]] = {}

        async def part(start: int) -> None:
            parts[start] = await self._embed(texts[start : start + size], start)

        try:
            async with anyio.create_task_group() as tasks:
                for start in range(0, len(texts), size):
                    tasks.start_soon(part, start)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return np.concatenate([parts[start] for start in sorted(parts)])

    async def _revision(self) -> str:
        return ""

    @abstractmethod
    def _body(self, texts: Sequence[str]) -> dict[str, Any]:
        """The request that asks for these texts' vectors."""

    @abstractmethod
    def _vectors(self, answer: bytes) -> list[list[float]]:
        """Raises msgspec.ValidationError for an answer of another shape."""

    async def _embed(self, texts: Sequence[str], start: int = 0) -> NDArray[np.float32]:
        """One batch, the first of which is the caller's text number `start`."""
        try:
            answer = await self._ask(texts)
        except Answered as error:
            if not _by_one_text(error):
                raise
            if len(texts) == 1:
                raise ModelServerError(f"{error} (text {start}, {len(texts[0])} characters)") from None
            half = len(texts) // 2
            return np.concatenate(
                [await self._embed(texts[:half], start), await self._embed(texts[half:], start + half)]
            )
        try:
            rows = self._vectors(answer)
            vectors = np.array(rows, np.float64)  # (n, d)
        except (msgspec.DecodeError, ValueError) as error:
            raise self._unusable(f"its answer can't be read: {error}") from None
        return self._checked(vectors, len(texts))

    def _checked(self, vectors: NDArray[np.float64], count: int) -> NDArray[np.float32]:
        if vectors.ndim != 2 or len(vectors) != count:
            raise self._unusable(f"{len(vectors)} vectors came back for {count} texts")
        if self.dim and vectors.shape[1] != self.dim:
            raise self._unusable(f"its vectors have {vectors.shape[1]} dimensions, not {self.dim}")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise self._unusable("a vector holds a value that isn't finite")
        if not norms.all():
            raise self._unusable("a vector is all zeros")
        unit: NDArray[np.float32] = (vectors / norms).astype(np.float32)
        return unit

    async def _ask(self, texts: Sequence[str]) -> bytes:
        """The body of a good answer, after as many tries as it takes and may take."""
        body = self._body(texts)
        async for attempt in stamina.retry_context(
            on=_again, attempts=self._config.attempts, timeout=None, wait_initial=0.1, wait_max=5.0
        ):
            with attempt:
                async with self._slots:
                    return await self._http.call("POST", self.path, body)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _unusable(self, what: str) -> ModelServerError:
        return ModelServerError(f"{self._http.who}: {what}")


def _by_one_text(error: Answered) -> bool:
    return any(words in error.words for words in _BY_ONE_TEXT)


def _again(error: Exception) -> bool:
    """Worth another try: no connection, no answer in time, 429, 5xx."""
    if isinstance(error, Answered):
        return error.status >= 500 and not _by_one_text(error)
    return isinstance(error, Unavailable | Transient)


@contextmanager
def _as_embedder() -> Iterator[None]:
    """What a ModelServer raises, as an Embedder does."""
    try:
        yield
    except (Unavailable, Transient, ModelServerError) as error:
        if _again(error) or (isinstance(error, Answered) and _NOT_LOADED in error.words):
            raise Transient(str(error), delay_s=AWAY_S) from error
        raise ValueError(str(error)) from None


class _OllamaAnswer(msgspec.Struct):
    embeddings: list[list[float]]


class OllamaEmbedder(ServerEmbedder):
    kind = "ollama"
    path = "/api/embed"

    def _body(self, texts: Sequence[str]) -> dict[str, Any]:
        # By default Ollama cuts long input silently: two texts with the same head would be one vector.
        return {"model": self.model, "input": texts, "truncate": False}

    def _vectors(self, answer: bytes) -> list[list[float]]:
        return msgspec.json.decode(answer, type=_OllamaAnswer).embeddings

    async def _revision(self) -> str:
        stored = (await self._http.ask("GET", ollama_listing.PATH, ollama_listing.Tags)).models or []
        wanted = ollama_listing.canonical(self.model)
        found = [model.digest for model in stored if ollama_listing.canonical(model.model) == wanted]
        if not found:
            raise self._unusable(f"it isn't there: ollama pull {self.model}")
        return found[0]


class _OpenAIItem(msgspec.Struct):
    index: int
    embedding: list[float]


class _OpenAIAnswer(msgspec.Struct):
    data: list[_OpenAIItem]


class OpenAIEmbedder(ServerEmbedder):
    kind = "openai"
    path = "/v1/embeddings"

    def _body(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"model": self.model, "input": texts, "encoding_format": "float"}

    def _vectors(self, answer: bytes) -> list[list[float]]:
        items = sorted(msgspec.json.decode(answer, type=_OpenAIAnswer).data, key=lambda item: item.index)
        if [item.index for item in items] != list(range(len(items))):
            raise ValueError("its items aren't numbered 0, 1, 2 …")
        return [item.embedding for item in items]
