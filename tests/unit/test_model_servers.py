"""Whose an embedder is: the model servers and the embedders are made from one configuration, and must agree."""

import pytest

from actors.profile.core import embedder_ref
from actors.urls import address
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.factory import EmbedderFactory
from daemon.models.config import ModelsConfig
from daemon.models.servers import ModelServers
from schemas.events.index import EmbedderSpec
from tests.unit.inline_compute import InlineCompute

OLLAMA, LLAMA, OTHER = "http://127.0.0.1:11434", "http://127.0.0.1:8080", "http://10.0.0.9:8000"


@pytest.mark.parametrize("openai_url", [LLAMA, "http://localhost:8080/", OTHER, OLLAMA])
@pytest.mark.parametrize("url", ["", OLLAMA, LLAMA, OTHER])
@pytest.mark.parametrize("kind", ["ollama", "openai"])
async def test_a_model_is_ours_exactly_when_it_is_asked_at_our_server(kind: str, url: str, openai_url: str) -> None:
    models, embedding = ModelsConfig(ollama_url=OLLAMA, llamacpp_url=LLAMA), EmbeddingConfig(openai_url=openai_url)
    servers = ModelServers(models, embedding)
    factory = EmbedderFactory(embedding, models, InlineCompute())
    spec = EmbedderSpec(kind, "e", url, 3)  # type: ignore[arg-type]
    try:
        embedder = await factory.load(spec, None)
    finally:
        await factory.aclose()
        await servers.aclose()
    asked = address(embedder._http.url)  # type: ignore[attr-defined]
    at = {address(server.url): name for name, server in servers.servers.items()}
    expected = at.get(asked)
    if kind == "ollama" and expected == "llamacpp":
        expected = None  # which doesn't speak Ollama's API
    found = embedder_ref(spec, servers.servers)
    assert (found.server if found else None) == expected
