"""Ollama under the contract of every model server, and what is Ollama's own."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ModelServerError, Transient, Unavailable
from actors.ports import ModelServer
from daemon.embedding.config import EmbeddingConfig
from daemon.models.config import ModelsConfig
from daemon.models.http import SharedSession
from daemon.models.ollama import OllamaServer, expiry
from daemon.models.servers import ModelServers
from schemas.profile import Adapter
from tests.contract.model_servers import ModelServerContract, Setting, listed, until, until_gone
from tests.ollama_scheduler import GIB, Model
from tests.ollama_server import MODELS, OllamaPlay, ollama

INF = float("inf")
SPELLED = "hf.co/bartowski/Qwen3-4B-GGUF:Q4_K_M"


class OllamaSetting(Setting):
    model, embedding, alias = "llama3:latest", "all-minilm", "Library/llama3"

    def __init__(self, play: OllamaPlay, server: ModelServer, running: AsyncExitStack) -> None:
        self.play = play
        self.server = server
        self._running = running

    async def end(self) -> None:
        await self._running.aclose()

    async def busy(self) -> None:
        self.play.change(queue_full=True)


@pytest.fixture
async def setting() -> AsyncIterator[OllamaSetting]:
    async with AsyncExitStack() as running:
        models = {**MODELS, SPELLED: Model(3 * GIB)}
        play = await running.enter_async_context(ollama(models=models))
        config = ModelsConfig(ollama_url=play.url + "/", timeout_s=2.0)
        servers = ModelServers(config, EmbeddingConfig(attempts=2, batch=4))
        yield OllamaSetting(play, servers.servers["ollama"], running)
        await servers.aclose()


class TestOllama(ModelServerContract):
    pass


class TestMemory:
    async def test_what_is_loaded_has_its_sizes_and_its_context(self, setting):
        await setting.server.load("llama3", INF)
        loaded = await listed(setting.server, "llama3")
        assert (loaded.size, loaded.size_vram, loaded.context_length) == (5_900_000_000, 5_900_000_000, 8192)

    async def test_a_model_partly_on_the_cpu_shows_it(self, setting):
        setting.play.change(partial={"llama3:latest": 0.5})
        await setting.server.load("llama3", INF)
        loaded = await listed(setting.server, "llama3")
        assert loaded.size_vram == loaded.size // 2

    async def test_an_unload_is_answered_before_the_memory_is_free(self, setting):
        setting.play.change(drain_s=0.2)
        await setting.server.load("llama3", INF)
        before = setting.play.scheduler.used
        await setting.server.unload("llama3")
        assert setting.play.scheduler.used == before > 0
        await until_gone(setting.server, "llama3")
        assert setting.play.scheduler.used > 0  # it left the list first

        async def free() -> bool:
            return setting.play.scheduler.used == 0

        await until(free, "the memory is free")

    async def test_a_stuck_unload_stays_listed_and_its_time_is_up(self, setting):
        setting.play.change(stuck=["llama3:latest"])
        await setting.server.load("llama3", INF)
        await setting.server.unload("llama3")
        await asyncio.sleep(0.2)
        loaded = await listed(setting.server, "llama3")
        assert loaded.expires_at <= time.time()
        setting.play.change(stuck=[])
        await until_gone(setting.server, "llama3")

    async def test_a_model_that_works_is_unloaded_when_it_is_done(self, setting):
        setting.play.change(generate_s=1.5)
        await setting.server.load("llama3", INF)
        async with asyncio.TaskGroup() as tasks:
            words = tasks.create_task(setting.server.generate("llama3", "hello"))
            await asyncio.sleep(0.1)
            await setting.server.unload("llama3")
            await asyncio.sleep(0.1)
            assert (await listed(setting.server, "llama3")).expires_at <= time.time()
            assert not words.done()
        assert "hello" in words.result()
        await until_gone(setting.server, "llama3")

    async def test_a_model_that_works_past_its_time_is_not_being_stopped(self, setting):
        setting.play.change(generate_s=1.6)
        await setting.server.load("llama3", 1.0)
        await listed(setting.server, "llama3")
        async with asyncio.TaskGroup() as tasks:
            words = tasks.create_task(setting.server.generate("llama3", "hello"))
            await asyncio.sleep(1.2)
            loaded = await listed(setting.server, "llama3")
            assert time.time() < loaded.expires_at < time.time() + 2
            await setting.server.unload("llama3")
            assert (await listed(setting.server, "llama3")).expires_at <= time.time()
        assert "hello" in words.result()
        await until_gone(setting.server, "llama3")

    async def test_a_model_leaves_when_its_keep_alive_has_run_out(self, setting):
        await setting.server.load("llama3", 1.0)
        assert await listed(setting.server, "llama3") is not None
        await until_gone(setting.server, "llama3")

    async def test_a_load_for_no_time_at_all_is_no_unload(self, setting):
        await setting.server.load("llama3", INF)
        await setting.server.load("llama3", 0.0)
        loaded = await listed(setting.server, "llama3")
        assert loaded.expires_at == pytest.approx(time.time() + 1, abs=0.9)

    async def test_a_load_that_is_given_up_leaves_nothing(self, setting):
        setting.play.change(load_s=30.0)
        load = asyncio.create_task(setting.server.load("llama3", INF))

        async def begun() -> bool:
            return await listed(setting.server, "llama3") is not None

        await until(begun, "the load begins")
        load.cancel()
        await asyncio.wait([load])
        await until_gone(setting.server, "llama3")


class TestTime:
    async def test_a_load_takes_longer_than_a_question_may(self, setting):
        async with ollama(load_s=0.5, generate_s=0.5) as play:
            servers = ModelServers(ModelsConfig(ollama_url=play.url, timeout_s=0.2), EmbeddingConfig())
            server = servers.servers["ollama"]
            await server.load("llama3", INF)
            assert "hi" in await server.generate("llama3", "hi")
            await servers.aclose()

    async def test_a_server_that_answers_too_late_is_unavailable(self, setting):
        setting.play.change(slow={"/api/ps": 5.0, "/api/generate": 5.0})
        server = setting.server
        started = time.monotonic()
        for question in (server.loaded(), server.unload("llama3")):
            with pytest.raises(Unavailable, match=f"^Ollama at {server.url}: no answer within 2 s$"):
                await question
        assert time.monotonic() - started < 5

    async def test_a_load_that_nobody_takes_is_unavailable(self):
        """A machine that hangs: its backlog is full, nobody accepts."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(address)
            servers = ModelServers(
                ModelsConfig(ollama_url=f"http://127.0.0.1:{address[1]}", timeout_s=0.3), EmbeddingConfig()
            )
            with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
                await servers.servers["ollama"].load("llama3", INF)
            await servers.aclose()
            for client in waiting:
                client.close()

    async def test_a_refused_connection_is_said_in_a_sentence(self, setting):
        await setting.end()
        with pytest.raises(Unavailable, match=f"^Ollama at {setting.server.url}: connection refused$"):
            await setting.server.loaded()


