"""A daemon with a GPU and an Ollama for tests of the slot: the real process, HTTP, NATS; an
Ollama of tests.ollama_server as a process beside it, and an nvidia-smi that tells its memory."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.house import ROOT, House, house

GIB = 1 << 30

SMI = """
import json, sys
memory = json.load(open({state!r}))
mib = {{name: str(memory[name] >> 20) for name in ("total", "used")}}
row = {{"index": "0", "uuid": "GPU-0", "memory.total": mib["total"], "memory.used": mib["used"], "name": "Test GPU",
       "memory.free": str((memory["total"] - memory["used"]) >> 20)}}
query, _, fields = sys.argv[1].partition("=")
if query == "--query-gpu":
    print(", ".join(row[field] for field in fields.split(",")))
"""


class Swaps:
    """The daemon and its model server."""

    def __init__(self, daemon: House, url: str) -> None:
        self.daemon = daemon
        self.url = url
        self.call = daemon.call
        self.until = daemon.until

    def play(self, **settings: Any) -> None:
        """How Ollama behaves from now on; see tests.ollama_scheduler.Play."""
        self._ollama("/_play", settings)

    def resident(self) -> set[str]:
        """What Ollama has in memory, as it says itself."""
        return {model["model"] for model in self._ollama("/api/ps")["models"] or []}

    def profile(self, id: str, model: str, **more: Any) -> Any:
        return self.call("POST", "/vectors/profiles", {"id": id, "model": model, **more})

    def activate(self, id: str, query: str = "") -> Any:
        return self.call("POST", f"/vectors/profile/{id}/activate{query}")

    def active(self) -> Any:
        return self.call("GET", "/vectors/profile/active")

    def _ollama(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@contextmanager
def swap_house(folder: Path, *, vram: float = 12, play: Any = None, **settings: Any) -> Iterator[Swaps]:
    """Everything started; a GPU of `vram` GiB, 0 for a machine without one."""
    folder.mkdir(parents=True, exist_ok=True)
    programs, memory = folder / "bin", folder / "gpu.json"
    command = [sys.executable, "-m", "tests.ollama_server", "--vram", str(vram), "--play", json.dumps(play or {})]
    environ, source = {}, "nvidia-smi" if vram else "none"  # whatever this machine has
    if vram:
        programs.mkdir()
        smi = programs / "nvidia-smi"
        smi.write_text(f"#!{sys.executable} -SE\n{SMI.format(state=str(memory))}")
        smi.chmod(0o755)
        environ["PATH"] = f"{programs}:/usr/bin:/bin"
        command += ["--gpu-file", str(memory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as ollama:
        try:
            assert ollama.stdout is not None
            url = ollama.stdout.readline().split()[-1]
            with house(folder, environ=environ, models__ollama_url=url, slot__gpus=source, **settings) as daemon:
                yield Swaps(daemon, url)
        finally:
            ollama.terminate()
