"""Makes the model servers of [models]: one HTTP session for all of them."""

from actors.ports import ModelServer
from daemon.embedding.config import EmbeddingConfig
from daemon.models.config import ModelsConfig
from daemon.models.http import SharedSession
from daemon.models.llamacpp import LlamaCppServer
from daemon.models.ollama import OllamaServer
from schemas.names import ServerName


class ModelServers:
    """`[embedding]` says how texts travel: batch, concurrency, attempts. Close it with `aclose`."""

    def __init__(self, config: ModelsConfig, embedding: EmbeddingConfig) -> None:
        self._session = SharedSession()
        self.servers: dict[ServerName, ModelServer] = {
            "ollama": OllamaServer(self._session, config, embedding),
            "llamacpp": LlamaCppServer(self._session, config, embedding),
        }

    async def aclose(self) -> None:
        await self._session.aclose()
