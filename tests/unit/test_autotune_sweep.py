"""The sweep finds the smallest ef that holds, on any curve, with few questions."""

import math

from hypothesis import given
from hypothesis import strategies as st

from actors.autotune.sweep import sweep


def play(
    holds_from: int | None, start: int, low: int, high: int, extra: tuple[int, ...] = ()
) -> tuple[int | None, list[int]]:
    """Answers a sweep from a curve that holds from an ef on; what it returns and what it asked."""
    search = sweep(start, low, high, extra)
    asked = [next(search)]
    while True:
        try:
            asked.append(search.send(holds_from is not None and asked[-1] >= holds_from))
        except StopIteration as stop:
            return stop.value, asked


@given(
    low=st.integers(1, 30),
    width=st.integers(0, 500),
    at=st.floats(0, 1.2),
    start=st.integers(1, 600),
    extra=st.lists(st.integers(1, 600), max_size=5),
)
def test_finds_the_smallest_that_holds(low: int, width: int, at: float, start: int, extra: list[int]) -> None:
    high = low + width
    holds_from = low + round(at * width)
    found, asked = play(holds_from if at <= 1 else None, start, low, high, tuple(extra))
    assert found == (max(low, holds_from) if at <= 1 else None)
    assert len(set(asked)) == len(asked)
    assert all(low <= ef <= high for ef in asked)
    for ef in extra:
        assert min(max(ef, low), high) in asked
    assert len(asked) <= len(extra) + 2 * math.log2(high + 2) + 3


def test_doubles_and_bisects() -> None:
    assert play(75, 30, 11, 400) == (75, [30, 60, 120, 90, 75, 67, 71, 73, 74])


def test_halves_when_the_start_holds() -> None:
    assert play(20, 100, 11, 400)[1] == [100, 50, 25, 12, 18, 21, 19, 20]


def test_a_grid_brackets_the_answer() -> None:
    found, asked = play(40, 30, 11, 400, (30, 60))
    assert (found, asked[:2]) == (40, [30, 60])


def test_infeasible_ends_at_the_highest() -> None:
    assert play(None, 30, 11, 100) == (None, [30, 60, 100])


def test_a_ripple_still_gives_an_ef_that_was_measured_to_hold() -> None:
    """Recall isn't quite monotonic: 40 holds, 41 to 50 don't, 51 does."""
    search = sweep(64, 11, 400)
    ef, held, found = next(search), [], None
    while found is None:
        good = ef == 40 or ef > 50
        held += [ef] if good else []
        try:
            ef = search.send(good)
        except StopIteration as stop:
            found = stop.value
    assert found == min(held)
