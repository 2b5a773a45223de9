"""[models] of lakehouse.toml: where the model servers are."""

from typing import Annotated

import msgspec
from msgspec import Meta


class ModelsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ollama_url: str = "http://127.0.0.1:11434"
    """Base URL of an Ollama server."""
    llamacpp_url: str = "http://127.0.0.1:8080"
    """Base URL of a llama.cpp server, in router or single mode, without `/v1`."""
    llamacpp_key_file: str = ""
    """File that holds llama.cpp's API key; empty: none is sent."""
    timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    """How long a model server may take to answer a question; loading has [slot] load_deadline_s."""
