"""Decisions on values: strategies, generations, bounds."""

import msgspec
import numpy as np
import pytest

from actors.index import core
from actors.planner_ports import counted
from schemas.config import HnswConfig, LanceConfig, LanceEffort
from schemas.documents.index import GenerationDocument
from schemas.events.index import GenerationBuilt

LIBRARY = "hnswlib 0.8.0 native"


def built(generation, config, rows=1000, library=LIBRARY):
    return GenerationBuilt(
        index="docs",
        generation=generation,
        config=config,
        version=3,
        rows=rows,
        bytes=10,
        sha256="0" * 64,
        key=f"indexes/docs/generations/{generation:06d}/graph.hnsw",
        build_s=1.0,
        reason="created",
        library=library,
    )


def head(artifact, **changes):
    shared = set(artifact.__struct_fields__) & set(GenerationDocument.__struct_fields__)
    fields = {name: getattr(artifact, name) for name in shared}
    return GenerationDocument(**(fields | {"built": 1.0} | changes))


@pytest.mark.parametrize(
    ("rows", "matching", "expected"),
    [
        (20_000, None, "graph"),
        (15, None, "exact"),  # as many as asked for
        (20_000, 0, "exact"),
        (20_000, 1_999, "exact"),
        (1_000_000, 500_000, "filtered_graph"),
        (1_000_000, 100_000, "filtered_graph"),
        (1_000_000, 2_500, "exact"),  # the graph search would have to be wider than the limit
    ],
)
def test_strategy(rows, matching, expected):
    assert core.strategy(10, 50, rows, matching, 2000) == expected


@pytest.mark.parametrize(
    ("rows", "matching", "codes"),
    [(20_000, None, True), (15, None, False), (20_000, 2_000, False), (1_000_000, 2_500, True)],
)
def test_codes_answer_whatever_a_graph_would_cost(rows, matching, codes):
    assert core.by_codes(10, rows, matching, 2000) == codes


def test_a_wider_search_is_never_below_what_was_configured():
    fetch, ef = core.widened(10, 400, 10_000, 9_000)
    assert fetch >= 20
    assert ef == 400


def test_the_live_graph_serves_another_ef_however_old_it_is():
    first = built(1, HnswConfig(16, 100, 50), rows=10)
    todo = core.next_generation(HnswConfig(16, 100, 90), None, head(first), [first], 1_000_000)
    assert todo == core.Reuse(first)


def test_an_earlier_graph_comes_back_while_the_rows_are_much_the_same():
    old, new = built(1, HnswConfig(16, 100, 50)), built(2, HnswConfig(24, 100, 50))
    back = HnswConfig(16, 100, 50)
    for rows, expected in [(1200, core.Reuse(old)), (800, core.Reuse(old)), (1201, core.Build(back.build))]:
        assert core.next_generation(back, "t", head(new), [old, new], rows) == expected


def test_what_is_live_needs_nothing_but_another_trial_gets_a_number_of_its_own():
    first = built(1, HnswConfig())
    live = head(first, trial="t1")
    assert core.next_generation(HnswConfig(), "t1", live, [first], 1000) is None
    assert core.next_generation(HnswConfig(), "t2", live, [first], 1000) == core.Reuse(first)


@pytest.mark.parametrize(
    ("config", "planned", "effort"),
    [
        (LanceConfig("IVF_PQ", 64, 8, nprobes=8, refine_factor=10), 80, LanceEffort(8, 10)),
        (LanceConfig("IVF_PQ", 64, 8, nprobes=8, refine_factor=10), 160, LanceEffort(16, 20)),
        (LanceConfig("IVF_PQ", 64, 8, nprobes=8, refine_factor=10), 10, LanceEffort(1, 1)),
        (LanceConfig("IVF_PQ", 64, 8, nprobes=1, refine_factor=10), 905, LanceEffort(64, 100)),
        (LanceConfig("IVF_FLAT", 64, nprobes=8), 160, LanceEffort(16, 1)),
        (LanceConfig("IVF_HNSW_SQ", 1, nprobes=1, refine_factor=2, ef=64), 20, LanceEffort(1, 4, 128)),
    ],
)
def test_one_number_scales_all_that_a_lance_search_spends(config, planned, effort):
    assert core.planned_effort(config, planned) == effort
    assert counted(config.effort) == 10 * config.nprobes


def test_pruning_keeps_the_live_graph_the_newest_and_what_is_being_built():
    kept = [built(n, HnswConfig()) for n in range(1, 8)]
    live = head(msgspec.structs.replace(kept[4], key=kept[0].key))  # generation 5 on the graph of 1
    gone = core.prunable(live, kept, keep=3, spared={7})
    assert [b.generation for b in gone] == [2]
    assert [b.generation for b in core.prunable(live, kept, keep=1, spared=set())] == [4, 3, 2]


def test_recall_bounds_hold_the_true_mean_at_least_as_often_as_they_say():
    rng = np.random.default_rng(5)
    too_low = too_high = 0
    for _ in range(2000):
        sample = rng.binomial(10, 0.94, 60) / 10
        bounds = core.recall_bounds(60, sample.sum(), (sample**2).sum())
        assert 0 <= bounds.lower <= bounds.mean <= bounds.upper <= 1
        too_low += bounds.upper < 0.94
        too_high += bounds.lower > 0.94
    assert too_low / 2000 <= 0.05
    assert too_high / 2000 <= 0.05


def test_equal_samples_give_no_certainty_and_few_samples_no_alarm():
    perfect = core.recall_bounds(30, 30.0, 30.0)
    assert perfect.lower < 0.99
    assert perfect.upper == 1.0
    bad = core.recall_bounds(29, 29 * 0.5, 29 * 0.25)
    assert not core.drifted(29, bad, 0.95)
    assert core.drifted(30, core.recall_bounds(30, 15, 7.5), 0.95)
    assert core.recall_bounds(0, 0, 0) == core.RecallBounds(0, 0, 1)
