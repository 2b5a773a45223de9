"""The worker process: order, failure, cancellation, and that nothing outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from actors.errors import Transient
from daemon.compute import WorkerCompute
from tests.unit import jobs
from tests.unit.inline_compute import InlineCompute


@pytest.fixture
async def compute() -> AsyncIterator[WorkerCompute]:
    worker = WorkerCompute("test")
    yield worker
    await worker.aclose()


async def collect(compute, job, *args):
    async with aclosing(compute.stream(job, *args)) as items:
        return [item async for item in items]


def gone(pid: int, within_s: float = 3.0) -> bool:
    """The process ends within the time; a zombie has ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("make", [lambda: WorkerCompute("test"), InlineCompute])
async def test_what_a_job_yields_arrives_in_order(make):
    compute = make()
    try:
        assert await collect(compute, jobs.count, 1000) == list(range(1000))
        assert await collect(compute, jobs.nothing) == []
    finally:
        await compute.aclose()


async def test_one_process_serves_a_lane_and_is_spawned_at_the_first_job(compute):
    assert compute.pid is None
    await collect(compute, jobs.count, 1)
    first = compute.pid
    await collect(compute, jobs.count, 1)
    assert first is not None
    assert compute.pid == first


async def test_jobs_of_a_lane_never_overlap_and_run_first_come_first_served(compute, tmp_path):
    path = tmp_path / "marks"
    await asyncio.gather(*(collect(compute, jobs.marked, path, mark) for mark in "abcdef"))
    assert path.read_text() == "".join(f"+{m}-{m}" for m in "abcdef")


async def test_an_exception_keeps_its_type_and_brings_the_workers_traceback(compute):
    async with aclosing(compute.stream(jobs.fail_after_one)) as items:
        assert await anext(items) == 1
        with pytest.raises(ValueError, match="the second item is bad") as caught:
            await anext(items)
    assert "fail_after_one" in "".join(caught.value.__notes__)
    assert "jobs.py" in "".join(caught.value.__notes__)


async def test_a_failed_job_leaves_the_worker_alive(compute):
    with pytest.raises(Transient, match="disk is full") as caught:
        await collect(compute, jobs.fail_transient)
    assert caught.value.delay_s == 7.0
    pid = compute.pid
    assert await collect(compute, jobs.count, 2) == [0, 1]
    assert compute.pid == pid


async def test_an_exception_that_cant_be_pickled_arrives_as_its_words(compute):
    with pytest.raises(RuntimeError, match="Awkward: 1 is not 2"):
        await collect(compute, jobs.fail_awkwardly)


@pytest.mark.parametrize("job", [lambda: iter(()), type("x", (), {"__module__": "__main__"})])
async def test_a_job_that_cant_be_imported_is_refused_before_a_worker_runs(compute, job):
    with pytest.raises(TypeError, match="imported"):
        await collect(compute, job)
    assert compute.pid is None


async def test_closing_the_stream_kills_the_job_and_the_next_one_runs(compute):
    async with aclosing(compute.stream(jobs.slow)) as items:
        pid = await anext(items)
    assert gone(pid, 0.1)
    assert await collect(compute, jobs.count, 3) == [0, 1, 2]


async def test_cancelling_the_reader_kills_a_job_that_never_looks_up_and_its_children(compute, tmp_path):
    child_file = tmp_path / "child"
    spinning: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        async with aclosing(compute.stream(jobs.spin, child_file)) as items:
            async for pid in items:
                spinning.set_result(pid)

    reader = asyncio.create_task(read())
    pid = await spinning
    started = time.monotonic()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert time.monotonic() - started < 1
    assert gone(pid, 0.1)
    assert gone(int(child_file.read_text()))
    assert await collect(compute, jobs.count, 1) == [0]


async def test_a_waiting_reader_can_be_cancelled_without_harm_to_the_running_job(compute):
    async with aclosing(compute.stream(jobs.slow)) as items:
        pid = await anext(items)
        waiting = asyncio.create_task(collect(compute, jobs.count, 1))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert compute.pid == pid
        assert not gone(pid, 0.05)


async def test_a_worker_killed_from_outside_is_transient_and_names_the_signal(compute):
    async with aclosing(compute.stream(jobs.slow)) as items:
        os.kill(await anext(items), signal.SIGKILL)
        with pytest.raises(Transient, match="SIGKILL"):
            await anext(items)
    assert await collect(compute, jobs.count, 1) == [0]


async def test_a_worker_that_exits_is_transient_and_names_the_code(compute):
    with pytest.raises(Transient, match="exit code 3"):
        await collect(compute, jobs.exit_hard, 3)


async def test_a_worker_that_died_idle_is_replaced(compute):
    await collect(compute, jobs.count, 1)
    os.kill(compute.pid, signal.SIGKILL)
    assert gone(compute.pid)
    assert await collect(compute, jobs.count, 2) == [0, 1]


async def test_prints_of_a_job_dont_touch_the_stream(compute, capfd):
    assert await collect(compute, jobs.noisy) == ["clean"]
    assert capfd.readouterr().out == ""


@pytest.mark.slow
async def test_large_arrays_pass_both_ways(compute):
    array = np.random.default_rng(0).standard_normal((50_000, 384)).astype(np.float32)  # 77 MB
    (doubled,) = await collect(compute, jobs.double, array)
    assert np.array_equal(doubled, array * 2)


async def test_a_worker_is_niced_and_keeps_blas_to_one_thread(compute):
    assert await collect(compute, jobs.environment) == [("1", os.nice(0) + 10)]


async def test_closed_compute_ends_the_running_job_and_takes_no_more():
    compute = WorkerCompute("test")
    stream = compute.stream(jobs.slow)
    pid = await anext(stream)
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.05)
    await compute.aclose()
    assert gone(pid, 0.1)
    with pytest.raises(Transient, match="worker died"):
        await reading
    with pytest.raises(Transient, match="shut down"):
        await collect(compute, jobs.count, 1)


PARENT = """
import asyncio, sys
from pathlib import Path
from daemon.compute import WorkerCompute
from tests.unit import jobs

async def main():
    async for _ in WorkerCompute("test").stream(jobs.slow, Path(sys.argv[1])):
        print("running", flush=True)

asyncio.run(main())
"""


def test_a_parent_killed_in_the_middle_of_a_job_leaves_no_orphan(tmp_path):
    pid_file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(pid_file)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"running\n"
        parent.kill()
    assert gone(int(pid_file.read_text()))
