"""Restart intensity, in virtual time; and what becomes of a message whose handler raised."""

import asyncio
import itertools
import random
from collections.abc import Iterator

import pytest
import structlog

from actors.errors import Conflict, Poison, Refused, Transient, Unavailable
from daemon.retry import MAX_DELIVERIES, MAX_PATIENCE, Again, GiveUp, decide
from daemon.supervisor import CrashedTooOften, supervise
from schemas.events.base import Refusal
from tests.unit.simulation import VirtualClock, simulate


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def starts_of(crashes: list[float], *, patience_s: float = 1e6) -> list[float]:
    """When a task that crashes after each of `crashes` seconds is started; it then returns."""

    async def main(clock: VirtualClock, rng: random.Random) -> list[float]:
        starts: list[float] = []

        async def run() -> None:
            starts.append(clock.monotonic())
            if len(starts) <= len(crashes):
                await clock.sleep(crashes[len(starts) - 1])
                raise ValueError("broken")

        async with asyncio.timeout(patience_s):
            await supervise("task", run, clock, rng=rng)
        return starts

    return simulate(main, 0)


def test_a_task_that_returns_is_done() -> None:
    assert len(starts_of([])) == 1


def test_a_crashed_task_is_started_again_after_a_growing_jittered_pause() -> None:
    starts = starts_of([0.0] * 5)
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    for n, pause in enumerate(pauses):
        assert 0.05 * 2**n / 2 <= pause <= 0.05 * 2**n


def test_six_crashes_in_a_minute_are_too_many() -> None:
    with pytest.raises(CrashedTooOften, match="task crashed 6 times in 60 s, last with ValueError: broken"):
        starts_of([1.0] * 6)


def test_crashes_far_apart_are_survived_for_ever() -> None:
    starts = starts_of([15.0] * 100)
    assert len(starts) == 101


def test_a_cause_in_nested_groups_is_named() -> None:
    async def main(clock: VirtualClock, rng: random.Random) -> None:
        async def run() -> None:
            raise ExceptionGroup("outer", [ExceptionGroup("inner", [OSError("disk full")])])

        await supervise("task", run, clock, rng=rng)

    with pytest.raises(CrashedTooOften, match="OSError: disk full"):
        simulate(main, 0)


def test_cancellation_passes_through() -> None:
    async def main(clock: VirtualClock, rng: random.Random) -> bool:
        task = asyncio.create_task(supervise("task", asyncio.Event().wait, clock, rng=rng))  # type: ignore[arg-type]
        await clock.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert simulate(main, 0)


# --- retry -------------------------------------------------------------------------------------


def test_poison_is_buried_at_once() -> None:
    assert decide(Poison("bad"), 1) == GiveUp("bad")


@pytest.mark.parametrize("error", [Transient("away", 3.0), Unavailable("away")])
def test_what_is_not_ready_is_tried_for_hours_but_not_for_ever(error: Exception) -> None:
    asked = getattr(error, "delay_s", 1.0)
    delays = []
    for delivery in range(1, MAX_PATIENCE):
        decision = decide(error, delivery)
        assert isinstance(decision, Again)
        assert not decision.unforeseen
        delays.append(decision.delay_s)
    assert delays[:10] == [asked] * 10
    assert delays == sorted(delays)
    assert delays[-1] == 60.0
    assert 4 * 3600 < sum(delays) < 6 * 3600
    assert isinstance(decide(error, MAX_PATIENCE), GiveUp)


def test_a_delay_longer_than_a_minute_is_kept() -> None:
    assert decide(Transient("tomorrow", 300.0), 50) == Again(300.0, "tomorrow")


def test_a_lost_race_is_run_again_at_once_but_not_in_a_hot_loop() -> None:
    assert decide(Conflict("lost"), 1) == Again(0.0, "lost")
    assert decide(Conflict("lost"), 20) == Again(1.0, "lost")
    assert isinstance(decide(Conflict("lost"), MAX_PATIENCE), GiveUp)


@pytest.mark.parametrize("error", [KeyError("x"), Refused(Refusal("invalid", "no"))])
def test_a_bug_is_tried_five_times(error: Exception) -> None:
    delays = []
    for delivery in range(1, MAX_DELIVERIES):
        decision = decide(error, delivery)
        assert isinstance(decision, Again)
        assert decision.unforeseen
        delays.append(decision.delay_s)
    assert delays == sorted(delays)
    assert 0 < delays[0] < 1
    last = decide(error, MAX_DELIVERIES)
    assert isinstance(last, GiveUp)
    assert last.unforeseen
