"""An OpenAI-compatible `/v1/embeddings` for tests, with an API key, vectors that aren't normalised and
items out of order: all that the interface allows. Its vectors are those of tests/ollama_server.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.ollama_server import CONTEXT, Counted, vector


class OpenAIPlay(Counted):
    def __init__(self, models: list[str]) -> None:
        super().__init__()
        self.models = models
        self.key = ""

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self.counted(body["input"], 0.002):
            if self.failures:
                return self.failures.pop(0)
            if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
                return _no(401, "Invalid API Key")
            if body["model"] not in self.models:
                return _no(404, f"The model `{body['model']}` does not exist")
            if any(len(text) > CONTEXT for text in body["input"]):
                return _no(400, "input length is larger than the maximum context length")
            if "NaN" in body["input"]:
                return _no(500, "json: unsupported value: NaN")
            vectors = self.alter([vector(text) for text in body["input"]])
            data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
            return web.json_response({"object": "list", "model": body["model"], "data": data[::-1]})


def _no(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x", "code": None}}, status=status)


@asynccontextmanager
async def openai(*models: str) -> AsyncIterator[OpenAIPlay]:
    play = OpenAIPlay(list(models))
    app = web.Application()
    app.router.add_post("/v1/embeddings", play.embeddings)
    async with TestServer(app) as server:
        play.url = str(server.make_url("")).rstrip("/")
        yield play
