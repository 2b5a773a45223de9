"""What tests of the slot rely on: the Ollama of the tests does with its GPU what Ollama does."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.model_servers import until
from tests.ollama_scheduler import GIB, Model
from tests.ollama_server import OllamaPlay, ollama

SMALL, LARGE = "small:latest", "large:latest"
MODELS = {SMALL: Model(4 * GIB), LARGE: Model(8 * GIB)}


class Asked:
    """A client without a will of its own."""

    def __init__(self, play: OllamaPlay, session: aiohttp.ClientSession) -> None:
        self.play = play
        self._session = session

    async def generate(self, model: str, **body: Any) -> Any:
        async with self._session.post(f"{self.play.url}/api/generate", json={"model": model, **body}) as answer:
            return await answer.json()

    async def embed(self, model: str, **body: Any) -> Any:
        async with self._session.post(f"{self.play.url}/api/embed", json={"model": model, **body}) as answer:
            return await answer.json()

    async def ps(self) -> dict[str, int]:
        """size_vram of each listed model."""
        async with self._session.get(f"{self.play.url}/api/ps") as answer:
            return {model["name"]: model["size_vram"] for model in (await answer.json())["models"]}


@pytest.fixture
async def asked(request):
    settings = getattr(request, "param", {})
    async with ollama(**{"models": MODELS, "vram": 10 * GIB, **settings}) as play, aiohttp.ClientSession() as session:
        yield Asked(play, session)


async def test_an_idle_model_makes_room_for_another(asked):
    await asked.generate(SMALL)
    await asked.generate(LARGE)
    assert await asked.ps() == {LARGE: 8 * GIB}


@pytest.mark.parametrize("asked", [{"others": 5 * GIB}], indirect=True)
async def test_what_does_not_fit_goes_onto_the_gpu_in_part(asked):
    assert (await asked.generate(LARGE))["done_reason"] == "load"
    assert await asked.ps() == {LARGE: 5 * GIB}


@pytest.mark.parametrize("asked", [{"vram": 0}], indirect=True)
async def test_without_a_gpu_all_of_it_is_on_the_cpu(asked):
    await asked.generate(SMALL)
    await asked.generate(LARGE)  # beside it: main memory has room for both
    assert await asked.ps() == {SMALL: 0, LARGE: 0}


@pytest.mark.parametrize("asked", [{"drain_s": 0.5, "listed_s": 0.0}], indirect=True)
async def test_who_loads_before_the_memory_is_free_gets_a_part(asked):
    """Why the slot waits for memory to settle."""
    await asked.generate(LARGE)
    await asked.generate(LARGE, keep_alive=0)
    await asyncio.sleep(0.05)
    assert await asked.ps() == {}
    await asked.generate(SMALL)
    assert (await asked.ps())[SMALL] < 4 * GIB


async def test_embedding_with_no_keep_alive_loads_first(asked):
    asked.play.change(listed_s=0.3)
    await asked.embed(SMALL, input=[], keep_alive=0)
    assert SMALL in await asked.ps()


async def test_a_stale_list_says_what_was_true(asked):
    await asked.generate(SMALL)
    asked.play.change(stale_ps=True)
    await asked.generate(SMALL, keep_alive=0)
    await asyncio.sleep(0.2)
    assert SMALL in await asked.ps()
    asked.play.change(stale_ps=False)
    assert await asked.ps() == {}


@pytest.mark.parametrize("asked", [{"leaks": {SMALL: GIB}}], indirect=True)
async def test_a_leak_stays_when_the_model_has_gone(asked):
    await asked.generate(SMALL)
    await asked.generate(SMALL, keep_alive="0s")

    async def settled() -> bool:
        return asked.play.scheduler.used == GIB and not await asked.ps()

    await until(settled, "only the leak is left")


async def test_durations_are_those_of_go(asked):
    await asked.generate(SMALL, keep_alive="1h30m")
    (runner,) = asked.play.scheduler.listed.values()
    assert runner.expires_at == pytest.approx(time.time() + 5400, abs=10)
    assert "invalid duration" in (await asked.generate(SMALL, keep_alive="soon"))["error"]


def test_as_a_process_it_tells_its_memory_in_a_file(tmp_path: Path) -> None:
    memory = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.ollama_server", "--vram", "8", "--gpu-file", str(memory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            assert json.loads(memory.read_text()) == {"total": 8 * GIB, "used": 0}
            for path, body in (("/api/generate", {"model": "llama3"}), ("/_play", {"others": GIB})):
                with urllib.request.urlopen(url + path, json.dumps(body).encode(), timeout=10):
                    pass
            assert json.loads(memory.read_text())["used"] == 5_900_000_000 + GIB
        finally:
            process.terminate()
