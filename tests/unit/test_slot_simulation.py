"""10,000 worlds of one GPU, each from its seed: people activate, deactivate, load and unload while
daemons are killed and model servers crash, hang, lie and keep memory. In none of them are two
exclusive profiles in memory at once, and nothing is called ready, or empty, that isn't.

The first worlds run in `make check`, all in CI: the other half of them is in test_slot_simulation_rest.py, for
the other worker. A seed that fails is replayed by
`pytest 'tests/unit/test_slot_simulation.py::test_a_seed[<seed>]'`.
"""

import re
from typing import Any

import msgspec
import pytest

from schemas.events.profile import GpuReading, LoadedModel
from tests.unit.model_play import PlayGpu, PlayServer
from tests.unit.slot_world import CONFIG, World, world_of

WORLDS, FIRST, CHUNK = 10_000, 200, 490

SEEDS_THAT_FAILED: list[int] = [20864, 32558]
"""Worlds in which the slot broke its word; the reasons are in the history of actors/profile. Whoever changes the
worlds deals other ones to the same seeds, and empties this."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Any seed has a test id, given on the command line."""
    if "any_seed" in metafunc.fixturenames:
        asked = [int(n) for word in metafunc.config.args for n in re.findall(r"::test_a_seed\[(\d+)\]", word)]
        metafunc.parametrize("any_seed", sorted({0, *SEEDS_THAT_FAILED, *asked}))


def chunks(half: int) -> list[Any]:
    """Slow ones, every other of them: the two halves are two files, which two workers share."""
    starts = range(FIRST, WORLDS, CHUNK)[half::2]
    slow = [(first, min(first + CHUNK, WORLDS)) for first in starts]
    return [pytest.param(range(*each), id=f"{each[0]}-{each[1] - 1}", marks=pytest.mark.slow) for each in slow]


def test_a_seed(any_seed: int) -> None:
    assert world_of(any_seed).witness.broken == []


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [pytest.param(range(FIRST), id=f"0-{FIRST - 1}"), *chunks(0)])
def test_the_slot_keeps_its_word(seeds: range) -> None:
    keeps_its_word(seeds)


def keeps_its_word(seeds: range) -> None:
    worlds = {seed: world_of(seed) for seed in seeds}
    broken = {seed: world.witness.broken for seed, world in worlds.items() if world.witness.broken}
    assert not broken, "\n".join(f"seed {seed}: {what[0]}" for seed, what in broken.items())
    lived = [world.witness for world in worlds.values()]
    assert sum(witness.activated for witness in lived) > len(seeds) / 2, "worlds in which nothing works prove nothing"
    assert sum(witness.unknown for witness in lived) > len(seeds) / 10
    assert sum(world.deaths for world in worlds.values()) > len(seeds) / 3
    assert sum(world.crashes for world in worlds.values()) > len(seeds) / 3


def test_the_worlds_are_ten_thousand() -> None:
    slow = [seed for half in (0, 1) for chunk in chunks(half) for seed in chunk.values[0]]
    assert sorted([*range(FIRST), *slow]) == list(range(WORLDS))


def test_a_seed_replays_exactly() -> None:
    def story(world: World) -> Any:
        return [(time, d.state, d.profile) for time, d in world.witness.documents], world.gpu.history

    one, again, other = world_of(3), world_of(3), world_of(4)
    assert story(one) == story(again)
    assert story(one) != story(other)


# --- the simulation sees what it is there to see --------------------------------------------------


class Sabotaged:
    """A port that does something else in one place."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


class Forgetful(Sabotaged):
    """A server that is believed when it answers an unload: what was told to leave isn't listed."""

    def __init__(self, server: PlayServer) -> None:
        super().__init__(server)
        self._left: set[str] = set()

    async def unload(self, model: str) -> None:
        self._left.add(model)
        await self._port.unload(model)

    async def load(self, model: str, *rest: Any) -> None:
        self._left.discard(model)
        await self._port.load(model, *rest)

    async def loaded(self) -> list[LoadedModel]:
        return [model for model in await self._port.loaded() if model.model not in self._left]


class Nostalgic(Sabotaged):
    """A server that lists for ever what it has loaded once, and says that it is whole."""

    def __init__(self, server: PlayServer) -> None:
        super().__init__(server)
        self._known: dict[str, LoadedModel] = {}

    async def unload(self, model: str) -> None:
        self._known.pop(model, None)
        await self._port.unload(model)

    async def loaded(self) -> list[LoadedModel]:
        listed = {model.model: model for model in await self._port.loaded()}
        self._known |= {name: msgspec.structs.replace(m, expires_at=None) for name, m in listed.items()}
        return list((listed | self._known).values())


class Unread(Sabotaged):
    """Memory that nobody looks at."""

    async def read(self) -> GpuReading:
        return GpuReading([], "none", "not looked at")


def believes_unloads(port: Any) -> Any:
    return Forgetful(port) if isinstance(port, PlayServer) else Unread(port)


def skips_settling(port: Any) -> Any:
    return Unread(port) if isinstance(port, PlayGpu) else port


def believes_old_lists(port: Any) -> Any:
    return Nostalgic(port) if isinstance(port, PlayServer) else port


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "seen"),
    [
        ({"eyes": believes_unloads}, "two exclusive profiles are in memory"),
        ({"eyes": skips_settling}, "two exclusive profiles are in memory"),
        ({"eyes": believes_old_lists}, "is ready, and loaded are"),
        ({"config": msgspec.structs.replace(CONFIG, unload_deadline_s=60.0)}, "is asked to leave since"),
    ],
    ids=["believes unloads", "skips settling", "believes old lists", "waits too long"],
)
def test_a_careless_slot_is_found_out(sabotage: dict[str, Any], seen: str) -> None:
    found = [line for seed in range(60) for line in world_of(seed, **sabotage).witness.broken]
    assert any(seen in line for line in found), found
