"""The sweep on Lance: the cheapest effort is found by few questions, on any surface that grows with
every number of an effort."""

import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.autotune.decide import choose
from actors.autotune.sweep import FEW_PARTITIONS, REFINE_LADDER, Bounds, efforts, sweep_lance
from actors.backends.lance_rules import first_config, resolve
from schemas.config import HnswConfig, HnswEffort, LanceBuild, LanceConfig, LanceEffort, LanceType
from tests.unit.tuning_surface import lance_cost, lance_point, lance_recall

EF = Bounds(11, 400)


def play(
    start: LanceConfig, holds: Callable[[LanceEffort], bool], extra: tuple[LanceEffort, ...] = ()
) -> list[tuple[LanceEffort, bool]]:
    """What a sweep asks, and what it is told."""
    search = sweep_lance(start, EF, extra)
    asked: list[tuple[LanceEffort, bool]] = []
    effort = next(search)
    while True:
        asked.append((effort, holds(effort)))
        try:
            effort = search.send(asked[-1][1])
        except StopIteration:
            return asked


def config(index_type: LanceType, partitions: int, nprobes: int = 20) -> LanceConfig:
    build = LanceBuild(index_type, partitions, 16 if index_type == "IVF_PQ" else 0)
    return msgspec.structs.replace(first_config(build), nprobes=min(nprobes, partitions))


def smallest(refine: int, partitions: int, holds: Callable[[LanceEffort], bool]) -> int | None:
    return next((n for n in range(1, partitions + 1) if holds(LanceEffort(n, refine))), None)


@given(
    index_type=st.sampled_from(["IVF_FLAT", "IVF_RQ", "IVF_PQ"]),
    partitions=st.integers(1, 2000),
    start=st.integers(1, 2000),
    hard=st.floats(0, 1.4),
    bend=st.floats(0, 2),
    extra=st.lists(st.tuples(st.integers(1, 2000), st.sampled_from([1, 2, 4, 10, 20])), max_size=3),
)
def test_finds_the_smallest_nprobes_of_every_refine_factor(
    index_type: LanceType, partitions: int, start: int, hard: float, bend: float, extra: list[tuple[int, int]]
) -> None:
    def holds(effort: LanceEffort) -> bool:
        return effort.nprobes / partitions * effort.refine_factor**bend >= hard

    given_efforts = tuple(LanceEffort(nprobes, refine) for nprobes, refine in extra)
    asked = play(config(index_type, partitions, start), holds, given_efforts)
    efforts_asked = [effort for effort, _ in asked]
    assert len(set(efforts_asked)) == len(efforts_asked), "no effort twice"
    assert all(1 <= effort.nprobes <= partitions for effort in efforts_asked)
    for effort in given_efforts:
        assert msgspec.structs.replace(effort, nprobes=min(effort.nprobes, partitions)) in efforts_asked
    held = [effort for effort, held in asked if held]
    for refine in REFINE_LADDER[index_type]:
        least = smallest(refine, partitions, holds)
        cheapest = [e for e in held if e.refine_factor <= refine]  # its own, or one that is cheaper still
        if least is None:
            assert not [e for e in held if e.refine_factor == refine]
        else:
            assert cheapest
            assert min(e.nprobes for e in cheapest) <= max(least + 1, least * 17 / 16 + 1)
    rungs = len(REFINE_LADDER[index_type])
    assert len(asked) <= len(extra) + rungs * (2 * math.log2(partitions + 1) + 3)


def test_a_refine_factor_that_misses_in_all_cells_is_given_up_after_one_measurement_more() -> None:
    asked = play(config("IVF_PQ", 64), lambda _: False)
    assert [effort for effort, _ in asked] == [LanceEffort(20, 20), LanceEffort(64, 20)]
    asked = play(config("IVF_PQ", 64), lambda effort: effort.refine_factor >= 10 and effort.nprobes >= 16)
    lower = [effort for effort, _ in asked if effort.refine_factor < 10]
    assert lower == [LanceEffort(16, 4), LanceEffort(64, 4)]


