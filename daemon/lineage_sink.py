"""Run events over HTTP, as Marquez takes them (POST /api/v1/lineage)."""

from pathlib import Path

import aiohttp
from anyio import to_thread

from actors.errors import Poison, Transient
from actors.lineage.config import LineageConfig
from daemon.models.http import SharedSession


class HttpLineageSink:
    """The port `LineageSink`."""

    def __init__(self, config: LineageConfig) -> None:
        self._config = config
        self._session = SharedSession()

    async def post(self, event: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        if self._config.api_key_file:
            try:
                key = await to_thread.run_sync(lambda: Path(self._config.api_key_file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise Transient(f"lineage.api_key_file can't be read: {error}", 30) from error
            headers["Authorization"] = f"Bearer {key.strip()}"
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        try:
            async with self._session().post(
                self._config.url, data=event, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status in (408, 429) or answer.status >= 500:
                    raise Transient(f"the lineage endpoint answers {answer.status}", 5)
                if answer.status >= 300:
                    raise Poison(f"the lineage endpoint answers {answer.status}: {(await answer.text())[:300]}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Transient(f"the lineage endpoint is away: {type(error).__name__}", 5) from error

    async def aclose(self) -> None:
        await self._session.aclose()
