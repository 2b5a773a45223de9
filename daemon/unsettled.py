"""Counts deliveries that end neither well nor badly: the process died with them in hand.

A handler's exception is seen and decided on (daemon/retry.py). A message that takes the whole
process down (memory, a fault in a library) would do so at every delivery, for ever; NATS counts
deliveries, but can't tell a crash from a message that was put off a hundred times. So who takes a
message that an earlier process had writes that down first, and strikes it out when it is settled.
"""

import contextlib
from pathlib import Path

from actors.base import Origin
from daemon.bus import wire

MAX_CRASHES = 5
"""Deliveries that may end with the process, before a message is given up."""
REMEMBERED = 10_000


class Unsettled:
    """Marks in a folder of the process's state: a file for each message, its size the count.

    Not synced: what is to be survived is the process's death, not the machine's.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        # Put off by this process, so that their next delivery is no sign of a crash.
        self._put_off: dict[str, None] = {}

    def begin(self, durable: str, origin: Origin) -> int:
        """Before handling: how many deliveries are known to have ended with their process."""
        if origin.delivery == 1:
            return 0
        mark = wire.derived_id(durable, origin.id)
        if mark in self._put_off:
            del self._put_off[mark]
            return 0
        with contextlib.suppress(OSError), (self._folder / mark).open("ab") as file:  # a full disk stops nothing
            file.write(b".")
            return file.tell()  # the first delivery left no mark, but this one's is there already
        return 0

    def end(self, durable: str, origin: Origin, *, again: bool) -> None:
        """Settled: it is done with, or was put off and will come again."""
        if origin.delivery == 1 and not again:
            return
        mark = wire.derived_id(durable, origin.id)
        if again:
            self._put_off[mark] = None
            if len(self._put_off) > REMEMBERED:  # it went to another process
                del self._put_off[next(iter(self._put_off))]
        with contextlib.suppress(OSError):
            (self._folder / mark).unlink()
