"""llama.cpp's server for tests: its HTTP interface in router and in single mode, as its source has
it (tools/server of llama-cpp-python 0.3.36), over models that are only numbers.

In a test: `async with llama_router({"tiny": LlamaModel()}) as server:` or `llama_single(…)`; then
`server.models["tiny"].stop_s = 60`. The tests that run on it run on the real binary too, where
there is one (test_model_servers_llamacpp.py), so that it stays true.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.llama_process import DIM, SLOTS, STOP_TIMEOUT_S, Handler, LlamaModel, Processes, no


class LlamaServer(Processes):
    """One server. `key` is its --api-key."""

    def __init__(self, models: dict[str, LlamaModel], *, router: bool, key: str = "") -> None:
        super().__init__()
        self.url = ""
        self.models = models
        self.router = router
        self.key = key
        self.models_max = 4
        self.autoload = True
        self.ready = True  # False: single mode, its model still loads
        self.busy = False
        self.calls: list[str] = []  # method and path of every question but /health
        self._processes: dict[str, AsyncExitStack] = {}
        self._coming: set[asyncio.Task[None]] = set()
        for name, model in models.items():
            model.file = model.file or f"/models/{name}.gguf"
            model.status = "unloaded" if router else "loaded"

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20, middlewares=[self._answer])
        for path in ("/models", "/v1/models"):
            app.router.add_get(path, self._list_routed if self.router else self._list_single)
        app.router.add_get("/health", self._health)
        app.router.add_get("/props", self._router_props if self.router else self._props)
        if self.router:
            app.router.add_post("/models/load", self._load)
            app.router.add_post("/models/unload", self._unload)
        for method, path, handler in self._child_routes():
            app.router.add_route(method, path, self._routed(handler) if self.router else self._alone(handler))
        return app

    async def aclose(self) -> None:
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)
        for process in list(self._processes.values()):
            await process.aclose()

    def sleep(self, name: str) -> None:
        """What --sleep-idle-seconds does after a while."""
        self.models[name].status = "sleeping"

    # --- both modes --------------------------------------------------------------------------------

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self.ready:
            return no(503, "Loading model", "unavailable_error")
        if self.busy:  # as a proxy in front of it says
            return no(503, "no slot available", "unavailable_error")
        if request.path != "/health":
            self.calls.append(f"{request.method} {request.path}")
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.key and sent != self.key:
                return no(401, "Invalid API Key", "authentication_error")
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPNotFound:
            return no(404, "File Not Found", "not_found_error")
        except json.JSONDecodeError as error:
            return no(500, f"[json.exception.parse_error.101] {error}", "server_error")
        if answer.status == 404:  # its handler of 404s replaces every body
            return no(404, "File Not Found", "not_found_error")
        return answer

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    def _info(self, name: str, model: LlamaModel) -> dict[str, Any]:
        meta = {"vocab_type": 1, "n_vocab": 259, "n_ctx": model.n_ctx, "n_ctx_train": model.n_ctx, "n_embd": DIM}
        return {
            "id": name,
            "aliases": model.aliases or [name],
            "tags": [],
            "object": "model",
            "created": 1,
            "owned_by": "llamacpp",
            "meta": {**meta, "n_params": model.size // 4, "size": model.size, "ftype": "(guessed) all F32"},
        }

    async def _props(self, _: web.Request) -> web.Response:
        ((name, model),) = self.models.items()
        return web.json_response(
            {"model_alias": name, "model_path": model.file, "is_sleeping": model.status == "sleeping", "total_slots": 4}
        )

    async def _list_single(self, _: web.Request) -> web.Response:
        ((name, model),) = self.models.items()
        listed = [{"name": name, "model": name, "type": "model", "details": {"format": "gguf"}}]
        return web.json_response({"models": listed, "object": "list", "data": [self._info(name, model)]})

    def _alone(self, handler: Callable[[LlamaModel, web.Request], Any]) -> Handler:
        (model,) = self.models.values()
        return self._process(handler, model)

    # --- router ------------------------------------------------------------------------------------

    async def _router_props(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("model"):
            return await self._routed(lambda model, _: self._props_of(model))(request)
        return web.json_response({"role": "router", "max_instances": self.models_max, "model_path": "none"})

    async def _props_of(self, model: LlamaModel) -> web.Response:
        return web.json_response({"model_path": model.file, "is_sleeping": False})

    async def _list_routed(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"data": [self._listed(name, model) for name, model in sorted(self.models.items())], "object": "list"}
        )

    def _listed(self, name: str, model: LlamaModel) -> dict[str, Any]:
        args = ["/usr/bin/llama-server", "--host", "127.0.0.1", "--embeddings"]
        if model.loras:
            args += ["--lora", ",".join(lora.path for lora in model.loras)]
        args += ["--port", str(model.port), "--alias", name, "--model", model.file]
        status: dict[str, Any] = {"value": model.status, "args": args, "preset": f"[{name}]\n"}
        if model.status == "unloaded" and model.exit_code:
            status |= {"exit_code": model.exit_code, "failed": True}
        listed = self._info(name, model) if model.status in ("loaded", "sleeping") else {}
        return listed | {
            "id": name,
            "aliases": model.aliases,
            "tags": [],
            "object": "model",
            "owned_by": "llamacpp",
            "created": 1,
            "status": status,
            "source": "models_dir",
            "can_remove": False,
        }

    def _named(self, name: str) -> tuple[str, LlamaModel] | None:
        for key, model in self.models.items():
            if name == key or name in model.aliases:
                return key, model
        return None

    async def _load(self, request: web.Request) -> web.Response:
        found = self._named((await request.json()).get("model", ""))
        if found is None:
            return no(404, "model is not found", "not_found_error")
        if found[1].running:
            return no(400, "model is already running")
        try:
            await self._spawn(*found)
        except RuntimeError as error:
            return no(500, str(error), "server_error")
        return web.json_response({"success": True})

    async def _spawn(self, name: str, model: LlamaModel) -> None:
        """Makes room by ending the least recently used idle model; raises RuntimeError without any."""
        running = [other for other in self.models.items() if other[1].running]
        if self.models_max > 0 and len(running) >= self.models_max:
            idle = [o for o in running if o[1].status != "loading" and not o[1].busy and not o[1].stopping]
            if not idle:
                raise RuntimeError("model limit reached, try again later")
            victim = min(idle, key=lambda other: other[1].last_used)
            await asyncio.shield(self._stop(*victim))
        model.status, model.last_used, model.slots = "loading", next(self._clock), [None] * SLOTS
        for lora in model.loras:
            lora.scale = 1.0
        model.port = await self._listen(name, model)
        model.moving = self._later(self._come_up(name, model, model.port))

    async def _listen(self, name: str, model: LlamaModel) -> int:
        """Its process takes requests without the router, and without its key."""
        app = web.Application()
        for method, path, handler in self._child_routes():
            app.router.add_route(method, path, self._process(handler, model))
        stack = AsyncExitStack()
        server = await stack.enter_async_context(TestServer(app))
        self._processes[name] = stack
        assert server.port is not None
        return server.port

    async def _come_up(self, name: str, model: LlamaModel, port: int) -> None:
        await asyncio.sleep(model.load_s)
        if model.port == port and model.status == "loading" and not model.stopping:
            if model.fails:
                await self._end(name, model, model.fails)
            else:
                model.status, model.exit_code = "loaded", 0

    async def _unload(self, request: web.Request) -> web.Response:
        found = self._named((await request.json()).get("model", ""))
        if found is None:
            return no(400, "model is not found")
        if not found[1].running:
            return no(400, "model is not running")
        self._stop(*found)
        return web.json_response({"success": True})

    def _stop(self, name: str, model: LlamaModel) -> "asyncio.Task[None]":
        if not model.stopping or model.moving is None:
            model.stopping = True
            model.moving = self._later(self._go_down(name, model, killed=model.status == "loading"))
        return model.moving

    async def _go_down(self, name: str, model: LlamaModel, *, killed: bool) -> None:
        await asyncio.sleep(0.002 if killed else model.stop_s)
        if model.held:
            await asyncio.sleep(STOP_TIMEOUT_S - model.stop_s)
            killed = True
        await self._end(name, model, 1 if killed else 0)

    async def _end(self, name: str, model: LlamaModel, exit_code: int) -> None:
        model.status, model.exit_code, model.busy = "unloaded", exit_code, 0
        model.stopping = model.held = False
        if process := self._processes.pop(name, None):
            await process.aclose()

    def _later(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
        return task

    def _routed(self, handler: Callable[[LlamaModel, web.Request], Any]) -> Handler:
        """To the model that the query or the body names; the body must be an object."""

        async def answer(request: web.Request) -> web.Response:
            name = request.query.get("model", "")
            if request.method == "POST":
                body = json.loads(await request.read())
                name = body.get("model", "") if isinstance(body, dict) else ""
            if not name:
                return no(400, "model name is missing from the request")
            found = self._named(name)
            if found is None:
                return no(400, f"model '{name}' not found")
            autoload = request.query.get("autoload", "true" if self.autoload else "false") in ("true", "1")
            if not autoload and not found[1].running:
                return no(400, "model is not loaded")
            if autoload:
                if not found[1].running:
                    await self._spawn(*found)
                if found[1].status == "loading" and found[1].moving:
                    await asyncio.shield(found[1].moving)
                if found[1].status == "unloaded":
                    return no(500, f"model name={found[0]} failed to load", "server_error")
            return await self._awake(found[1], handler, request)

        return answer


@asynccontextmanager
async def llama_router(models: dict[str, LlamaModel], *, key: str = "") -> AsyncIterator[LlamaServer]:
    async with _served(LlamaServer(models, router=True, key=key)) as server:
        yield server


@asynccontextmanager
async def llama_single(name: str, model: LlamaModel, *, key: str = "") -> AsyncIterator[LlamaServer]:
    """`name` is its alias, or the path of its file where it has none."""
    async with _served(LlamaServer({name: model}, router=False, key=key)) as server:
        yield server


@asynccontextmanager
async def _served(server: LlamaServer) -> AsyncIterator[LlamaServer]:
    async with TestServer(server.app()) as http:
        server.url = str(http.make_url("")).rstrip("/")
        try:
            yield server
        finally:
            with suppress(asyncio.CancelledError):
                await server.aclose()
