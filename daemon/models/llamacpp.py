"""llama.cpp's server as a ModelServer, from what its source does (tools/server of llama-cpp-python
0.3.36). Which mode it runs in is asked of the server each time.

- Router (`llama-server --models-dir …`): a process per model, started by `/models/load` and ended by
  `/models/unload`. Both are answered at once; `/models` tells when it is loaded or gone. Questions
  are sent with `autoload=false`: asking never loads a model behind the slot's back.
- Single mode (`llama-server -m …`): its model stays for as long as the server runs.
- It doesn't report GPU memory, and knows no keep_alive per model: that is counted here, from the
  load and from the activity that `/slots` shows. After a restart of the daemon such a model stays.
"""

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import anyio
import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.errors import ModelServerError, Transient, Unavailable
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.http import OpenAIEmbedder
from daemon.models.config import ModelsConfig
from daemon.models.http import Answered, ServerHttp, Sessions, default_for, read_key
from daemon.models.llamacpp_adapters import (
    Scale,
    apply_adapters,
    check_adapters,
    check_request,
    is_local,
    request_scales,
)
from daemon.models.llamacpp_keeping import Keeping, Slot
from daemon.models.llamacpp_listing import Listing, Model, Props, find_model, is_single, plain, read_models, shards
from schemas.events.index import EmbedderKind
from schemas.events.profile import LoadedModel
from schemas.names import Bytes, ModelName, Seconds, ServerName, Timestamp
from schemas.profile import Adapter

POLL_S = (0.02, 0.25)
"""First and longest wait between two looks at a model that loads."""

SLOTS_S = 1.0
"""How long a model's process may take to tell about its slots."""


class _Settings(msgspec.Struct, frozen=True):
    lora: list[Scale] | None = None  # as the request gave them


class _Completion(msgspec.Struct):
    content: str
    generation_settings: _Settings = _Settings()


class _Embedder(OpenAIEmbedder):
    kind = "llama.cpp"
    path = "/v1/embeddings?autoload=false"


