"""Which paths of the daemon's machine a request may name: those whose real path lies under an allowed root.

What may be done with such a path (read a file, a folder, write one) is the actor's to check.
"""

from collections.abc import Iterable
from pathlib import Path

from schemas.events.base import RefusalStatus


class OutsideRoots(Exception):
    """A path that may not be used; the request is refused with this reason and hint."""

    def __init__(self, reason: str, hint: str, status: RefusalStatus) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.status: RefusalStatus = status


def real_path(path: str, roots: Iterable[str | Path], key: str) -> Path:
    """The real path, symbolic links resolved on both sides. `key` names the setting that lists the roots. Raises
    OutsideRoots; outside the roots it doesn't say whether anything is there."""
    asked = Path(path).expanduser()
    if not asked.is_absolute() or "\0" in path:
        raise OutsideRoots(f"{path!r} is no absolute path", "give the path from / on", "malformed")
    try:
        real = asked.resolve()
    except (OSError, RuntimeError) as error:
        raise OutsideRoots(f"{path} can't be followed: {error}", "", "forbidden") from None
    if not any(real.is_relative_to(Path(root).expanduser().resolve()) for root in roots):
        raise OutsideRoots(
            f"{path} lies outside the folders that may be used",
            f"add its folder to {key} in lakehouse.toml",
            "forbidden",
        )
    return real
