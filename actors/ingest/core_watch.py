"""Which files of a watched folder are ready to be read. Values in, values out.

A file is ready when its size and modification time stayed as they are for `settle_s`: whoever
writes it has stopped. Programs that write aside and rename lose nothing but that time.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import PurePath

import msgspec

REJECTED = "rejected"
REASON = ".reason"
UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")


class Stamp(msgspec.Struct, frozen=True):
    """Changes when a file does."""

    size: int
    mtime_ns: int
    inode: int


class Sighting(msgspec.Struct, frozen=True):
    stamp: Stamp
    since: float  # monotonic: how long it has been so


def wanted(relative: str, pattern: str) -> bool:
    """Whether a file below the folder is one to ingest: by its path when the pattern has a `/`, else
    by its name. Hidden files, unfinished ones and those that were rejected are not."""
    path = PurePath(relative)
    if any(part.startswith(".") for part in path.parts) or path.parts[0] == REJECTED:
        return False
    if path.name.endswith((*UNFINISHED, REASON)):
        return False
    return fnmatch(relative if "/" in pattern else path.name, pattern)


def watched(before: Mapping[str, Sighting], now: Mapping[str, Stamp], at: float) -> dict[str, Sighting]:
    """The sightings after a look at the folder at the moment `at`."""
    return {
        path: before[path] if path in before and before[path].stamp == stamp else Sighting(stamp, at)
        for path, stamp in now.items()
    }


def ready(sightings: Mapping[str, Sighting], done: Mapping[str, Stamp], at: float, settle_s: float) -> list[str]:
    """Paths to read now, oldest first; `done` are stamps that were dealt with."""
    settled = [path for path, seen in sightings.items() if at - seen.since >= settle_s and done.get(path) != seen.stamp]
    return sorted(settled, key=lambda path: (sightings[path].stamp.mtime_ns, path))
