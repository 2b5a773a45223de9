"""Paths that a gate's work names on this machine: below [gate] allowed_roots, and what lies in a folder too, wherever
its symbolic links lead. Looked up before the work, so that no pipe is opened and nothing from elsewhere is copied."""

from collections.abc import Sequence
from pathlib import Path

from actors.gate.config import SETTING
from actors.gate.keeping import NoGate
from actors.roots import OutsideRoots, real_path

WHERE = "on the machine that does the work"


class Paths:
    """All of these raise NoGate with the path in its reason."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots

    def path(self, path: str) -> Path:
        """One that may not be there yet."""
        try:
            return real_path(path, self._roots, SETTING)
        except OutsideRoots as error:
            raise NoGate(error.reason, error.hint, error.status) from None

    def file(self, path: str) -> Path:
        real = self.path(path)
        if not real.is_file():
            raise NoGate(f"{path}: there is no such file", WHERE, "invalid" if real.exists() else "not_found")
        return real

    def folder(self, path: str) -> Path:
        """One whose files may all be read."""
        real = self.path(path)
        if not real.is_dir():
            raise NoGate(f"{path}: there is no such folder", WHERE, "invalid" if real.exists() else "not_found")
        for entry in sorted(real.iterdir()):
            if entry.is_symlink():
                self.path(str(entry))
            if entry.exists() and not entry.is_file() and not entry.is_dir():
                raise NoGate(f"{entry} is neither a file nor a folder", "take it out of there")
        return real
