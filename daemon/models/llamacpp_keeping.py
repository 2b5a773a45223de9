"""What a router doesn't know of its processes: which was asked to end, and when a model's keep_alive
has run out. Counted in memory, from what the server shows; who asks the server is llamacpp.py.

A model loaded again is another process (another port): what was said of the first doesn't hold.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio
import msgspec

from daemon.models.llamacpp_listing import Model
from schemas.names import Seconds, Timestamp


class Slot(msgspec.Struct):
    """An entry of `GET /slots`."""

    is_processing: bool = False
    id_task: int = -1  # the last one


class _Kept(msgspec.Struct):
    keep_alive_s: Seconds
    used: Timestamp  # at the latest
    tasks: tuple[int, ...] | None = None  # the last of each slot


class Keeping:
    def __init__(self, now: Callable[[], Timestamp]) -> None:
        self._now = now
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._stopping: dict[tuple[str, int], Timestamp] = {}  # since when
        self._questions: dict[tuple[str, int], set[anyio.Event]] = {}  # that aren't answered yet

    def seen(self, models: Sequence[Model]) -> None:
        """Forgets the processes that are no more."""
        alive = {_process(model) for model in models if model.running}
        self._kept = {process: kept for process, kept in self._kept.items() if process in alive}
        self._stopping = {process: since for process, since in self._stopping.items() if process in alive}

    def stop(self, model: Model) -> None:
        """It is asked to end."""
        self._stopping.setdefault(_process(model), self._now())

    def stay(self, model: Model) -> None:
        """Asking it to end has failed."""
        self._stopping.pop(_process(model), None)

    @contextmanager
    def question(self, model: Model) -> Iterator[None]:
        """While its process is asked something."""
        done = anyio.Event()
        asked = self._questions.setdefault(_process(model), set())
        asked.add(done)
        try:
            yield
        finally:
            asked.discard(done)
            if not asked:
                self._questions.pop(_process(model), None)
            done.set()

    async def quiet(self, model: Model) -> None:
        """Waits until what its process was asked is answered or given up."""
        for done in list(self._questions.get(_process(model), ())):
            await done.wait()

    def stopping(self, model: Model) -> Timestamp | None:
        """Since when."""
        return self._stopping.get(_process(model))

    def keep(self, model: Model, keep_alive_s: Seconds) -> None:
        self._kept[_process(model)] = _Kept(keep_alive_s, self._now())

    def counts(self, model: Model) -> bool:
        """Whether it leaves when it is unused, so that its use matters."""
        kept = self._kept.get(_process(model))
        return kept is not None and not math.isinf(kept.keep_alive_s)

    def use(self, model: Model) -> None:
        if kept := self._kept.get(_process(model)):
            kept.used = self._now()

    def look(self, model: Model, slots: Sequence[Slot]) -> None:
        """A slot that works, or has had another task since the last look, is a use."""
        kept = self._kept.get(_process(model))
        if kept is None:
            return
        tasks = tuple(slot.id_task for slot in slots)
        if any(slot.is_processing for slot in slots) or kept.tasks not in (None, tasks):
            kept.used = self._now()
        kept.tasks = tasks

    def expiry(self, model: Model) -> Timestamp | None:
        kept = self._kept.get(_process(model))
        return None if kept is None or math.isinf(kept.keep_alive_s) else kept.used + kept.keep_alive_s


def _process(model: Model) -> tuple[str, int]:
    return model.id, model.port
