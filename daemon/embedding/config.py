"""[embedding] of lakehouse.toml: which embedder a new text index gets, and how servers are called."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class EmbeddingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["lexical", "ollama", "openai"] = "lexical"
    """Embedder of a text index that names none. `lexical` needs no model server. Ollama's URL is in [models]."""
    model: str = ""
    """The server's model name; empty for `lexical`."""
    openai_url: str = "http://127.0.0.1:8080"
    """Base URL of an OpenAI-compatible server (llama.cpp, vLLM, …), without `/v1`."""
    openai_key_file: str = ""
    """File that holds the API key; empty: none is sent."""
    batch: Annotated[int, Meta(ge=1, le=2048)] = 32
    """Texts per request to a server."""
    concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """Requests in flight per embedder."""
    timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    """Of one request."""
    attempts: Annotated[int, Meta(ge=1, le=20)] = 4
    """Tries per request before the server counts as away."""
