"""A daemon and a real llama-server for tests of the slot: models and adapters that are written here,
and what the server's processes say themselves, asked without the product."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.house import House, HttpError, house
from tests.llama_models import VARIABLE, LlamaServer, find_llama_server, llama_server, write_tiny_gguf, write_tiny_lora


def binary() -> str:
    found = find_llama_server()
    if found is None:
        pytest.skip(f"no llama-server: `make test-llama` builds it, or name one in {VARIABLE}")
    return found


def router_arguments(folder: Path) -> list[str]:
    """Of a router with models one, two, three, broken (which doesn't load) and tiny, which has the
    adapters style and law."""
    models = folder / "models"
    models.mkdir(parents=True)
    for seed, name in enumerate(("one", "two", "three", "tiny")):
        write_tiny_gguf(models / f"{name}.gguf", seed=seed)
    (models / "broken.gguf").write_bytes(b"GGUF of nothing")
    loras = [write_tiny_lora(folder / f"{name}.gguf", seed=seed) for seed, name in ((8, "style"), (9, "law"))]
    preset = folder / "preset.ini"
    preset.write_text(f"version = 1\n\n[tiny]\nlora = {loras[0]},{loras[1]}\n")
    where = ["--models-dir", str(models), "--models-preset", str(preset)]
    return [*where, "--models-max", "0", "--no-models-autoload", "--embeddings", "--ctx-size", "512"]


def single_arguments(folder: Path) -> list[str]:
    """Of a server that has model alone, with the adapters style and law."""
    model = write_tiny_gguf(folder / "alone.gguf", seed=5)
    loras = [write_tiny_lora(folder / f"{name}.gguf", seed=seed) for seed, name in ((8, "style"), (9, "law"))]
    return ["--model", str(model), "--lora", f"{loras[0]},{loras[1]}", "--embeddings", "--ctx-size", "512"]


class Llamas:
    """The daemon and its llama-server, which may be killed and started again at its address."""

    def __init__(self, folder: Path, arguments: Sequence[str], running: ExitStack) -> None:
        self._folder = folder
        self._arguments = arguments
        self._running = running
        self.server: LlamaServer = running.enter_context(llama_server(binary(), folder / "server", arguments))
        self.daemon: House

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def kill_server(self) -> None:
        self.server.process.kill()
        self.server.process.wait()

    def start_server(self, arguments: Sequence[str] = ()) -> None:
        """After `kill_server`, with other arguments or as before."""
        folder, port = self._folder / "server", self.port
        serving = llama_server(binary(), folder, arguments or self._arguments, port=port)
        self.server = self._running.enter_context(serving)

    # --- what the server says ----------------------------------------------------------------------

    def ask(self, path: str, body: Any = None) -> Any:
        """Of the server itself. Raises HTTPError, OSError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def statuses(self) -> dict[str, str]:
        return {model["id"]: model["status"]["value"] for model in self.ask("/models")["data"]}

    def resident(self) -> set[str]:
        return {name for name, status in self.statuses().items() if status != "unloaded"}

    def process(self, model: str) -> int:
        """The process that has the model, found by the system's own list."""
        (found,) = self._having(model)
        return found

    def next_process(self, model: str, within_s: float = 10.0) -> int:
        """As `process`, as soon as there is one."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := self._having(model):
                return found[0]
        raise AssertionError(f"no process of {model} within {within_s:g} s")

    def scales(self, model: str = "tiny") -> dict[str, float]:
        found = self.ask(f"/lora-adapters?model={model}&autoload=false")
        return {Path(lora["path"]).stem: lora["scale"] for lora in found}

    def completes(self, model: str) -> bool:
        """Whether it answers, without being loaded for that."""
        body = {"model": model, "prompt": "Once", "n_predict": 4}
        try:
            return bool(self.ask("/completion?autoload=false", body)["content"])
        except urllib.error.HTTPError as error:
            if b"not loaded" not in error.read():
                raise
            return False

    # --- the daemon --------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return self.daemon.call(method, path, body)

    def until(self, *arguments: Any) -> None:
        self.daemon.until(*arguments)

    def profile(self, id: str, model: str, **more: Any) -> Any:
        return self.call("POST", "/vectors/profiles", {"id": id, "model": model, "server": "llamacpp"} | more)

    def activate(self, id: str) -> Any:
        return self.call("POST", f"/vectors/profile/{id}/activate")

    def deactivate(self, id: str) -> Any:
        return self.call("POST", f"/vectors/profile/{id}/deactivate")

    def active(self) -> Any:
        """The slot, as a look at the server shows it."""
        return self.call("GET", "/vectors/profile/active")

    def slot(self) -> Any:
        """State and profile of the slot, without a look."""
        return self.call("GET", "/status")["slot"]

    def vram(self) -> dict[str, Any]:
        """llama.cpp's models in the report."""
        (server,) = [each for each in self.call("GET", "/admin/vram")["servers"] if each["server"] == "llamacpp"]
        return {model["model"]: model for model in server["models"]}

    def _having(self, model: str) -> list[int]:
        return [
            pid
            for pid, words in _processes()
            if _option(words, "--alias") == model and str(self._folder) in _option(words, "--model")
        ]


def alive(pid: int) -> bool:
    """A process that has ended, and whose parent hasn't asked for its exit code, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def llama_house(folder: Path, arguments: Sequence[str], **settings: Any) -> Iterator[Llamas]:
    """Everything started."""
    with ExitStack() as running:
        made = Llamas(folder, arguments, running)
        urls = {"models__llamacpp_url": made.server.url, "embedding__openai_url": made.server.url}
        made.daemon = running.enter_context(house(folder, **urls, **settings))
        yield made


def refused(status: int, call: Any, *arguments: Any) -> str:
    """The refusal's reason and hint."""
    with pytest.raises(HttpError) as caught:
        call(*arguments)
    assert caught.value.status == status, caught.value
    return f"{caught.value.body['reason']} | {caught.value.body['hint']}"


def ready(llamas: Llamas, profile: str) -> None:
    slot = llamas.active()
    assert (slot["state"], slot["profile"]) == ("ready", profile), slot


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and os.access(entry / "cmdline", os.R_OK):
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if alive(int(entry.name)):
                yield int(entry.name), words


def _option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words[:-1] else ""
