"""Which files ingest may read by path: those whose real path lies under an allowed root, and
uploads."""

from collections.abc import Iterable
from pathlib import Path

from actors.ingest.core import BadFile


def allowed_file(path: str, roots: Iterable[str | Path]) -> Path:
    """The real path of a readable regular file under one of the roots, symbolic links resolved
    on both sides. Raises BadFile; outside the roots it doesn't say whether the file exists."""
    asked = Path(path).expanduser()
    if not asked.is_absolute() or "\0" in path:
        raise BadFile(f"{path!r} is no absolute path", "give the path from / on", "malformed")
    try:
        real = asked.resolve()
    except (OSError, RuntimeError) as error:
        raise BadFile(f"{path} can't be followed: {error}", status="forbidden") from None
    if not any(real.is_relative_to(Path(root).expanduser().resolve()) for root in roots):
        raise BadFile(
            f"{path} lies outside the folders that may be read",
            "add its folder to ingest.allowed_roots in lakehouse.toml, or upload the file",
            "forbidden",
        )
    if not real.exists():
        raise BadFile(f"{path} does not exist", "the path is looked up on the daemon's machine", "not_found")
    if not real.is_file():
        raise BadFile(f"{path} is not a regular file", "name one file, not a folder, pipe or device")
    try:
        real.open("rb").close()
    except PermissionError:
        raise BadFile(f"{path} may not be read by the daemon", "mend its permissions", "forbidden") from None
    return real
