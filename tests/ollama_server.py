"""Ollama for tests: its HTTP interface as its source has it, over a GPU that is only numbers.

In a test: `async with ollama(models={"llama3:latest": Model(5 * GIB)}) as server:`; then
`server.change(stuck=["llama3:latest"])`. As a process: `python -m tests.ollama_server --help`;
then `curl -X POST URL/_play -d '{"stuck": ["llama3:latest"]}'`. What can be changed is
`tests.ollama_scheduler.Play`. Vectors are hashed words, answers are made of the prompt.
"""

import argparse
import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from tests.ollama_scheduler import FOR_EVER, GIB, MIB, LoadError, Model, Play, Runner, Scheduler

DIM = 32
CONTEXT = 1000  # characters that an embedding takes

BUSY = "server busy, please try again.  maximum pending requests exceeded"
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

MODELS = {
    "llama3:latest": Model(4_661_224_676, memory=5_900_000_000, context_length=8192),
    "qwen2.5-coder:14b": Model(8_988_124_069, memory=10_800_000_000, context_length=32768),
    "mistral:7b": Model(4_113_301_824, memory=5_300_000_000, context_length=32768),
    "llama3:70b": Model(39_969_751_059, memory=42_500_000_000, context_length=8192),
    "all-minilm:latest": Model(45_960_996, memory=66 * MIB, embedding=True, context_length=256),
    "nomic-embed-text:latest": Model(274_302_450, memory=580 * MIB, embedding=True, context_length=2048),
}