def test_a_lower_refine_factor_that_does_as_well_takes_one_measurement() -> None:
    asked = play(config("IVF_RQ", 64), lambda effort: effort.nprobes >= 12)
    by_refine = {refine: [e for e, _ in asked if e.refine_factor == refine] for refine in (8, 4, 2, 1)}
    assert [len(some) for some in by_refine.values()][1:] == [1, 1, 1]
    assert len(by_refine[8]) <= 7


def test_what_is_live_bounds_what_is_asked_for() -> None:
    def holds(effort: LanceEffort) -> bool:
        return effort.nprobes * effort.refine_factor >= 40

    live = LanceEffort(10, 4)
    asked = [effort for effort, _ in play(config("IVF_RQ", 64), holds, (live,))]
    assert asked[0] == live
    assert len(asked) < len(play(config("IVF_RQ", 64), holds)) + 1
    assert all(effort.nprobes < 10 for effort in asked if effort.refine_factor == 8)


@pytest.mark.parametrize("partitions", [1, 4, 40])
def test_the_graphs_in_the_cells_are_swept_by_ef(partitions: int) -> None:
    def holds(effort: LanceEffort) -> bool:
        return effort.ef * effort.nprobes / partitions >= 90

    asked = play(config("IVF_HNSW_SQ", partitions, nprobes=partitions), holds)
    held = [effort for effort, held in asked if held]
    assert len({effort for effort, _ in asked}) == len(asked)
    assert min(effort.ef for effort in held) <= 95
    assert all(effort.ef >= 11 * effort.refine_factor for effort, _ in asked), "Lance refuses fewer"
    if partitions <= FEW_PARTITIONS:
        assert {effort.nprobes for effort, _ in asked} == {partitions}
    assert len(asked) <= 30


def test_efforts_of_the_other_backend_are_left_out() -> None:
    assert next(efforts(HnswConfig(ef_search=30), EF, [LanceEffort(3), HnswEffort(70)])) == HnswEffort(70)
    assert next(efforts(config("IVF_RQ", 64), EF, [HnswEffort(70), LanceEffort(3, 2)])) == LanceEffort(3, 2)


def test_a_trial_stands_for_the_fastest_that_holds() -> None:
    some = [
        lance_point(LanceConfig("IVF_PQ", 64, 16, nprobes, refine), recall_lower=lower, p50_us=us)
        for nprobes, refine, lower, us in ((4, 20, 0.96, 3100.0), (9, 10, 0.955, 2900.0), (9, 4, 0.93, 2700.0))
    ]
    assert choose(some, 0.95) == LanceEffort(9, 10)
    assert choose(some, 0.99) == LanceEffort(4, 20), "none holds: the nearest to it"
    noise = lance_point(LanceConfig("IVF_PQ", 64, 16, 4, 10), recall_lower=0.951, p50_us=3300.0)
    assert choose([*some, noise], 0.95) == LanceEffort(4, 10), "less work in every number is no slower"


@pytest.mark.parametrize("index_type", ["IVF_FLAT", "IVF_RQ", "IVF_PQ", "IVF_HNSW_SQ"])
def test_on_the_surface_it_comes_near_the_cheapest_of_all(index_type: LanceType) -> None:
    """Against every effort there is, measured one by one."""
    build = resolve(100_000, 128, index_type, 32 if index_type != "IVF_HNSW_SQ" else 1)
    start = first_config(build)

    def at(effort: LanceEffort) -> LanceConfig:
        return LanceConfig.of(build, effort)

    efs = range(11, 401) if index_type == "IVF_HNSW_SQ" else (0,)
    every = [
        LanceEffort(nprobes, refine, ef)
        for nprobes in range(1, build.partitions + 1)
        for refine in REFINE_LADDER[index_type]
        for ef in efs
    ]
    best = min((lance_cost(at(e)) for e in every if lance_recall(at(e)) >= 0.95), default=None)
    asked = [effort for effort, held in play(start, lambda e: lance_recall(at(e)) >= 0.95) if held]
    assert best is not None
    assert min(lance_cost(at(effort)) for effort in asked) <= 1.02 * best
