"""Which files ingest may read by path: those whose real path lies under an allowed root, and
uploads."""

from collections.abc import Iterable
from pathlib import Path

from actors.ingest.core import BadFile
from actors.roots import OutsideRoots, real_path


def allowed_file(path: str, roots: Iterable[str | Path]) -> Path:
    """The real path of a readable regular file under one of the roots, symbolic links resolved
    on both sides. Raises BadFile; outside the roots it doesn't say whether the file exists."""
    try:
        real = real_path(path, roots, "ingest.allowed_roots")
    except OutsideRoots as error:
        hint = f"{error.hint}, or upload the file" if error.status == "forbidden" and error.hint else error.hint
        raise BadFile(error.reason, hint, error.status) from None
    if not real.exists():
        raise BadFile(f"{path} does not exist", "the path is looked up on the daemon's machine", "not_found")
    if not real.is_file():
        raise BadFile(f"{path} is not a regular file", "name one file, not a folder, pipe or device")
    try:
        real.open("rb").close()
    except PermissionError:
        raise BadFile(f"{path} may not be read by the daemon", "mend its permissions", "forbidden") from None
    return real
