"""How a step is done: in the niced worker process, with its progress told and a folder of its own, gone afterwards."""

from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from actors.codec.base import Phase
from actors.codec.store import remove_tree
from actors.errors import Transient
from actors.ports import Bus, Compute
from schemas.codec import CodecJobId
from schemas.events.base import Progress

T = TypeVar("T")


class Work:
    def __init__(self, compute: Compute, bus: Bus, cache: Path) -> None:
        self.artifacts = cache / "artifacts"  # as local folders
        self._steps = cache / "steps"
        self._compute = compute
        self._bus = bus

    async def run(self, id: CodecJobId, about: str, job: Callable[..., Iterator[Any]], *args: Any) -> list[Any]:
        """What a job yields beside its progress. Raises what the job raises, Transient when the worker died."""
        results = []
        async with aclosing(self._compute.stream(job, *args)) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Phase):
                    await self._bus.signal(Progress(id, about, item.phase, item.done, item.total, item.unit))
                else:
                    results.append(item)
        return results

    async def one(self, kind: type[T], id: CodecJobId, about: str, job: Callable[..., Iterator[Any]], *args: Any) -> T:
        """The one result, of this kind, of a job that has one."""
        results = await self.run(id, about, job, *args)
        if len(results) != 1 or not isinstance(results[0], kind):
            raise Transient(f"{job.__name__} of {about} ended with {len(results)} results")
        return results[0]

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """For a step's files."""
        place = self._steps / uuid4().hex
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            remove_tree(place)

    def sweep_out(self) -> None:
        """What killed steps left; called before any is at work."""
        remove_tree(self._steps)
