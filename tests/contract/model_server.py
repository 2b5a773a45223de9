"""A model server for tests that speaks Ollama's `/api/embed` and OpenAI's `/v1/embeddings` as their
sources do, and can be told to fail the ways that they fail. Its vectors are hashed words."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestServer

MODEL = "all-minilm"
DIM = 32
CONTEXT = 1000  # characters
KEY = "s3cret"


class ModelServer:
    def __init__(self) -> None:
        self.url = ""
        self.requests: list[list[str]] = []  # inputs, request by request
        self.in_flight = self.most_in_flight = 0
        self.failures: list[web.Response] = []  # answered before anything else
        self.alter: Callable[[list[list[float]]], Any] = lambda vectors: vectors
        self.key = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/api/embed", self._ollama)
        app.router.add_post("/v1/embeddings", self._openai)
        return app

    async def _ollama(self, request: web.Request) -> web.Response:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        async with self._counted(texts):
            if self.failures:
                return self.failures.pop(0)
            if body["model"] != MODEL:
                return web.json_response(
                    {"error": f'model "{body["model"]}" not found, try pulling it first'}, status=404
                )
            if any(len(text) > CONTEXT for text in texts):
                if not body.get("truncate", True):
                    return web.json_response({"error": "the input length exceeds the context length"}, status=400)
                texts = [text[:CONTEXT] for text in texts]
            if "NaN" in texts:
                words = "failed to encode response: json: unsupported value: NaN"
                return web.json_response({"error": words}, status=500)
            vectors = [(np.array(v) / np.linalg.norm(v)).tolist() for v in map(vector, texts)]
            return web.json_response({"model": MODEL, "embeddings": self.alter(vectors), "total_duration": 1})

    async def _openai(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self._counted(body["input"]):
            if self.failures:
                return self.failures.pop(0)
            if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
                return self._error(401, "Invalid API Key")
            if body["model"] != MODEL:
                return self._error(404, f"The model `{body['model']}` does not exist")
            if any(len(text) > CONTEXT for text in body["input"]):
                return self._error(400, "input length is larger than the maximum context length")
            if "NaN" in body["input"]:
                return self._error(500, "json: unsupported value: NaN")
            vectors = self.alter([vector(text) for text in body["input"]])
            data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
            return web.json_response({"object": "list", "model": MODEL, "data": data[::-1]})

    @staticmethod
    def _error(status: int, message: str) -> web.Response:
        return web.json_response({"error": {"message": message, "type": "x", "code": None}}, status=status)

    @asynccontextmanager
    async def _counted(self, texts: list[str]) -> AsyncIterator[None]:
        self.requests.append(texts)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0.002)  # a model takes its time: requests overlap
            yield
        finally:
            self.in_flight -= 1


def vector(text: str) -> list[float]:
    """Not normalised: OpenAI-compatible servers needn't."""
    total = np.full(DIM, 1e-3)
    for word in text.lower().split() or [text]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        total += np.random.default_rng(seed).standard_normal(DIM)
    return [float(x) for x in total]


@asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    model = ModelServer()
    async with TestServer(model.app()) as server:
        model.url = str(server.make_url("")).rstrip("/")
        yield model
