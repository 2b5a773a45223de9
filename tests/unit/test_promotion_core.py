"""The decisions of promotion, against a model that keeps two plain lists."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.promotion import core
from schemas.config import HnswConfig, LanceBuild, LanceConfig, LanceEffort
from schemas.documents.promotion import MAX_HISTORY, PromotionDocument, PromotionEntry
from schemas.documents.trial import TrialPoint
from schemas.events.base import Refusal
from schemas.events.index import GenerationSwapped, LiveRecall, RecallDrifted
from tests.unit.tuning_surface import lance_point


def entry(number: int, *, time: float | None = None) -> PromotionEntry:
    return PromotionEntry(
        config=HnswConfig(ef_search=10 + number % 390),
        trial=f"t{number}",
        recall=0.97,
        recall_lower=0.96,
        p50_us=100.0,
        promoted_by="agent",
        note="",
        time=float(number) if time is None else time,
        cause=f"m{number}",
    )


def point(ef_search: int, recall_lower: float, p50_us: float, *, chosen: bool = False) -> TrialPoint:
    return TrialPoint(
        trial="t1", campaign="c1", index="docs", build="b1", harness="docs", dataset_version=3, rows=1000, M=24,
        ef_construction=120, ef_search=ef_search, seed=42, queries=500, recall=min(1.0, recall_lower + 0.01),
        recall_ties=1.0, recall_lower=recall_lower, recall_worst_decile=0.8, p50_us=p50_us, p95_us=2 * p50_us,
        p99_us=3 * p50_us, cpu_us=p50_us, build_s=2.0, build_cpu_s=2.0, bytes=1000, library="hnswlib 0.8.0 native",
        chosen=chosen, proposer="exploit", rule="exploit: champion M 16 + 8", draw=0.7, journal_rows=12,
        asked_by="agent", trigger="m-append", trigger_tag="dataset.appended", host="h", time=50.0,
    )  # fmt: skip


operations = st.lists(st.one_of(st.just("rollback"), st.just("promote")), max_size=3 * MAX_HISTORY)


@given(operations)
def test_promotions_and_rollbacks_follow_a_stack(sequence: list[str]) -> None:
    document = PromotionDocument(index="docs")
    stack: list[str] = []  # trials, current last; what falls below MAX_HISTORY is lost
    popped: list[str] = []
    for number, operation in enumerate(sequence, 1):
        if operation == "promote":
            document = core.promote(document, entry(number))
            again = msgspec.structs.replace(entry(number), cause="another", note="again")
            assert core.promote(document, again) is document
            stack = [*stack, f"t{number}"][-(MAX_HISTORY + 1) :]
        elif not stack:
            with pytest.raises(ValueError, match="nothing is promoted"):
                core.rollback(document, "asked", float(number), f"m{number}")
        else:
            document, restored = core.rollback(document, "asked", float(number), f"m{number}")
            popped.append(stack.pop())
            assert restored == document.current
        assert (document.current.trial if document.current else None) == (stack[-1] if stack else None)
        assert [old.trial for old in document.history] == stack[-2::-1]
        assert [old.trial for old in document.rolled_back] == popped[: -MAX_HISTORY - 1 : -1]
        assert document.current is None or document.current.ended is None
        assert all(old.ended is not None and old.ended_reason for old in document.history + document.rolled_back)
    assert msgspec.json.decode(msgspec.json.encode(document), type=PromotionDocument) == document


def test_a_rollback_keeps_its_reason_and_who_asked() -> None:
    document = core.promote(core.promote(PromotionDocument(index="docs"), entry(1)), entry(2))
    document, restored = core.rollback(document, "live recall fell", 9.0, "m9")
    assert restored is not None
    assert (restored.trial, restored.generation, restored.ended) == ("t1", None, None)
    (popped,) = document.rolled_back
    assert (popped.trial, popped.ended, popped.ended_reason, popped.ended_by) == ("t2", 9.0, "live recall fell", "m9")
    assert core.was_rolled_back(document, "m9") == popped
    assert core.was_promoted(document, "m2") == popped
    assert core.was_promoted(document, "m1") is document.current
    assert core.was_promoted(document, "m9") is None


def swap(generation: int, config: HnswConfig, trial: str | None = None) -> GenerationSwapped:
    return GenerationSwapped("docs", generation, config, "s1", 1.0, trial)


def test_only_a_newer_generation_of_the_current_entry_is_noted() -> None:
    document = core.promote(PromotionDocument(index="docs"), entry(1))
    config = entry(1).config
    served = core.swapped(document, swap(4, config, "t1"))
    assert served.current is not None
    assert served.current.generation == 4
    assert core.swapped(served, swap(3, config, "t1")) is served
    assert core.swapped(served, swap(5, HnswConfig(ef_search=399), "t1")) is served
    assert core.swapped(served, swap(5, config, "t7")) is served
    rebuilt = core.swapped(served, swap(5, config)).current
    assert rebuilt is not None
    assert rebuilt.generation == 5
    nothing = PromotionDocument(index="docs")
    assert core.swapped(nothing, swap(1, config)) is nothing


def test_the_chosen_point_is_promoted_unless_another_measured_one_is_named() -> None:
    points = [point(40, 0.93, 60), point(64, 0.96, 90, chosen=True), point(80, 0.98, 120)]
    assert core.pick(points, {}, 0.95, False) == points[1]
    assert core.pick(points, {"ef_search": 80}, 0.95, False) == points[2]
    refused = core.pick(points, {"ef_search": 70}, 0.95, False)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.hint) == ("invalid", "measured: ef_search 40; ef_search 64; ef_search 80")


def test_a_point_under_the_target_needs_force() -> None:
    points = [point(40, 0.93, 60), point(80, 0.94, 120)]
    refused = core.pick(points, {"ef_search": 40}, 0.95, False)
    assert isinstance(refused, Refusal)
    assert refused.status == "invalid"
    assert "lower bound 0.9300" in refused.reason
    assert core.pick(points, {"ef_search": 40}, 0.95, True) == points[0]
    assert core.pick(points, {}, 0.95, True) == points[1], "nothing holds: the nearest to the target"
    assert core.pick([*points, point(96, 0.96, 150), point(90, 0.955, 140)], {}, 0.95, False) == point(90, 0.955, 140)


def test_a_point_of_lance_is_named_by_what_is_given() -> None:
    build = LanceBuild("IVF_HNSW_SQ", 4)
    efforts = [LanceEffort(2, 1, 50), LanceEffort(4, 1, 50), LanceEffort(4, 2, 50), LanceEffort(4, 2, 90)]
    points = [lance_point(LanceConfig.of(build, effort), p50_us=us) for us, effort in enumerate(efforts, 1)]
    points[2] = msgspec.structs.replace(points[2], chosen=True)
    points = [msgspec.structs.replace(p, chosen=p is points[2]) for p in points]

    def picked(**effort: int) -> object:
        found = core.pick(points, effort, 0.95, False)
        return found if isinstance(found, Refusal) else found.effort

    assert picked() == efforts[2], "the chosen one"
    assert picked(nprobes=2) == efforts[0]
    assert picked(nprobes=4) == efforts[2], "the chosen one of several"
    assert picked(nprobes=4, refine_factor=1) == efforts[1]
    assert picked(nprobes=4, refine_factor=2, ef=90) == efforts[3]
    for refused in (picked(ef_search=50), picked(nprobes=3)):
        assert isinstance(refused, Refusal)
        assert refused.status == "invalid"
        assert "nprobes 4, refine_factor 2, ef 90" in (refused.hint or "")


def test_ivf_pq_under_the_target_is_never_promoted_but_by_force() -> None:
    """Its lower bound counts, whatever its mean and however fast: 0.835 once went live under a gate of 0.9."""
    points = [lance_point(LanceConfig("IVF_PQ", 64, 96, 64, 20), recall=0.905, recall_lower=0.895, p50_us=1.0)]
    refused = core.pick(points, {}, 0.9, False)
    assert isinstance(refused, Refusal)
    assert "does not hold recall@10 0.95" in refused.reason, "what the trial was asked for"
    asked_for_less = [msgspec.structs.replace(p, target_recall=0.9) for p in points]
    assert isinstance(core.pick(asked_for_less, {}, 0.9, False), Refusal)
    assert core.pick(points, {}, 0.9, True) == points[0]


def test_an_entry_carries_the_figures_and_the_configuration() -> None:
    made = core.entry_of(point(64, 0.96, 90), "me", "looks good", 7.0, "m7")
    assert made.config == HnswConfig(M=24, ef_construction=120, ef_search=64, seed=42)
    config = LanceConfig("IVF_PQ", 64, 48, 9, 10)
    assert core.entry_of(lance_point(config), "me", "", 7.0, "m7").config == config
    assert (made.recall_lower, made.p50_us, made.time, made.cause) == (0.96, 90, 7.0, "m7")


def test_a_drift_says_its_figures() -> None:
    event = RecallDrifted("docs", 4, 0.95, LiveRecall(812, 0.913, 0.901, 0.925, 1.0), "t1")
    said = core.drift_reason(event)
    assert all(figure in said for figure in ("0.9130", "0.9010", "0.9250", "812", "0.95", "generation 4"))