class TestWords:
    async def test_a_model_that_does_not_load_is_refused_in_the_servers_words(self, setting):
        words = "model requires more system memory (40.1 GiB) than is available (12.3 GiB)"
        setting.play.change(broken={"llama3:latest": words})
        with pytest.raises(ModelServerError) as caught:
            await setting.server.load("llama3", INF)
        assert str(caught.value) == f"Ollama at {setting.server.url}: 500 {words}"

    async def test_a_full_queue_says_so_and_when_to_come_back(self, setting):
        setting.play.change(queue_full=True)
        with pytest.raises(Transient, match="503 server busy") as caught:
            await setting.server.load("all-minilm", INF)
        assert caught.value.delay_s == 1.0

    async def test_a_full_queue_does_not_keep_a_model_in_memory(self, setting):
        await setting.server.load("llama3", INF)
        setting.play.change(queue_full=True)
        await setting.server.unload("llama3")
        await until_gone(setting.server, "llama3")

    async def test_adapters_are_refused_before_anything_is_asked(self, setting):
        with pytest.raises(ModelServerError, match="Modelfile"):
            await setting.server.load("llama3", INF, [Adapter("a.gguf")])
        assert setting.play.calls == []

    async def test_embedding_with_an_unknown_model_is_a_lookup_error(self, setting):
        with pytest.raises(LookupError, match="has no model nope:latest"):
            await setting.server.embed("nope", ["x"])
        with pytest.raises(LookupError, match="has no model nope:latest"):
            await setting.server.generate("nope", "x")

    async def test_a_text_over_the_context_is_never_cut_in_silence(self, setting):
        with pytest.raises(ModelServerError, match=r"context length \(text 5, 1001 characters\)"):
            await setting.server.embed("all-minilm", [*"abcde", "x" * 1001, "f"])

    async def test_a_vector_that_is_nan_is_named_among_the_texts(self, setting):
        with pytest.raises(ModelServerError, match=r"NaN \(text 2, 3 characters\)"):
            await setting.server.embed("all-minilm", ["a", "b", "NaN", "c"])


