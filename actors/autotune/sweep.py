"""Which efforts to measure on one build: a build costs seconds and an effort milliseconds, so every
build is worth its best effort (VSAG AutoTune does the same).

On a graph: double to a bracket, then bisect to the smallest ef whose recall lower bound holds the
target. On Lance: for each refine factor of a short ladder, the smallest nprobes (or ef) that holds.
Recall grows with every number of an effort, so what was measured at one bounds the others.

Pure generators: they yield the effort to measure and are sent whether it held. They know no index.
"""

import math
from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple

import msgspec

from schemas.config import Effort, HnswConfig, HnswEffort, IndexConfig, LanceConfig, LanceEffort, LanceType

Asked = Generator[Effort, bool, None]

REFINE_LADDER: dict[LanceType, tuple[int, ...]] = {
    "IVF_FLAT": (1,),  # its distances are exact already
    "IVF_HNSW_SQ": (1, 2, 4),
    "IVF_RQ": (1, 2, 4, 8),
    "IVF_PQ": (1, 4, 10, 20),
}
FINE = 16
"""On Lance, numbers up to this one are told apart, larger ones to a sixteenth: a point costs seconds."""
FEW_PARTITIONS = 8
"""A search of IVF_HNSW_SQ looks into all of so few; of more, only into as many as it needs."""


class Bounds(NamedTuple):
    """Lowest and highest ef_search on a graph; the ef of IVF_HNSW_SQ has the same."""

    low: int
    high: int


def efforts(start: IndexConfig, bounds: Bounds, extra: Sequence[Effort] = ()) -> Asked:
    """What to measure on the build of `start`, beginning around its effort. `extra` are measured whatever happens;
    those of the other backend don't count."""
    if isinstance(start, HnswConfig):
        efs = [effort.ef_search for effort in extra if isinstance(effort, HnswEffort)]
        search = sweep(start.ef_search, bounds.low, bounds.high, efs)
        ef = next(search)
        while True:
            held = yield HnswEffort(ef)
            try:
                ef = search.send(held)
            except StopIteration:
                return
    else:
        yield from sweep_lance(start, bounds, [effort for effort in extra if isinstance(effort, LanceEffort)])


def sweep(start: int, low: int, high: int, extra: Sequence[int] = ()) -> Generator[int, bool, int | None]:
    """Finds the smallest ef in [low, high] that holds; returns it, or None when `high` doesn't.

    `extra` are measured whatever happens, in ascending order, and bracket the answer; without
    them the bracket grows from `start`. No ef is asked twice. Recall on fixed queries grows
    with ef up to a ripple of a hit or two: the answer holds by measurement, and the ef below
    it was measured and didn't.
    """
    failed, held = low - 1, None  # the answer lies in (failed, held]
    for ef in sorted({min(max(ef, low), high) for ef in extra or (start,)}):
        if (yield ef):
            held = ef if held is None else held
        elif held is None:
            failed = ef
    while held is None:
        if failed >= high:
            return None
        ef = min(high, max(low, 2 * failed))
        if (yield ef):
            held = ef
        else:
            failed = ef
    while failed < low and held > low:  # nothing has failed yet: halve until something does
        ef = max(low, held // 2)
        if (yield ef):
            held = ef
        else:
            failed = ef
    while held - failed > 1:
        ef = (held + failed) // 2
        if (yield ef):
            held = ef
        else:
            failed = ef
    return held


def sweep_lance(
    start: LanceConfig, bounds: Bounds, extra: Sequence[LanceEffort] = ()
) -> Generator[LanceEffort, bool, None]:
    """For each refine factor, the highest first, the smallest nprobes that holds. A factor that misses in all
    partitions ends it: the lower ones miss too. Of IVF_HNSW_SQ it is the smallest ef, in all partitions while
    they are few. No effort is asked twice."""
    known = _Known()
    partitions = start.partitions
    for effort in sorted({msgspec.structs.replace(one, nprobes=min(one.nprobes, partitions)) for one in extra}):
        yield from known.ask(effort)
    nprobes, ef = min(start.nprobes, partitions), start.ef or bounds.low
    for refine in reversed(REFINE_LADDER[start.index_type]):
        if start.index_type == "IVF_HNSW_SQ":
            low = bounds.low * refine  # Lance wants as many, at least, as it rescores
            found = yield from known.smallest(LanceEffort(partitions, refine), "ef", ef, low, max(low, bounds.high))
            if found is None:
                return
            ef = found
            if partitions > FEW_PARTITIONS:
                yield from known.smallest(LanceEffort(1, refine, ef), "nprobes", nprobes, 1, partitions)
        else:
            found = yield from known.smallest(LanceEffort(1, refine), "nprobes", nprobes, 1, partitions)
            if found is None:
                return
            nprobes = found


Axis = Literal["nprobes", "ef"]


class _Known:
    """What was measured on one build, and what follows from it."""

    def __init__(self) -> None:
        self._held: list[LanceEffort] = []
        self._failed: list[LanceEffort] = []

    def ask(self, effort: LanceEffort) -> Generator[LanceEffort, bool, bool]:
        held = yield effort
        (self._held if held else self._failed).append(effort)
        return held

    def smallest(
        self, effort: LanceEffort, axis: Axis, start: int, low: int, high: int
    ) -> Generator[LanceEffort, bool, int | None]:
        """The smallest number in [low, high] on the axis with which `effort` holds, to a sixteenth; None when it
        doesn't with `high`. It may follow from what held before, unmeasured: then that one is the cheaper."""
        missed = [getattr(one, axis) for one in self._failed if _covers(one, effort, axis)]
        enough = [getattr(one, axis) for one in self._held if _covers(effort, one, axis)]
        failed, held = max([low - 1, *missed]), max(low, min(enough)) if enough else None
        if held is None or held > high:
            held = None
            for n in (min(max(start, failed + 1), high), high):
                if n > failed and held is None:
                    if (yield from self.ask(_with(effort, axis, n))):
                        held = n
                    else:
                        failed = n
        while held is not None and held - failed > max(1, held // FINE):
            n = min(max(math.isqrt(max(failed, 1) * held), failed + 1), held - 1)
            if (yield from self.ask(_with(effort, axis, n))):
                held = n
            else:
                failed = n
        return held


def _with(effort: LanceEffort, axis: Axis, n: int) -> LanceEffort:
    return msgspec.structs.replace(effort, **{axis: n})


def _covers(more: LanceEffort, less: LanceEffort, axis: Axis) -> bool:
    """Whether `more` is as much as `less` on every other axis."""
    return all(getattr(more, name) >= getattr(less, name) for name in LanceEffort.__struct_fields__ if name != axis)
