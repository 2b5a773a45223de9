"""How the gate's jobs are done: in the worker process, with their progress told, and with a folder of their own that is
gone afterwards."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any
from uuid import uuid4

from actors.gate.keeping import NoGate
from actors.gate.phase import Phase
from actors.ports import Bus, Compute
from schemas.events.base import Progress
from schemas.names import MessageId

MARK = ".beside"
"""Of a file that says where a job's folder is that isn't below the cache."""
CACHE = "the cache in the daemon's state directory"


class Work:
    def __init__(self, compute: Compute, bus: Bus, cache: Path) -> None:
        self._compute = compute
        self._bus = bus
        self._cache = cache

    def sweep_out(self) -> None:
        """What killed jobs left, beside where it was to be, too; called before any is at work."""
        for mark in self._cache.glob(f"*{MARK}"):
            place = Path(os.fsdecode(mark.read_bytes()))
            if place.name.endswith(f"-{mark.stem}"):
                shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(self._cache, ignore_errors=True)

    async def tell(self, job: str, about: str, phase: Phase) -> None:
        await self._bus.signal(Progress(job, about, phase.phase, phase.done, phase.total, phase.unit))

    async def run(self, job: str, about: str, work: Callable[..., Iterator[Any]], *args: Any) -> list[Any]:
        """What a job yields beside its progress. Raises what the job raises, Transient when the worker died."""
        results = []
        async with aclosing(self._compute.stream(work, *args)) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Phase):
                    await self.tell(job, about, item)
                else:
                    results.append(item)
        return results

    @contextmanager
    def folder(self, beside: Path | None = None) -> Iterator[Path]:
        """For a job's files, gone afterwards; beside where they are to be, so that renaming is enough."""
        name = uuid4().hex
        place, mark = self._cache / name, self._cache / f"{name}{MARK}"
        if beside is not None:
            place = beside.with_name(f".{beside.name}-{name}")
            self._cache.mkdir(parents=True, exist_ok=True)
            mark.write_bytes(os.fsencode(place))
        try:
            place.mkdir(parents=True)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
            mark.unlink(missing_ok=True)


@contextmanager
def told_where(what: str, where: str) -> Iterator[None]:
    """Around what reads and writes this machine's files, and nothing else. Raises NoGate for what they raise: to try
    again would end alike."""
    try:
        yield
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        hint = f"free some space for {where}" if error.errno in (ENOSPC, EDQUOT) else ""
        raise NoGate(f"{what} in {where}: {file}{error.strerror or error}", hint) from None


def job_of(message: MessageId) -> str:
    """What the job that a message asks for is called, a training's run too; the same at every delivery."""
    return hashlib.sha256(message.encode()).hexdigest()[:12]
