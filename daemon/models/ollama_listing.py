"""What Ollama lists in `/api/tags`, and when two names are one model: a name means the same in any case; `llama3`,
`library/llama3` and `registry.ollama.ai/library/llama3:latest` are one.
"""

import msgspec

from schemas.names import Bytes, ModelName

PATH = "/api/tags"
REGISTRY, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"


class Stored(msgspec.Struct, frozen=True):
    model: str
    size: Bytes | None = None  # of its files
    digest: str = ""  # of its manifest: another after a pull or a create that changed it


class Tags(msgspec.Struct, frozen=True):
    models: list[Stored] | None


def canonical(model: ModelName) -> ModelName:
    """In lower case, with its tag, without the default registry and namespace."""
    name = model.lower()
    _, _, name = name.rpartition("://")
    where, _, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    registry, _, namespace = where.rpartition("/")
    if registry not in ("", REGISTRY):
        last = f"{where}/{last}"
    elif namespace not in ("", NAMESPACE):
        last = f"{namespace}/{last}"
    return f"{last}:{tag or TAG}"
