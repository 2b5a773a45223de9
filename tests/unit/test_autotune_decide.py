"""The gates: what is promoted, kept, built again, and what is said about it."""

import pytest

from actors.autotune.decide import choose, rebuild_reason, recalibrated, verdict
from schemas.config import HnswEffort
from schemas.documents.trial import TrialPoint
from tests.unit.tuning_surface import point


def challenger(trial: str, ratio: float, spread: float = 0.01, **changed: object) -> TrialPoint:
    told = {"champion_trial": "t-1", "champion_recall_lower": 0.955, "proposer": "exploit", **changed}
    return point(
        trial=trial, champion_ratio=ratio, champion_ratio_low=ratio - spread, champion_ratio_high=ratio + spread, **told
    )


def test_the_lowest_ef_that_holds_stands_for_a_trial() -> None:
    points = [point(ef_search=ef, recall_lower=lower) for ef, lower in ((20, 0.93), (30, 0.951), (40, 0.97))]
    assert choose(points, 0.95) == HnswEffort(30)
    assert choose(points, 0.99) == HnswEffort(40)


def test_the_fastest_that_surely_beats_the_champion_is_promoted() -> None:
    said = verdict([challenger("t-2", 0.9), challenger("t-3", 0.8)], 0.95, "cost_first", 0.05, point())
    assert said.outcome == "promoted"
    assert said.winner is not None
    assert said.winner.trial == "t-3"
    assert "20.0% faster" in said.reason


@pytest.mark.parametrize(("ratio", "spread"), [(0.96, 0.005), (0.94, 0.02), (1.1, 0.01)])
def test_a_gain_that_is_small_or_uncertain_is_kept_out(ratio: float, spread: float) -> None:
    said = verdict([challenger("t-2", ratio, spread)], 0.95, "cost_first", 0.05, point())
    assert (said.outcome, said.winner) == ("kept", None)


def test_a_faster_challenger_that_misses_the_target_is_none() -> None:
    said = verdict([challenger("t-2", 0.3, recall_lower=0.949)], 0.95, "cost_first", 0.05, point())
    assert said.outcome == "kept"
    assert said.best is not None
    assert said.best.trial == "t-1"


def test_when_the_champion_misses_whoever_holds_wins_even_slower() -> None:
    said = verdict([challenger("t-2", 1.7, champion_recall_lower=0.90)], 0.95, "cost_first", 0.05)
    assert said.outcome == "promoted"
    assert "misses 0.95 (0.9000)" in said.reason


def test_a_challenger_that_was_never_compared_does_not_replace_a_champion_that_holds() -> None:
    said = verdict([point(trial="t-2", champion_ratio=None)], 0.95, "cost_first", 0.05, point())
    assert said.outcome == "kept"
    assert "not compared" in said.reason


def test_nothing_holds_and_the_answer_says_how_far_the_best_was() -> None:
    points = [
        challenger("t-2", 0.5, recall_lower=0.91, recall=0.93, ef_search=400),
        challenger("t-3", 0.5, recall_lower=0.8),
    ]
    said = verdict(points, 0.95, "cost_first", 0.05)
    assert (said.outcome, said.winner) == ("infeasible", None)
    assert "best reached 0.9100" in said.reason
    assert "of target 0.95 at ef_search 400" in said.reason


def test_a_point_between_that_looks_cheaper_by_noise_does_not_win() -> None:
    """Only chosen points were compared; the p50 of others is of another moment."""
    chosen = challenger("t-2", 0.8, p50_us=100.0)
    noise = point(trial="t-2", chosen=False, ef_search=60, p50_us=90.0, proposer="exploit")
    said = verdict([chosen, noise], 0.95, "cost_first", 0.05, point())
    assert said.winner is chosen


def test_recall_first_takes_the_highest_recall_then_the_cheapest() -> None:
    low = challenger("t-2", 0.5, recall=0.96)
    high = point(
        trial="t-2", chosen=False, ef_search=400, recall=0.999, recall_lower=0.998, p50_us=900.0, proposer="grid"
    )
    dear = point(
        trial="t-3", chosen=False, ef_search=400, recall=0.999, recall_lower=0.998, p50_us=1200.0, proposer="grid"
    )
    said = verdict([low, high, dear], 0.95, "recall_first", 0.05)
    assert (said.outcome, said.winner) == ("promoted", high)


def test_a_grid_without_anything_live_promotes_its_best() -> None:
    points = [point(trial="t-2", p50_us=90, champion_trial=None), point(trial="t-3", p50_us=80, champion_trial=None)]
    said = verdict(points, 0.95, "cost_first", 0.05)
    assert said.winner is points[1]


@pytest.mark.parametrize(
    ("changed", "outcome", "words"),
    [
        ({"champion_recall_lower": 0.90, "champion_ratio": 1.4, "champion_ratio_high": 1.5}, "promoted", "misses it"),
        ({"champion_recall_lower": 0.97, "champion_ratio": 0.6, "champion_ratio_high": 0.65}, "promoted", "faster"),
        ({"champion_recall_lower": 0.97, "champion_ratio": 0.97, "champion_ratio_high": 0.99}, "kept", "isn't certain"),
        ({"recall_lower": 0.90}, "infeasible", "best reached 0.9000"),
        ({}, "promoted", "nothing was live"),
    ],
)
def test_recalibration(changed: dict[str, float], outcome: str, words: str) -> None:
    low = {"champion_ratio_low": 0.5} if "champion_ratio" in changed else {}
    said = recalibrated(point(**changed, **low), 0.95, 0.05)
    assert said.outcome == outcome
    assert words in said.reason
    assert (said.winner is not None) == (outcome == "promoted")


def test_when_a_graph_is_built_again() -> None:
    assert rebuild_reason(1000, 999, 0) == ""
    assert "doubled" in rebuild_reason(1000, 1000, 0)
    assert rebuild_reason(1000, 0, 200) == ""
    assert "20%" in rebuild_reason(1000, 0, 201)
    assert rebuild_reason(0, 10, 0) == ""
