"""The models of the tests' llama.cpp server, and what the process that runs one answers
(tools/server/server-context.cpp). Which models run and who routes to them is llama_server.py."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from aiohttp import web

DIM = 32
BATCH = 200  # characters that an embedding takes
SLOTS = 4
STOP_TIMEOUT_S = 10  # a process that hasn't ended by then is killed

Handler = Callable[[web.Request], Any]


@dataclass
class Lora:
    path: str
    scale: float = 1.0


@dataclass
class LlamaModel:
    """A model that a server could run, and the process that runs it."""

    file: str = ""
    aliases: list[str] = field(default_factory=list)
    size: int = 461_568
    n_ctx: int = 256
    loras: list[Lora] = field(default_factory=list)

    # How it behaves.
    load_s: float = 0.005
    fails: int = 0  # the exit code of a load that fails
    stop_s: float = 0.005  # from the order to stop until its process has ended
    task_s: float = 0.002
    slots_s: float = 0.002  # until it tells about its slots: between two batches

    # How it is.
    status: str = "unloaded"
    exit_code: int = 0
    stopping: bool = False
    held: bool = False  # it can't end for a question that it will never answer
    moving: "asyncio.Task[None] | None" = None  # it is coming up or going down
    port: int = 0
    last_used: int = 0
    slots: list[int | None] = field(default_factory=lambda: [None] * SLOTS)  # id of the last task
    asked: list[float] = field(default_factory=list)  # scales of the last completion
    busy: int = 0

    @property
    def running(self) -> bool:
        return self.status in ("loading", "loaded", "sleeping")


class Processes:
    """The answers of every model's own process."""

    def __init__(self) -> None:
        self.embeddings = True
        self.slots_endpoint = True
        self.forget_loras = False  # answers 200 to scales and doesn't take them
        self.old = False  # knows of no scales with a request (llama.cpp before #10994)
        self._tasks = count(1)
        self._clock = count(1)

    def _child_routes(self) -> list[tuple[str, str, Callable[[LlamaModel, web.Request], Any]]]:
        return [
            ("GET", "/slots", self._slots),
            ("GET", "/lora-adapters", self._get_loras),
            ("POST", "/lora-adapters", self._post_loras),
            ("POST", "/v1/embeddings", self._embed),
            ("POST", "/completion", self._complete),
            ("POST", "/tokenize", self._tokenize),
        ]

    def _process(self, handler: Callable[[LlamaModel, web.Request], Any], model: LlamaModel) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            return await self._awake(model, handler, request)

        return answer

    async def _awake(
        self, model: LlamaModel, handler: Callable[[LlamaModel, web.Request], Any], request: web.Request
    ) -> web.Response:
        if model.status == "loading":
            return no(503, "Loading model", "unavailable_error")
        if model.status == "sleeping":  # every task wakes it, and waits
            await asyncio.sleep(model.load_s)
            model.status = "loaded"
        answer: web.Response = await handler(model, request)
        return answer

    async def _slots(self, model: LlamaModel, _: web.Request) -> web.Response:
        await asyncio.sleep(model.slots_s)
        if model.stopping:
            model.held = True
            await asyncio.sleep(STOP_TIMEOUT_S)
        if not self.slots_endpoint:
            words = "This server does not support slots endpoint. Start it with `--slots`"
            return no(501, words, "not_supported_error")
        return web.json_response(
            [
                {"id": slot, "n_ctx": model.n_ctx, "speculative": False, "is_processing": slot < model.busy}
                | ({} if task is None else {"id_task": task})
                for slot, task in enumerate(model.slots)
            ]
        )

    async def _get_loras(self, model: LlamaModel, _: web.Request) -> web.Response:
        return web.json_response(
            [
                {"id": id, "path": lora.path, "scale": float(np.float32(lora.scale)), "task_name": ""}
                for id, lora in enumerate(model.loras)
            ]
        )

    async def _post_loras(self, model: LlamaModel, request: web.Request) -> web.Response:
        body = await request.json()
        if not isinstance(body, list):
            return no(400, "Request body must be an array")
        scales = {entry.get("id", -1): entry.get("scale", 0.0) for entry in body}
        if not self.forget_loras:
            for id, lora in enumerate(model.loras):
                lora.scale = scales.get(id, 0.0)
        return web.json_response({"success": True})

    async def _embed(self, model: LlamaModel, request: web.Request) -> web.Response:
        body = await request.json()
        if not self.embeddings:
            words = "This server does not support embeddings. Start it with `--embeddings`"
            return no(501, words, "not_supported_error")
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if not texts:
            return no(400, '"input" must not be empty')
        await self._work(model)
        for text in texts:
            if len(text) > BATCH:
                words = (
                    f"input ({len(text)} tokens) is too large to process. increase the physical batch size"
                    f" (current batch size: {BATCH})"
                )
                return no(500, words, "server_error")
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(text, model)}
            for index, text in enumerate(texts)
        ]
        return web.json_response({"model": body.get("model"), "object": "list", "usage": {}, "data": data})

    async def _complete(self, model: LlamaModel, request: web.Request) -> web.Response:
        body = await request.json()
        await self._work(model)
        most = body.get("n_predict", -1)
        lora = body.get("lora", [])
        if not isinstance(lora, list):
            return no(400, "Error: 'lora' must be an array of objects with 'id' and 'scale' fields")
        scales = {entry.get("id", -1): float(np.float32(entry.get("scale", 0.0))) for entry in lora}
        if self.forget_loras or self.old:
            scales = {}
        # An id that isn't there is ignored, one that isn't named gets 0; without any the global scales hold.
        model.asked = [scales.get(id, 0.0) if scales else own.scale for id, own in enumerate(model.loras)]
        spoken = [own.path for own, scale in zip(model.loras, model.asked, strict=True) if scale]
        word = spoken[0].rpartition("/")[2].partition(".")[0] if spoken else "word"
        said = " ".join(f"{word}{number}" for number in range(min(most, 16) if most >= 0 else 16))
        told: dict[str, Any] = {"n_predict": most}
        if not self.old:
            told["lora"] = [{"id": id, "scale": scale} for id, scale in sorted(scales.items())]
        return web.json_response(
            {"index": 0, "content": said, "stop": True, "stop_type": "limit", "generation_settings": told}
        )

    async def _tokenize(self, model: LlamaModel, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": list(body.get("content", "").encode())})

    async def _work(self, model: LlamaModel) -> None:
        model.slots[0], model.last_used = next(self._tasks), next(self._clock)
        model.busy += 1
        try:
            await asyncio.sleep(model.task_s)
        finally:
            model.busy -= 1


def _vector(text: str, model: LlamaModel) -> list[float]:
    """Of its letters, and of the adapters' scales."""
    total = np.full(DIM, 1e-3)
    for place, byte in enumerate(text.encode()):
        total[byte % DIM] += 1.0 / (1 + place)
    for id, lora in enumerate(model.loras):
        total[id] += lora.scale
    return [float(x) for x in total / np.linalg.norm(total)]


def no(status: int, message: str, type: str = "invalid_request_error") -> web.Response:
    return web.json_response({"error": {"code": status, "message": message, "type": type}}, status=status)