class LlamaCppServer:
    """See `actors.ports.ModelServer`. Sizes are those of a model's tensors; its KV cache and compute
    buffers come on top and llama.cpp doesn't tell them."""

    name: ServerName = "llamacpp"

    def __init__(
        self,
        sessions: Sessions,
        config: ModelsConfig,
        embedding: EmbeddingConfig,
        now: Callable[[], Timestamp] = time.time,
    ) -> None:
        self._sessions = sessions
        self._embedding = embedding
        self._http = ServerHttp("llama.cpp", config.llamacpp_url, sessions, config.timeout_s)
        self._key_file = config.llamacpp_key_file
        self._key: str | None = None  # None: to be read
        self._keeping = Keeping(now)
        self._seen: list[Model] = []  # when it was last asked
        self._sizes: dict[ModelName, Bytes] = {}  # as seen when they were loaded
        self.url = self._http.url
        self.default_for: Collection[EmbedderKind] = default_for("llamacpp", self.url, embedding)

    def canonical(self, model: ModelName) -> ModelName:
        """The id, or its file's name for an id that is a path. Aliases are known once the server
        has been asked for anything."""
        known = find_model(self._seen, model)
        return known.name if known else plain(model)

    async def loaded(self) -> list[LoadedModel]:
        """Those that answer. One that `unload` was asked for is listed until its process has ended,
        with the moment of asking as its `expires_at`; one that sleeps or loads isn't in memory."""
        return [
            LoadedModel(
                server=self.name,
                model=model.name,
                size=model.size,
                expires_at=self._keeping.stopping(model) or await self._expiry(model),
                context_length=model.context_length or None,
                fixed=not model.router,
            )
            for model in await self._models()
            if model.status == "loaded" or (model.running and self._keeping.stopping(model))
        ]

    async def size(self, model: ModelName) -> Bytes | None:
        """Of its tensors where it was seen loaded, else of its files where they are on this machine."""
        found = await self._find(model)
        known = found.size or self._sizes.get(found.name)
        if known is None and found.file and is_local(self.url):
            known = await anyio.to_thread.run_sync(_file_size, found.file)
        return known

    async def load(self, model: ModelName, keep_alive_s: Seconds, adapters: Sequence[Adapter] = ()) -> None:
        """Adapters that the profile doesn't name are set to 0, so that two profiles on one model
        don't inherit each other's. Gives up the load when it is cancelled. In single mode
        `keep_alive_s` has no meaning."""
        found = await self._once_started(model)
        if found.router:
            check_adapters(found, adapters)
        found = await self._run(found)
        await apply_adapters(self._http, self._own(found), found, adapters)
        if found.router:
            self._keeping.keep(found, keep_alive_s)

    async def unload(self, model: ModelName) -> None:
        """A router ends the process: at once while it loads, else within its stop-timeout (10 s)."""
        found = find_model(await self._models(), model)
        if found is None or not found.running:
            return
        if not found.router:
            if found.status == "sleeping":
                return
            raise ModelServerError(
                f"{self._http.who} can't unload {found.name}: it runs in single mode and has its model for as long as"
                " it runs; stop it, or run it in router mode (`llama-server --models-dir …`)"
            )
        again = self._keeping.stopping(found) is not None
        self._keeping.stop(found)
        try:
            await self._keeping.quiet(found)
            await self._http.call("POST", "/models/unload", {"model": found.id})
        except BaseException as error:
            if not again:
                self._keeping.stay(found)
            if not isinstance(error, Answered) or "not running" not in error.words:
                raise

    async def embed(self, model: ModelName, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32. Sent in batches and tried again as [embedding] says."""
        found = await self._find(model)
        embedder = _Embedder(self._sessions, self.url, found.id, self._embedding, key=self._key or "")
        self._keeping.use(found)
        vectors = await embedder.vectors(texts)
        self._keeping.use(found)
        return vectors

    async def generate(
        self, model: ModelName, prompt: str, *, max_tokens: int = 128, adapters: Sequence[Adapter] | None = None
    ) -> str:
        """At the server's default temperature. Takes as long as the caller waits."""
        found = await self._find(model)
        self._keeping.use(found)
        body: dict[str, Any] = {"model": found.id, "prompt": prompt, "n_predict": max_tokens, "stream": False}
        scales: dict[int, float] | None = None
        if adapters is not None:
            scales = await request_scales(self._http, found, adapters)
            # What a slot keeps of a prompt is found again by its tokens, whatever adapters made it.
            body |= {"lora": [{"id": id, "scale": scale} for id, scale in scales.items()], "cache_prompt": False}
        answer = await self._http.ask("POST", "/completion?autoload=false", _Completion, body, patient=True)
        self._keeping.use(found)
        if scales is not None:
            check_request(self._http, answer.generation_settings.lora, scales)
        return answer.content

    async def _expiry(self, model: Model) -> Timestamp | None:
        """Looks for activity only where it matters: `/slots` counts as use to --sleep-idle-seconds. A
        process that is asked while it ends doesn't end: `unload` waits for what is asked already."""
        if self._keeping.counts(model):
            path = f"/slots?model={quote(model.id, safe='')}&autoload=false"
            try:
                with self._keeping.question(model), anyio.fail_after(SLOTS_S):
                    self._keeping.look(model, await self._http.ask("GET", path, list[Slot]))
            except (TimeoutError, Unavailable, Transient):
                # It answers between two batches, and a long prompt is a long batch.
                self._keeping.use(model)
            except ModelServerError:
                pass  # started with --no-slots: only our own questions count
        return self._keeping.expiry(model)

    # --- loading -----------------------------------------------------------------------------------

    async def _once_started(self, model: ModelName) -> Model:
        """The model, after a single-mode server that still loads its own has done so."""
        pauses = _Pauses()
        while True:
            try:
                return await self._find(model)
            except Transient as busy:
                if "Loading model" not in str(busy):
                    raise
            await pauses.wait()

    async def _run(self, model: Model) -> Model:
        """The model, loaded."""
        pauses = _Pauses()
        while self._keeping.stopping(model):  # it would be taken for a model that runs already
            await pauses.wait()
            model = await self._find(model.id)
        started = model.status == "unloaded"
        try:
            if started:
                await self._start(model)
            pauses = _Pauses()
            while model.status != "loaded":
                model = await self._find(model.id)
                if model.status == "unloaded":
                    raise self._died(model)
                if model.status == "sleeping":  # any task wakes it; this one is the smallest
                    body = {"model": model.id, "content": ""}
                    await self._http.call("POST", "/tokenize?autoload=false", body, patient=True)
                if model.status != "loaded":
                    await pauses.wait()
        except anyio.get_cancelled_exc_class():
            if started:
                with anyio.CancelScope(shield=True), anyio.move_on_after(self._http.timeout_s):
                    await self._give_up(model)
            raise
        return model

    async def _start(self, model: Model) -> None:
        try:
            # It makes room first when --models-max is reached, and waits for that.
            await self._http.call("POST", "/models/load", {"model": model.id}, patient=True)
        except Answered as error:
            if "limit reached" in error.words:
                raise Transient(f"{error} (--models-max, and every model is busy)") from None
            if "already running" not in error.words:
                raise

    async def _give_up(self, model: Model) -> None:
        try:
            await self.unload(model.id)
        except (Unavailable, Transient, ModelServerError):
            return  # the caller hears that it was cancelled; what became of the model, `loaded` tells

    def _died(self, model: Model) -> ModelServerError:
        if model.failed:
            how = f"its process ended with exit code {model.exit_code}; llama-server's log says why"
        else:
            how = "it was unloaded meanwhile"
        return ModelServerError(f"{self._http.who}: {model.name} did not load: {how}")

    # --- what it has -------------------------------------------------------------------------------

    async def _find(self, model: ModelName) -> Model:
        models = await self._models()
        found = find_model(models, model)
        if found is None:
            self._refuse(models, model)
        return found

    def _refuse(self, models: Sequence[Model], model: ModelName) -> NoReturn:
        if any(not other.router for other in models):
            has = ", ".join(other.name for other in models)
            raise LookupError(f"{self._http.who} has no model {model}: it runs in single mode and has {has}")
        raise LookupError(
            f"{self._http.who} has no model {model}: a file added after its start is seen after a restart"
        )

    async def _models(self) -> list[Model]:
        await self._authorize()
        try:
            listing = await self._http.ask("GET", "/models", Listing)
            props = await self._http.ask("GET", "/props", Props) if is_single(listing) else None
        except Answered as error:
            if error.status != 401:
                raise
            self._key = None  # the file may be mended while we run
            raise ModelServerError(f"{error}: models.llamacpp_key_file must name a file that holds its key") from None
        self._seen = models = read_models(listing, props)
        self._sizes |= {model.name: model.size for model in models if model.size}
        self._keeping.seen(models)
        return models

    async def _authorize(self) -> None:
        if self._key is None:
            try:
                self._key = await read_key(self._key_file, "models.llamacpp_key_file")
            except ValueError as error:
                raise ModelServerError(str(error)) from None
            self._http.headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _own(self, model: Model) -> ServerHttp | None:
        """The process that has the model. None: it can't be reached from here."""
        if not model.router:
            return self._http
        if not is_local(self.url):
            return None
        url = f"http://127.0.0.1:{model.port}"
        return ServerHttp("llama.cpp", url, self._sessions, self._http.timeout_s, self._key or "")


class _Pauses:
    """Between looks: short at first, because small models load in no time."""

    def __init__(self) -> None:
        self._next_s, self._longest_s = POLL_S

    async def wait(self) -> None:
        await anyio.sleep(self._next_s)
        self._next_s = min(self._next_s * 1.5, self._longest_s)


def _file_size(file: str) -> Bytes | None:
    """None where the path means nothing here: the server may be in a container."""
    try:
        return sum(Path(part).stat().st_size for part in shards(file))
    except OSError:
        return None
