"""The room left where the state lies: what counts as full, who is told, and what mends NATS after.

A JetStream stream that once met a full disk stores nothing more, also with room again, until its
server is restarted; it goes on answering everything but publishes. So the embedded one is restarted
as soon as there is room. What a full disk does to buckets is daemon/storage's.
"""

import os
from pathlib import Path
from typing import Protocol

import structlog

from actors.ports import Clock

log = structlog.get_logger("lakehouse.disk")

FLOOR = (4 << 20, 64 << 20)  # bytes
"""Less than 1 % of the file system left is full, but never less than the first (a few of the
largest messages) nor more than the second (of a large disk, 1 % is plenty)."""
FLOOR_INODES = 64
CHECK_S = 1.0
SETTLE_S = 3.0
"""Room counts once it lasted so long: a disk that flutters about the floor is one full disk."""
RESTART_S = 10.0
"""Between two restarts of NATS."""


class Disk:
    """The file system under a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()

    def full(self) -> str | None:
        """A sentence when it is full or nearly so. One system call."""
        try:
            found = os.statvfs(self._directory)
        except OSError:  # gone or unmounted: whoever needs it says so
            return None
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        inodes = found.f_favail if found.f_files else FLOOR_INODES  # some file systems don't count them
        if free >= min(max(total // 100, FLOOR[0]), FLOOR[1]) and inodes >= FLOOR_INODES:
            return None
        return f"the disk of {self._directory} is full: free some space"


class Store(Protocol):
    """What may have stopped writing on a full disk (daemon/bus/server.py)."""

    def met_full_disk(self) -> bool: ...
    async def restart(self) -> None: ...


async def watch(disk: Disk, clock: Clock, store: Store | None = None) -> None:
    """Until cancelled: log when the disk becomes full and when it no longer is, and restart a
    store that stopped writing, as soon as it can write."""
    full, last_full, restarted = False, -SETTLE_S, -RESTART_S
    while True:
        now, sentence = clock.monotonic(), disk.full()
        if sentence is not None:
            if not full:
                log.error("disk full", reason=sentence)
            full, last_full = True, now
        elif now - last_full >= SETTLE_S:
            if full:
                log.info("the disk has room again")
            full = False
            if store is not None and now - restarted >= RESTART_S and store.met_full_disk():
                restarted = now
                log.warning("NATS met a full disk and stores nothing more: restarting it")
                await store.restart()
        await clock.sleep(CHECK_S)
