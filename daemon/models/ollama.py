"""Ollama as a ModelServer, from what its source does (server/routes.go, server/sched.go).

- Unload is `/api/generate` without a prompt and `keep_alive: 0`, for embedding models too. It is
  answered before the memory is free; who wants to know polls `/api/ps`.
- Load is the same with another keep_alive. An embedding model refuses it (400) and is loaded by
  `/api/embed` without input.
- `expires_at` in the past is a model that is told to leave, but also one that works past its time:
  the old time stands until it is done. The second is told by the time it had announced.
- What a name means is ollama_listing.py's.
"""

import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.errors import ModelServerError
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.http import OllamaEmbedder
from daemon.models import ollama_listing
from daemon.models.config import ModelsConfig
from daemon.models.http import Answered, ServerHttp, Sessions, default_for
from schemas.events.index import EmbedderKind
from schemas.events.profile import LoadedModel
from schemas.names import Bytes, ModelName, Seconds, ServerName, Timestamp
from schemas.profile import Adapter

T = TypeVar("T")

FOR_EVER = datetime.fromisoformat("2200-01-01T00:00:00+00:00").timestamp()
"""A negative keep_alive is Go's longest duration: `expires_at` is then 292 years away. The longest
that a profile can ask for, 999999h, is 114."""

SHORTEST_S = 1.0
"""keep_alive of a load. Less than a second without a prompt means unload."""


class _Running(msgspec.Struct):
    model: str
    size: int | None = None
    size_vram: int | None = None
    expires_at: str = ""
    context_length: int | None = None


class _Ps(msgspec.Struct):
    models: list[_Running] | None


class _Generated(msgspec.Struct):
    response: str = ""


class OllamaServer:
    """See `actors.ports.ModelServer`."""

    name: ServerName = "ollama"

    def __init__(self, sessions: Sessions, config: ModelsConfig, embedding: EmbeddingConfig) -> None:
        self._sessions = sessions
        self._embedding = embedding
        self._http = ServerHttp("Ollama", config.ollama_url, sessions, config.timeout_s)
        self._spelled: dict[ModelName, str] = {}  # as the server writes it: before 0.5 it took no other case
        self._announced: dict[ModelName, Timestamp | None] = {}  # `expires_at` while it lay ahead
        self.url = self._http.url
        self.default_for: Collection[EmbedderKind] = default_for("ollama", self.url, embedding)

    def canonical(self, model: ModelName) -> ModelName:
        return ollama_listing.canonical(model)

    async def loaded(self) -> list[LoadedModel]:
        """As `/api/ps` says it, which lists a model while it loads and until its process has ended."""
        found = (await self._http.ask("GET", "/api/ps", _Ps)).models or []
        models = [
            LoadedModel(
                server=self.name,
                model=self._known(running.model),
                size=running.size,
                size_vram=running.size_vram,
                expires_at=expiry(running.expires_at),
                context_length=running.context_length or None,
            )
            for running in found
        ]
        return [self._at_work(model, time.time()) for model in models]

    async def size(self, model: ModelName) -> Bytes | None:
        """Of its files; the context's memory comes on top."""
        found = (await self._http.ask("GET", ollama_listing.PATH, ollama_listing.Tags)).models or []
        sizes = {self._known(stored.model): stored.size for stored in found}
        if self.canonical(model) not in sizes:
            raise self._unknown(model)
        return sizes[self.canonical(model)]

    async def load(self, model: ModelName, keep_alive_s: Seconds, adapters: Sequence[Adapter] = ()) -> None:
        """Gives up the load when it is cancelled, and so does Ollama."""
        if adapters:
            raise self._no_adapters(model)
        keep_alive = -1 if keep_alive_s == float("inf") else max(keep_alive_s, SHORTEST_S)
        try:
            await self._post("/api/generate", model, _Generated, patient=True, keep_alive=keep_alive, stream=False)
        except Answered as error:
            if error.status != 400 or "does not support generate" not in error.words:
                raise
            await self._post("/api/embed", model, msgspec.Raw, patient=True, keep_alive=keep_alive, input=[])

    async def unload(self, model: ModelName) -> None:
        """Ollama waits for the requests that the model is working on, and for a load to end."""
        try:
            await self._post("/api/generate", model, _Generated, keep_alive=0, stream=False)
        except LookupError:
            return  # what it doesn't have can't be in memory

    async def embed(self, model: ModelName, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32. Sent in batches and tried again as [embedding] says."""
        embedder = OllamaEmbedder(self._sessions, self.url, self._spelling(model), self._embedding)
        try:
            return await embedder.vectors(texts)
        except Answered as error:
            raise self._meant(error, model) from None

    async def generate(
        self, model: ModelName, prompt: str, *, max_tokens: int = 128, adapters: Sequence[Adapter] | None = None
    ) -> str:
        """At the temperature of its Modelfile. Takes as long as the caller waits."""
        if adapters is not None:
            raise self._no_adapters(model)
        options = {"num_predict": max_tokens}
        answer = await self._post(
            "/api/generate", model, _Generated, patient=True, prompt=prompt, stream=False, options=options
        )
        return answer.response

    async def _post(self, path: str, model: ModelName, type: type[T], *, patient: bool = False, **body: Any) -> T:
        try:
            return await self._http.ask("POST", path, type, {"model": self._spelling(model), **body}, patient=patient)
        except Answered as error:
            raise self._meant(error, model) from None

    def _meant(self, error: Answered, model: ModelName) -> Exception:
        """`model 'x' not found` is a missing model; `404 page not found` isn't Ollama."""
        unknown = error.status == 404 and "model" in error.words
        return self._unknown(model) if unknown else error

    def _no_adapters(self, model: ModelName) -> ModelServerError:
        return ModelServerError(
            f"{self._http.who} can't add adapters to {model}: Ollama bakes them into a model"
            " (ADAPTER in a Modelfile); make one with `ollama create`, or use llamacpp"
        )

    def _unknown(self, model: ModelName) -> LookupError:
        return LookupError(f"{self._http.who} has no model {self.canonical(model)}")

    def _at_work(self, model: LoadedModel, now: Timestamp) -> LoadedModel:
        """A model past the time that it had announced works, and leaves when it is done at the earliest."""
        if model.expires_at is None or model.expires_at > now:
            self._announced[model.model] = model.expires_at
        elif self._announced.get(model.model) == model.expires_at:
            return msgspec.structs.replace(model, expires_at=now + SHORTEST_S)
        return model

    def _known(self, spelled: str) -> ModelName:
        name = self.canonical(spelled)
        self._spelled[name] = spelled
        return name

    def _spelling(self, model: ModelName) -> str:
        name = self.canonical(model)
        return self._spelled.get(name, name)


def expiry(text: str) -> Timestamp | None:
    """`expires_at`, Go's RFC 3339 with up to nine digits of a second. None: never, or not known yet
    (year 1, while it loads)."""
    try:
        at = datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None  # empty, or after the year 9999
    return at if 0 < at < FOR_EVER else None
