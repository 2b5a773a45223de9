"""Which worker each actor's jobs run in, and that a stop ends them all."""

from contextlib import aclosing
from pathlib import Path

import pytest

from actors.errors import Transient
from actors.index.searcher import Searcher
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.compute import WorkerCompute
from daemon.config import Config, DaemonConfig
from daemon.state_dir import StateDir
from daemon.wiring import House, build, open_buckets
from tests.unit import jobs


@pytest.fixture
def house(tmp_path: Path) -> House:
    config, state = Config(daemon=DaemonConfig(state_dir=str(tmp_path))), StateDir(tmp_path)
    state.cache.mkdir()
    return build(config, state, MemoryBus(), MemoryHeads(), open_buckets(config, state), "here")


def worker_of(house: House, actor: str) -> WorkerCompute:
    (found,) = [each for each in house.actors if each.name() == actor]
    compute = vars(found)["_compute"]
    assert isinstance(compute, WorkerCompute)
    return compute


async def test_a_build_runs_while_a_trial_does(house: House, tmp_path: Path) -> None:
    trial = worker_of(house, "lab").stream(jobs.slow, tmp_path / "trial")
    build = worker_of(house, "builder").stream(jobs.count, 2)
    try:
        async with aclosing(trial), aclosing(build):
            await anext(trial)
            assert [item async for item in build]
    finally:
        await house.aclose()


async def test_a_stop_ends_every_job(house: House) -> None:
    assert {worker.lane for worker in house.workers} == {"lab", "build", "embed", "codec", "planner", "gate"}
    await house.give_up_jobs()
    for actor in ("lab", "builder"):
        with pytest.raises(Transient, match="shut down"):
            await anext(worker_of(house, actor).stream(jobs.count, 1))


def test_a_searcher_is_known_by_host_and_process(house: House) -> None:
    (searcher,) = [each for each in house.actors if isinstance(each, Searcher)]
    name, _, pid = str(vars(searcher)["_process_id"]).rpartition(":")
    assert name == "here"
    assert pid.isdigit()
