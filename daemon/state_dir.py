"""Where things lie inside the state directory, and the note (`runtime.json`) by which the CLI
finds a running daemon. Who writes or locks these files is decided elsewhere (daemon/service.py).
"""

import os
from pathlib import Path

import msgspec


class Runtime(msgspec.Struct, frozen=True):
    """Written when the daemon is ready, removed when it stops."""

    http_url: str
    nats_url: str
    pid: int
    name: str = ""

    def alive(self) -> bool:
        """Whether the process that wrote it still exists (another user's counts)."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class StateDir(msgspec.Struct, frozen=True):
    path: Path

    @property
    def buckets(self) -> Path:
        return self.path / "buckets"

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    @property
    def ids_key(self) -> Path:
        """The secret of content ids in datasets whose personal data is masked or left out."""
        return self.path / "ids.key"

    @property
    def unsettled(self) -> Path:
        """Marks of messages that a killed process had in hand."""
        return self.path / "unsettled"

    @property
    def admin_token(self) -> Path:
        """Where a generated token lies; one that systemd hands over is used instead."""
        return self.path / "admin.token"

    @property
    def nats_password(self) -> Path:
        return self.path / "nats.password"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def runtime_file(self) -> Path:
        return self.path / "runtime.json"

    def runtime(self) -> Runtime | None:
        """The running daemon's note; None when none runs here. A note that a killed daemon
        left behind counts as none."""
        try:
            note = msgspec.json.decode(self.runtime_file.read_bytes(), type=Runtime)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return note if note.alive() else None

    def write_runtime(self, note: Runtime) -> None:
        """All at once, so that a reader never sees half of it."""
        part = self.runtime_file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(note))
        part.replace(self.runtime_file)