class Counted:
    """What an embedding server of the tests keeps about its requests, and how it can be told to fail."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[list[str]] = []  # inputs, request by request
        self.in_flight = self.most_in_flight = 0
        self.failures: list[web.Response] = []  # answered before anything else
        self.alter: Callable[[list[list[float]]], Any] = lambda vectors: vectors

    @asynccontextmanager
    async def counted(self, texts: list[str], seconds: float) -> AsyncIterator[None]:
        self.requests.append(texts)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(seconds)  # a model takes its time: requests overlap
            yield
        finally:
            self.in_flight -= 1


class OllamaPlay(Counted):
    """The server. Changes are made with `change`, so that the GPU file follows."""

    def __init__(self, play: Play, gpu_file: Path | None = None) -> None:
        super().__init__()
        self.play = play
        self.scheduler = Scheduler(play, gpu_file)
        self._said: dict[str, Any] = {"models": []}  # by /api/ps, while it is stale
        self.calls: list[tuple[str, dict[str, Any]]] = []  # path and body of every question

    def change(self, **settings: Any) -> None:
        """Raises msgspec.ValidationError for what can't be."""
        if settings.get("stale_ps") and not self.play.stale_ps:
            self._said = self._ps()
        new = msgspec.convert({**msgspec.to_builtins(self.play), **msgspec.to_builtins(settings)}, Play)
        for name in self.play.__struct_fields__:
            setattr(self.play, name, getattr(new, name))
        self.scheduler.changed()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * MIB, middlewares=[self._answer])
        app.router.add_get("/", self._root)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/ps", self._get_ps)
        app.router.add_get("/api/tags", self._tags)
        app.router.add_post("/api/generate", self._generate)
        app.router.add_post("/api/embed", self._embed)
        app.router.add_post("/_play", self._change)
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        await asyncio.sleep(self.play.slow.get(request.path, 0.0))
        try:
            answer: web.StreamResponse = await handler(request)
        except LoadError as error:
            return _no(500, str(error))
        except web.HTTPNotFound:
            return web.Response(status=404, text="404 page not found")
        return answer

    async def _root(self, _: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.12.6"})

    async def _change(self, request: web.Request) -> web.Response:
        try:
            self.change(**await request.json())
        except msgspec.ValidationError as error:
            return _no(400, str(error))
        return web.json_response(msgspec.to_builtins(self.play))

    async def _tags(self, _: web.Request) -> web.Response:
        models = [
            {
                "name": name,
                "model": name,
                "modified_at": _go_time(0),
                "size": model.size,
                "digest": _digest(name, model),
            }
            for name, model in self.play.models.items()
        ]
        return web.json_response({"models": models})

    async def _get_ps(self, _: web.Request) -> web.Response:
        return web.json_response(self._said if self.play.stale_ps else self._ps())

    def _ps(self) -> dict[str, Any]:
        return {"models": [self._running(runner) for runner in self.scheduler.listed.values()]}

    def _running(self, runner: Runner) -> dict[str, Any]:
        model = self.play.models.get(runner.name)
        return {
            "name": runner.name,
            "model": runner.name,
            "size": runner.size,
            "digest": _digest(runner.name, model),
            # Not known before the first request has ended: Ollama then reckons from its keep-alive.
            "expires_at": _go_time(runner.expires_at or time.time() + runner.keep_alive_s),
            "size_vram": runner.size_vram,
            "context_length": model.context_length if model else 4096,
        }

    async def _generate(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        name = self._existing(body["model"])
        if name is None:
            return _no(404, f"model '{body['model']}' not found")
        prompt = body.get("prompt", "")
        try:
            keep_alive_s = _keep_alive(body.get("keep_alive"))
        except ValueError as error:
            return _no(400, str(error))
        if not prompt and keep_alive_s is not None and keep_alive_s < 1:
            await self.scheduler.expire(name)
            return web.json_response(_generated(body["model"], "", "unload"))
        if self.play.models[name].embedding:
            return _no(400, f'"{body["model"]}" does not support generate')
        if self.play.queue_full:
            return _no(503, BUSY)
        async with self.scheduler.using(name, keep_alive_s):
            if not prompt:
                return web.json_response(_generated(body["model"], "", "load"))
            await asyncio.sleep(self.play.generate_s)
            words = (f"{name} read: {prompt}").split()
            most = body.get("options", {}).get("num_predict", 128)
            reason = "length" if len(words) > most else "stop"
            return web.json_response(_generated(body["model"], " ".join(words[:most]), reason))

    async def _embed(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        async with self.counted(texts, self.play.embed_s):
            if self.failures:
                return self.failures.pop(0)
            name = self._existing(body["model"])
            if name is None:
                return _no(404, f'model "{body["model"]}" not found, try pulling it first')
            if self.play.queue_full:
                return _no(503, BUSY)
            # With keep_alive 0 too it is loaded first, and leaves when the answer is made.
            async with self.scheduler.using(name, _keep_alive(body.get("keep_alive"))):
                if any(len(text) > CONTEXT for text in texts):
                    if not body.get("truncate", True):
                        return _no(400, "the input length exceeds the context length")
                    texts = [text[:CONTEXT] for text in texts]
                if "NaN" in texts:
                    return _no(500, "failed to encode response: json: unsupported value: NaN")
                vectors = [(np.array(v) / np.linalg.norm(v)).tolist() for v in map(vector, texts)]
                return web.json_response({"model": body["model"], "embeddings": self.alter(vectors)})

    async def _body(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.calls.append((request.path, body))
        return body

    def _existing(self, asked: str) -> str | None:
        """Names are alike in any case; the tag and the default registry and namespace may be left out."""
        name = re.sub(r"^(registry\.ollama\.ai/)?(library/)?", "", asked.lower())
        if ":" not in name.rpartition("/")[2]:
            name += ":latest"
        return next((known for known in self.play.models if known.lower() == name), None)


def vector(text: str) -> list[float]:
    """Not normalised: OpenAI-compatible servers needn't."""
    total = np.full(DIM, 1e-3)
    for word in text.lower().split() or [text]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        total += np.random.default_rng(seed).standard_normal(DIM)
    return [float(x) for x in total]


def _generated(model: str, response: str, reason: str) -> dict[str, Any]:
    return {
        "model": model,
        "created_at": _go_time(time.time()),
        "response": response,
        "done": True,
        "done_reason": reason,
    }


def _no(status: int, words: str) -> web.Response:
    return web.json_response({"error": words}, status=status)


def _digest(name: str, model: Model | None) -> str:
    """Another once a model of another size was pulled under the name."""
    return hashlib.sha256(f"{name} {model and model.size}".encode()).hexdigest()


def _keep_alive(given: float | str | None) -> float | None:
    """Seconds: a number, or a duration as Go writes it. Raises ValueError with Go's words."""
    if given is None:
        return None
    if isinstance(given, str):
        parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", given)
        if given.lstrip("+-") != "".join(number + unit for number, unit in parts) or not parts:
            raise ValueError(f'time: invalid duration "{given}"')
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        given = -seconds if given.startswith("-") else seconds
    return FOR_EVER if given < 0 else float(given)


def _go_time(at: float) -> str:
    """RFC 3339 with nanoseconds, trailing zeros dropped. For ever is Go's longest duration from now."""
    if at == FOR_EVER:
        at = time.time() + 2**63 / 1e9
    whole = datetime.fromtimestamp(int(at), UTC).astimezone()
    fraction = f".{int((at % 1) * 1e9):09d}".rstrip("0").rstrip(".")
    return whole.strftime("%Y-%m-%dT%H:%M:%S") + fraction + whole.isoformat()[19:]


@asynccontextmanager
async def ollama(*, port: int = 0, gpu_file: Path | None = None, **settings: Any) -> AsyncIterator[OllamaPlay]:
    """A server on a free port of loopback. `settings` are Play's."""
    play = msgspec.convert(msgspec.to_builtins({"models": MODELS, **settings}), Play)
    server = OllamaPlay(play, gpu_file)
    # Ollama gives a load up when its client hangs up.
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
        await server.scheduler.aclose()


async def serve(options: argparse.Namespace) -> None:
    settings = {"vram": int(options.vram * GIB), **json.loads(options.play)}
    async with ollama(port=options.port, gpu_file=options.gpu_file, **settings) as server:
        print(f"Ollama for tests at {server.url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Ollama for tests, over a GPU that is only numbers")
    parser.add_argument("--port", type=int, default=0, help="of loopback; default: a free one, which is printed")
    parser.add_argument("--vram", type=float, default=24, help="GiB of the GPU; 0: none")
    parser.add_argument("--gpu-file", type=Path, help='kept up to date with {"total": bytes, "used": bytes}')
    parser.add_argument("--play", default="{}", help='JSON, as POST /_play takes it: {"load_s": 0.5, "stuck": […]}')
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
