"""Makes embedders: the Embedders port. Which kind is asked for is the index's EmbedderSpec; how
servers are called is [embedding] of lakehouse.toml, where Ollama is, [models]."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray

from actors.errors import CorruptState
from actors.ports import Compute, Embedder
from daemon.embedding import lexical
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.http import OllamaEmbedder, OpenAIEmbedder, ServerEmbedder
from daemon.models.config import ModelsConfig
from daemon.models.http import SharedSession, read_key
from schemas.events.index import EmbedderSpec

T = TypeVar("T")

INLINE_CHARS = 8192  # about 2 ms of embedding: more of it would hold up the event loop
FIT_TEXTS = 200_000  # IDF weights of a longer column are estimated from its beginning


class LexicalEmbedder:
    """A frozen lexical model. Queries are embedded at once, batches in the worker."""

    def __init__(self, data: bytes, compute: Compute) -> None:
        self._data = data
        self._model = lexical.load(data)
        self._compute = compute
        self.dim = lexical.DIM
        self.identity = self._model.identity

    async def revision(self) -> str:
        return ""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `actors.ports.Embedder`."""
        if _small(texts):
            return self._model.embed(texts)
        return await _result(self._compute, lexical.embed_job, self._data, list(texts))


class EmbedderFactory:
    """`compute` is the worker of the "embed" lane. Close it with `aclose`."""

    def __init__(self, config: EmbeddingConfig, models: ModelsConfig, compute: Compute) -> None:
        self._config = config
        self._models = models
        self._compute = compute
        self._session = SharedSession()

    async def fit(self, spec: EmbedderSpec, texts: AsyncIterator[Sequence[str]]) -> tuple[Embedder, bytes | None]:
        """See `actors.ports.Embedders`. Raises ValueError for a spec that can't be, and what the
        server's first answer raises."""
        if spec.kind != "lexical":
            return await self._server(spec), None
        if spec.dim not in (None, lexical.DIM):
            raise ValueError(f"the lexical embedder has {lexical.DIM} dimensions, not {spec.dim}")
        fit = lexical.LexicalFit()
        async for batch in texts:
            batch = batch[: FIT_TEXTS - fit.documents]
            if _small(batch):
                found = lexical.document_frequency(batch)
            else:
                found = await _result(self._compute, lexical.frequency_job, list(batch))
            fit.add(len(batch), *found)
            if fit.documents >= FIT_TEXTS:
                break
        data = fit.model().dump()
        return LexicalEmbedder(data, self._compute), data

    async def load(self, spec: EmbedderSpec, model: Path | None) -> Embedder:
        """See `actors.ports.Embedders`. A server is asked only when the spec has no dimension.
        Raises CorruptState for a missing or broken lexical model."""
        if spec.kind != "lexical":
            return await self._server(spec)
        if model is None:
            raise CorruptState("the index has lost its lexical model: drop the index and create it again")
        return LexicalEmbedder(await anyio.Path(model).read_bytes(), self._compute)

    async def aclose(self) -> None:
        await self._session.aclose()

    async def _server(self, spec: EmbedderSpec) -> ServerEmbedder:
        config = self._config
        if spec.kind == "none":
            raise ValueError("an index over vectors has no embedder")
        model = spec.model or (config.model if config.kind == spec.kind else "")
        if not model:
            raise ValueError(f"the {spec.kind} embedder needs the name of a model")
        embedder: ServerEmbedder
        if spec.kind == "ollama":
            embedder = OllamaEmbedder(self._session, spec.url or self._models.ollama_url, model, config, spec.dim)
        else:
            key = await read_key(config.openai_key_file, "embedding.openai_key_file")
            embedder = OpenAIEmbedder(self._session, spec.url or config.openai_url, model, config, spec.dim, key)
        if not spec.dim:
            await embedder.probe()
        return embedder


def _small(texts: Sequence[str]) -> bool:
    return sum(map(len, texts)) <= INLINE_CHARS


async def _result(compute: Compute, job: Callable[..., Iterator[T]], *args: Any) -> T:
    """The one item that a job yields."""
    # Read to its end: closing a stream before that kills the worker.
    (item,) = [item async for item in compute.stream(job, *args)]
    return item