class TestHttp:
    """Answers that Ollama doesn't give, but whatever else listens at its address does."""

    @asynccontextmanager
    async def answering(self, status: int, body: bytes, **headers: str) -> AsyncIterator[ModelServer]:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, body=body, headers=headers)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        async with TestServer(app) as other:
            servers = ModelServers(ModelsConfig(ollama_url=str(other.make_url(""))), EmbeddingConfig())
            yield servers.servers["ollama"]
            await servers.aclose()

    async def test_a_missing_page_is_no_missing_model(self):
        async with self.answering(404, b"404 page not found") as server:
            for question in (server.load("llama3", INF), server.loaded(), server.unload("llama3")):
                with pytest.raises(ModelServerError, match="404 page not found"):
                    await question

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"models": [{"size": 1}]}', b"\xff"])
    async def test_an_answer_of_another_shape_is_refused(self, body):
        async with self.answering(200, body) as server:
            with pytest.raises(ModelServerError, match="its answer to /api/ps can't be read"):
                await server.loaded()

    async def test_no_models_may_be_null(self):
        async with self.answering(200, b'{"models": null}') as server:
            assert await server.loaded() == []

    async def test_a_busy_proxy_says_when_to_come_back(self):
        async with self.answering(429, b'{"error": "slow down"}', **{"Retry-After": "7"}) as server:
            with pytest.raises(Transient, match="429 slow down") as caught:
                await server.loaded()
        assert caught.value.delay_s == 7.0

    async def test_a_server_that_has_moved_is_not_followed(self):
        async with self.answering(301, b"", Location="https://gpu.example/api/generate") as server:
            with pytest.raises(ModelServerError, match=r"301 moved to https://gpu\.example/api/generate"):
                await server.unload("llama3")

    @pytest.mark.parametrize("url", ["127.0.0.1:11434", "ftp://127.0.0.1", "http://127.0.0.1:port", "localhost", ""])
    async def test_what_is_no_url_is_told(self, url):
        servers = ModelServers(ModelsConfig(ollama_url=url), EmbeddingConfig())
        with pytest.raises(Unavailable, match="http://host:port is meant"):
            await servers.servers["ollama"].loaded()
        await servers.aclose()


class TestEmbeddingModels:
    async def test_one_is_loaded_by_an_embedding_of_nothing(self, setting):
        await setting.server.load("all-minilm", 600)
        assert [path for path, _ in setting.play.calls] == ["/api/generate", "/api/embed"]
        assert setting.play.calls[1][1]["input"] == []
        loaded = await listed(setting.server, "all-minilm")
        assert loaded.expires_at == pytest.approx(time.time() + 600, abs=10)

    async def test_embedding_leaves_the_keep_alive_as_it_is(self, setting):
        await setting.server.load("all-minilm", INF)
        vectors = await setting.server.embed("all-minilm", ["a text"])
        assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-6)
        assert (await listed(setting.server, "all-minilm")).expires_at is None


class TestNames:
    @pytest.mark.parametrize(
        ("name", "canonical"),
        [
            ("llama3", "llama3:latest"),
            ("llama3:8b", "llama3:8b"),
            ("LLaMA3:8B-Q4_K_M", "llama3:8b-q4_k_m"),
            ("library/llama3", "llama3:latest"),
            ("registry.ollama.ai/library/llama3:8b", "llama3:8b"),
            ("https://registry.ollama.ai/library/llama3", "llama3:latest"),
            ("registry.ollama.ai/mario/llama3", "mario/llama3:latest"),
            ("mario/llama3", "mario/llama3:latest"),
            ("hf.co/bartowski/Llama-3.2-1B-GGUF:Q8_0", "hf.co/bartowski/llama-3.2-1b-gguf:q8_0"),
            ("localhost:5000/library/llama3", "localhost:5000/library/llama3:latest"),
        ],
    )
    async def test_every_way_to_write_a_name_is_one(self, name, canonical):
        server = OllamaServer(SharedSession(), ModelsConfig(), EmbeddingConfig())
        assert server.canonical(name) == canonical

    @given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,60}\Z"))
    def test_a_canonical_name_of_anything_is_its_own(self, name):
        server = OllamaServer(SharedSession(), ModelsConfig(), EmbeddingConfig())
        assert server.canonical(server.canonical(name)) == server.canonical(name)

    async def test_a_model_is_asked_for_as_the_server_writes_it(self, setting):
        assert await setting.server.size(SPELLED.lower()) == 3 * GIB
        await setting.server.load(SPELLED.lower(), INF)
        assert setting.play.calls[-1][1]["model"] == SPELLED
        assert await listed(setting.server, SPELLED) is not None

    async def test_sizes_are_those_of_the_files(self, setting):
        assert await setting.server.size("Llama3") == 4_661_224_676


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-06-04T14:38:31.83753-07:00", 1717537111.83753),
        ("2024-06-04T21:38:31.123456789Z", 1717537111.123456),
        ("2024-06-04T21:38:31Z", 1717537111.0),
        ("2318-09-02T01:00:00.5+02:00", None),  # a negative keep_alive: Go's longest duration
        ("9999-12-31T23:59:59Z", None),
        ("12024-06-04T21:38:31Z", None),
        ("0001-01-01T00:00:00Z", None),  # Go's zero: not known yet
        ("", None),
    ],
)
def test_when_a_model_leaves_is_read_as_go_writes_it(text: str, seconds: float | None) -> None:
    assert expiry(text) == seconds
