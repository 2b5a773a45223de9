"""A deadline that costs nothing when nothing has to be waited for."""

import asyncio
import time

import anyio
import pytest

from daemon.within import within


async def say(pauses: int) -> str:
    for _ in range(pauses):
        await asyncio.sleep(0.001)
    return "done"


@pytest.mark.parametrize("pauses", [0, 1, 3])
async def test_gives_the_result_whether_or_not_the_work_waits(pauses: int) -> None:
    assert await within(5, say(pauses)) == "done"


@pytest.mark.parametrize("pauses", [0, 1])
async def test_raises_what_the_work_raises(pauses: int) -> None:
    async def fail() -> None:
        await say(pauses)
        raise LookupError("no")

    with pytest.raises(LookupError):
        await within(5, fail())


async def test_late_work_is_cancelled_and_cleans_up() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)  # cleaning up may take its time
            ended.append(True)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await within(0.02, wait())
    assert ended
    assert time.monotonic() - began < 5
    await asyncio.sleep(0)  # the task itself isn't cancelled


async def test_a_deadline_inside_the_work_is_the_works_own() -> None:
    async def hurry() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            pass
        with anyio.move_on_after(0.01):
            await anyio.sleep(60)
        return "done"

    assert await within(5, hurry()) == "done"


async def test_cancelling_the_asker_cancels_the_work() -> None:
    seen = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(True)
            raise

    task = asyncio.create_task(within(60, wait()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen


async def test_an_outer_cancel_scope_reaches_the_work() -> None:
    with anyio.move_on_after(0.02) as scope:
        await within(60, asyncio.sleep(60))
    assert scope.cancelled_caught
