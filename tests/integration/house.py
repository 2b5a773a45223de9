"""A real daemon in a folder of its own, driven as users drive it: a process, HTTP, signals.

What tests of the main road share. The daemon gets free ports, its own state, and is ended by
pid, whatever the test did to it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class HttpError(Exception):
    """An answer that isn't a success, decoded."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class House:
    """One daemon and its state directory. `start` may be called again after a kill."""

    def __init__(self, folder: Path, *, environ: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.environ = {**os.environ, **(environ or {})}
        self.state = folder / "data"
        self.log = folder / "daemon.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        tables: dict[str, dict[str, Any]] = {
            "http": {"port": self.port},
            "ingest": {"allowed_roots": [str(folder)]},
            "log": {"format": "json"},
        }
        for dotted, value in settings.items():
            section, key = dotted.split("__")
            tables.setdefault(section, {})[key] = value
        (folder / "lakehouse.toml").write_text(
            "\n".join(
                f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
                for name, table in tables.items()
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Returns when /ready says so."""
        command = [sys.executable, "-m", "daemon", "run", "--config", str(self.folder / "lakehouse.toml"), *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environ, stdout=log, stderr=subprocess.STDOUT)
        self.until(self._ready, "the daemon is ready", 60)

    def stop(self, within_s: float = 30.0) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Any:
        """The decoded JSON answer. Raises HttpError, ConnectionError."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=data,
            method=method,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise HttpError(error.code, json.loads(error.read())) from None
        except urllib.error.URLError as error:
            raise ConnectionError(str(error)) from error
        if answer.headers.get_content_type() == "application/x-ndjson":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)

    @property
    def token(self) -> str:
        return (self.state / "admin.token").read_text().strip()

    def ingest(self, path: Path, dataset: str, **more: Any) -> Any:
        return self.call("POST", "/ingest/file", {"path": str(path), "dataset": dataset, **more})

    def index_ready(self, index: str, rows: int) -> None:
        """Waits until the index is ready and covers so many rows."""

        def ready() -> bool:
            info = self.call("GET", f"/vectors/indexes/{index}")
            return bool(info["state"] == "ready" and info["rows"] == rows)

        self.until(ready, f"{index} is ready with {rows} rows", 90)

    def until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits for a condition; fails with the daemon's last words."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.last_words()}")
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds:g} s: {what}\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def _ready(self) -> bool:
        try:
            return bool(self.call("GET", "/ready")["ready"])
        except (ConnectionError, FileNotFoundError, HttpError):
            return False


@contextmanager
def house(folder: Path, *, environ: Mapping[str, str] | None = None, **settings: Any) -> Iterator[House]:
    """A started daemon, ended at the end."""
    made = House(folder, environ=environ, **settings)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.terminate()
            try:
                made.process.wait(30)
            except subprocess.TimeoutExpired:
                made.process.kill()
                made.process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
