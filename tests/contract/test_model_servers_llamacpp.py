"""llama.cpp's server under the contract of every model server, and what is its own, in router and in
single mode: on the tests' own server always, and on the real binary where there is one
(LAKEHOUSE_LLAMA_SERVER or `llama-server` on PATH; `make test-llama` builds it)."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import ModelServerError, Transient, Unavailable
from daemon.embedding.config import EmbeddingConfig
from daemon.models.config import ModelsConfig
from daemon.models.http import SharedSession
from daemon.models.llamacpp import LlamaCppServer
from schemas.profile import Adapter
from tests.contract.model_servers import ModelServerContract, Setting, listed, until, until_gone
from tests.llama_models import CONTEXT, VARIABLE, find_llama_server, llama_server, write_tiny_gguf, write_tiny_lora
from tests.llama_process import LlamaModel, Lora
from tests.llama_server import LlamaServer, llama_router, llama_single

INF = float("inf")
KEY = "s3cret"


def binary() -> str:
    found = find_llama_server()
    if found is None:
        pytest.skip(f"no llama-server: `make test-llama` builds it, or name one in {VARIABLE}")
    return found


class LlamaSetting(Setting):
    """Models tiny (alias mini, adapters style and law), other, broken (doesn't load)."""

    model, embedding, alias = "tiny", "other", "tiny.gguf"

    def __init__(
        self, url: str, running: AsyncExitStack, process: AsyncExitStack | None = None, key_file: str = ""
    ) -> None:
        """The session ends with `running`, the server with `process`."""
        self._process = process or running
        self._session = SharedSession()
        running.push_async_callback(self._session.aclose)
        self.server: LlamaCppServer = self.another(url, key_file)

    def another(self, url: str, key_file: str = "", now: Callable[[], float] = time.time) -> LlamaCppServer:
        config = ModelsConfig(llamacpp_url=url + "/", llamacpp_key_file=key_file, timeout_s=5.0)
        return LlamaCppServer(self._session, config, EmbeddingConfig(attempts=2, batch=4), now)

    async def end(self) -> None:
        await self._process.aclose()

    async def busy(self) -> None:
        raise NotImplementedError


class PlaySetting(LlamaSetting):
    def __init__(self, play: LlamaServer, running: AsyncExitStack, process: AsyncExitStack) -> None:
        self.play = play
        super().__init__(play.url, running, process)

    async def busy(self) -> None:
        self.play.busy = True


def play_models() -> dict[str, LlamaModel]:
    loras = [Lora("/loras/style.gguf"), Lora("/loras/law.gguf")]
    return {
        "tiny": LlamaModel(aliases=["mini"], loras=loras),
        "other": LlamaModel(),
        "broken": LlamaModel(fails=1),
    }


def write_models(path: Path) -> list[str]:
    """The models' folder and their preset, as a router's arguments."""
    folder = path / "models"
    folder.mkdir()
    write_tiny_gguf(folder / "tiny.gguf", seed=1)
    write_tiny_gguf(folder / "other.gguf", seed=2)
    (folder / "broken.gguf").write_bytes(b"GGUF of nothing")
    loras = [write_tiny_lora(path / "style.gguf", seed=3), write_tiny_lora(path / "law.gguf", seed=4)]
    preset = path / "preset.ini"
    preset.write_text(f"version = 1\n\n[tiny]\nlora = {loras[0]},{loras[1]}\nalias = mini\n")
    return ["--models-dir", str(folder), "--models-preset", str(preset), "--embeddings", "--ctx-size", "512"]


async def lora_scales(setting: LlamaSetting) -> list[float]:
    """As the server tells them, asked without the product."""
    session = setting._session()
    async with session.get(f"{setting.server.url}/lora-adapters?model=tiny&autoload=false") as answer:
        assert answer.status == 200
        return [lora["scale"] for lora in await answer.json()]


async def post(setting: LlamaSetting, path: str, body: Any) -> int:
    """A question by somebody else."""
    async with setting._session().post(setting.server.url + path, json=body) as answer:
        await answer.read()
        return answer.status


# --- router mode ---------------------------------------------------------------------------------


class Router(ModelServerContract):
    async def test_sizes_are_the_servers_own_and_gpu_memory_is_not_told(self, setting):
        await setting.server.load("tiny", INF)
        loaded = await listed(setting.server, "tiny")
        assert loaded.size == await setting.server.size("tiny") == 461_568
        assert (loaded.size_vram, loaded.fixed) == (None, False)
        assert loaded.context_length == CONTEXT
        await setting.server.unload("tiny")
        await until_gone(setting.server, "tiny")
        assert await setting.server.size("tiny") == 461_568  # remembered

    async def test_aliases_and_files_are_names_of_the_model(self, setting):
        for name in ("mini", "tiny.gguf", "/elsewhere/tiny.gguf"):
            await setting.server.load(name, INF)
            assert [loaded.model for loaded in await setting.server.loaded()] == ["tiny"]
            assert setting.server.canonical(name) == "tiny"

    async def test_a_model_that_does_not_load_says_how_its_process_ended(self, setting):
        with pytest.raises(ModelServerError, match=r"broken did not load: .*exit code 1.*log"):
            await setting.server.load("broken", INF)
        assert await setting.server.loaded() == []
        with pytest.raises(ModelServerError, match="broken did not load"):  # and again
            await setting.server.load("broken", INF)

    async def test_asking_never_loads_a_model(self, setting):
        with pytest.raises(ModelServerError, match="400 model is not loaded"):
            await setting.server.embed("other", ["x"])
        with pytest.raises(ModelServerError, match="400 model is not loaded"):
            await setting.server.generate("other", "x")
        assert await setting.server.loaded() == []

    async def test_asking_an_unknown_model_is_a_lookup_error(self, setting):
        with pytest.raises(LookupError, match="has no model nope"):
            await setting.server.embed("nope", ["x"])
        with pytest.raises(LookupError, match="has no model nope"):
            await setting.server.generate("nope", "x")
        await setting.server.unload("nope")  # what it doesn't have can't be in memory

    async def test_a_load_right_after_an_unload_is_a_load(self, setting):
        for _ in range(3):
            await setting.server.load("tiny", INF)
            await setting.server.unload("tiny")
        await setting.server.load("tiny", INF)
        await asyncio.sleep(0.1)
        assert (await listed(setting.server, "tiny")).expires_at is None

    async def test_a_model_leaves_at_once_while_others_look_at_it(self, setting):
        """A process that is asked for its slots while it ends doesn't end: its router kills it after 10 s."""
        seen = 0

        async def look():
            nonlocal seen
            while True:
                seen += len(await setting.server.loaded())

        async with asyncio.TaskGroup() as group:
            looking = [group.create_task(look()) for _ in range(3)]
            try:
                for _ in range(5):
                    await setting.server.load("tiny", 300)
                    await asyncio.sleep(0.05)
                    began = time.monotonic()
                    await setting.server.unload("tiny")
                    await until_gone(setting.server, "tiny")
                    assert time.monotonic() - began < 5
            finally:
                for task in looking:
                    task.cancel()
        assert seen

    async def test_two_loads_at_once_are_one(self, setting):
        await asyncio.gather(*(setting.server.load("tiny", INF) for _ in range(4)))
        assert len(await setting.server.loaded()) == 1

    async def test_two_models_are_loaded_side_by_side(self, setting):
        await asyncio.gather(setting.server.load("tiny", INF), setting.server.load("other", INF))
        assert sorted(loaded.model for loaded in await setting.server.loaded()) == ["other", "tiny"]

    async def test_scales_go_with_a_request_and_change_nothing_else(self, setting):
        await setting.server.load("tiny", INF, [Adapter("style", 0.5)])
        for adapters in ([Adapter("law", 0.25)], [Adapter("style", 1.5), Adapter("law")], []):
            assert await setting.server.generate("tiny", "once", max_tokens=3, adapters=adapters)
        with pytest.raises(LookupError, match="no adapter poem"):
            await setting.server.generate("tiny", "once", max_tokens=3, adapters=[Adapter("poem")])
        assert await lora_scales(setting) == [0.5, 0.0]

    async def test_adapters_get_their_scales_and_the_others_none(self, setting):
        await setting.server.load("tiny", INF, [Adapter("style", 0.5)])
        assert await lora_scales(setting) == [0.5, 0.0]
        styled = await setting.server.embed("tiny", ["a text"])
        await setting.server.load("tiny", INF, [Adapter("law.gguf", 0.3)])
        assert await lora_scales(setting) == pytest.approx([0.0, 0.3])
        assert not np.allclose(styled, await setting.server.embed("tiny", ["a text"]), atol=1e-3)
        await setting.server.load("tiny", INF)
        assert await lora_scales(setting) == [0.0, 0.0]  # the server's own default is 1

    async def test_an_unknown_adapter_is_refused_before_the_model_is_loaded(self, setting):
        with pytest.raises(LookupError, match="no adapter poem; the server was started with style, law"):
            await setting.server.load("tiny", INF, [Adapter("style"), Adapter("poem")])
        with pytest.raises(LookupError, match="started with none"):
            await setting.server.load("other", INF, [Adapter("style")])
        assert await setting.server.loaded() == []

    async def test_a_text_that_is_too_long_is_named_among_the_texts(self, setting):
        await setting.server.load("other", INF)
        with pytest.raises(ModelServerError, match=r"too large to process.*\(text 5, 3000 characters\)"):
            await setting.server.embed("other", [*"abcde", "x" * 3000, "f"])

    async def test_activity_moves_the_time_at_which_a_model_leaves(self, setting):
        now = 1000.0
        server = setting.another(setting.server.url, now=lambda: now)

        async def leaves_at() -> float | None:
            loaded = await listed(server, "tiny")
            return loaded.expires_at if loaded else None

        await server.load("tiny", 300)
        assert await leaves_at() == 1300
        now = 1100.0
        assert await leaves_at() == 1300  # a look is no use
        await server.generate("tiny", "x", max_tokens=1)
        assert await leaves_at() == 1400
        now = 1200.0
        assert await post(setting, "/completion", {"model": "tiny", "prompt": "y", "n_predict": 1}) == 200
        assert await leaves_at() == 1500  # somebody else's use
        now = 1250.0
        assert await leaves_at() == 1500
        await server.load("tiny", INF)
        assert await leaves_at() is None

    async def test_a_keep_alive_ends_with_its_process(self, setting):
        await setting.server.load("tiny", 300)
        assert await post(setting, "/models/unload", {"model": "tiny"}) == 200

        async def ended() -> bool:
            async with setting._session().get(f"{setting.server.url}/models") as answer:
                listing = (await answer.json())["data"]
            return [model["status"]["value"] for model in listing if model["id"] == "tiny"] == ["unloaded"]

        await until(ended, "the process that somebody else told to end")  # asked for its slots, it wouldn't
        assert await setting.server.loaded() == []
        assert await post(setting, "/models/load", {"model": "tiny"}) == 200

        async def back() -> bool:
            return await listed(setting.server, "tiny") is not None

        await until(back, "somebody else's load")
        assert (await listed(setting.server, "tiny")).expires_at is None


class TestPlayRouter(Router):
    @pytest.fixture
    async def setting(self) -> AsyncIterator[PlaySetting]:
        async with AsyncExitStack() as running:
            process = await running.enter_async_context(AsyncExitStack())
            play = await process.enter_async_context(llama_router(play_models()))
            yield PlaySetting(play, running, process)

    async def test_an_unload_is_listed_and_its_time_is_up_until_the_process_has_ended(self, setting):
        setting.play.models["tiny"].stop_s = 0.3
        await setting.server.load("tiny", INF)
        await setting.server.unload("tiny")
        loaded = await listed(setting.server, "tiny")
        assert loaded.expires_at <= time.time()
        await setting.server.unload("tiny")  # again: nothing more
        await until_gone(setting.server, "tiny")

    async def test_a_load_waits_for_the_process_that_stops(self, setting):
        setting.play.models["tiny"].stop_s = 0.2
        await setting.server.load("tiny", INF)
        await setting.server.unload("tiny")
        first = setting.play.models["tiny"].port
        await setting.server.load("tiny", INF)
        assert setting.play.models["tiny"].port != first
        assert setting.play.models["tiny"].status == "loaded"

    async def test_a_load_that_is_given_up_is_ended(self, setting):
        setting.play.models["tiny"].load_s = 60
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await setting.server.load("tiny", INF)

        async def ended() -> bool:
            return setting.play.models["tiny"].status == "unloaded"

        await until(ended, "the process ends")

    async def test_somebody_elses_load_is_waited_for_and_not_ended(self, setting):
        setting.play.models["tiny"].load_s = 0.3
        assert await post(setting, "/models/load", {"model": "tiny"}) == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await setting.server.load("tiny", INF)
        assert await setting.server.loaded() == []  # it isn't in memory as a whole
        await setting.server.load("tiny", INF)
        assert setting.play.models["tiny"].status == "loaded"

    async def test_a_load_that_is_undone_by_somebody_else_fails(self, setting):
        setting.play.models["tiny"].load_s = 60
        load = asyncio.create_task(setting.server.load("tiny", INF))

        async def begun() -> bool:
            return setting.play.models["tiny"].status == "loading"

        await until(begun, "the load begins")
        assert await post(setting, "/models/unload", {"model": "tiny"}) == 200
        with pytest.raises(ModelServerError, match="tiny did not load"):
            await load

    async def test_a_full_router_is_transient(self, setting):
        setting.play.models_max = 1
        setting.play.models["other"].load_s = 60
        assert await post(setting, "/models/load", {"model": "other"}) == 200
        with pytest.raises(Transient, match=r"model limit reached.*--models-max"):
            await setting.server.load("tiny", INF)

    async def test_a_full_router_makes_room_itself(self, setting):
        setting.play.models_max = 1
        await setting.server.load("tiny", INF)
        await setting.server.load("other", INF)
        assert [loaded.model for loaded in await setting.server.loaded()] == ["other"]

    async def test_a_model_that_loads_takes_no_questions_yet(self, setting):
        setting.play.models["other"].load_s = 60
        assert await post(setting, "/models/load", {"model": "other"}) == 200
        with pytest.raises(Transient, match="503 Loading model"):
            await setting.server.embed("other", ["x"])

    async def test_a_sleeping_model_is_not_in_memory_and_a_load_wakes_it(self, setting):
        await setting.server.load("tiny", INF)
        setting.play.sleep("tiny")
        assert await setting.server.loaded() == []
        await setting.server.load("tiny", INF)
        assert [loaded.model for loaded in await setting.server.loaded()] == ["tiny"]

    async def test_slots_are_only_looked_at_where_it_matters(self, setting):
        await setting.server.load("tiny", INF)
        await setting.server.loaded()
        assert "GET /slots" not in setting.play.calls  # it would keep the server from its sleep
        setting.play.slots_endpoint = False
        await setting.server.load("tiny", 100)
        assert (await listed(setting.server, "tiny")).expires_at == pytest.approx(time.time() + 100, abs=10)

    async def test_a_model_that_works_stays(self, setting):
        now = 1000.0
        server = setting.another(setting.server.url, now=lambda: now)
        await server.load("tiny", 10)
        setting.play.models["tiny"].task_s = 60
        work = asyncio.create_task(server.generate("tiny", "a long story"))
        await asyncio.sleep(0.1)
        now = 5000.0
        assert (await listed(server, "tiny")).expires_at == 5010
        setting.play.models["tiny"].slots_s = 60  # a long prompt
        now = 6000.0
        assert (await listed(server, "tiny")).expires_at == 6010
        work.cancel()

    async def test_scales_that_do_not_stick_are_an_error(self, setting):
        setting.play.forget_loras = True
        with pytest.raises(ModelServerError, match=r"adapter scales \{0: 1.0, 1: 1.0\} after they were set"):
            await setting.server.load("tiny", INF, [Adapter("style", 0.5)])

    async def test_every_adapter_s_scale_is_sent_and_an_answer_with_others_is_an_error(self, setting):
        tiny = setting.play.models["tiny"]
        await setting.server.load("tiny", INF)
        for adapters, scales, word in (
            ([Adapter("law", 0.25)], [0.0, 0.25], "law0"),
            ([Adapter("style", 1.5)], [1.5, 0.0], "style0"),
            ([], [0.0, 0.0], "word0"),
        ):
            assert await setting.server.generate("tiny", "x", max_tokens=1, adapters=adapters) == word
            assert tiny.asked == scales
        await setting.server.load("tiny", INF, [Adapter("style")])
        assert await setting.server.generate("tiny", "x", max_tokens=1) == "style0"  # as they are set
        setting.play.forget_loras = True
        with pytest.raises(ModelServerError, match=r"answered with adapter scales \{\}, and \{0: 0.0, 1: 2.0\} were"):
            await setting.server.generate("tiny", "x", adapters=[Adapter("law", 2.0)])

    async def test_a_server_that_knows_of_no_scales_with_a_request_is_an_error(self, setting):
        await setting.server.load("tiny", INF)
        setting.play.old = True
        with pytest.raises(ModelServerError, match=r"scales \{\}, and \{0: 0.0, 1: 2.0\} were .* before January 2025"):
            await setting.server.generate("tiny", "x", adapters=[Adapter("law", 2.0)])
        assert await setting.server.generate("tiny", "x", max_tokens=1)

    async def test_adapters_of_one_name_are_told_apart_by_their_path(self, setting):
        setting.play.models["tiny"].loras = [Lora("/a/style.gguf"), Lora("/b/style.gguf")]
        with pytest.raises(LookupError, match=r"more than once: /a/style.gguf, /b/style.gguf"):
            await setting.server.load("tiny", INF, [Adapter("style")])
        await setting.server.load("tiny", INF, [Adapter("/b/style.gguf", 2.0)])
        assert await lora_scales(setting) == [0.0, 2.0]


class TestRealRouter(Router):
    # It has no word for busy but that of a full router, which is tested on the play.
    test_a_busy_server_is_transient_and_named = None  # type: ignore[assignment]

    @pytest.fixture
    async def setting(self, tmp_path: Path) -> AsyncIterator[LlamaSetting]:
        async with AsyncExitStack() as running:
            arguments = [*write_models(tmp_path), "--models-max", "0"]
            process = await running.enter_async_context(AsyncExitStack())
            server = process.enter_context(llama_server(binary(), tmp_path / "server", arguments))
            yield LlamaSetting(server.url, running, process)

    async def test_the_size_of_a_file_stands_for_the_model_until_it_is_loaded(self, setting, tmp_path):
        on_disk = (tmp_path / "models/tiny.gguf").stat().st_size
        assert await setting.server.size("tiny") == on_disk
        await setting.server.load("tiny", INF)
        assert 0.9 * on_disk < await setting.server.size("tiny") <= on_disk

    async def test_an_unloaded_models_process_has_ended(self, setting, tmp_path):
        def processes() -> int:
            count = 0
            for directory in Path("/proc").glob("[0-9]*"):
                try:
                    words = (directory / "cmdline").read_bytes()
                except OSError:
                    continue
                count += str(tmp_path / "models/tiny.gguf").encode() in words.split(b"\0")
            return count

        await setting.server.load("tiny", INF)
        assert processes() == 1
        await setting.server.unload("tiny")
        await until_gone(setting.server, "tiny")
        assert processes() == 0

    async def test_a_full_router_makes_room_and_what_sleeps_is_woken(self, tmp_path):
        arguments = [*write_models(tmp_path), "--models-max", "1", "--sleep-idle-seconds", "1"]
        async with AsyncExitStack() as running:
            process = running.enter_context(llama_server(binary(), tmp_path / "server", arguments))
            server = LlamaSetting(process.url, running).server
            await server.load("tiny", INF)
            await server.load("other", INF)
            assert [loaded.model for loaded in await server.loaded()] == ["other"]
            await until_gone(server, "other")  # it falls asleep
            await server.load("other", INF)
            assert [loaded.model for loaded in await server.loaded()] == ["other"]


# --- single mode ---------------------------------------------------------------------------------


class Single:
    """Its model is `tiny`, with the adapters style and law."""

    async def test_its_model_is_loaded_always(self, setting):
        (loaded,) = await setting.server.loaded()
        assert (loaded.server, loaded.model, loaded.size) == ("llamacpp", "tiny", 461_568)
        assert (loaded.size_vram, loaded.expires_at, loaded.context_length) == (None, None, CONTEXT)
        assert await setting.server.size("tiny") == 461_568

    async def test_a_load_of_its_model_changes_nothing(self, setting):
        for name in ("tiny", "tiny.gguf", "/elsewhere/tiny.gguf"):
            await setting.server.load(name, 60)
            assert setting.server.canonical(name) == "tiny"
        (loaded,) = await setting.server.loaded()
        assert loaded.expires_at is None  # it can't leave

    async def test_another_model_is_a_lookup_error_that_says_which_it_has(self, setting):
        for question in (
            setting.server.load("other", INF),
            setting.server.size("other"),
            setting.server.embed("other", ["x"]),
            setting.server.generate("other", "x"),
        ):
            with pytest.raises(LookupError, match="no model other: it runs in single mode and has tiny"):
                await question

    async def test_it_can_not_unload_and_says_what_can(self, setting):
        with pytest.raises(ModelServerError, match=r"can't unload tiny.*llama-server --models-dir"):
            await setting.server.unload("tiny")
        await setting.server.unload("other")  # isn't loaded
        (loaded,) = await setting.server.loaded()
        assert loaded.fixed, "so that nobody waits for it to leave"

    async def test_it_embeds_and_generates(self, setting):
        vectors = await setting.server.embed("tiny", ["one", "two", "three", "four", "five"])
        assert vectors.shape[0] == 5
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        short = await setting.server.generate("tiny", "once", max_tokens=2)
        assert 0 < len(short) < len(await setting.server.generate("tiny", "once", max_tokens=40))

    async def test_scales_go_with_a_request_and_change_nothing_else(self, setting):
        await setting.server.load("tiny", INF, [Adapter("style", 0.5)])
        for adapters in ([Adapter("law", 0.25)], [Adapter("style", 1.5), Adapter("law")], []):
            assert await setting.server.generate("tiny", "once", max_tokens=3, adapters=adapters)
        with pytest.raises(LookupError, match="no adapter poem"):
            await setting.server.generate("tiny", "once", max_tokens=3, adapters=[Adapter("poem")])
        assert await lora_scales(setting) == [0.5, 0.0]

    async def test_adapters_get_their_scales_and_the_others_none(self, setting):
        await setting.server.load("tiny", INF, [Adapter("law", 0.25)])
        assert await lora_scales(setting) == [0.0, 0.25]
        await setting.server.load("tiny", INF)
        assert await lora_scales(setting) == [0.0, 0.0]
        with pytest.raises(LookupError, match="no adapter poem"):
            await setting.server.load("tiny", INF, [Adapter("poem")])

    async def test_a_server_that_is_away_is_unavailable(self, setting):
        await setting.end()
        with pytest.raises(Unavailable, match=f"^llama.cpp at {setting.server.url}: connection refused$"):
            await setting.server.loaded()


class TestPlaySingle(Single):
    @pytest.fixture(params=["tiny", "/models/tiny.gguf"])
    async def setting(self, request) -> AsyncIterator[PlaySetting]:
        async with AsyncExitStack() as running:
            model = LlamaModel(file="/models/tiny.gguf", loras=[Lora("/loras/style.gguf"), Lora("/loras/law.gguf")])
            process = await running.enter_async_context(AsyncExitStack())
            play = await process.enter_async_context(llama_single(request.param, model))
            yield PlaySetting(play, running, process)

    async def test_a_load_waits_until_the_server_is_up(self, setting):
        setting.play.ready = False
        with pytest.raises(Transient, match="503 Loading model"):
            await setting.server.loaded()
        load = asyncio.create_task(setting.server.load("tiny", INF))
        await asyncio.sleep(0.1)
        assert not load.done()
        setting.play.ready = True
        await load

    async def test_a_load_does_not_wait_for_a_busy_server(self, setting):
        setting.play.busy = True
        with pytest.raises(Transient, match="no slot available"):
            await setting.server.load("tiny", INF)

    async def test_a_sleeping_model_is_not_in_memory_and_a_load_wakes_it(self, setting):
        setting.play.sleep(next(iter(setting.play.models)))
        assert await setting.server.loaded() == []
        await setting.server.unload("tiny")
        await setting.server.load("tiny", INF)
        assert [loaded.model for loaded in await setting.server.loaded()] == ["tiny"]

    async def test_a_server_without_embeddings_says_so(self, setting):
        setting.play.embeddings = False
        with pytest.raises(ModelServerError, match=r"501 .*--embeddings"):
            await setting.server.embed("tiny", ["x"])


def single_arguments(path: Path) -> list[str]:
    model = write_tiny_gguf(path / "tiny.gguf", seed=1)
    loras = [write_tiny_lora(path / "style.gguf", seed=3), write_tiny_lora(path / "law.gguf", seed=4)]
    adapters = f"{loras[0]},{loras[1]}"
    return ["--model", str(model), "--lora", adapters, "--embeddings", "--ctx-size", "512"]


class TestRealSingle(Single):
    @pytest.fixture
    async def setting(self, tmp_path: Path) -> AsyncIterator[LlamaSetting]:
        async with AsyncExitStack() as running:
            process = await running.enter_async_context(AsyncExitStack())
            server = process.enter_context(llama_server(binary(), tmp_path, single_arguments(tmp_path)))
            yield LlamaSetting(server.url, running, process)

    async def test_a_sleeping_model_is_not_in_memory_and_a_load_wakes_it(self, tmp_path):
        arguments = [*single_arguments(tmp_path), "--sleep-idle-seconds", "1"]
        async with AsyncExitStack() as running:
            process = running.enter_context(llama_server(binary(), tmp_path, arguments))
            server = LlamaSetting(process.url, running).server

            async def asleep() -> bool:
                return await server.loaded() == []

            await until(asleep, "it falls asleep")
            await server.load("tiny", INF)
            assert [loaded.model for loaded in await server.loaded()] == ["tiny"]

    async def test_a_load_before_the_server_is_up_waits_for_it(self, tmp_path):
        """While it starts it refuses connections first and answers 503 then."""
        async with AsyncExitStack() as running:
            process = running.enter_context(llama_server(binary(), tmp_path, single_arguments(tmp_path), wait_s=0))
            server = LlamaSetting(process.url, running).server

            async def up() -> bool:
                try:
                    await server.load("tiny", INF)
                except Unavailable:
                    return False
                return True

            await until(up, "the server listens")
            assert len(await server.loaded()) == 1


# --- keys ----------------------------------------------------------------------------------------


class Keys:
    @abstractmethod
    def served(self, running: AsyncExitStack, path: Path) -> Awaitable[str]:
        """The URL of a router whose key is KEY."""

    async def test_its_key_is_sent_with_every_question(self, tmp_path):
        async with AsyncExitStack() as running:
            url = await self.served(running, tmp_path)
            key_file = tmp_path / "key"
            key_file.write_text(KEY + "\n")
            server = LlamaSetting(url, running, key_file=str(key_file)).server
            await server.load("tiny", 60, [Adapter("style", 0.5)])
            assert len(await server.loaded()) == 1
            assert (await server.embed("tiny", ["x"])).shape[0] == 1
            assert await server.generate("tiny", "x", max_tokens=4)
            await server.unload("tiny")
            await until_gone(server, "tiny")

    async def test_a_wrong_key_is_said_and_can_be_mended_in_its_file(self, tmp_path):
        async with AsyncExitStack() as running:
            url = await self.served(running, tmp_path)
            key_file = tmp_path / "key"
            server = LlamaSetting(url, running, key_file=str(key_file)).server
            with pytest.raises(ModelServerError, match=r"models.llamacpp_key_file: .*No such file"):
                await server.loaded()
            key_file.write_text("wrong")
            with pytest.raises(ModelServerError, match=r"401 Invalid API Key: models.llamacpp_key_file must"):
                await server.loaded()
            key_file.write_text(KEY)
            assert await server.loaded() == []


class TestPlayKeys(Keys):
    async def served(self, running: AsyncExitStack, path: Path) -> str:
        return (await running.enter_async_context(llama_router(play_models(), key=KEY))).url


class TestRealKeys(Keys):
    async def served(self, running: AsyncExitStack, path: Path) -> str:
        arguments = [*write_models(path), "--api-key", KEY]
        return running.enter_context(llama_server(binary(), path / "server", arguments)).url
