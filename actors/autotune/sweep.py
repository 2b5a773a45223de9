"""The ef_search sweep on one graph: double to a bracket, then bisect to the smallest ef whose
recall lower bound holds the target. A graph costs seconds and an ef milliseconds, so every
graph is worth its best ef (VSAG AutoTune does the same).

A pure generator: it yields the ef to measure and is sent whether it held. It knows no graph.
"""

from collections.abc import Generator, Sequence


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
