"""What the planner chooses from: strategies, patterns, labels; and how it judges itself."""

import msgspec
import numpy as np
import pytest

from actors.index import core
from actors.planner import state
from actors.planner.config import PlannerConfig
from actors.planner.core_bandit import Arm, Bandit
from actors.planner.core_cycle import Learned, cycle, held, patterns, readout, taught, trained
from actors.planner.core_embedding import OPERATORS
from actors.planner.core_ewc import Task
from actors.planner.core_gain import Pair, measured, next_mode
from actors.planner.core_labels import LADDER, RUNGS, Label, Labels, between, calibrated
from actors.planner.core_patterns import Bank
from actors.planner.core_predictor import applied, efforts, fitted, holding, nearest, smoothed
from actors.planner.core_ring import Trajectories
from actors.planner.core_slack import slacks
from actors.planner.core_terrain import Terrain
from actors.planner.instant import Instant
from actors.planner.learning import LearningOrder, learn
from actors.planner.planners import Planned, Planners
from actors.planner_ports import Outcome, Run, Situation
from schemas.config import LanceConfig

DIM = 24
EXACT = frozenset({"exact"})


# --- strategies ----------------------------------------------------------------------------------


def played(bandit: Bandit, times: dict[str, float], n: int, target: float = 0.95) -> list[str]:
    made = []
    for _ in range(n):
        name = bandit.choose(0, list(times), EXACT, "exact", target)
        bandit.timed(0, name, times[name])
        made.append(name)
    return made


def test_every_arm_once_first_then_mostly_the_fastest():
    bandit = Bandit({})
    for _ in range(60):
        bandit.sampled(0, "slow", 1.0)
        bandit.sampled(0, "fast", 1.0)
    made = played(bandit, {"exact": 300.0, "slow": 900.0, "fast": 60.0}, 3000)
    assert set(made[:3]) == {"exact", "slow", "fast"}
    assert made.count("fast") > 0.85 * len(made)
    assert "slow" in made[500:]  # it is looked at now and then


def test_ucb_is_the_formula():
    rng = np.random.default_rng(11)
    said, other_bonuses = [], []
    for _ in range(300):
        us, n = rng.uniform(20, 200, 3), rng.integers(1, 200, 3)
        names = ["exact", "graph", "lance"]
        bandit = Bandit({0: {name: Arm(n=float(m), log_us=float(m * np.log(t)), samples=1e4, recall=1e4, squares=1e4)
                             for name, t, m in zip(names, us, n, strict=True)}})  # fmt: skip
        score = [us.min() / us + np.sqrt(c * np.log(n.sum()) / n) for c in (2, 0.2, 8)]
        best = [names[one.argmax()] for one in score]
        said.append(bandit.choose(0, names, EXACT, "exact", 0.95) == best[0])
        other_bonuses.append(len(set(best)) > 1)
    assert all(said)
    assert sum(other_bonuses) > 50  # so another bonus would have been found out


def test_an_arm_whose_recall_may_be_under_target_is_never_chosen():
    bandit = Bandit({})
    times = {"exact": 1000.0, "graph": 1.0}
    assert "graph" not in played(bandit, times, 50)  # never sampled
    for _ in range(200):
        bandit.sampled(0, "graph", 0.9)
    assert "graph" not in played(bandit, times, 50)
    for _ in range(2000):
        bandit.sampled(0, "graph", 1.0)
    assert "graph" in played(bandit, times, 50)
    assert bandit.choose(1, ["exact", "graph"], EXACT, "graph", 0.95) == "exact"  # another decade: not seen yet
    bandit.timed(1, "exact", 1.0)
    assert bandit.choose(1, ["exact", "graph"], EXACT, "graph", 0.95) == "graph"  # what answers without a planner may
    for _ in range(50):
        bandit.sampled(1, "graph", 0.9)
    assert bandit.choose(1, ["exact", "graph"], EXACT, "graph", 0.95) == "exact"  # until it is known to miss
    assert bandit.choose(1, ["graph"], EXACT, "graph", 0.95) == "graph"  # where there is no other


def test_after_a_drift_the_other_arms_are_tried_again():
    bandit = Bandit({})
    for _ in range(200):
        bandit.sampled(0, "graph", 1.0)
    played(bandit, {"exact": 100.0, "graph": 20.0}, 2000)
    bandit.discount(0.01)
    made = played(bandit, {"exact": 20.0, "graph": 200.0}, 1000)
    assert made[500:].count("exact") > 400


# --- critical paths ------------------------------------------------------------------------------


def test_slack_is_what_an_operator_may_lose():
    found = {
        one.operator: one for one in slacks([("embed", 100.0), ("filter", 30.0), ("graph", 50.0), ("fetch", 10.0)])
    }
    assert {name: one.slack_us for name, one in found.items()} == {"embed": 0, "filter": 70, "graph": 0, "fetch": 0}
    assert found["filter"].criticality == pytest.approx(0.3)
    assert found["embed"].criticality == 1


def test_slack_against_brute_force():
    rng = np.random.default_rng(0)
    after = {"a": (), "b": (), "c": ("a",), "d": ("a", "b"), "e": ("c", "d")}

    def length(us: dict[str, float]) -> float:
        ends: dict[str, float] = {}
        for name, waits in after.items():
            ends[name] = us[name] + max((ends[w] for w in waits), default=0.0)
        return max(ends.values())

    for _ in range(20):
        us = dict(zip(after, rng.integers(1, 20, 5).astype(float), strict=True))
        for one in slacks(list(us.items()), after):
            assert length({**us, one.operator: us[one.operator] + one.slack_us}) == length(us)
            assert length({**us, one.operator: us[one.operator] + one.slack_us + 1}) > length(us)
    assert slacks([]) == []
    assert [one.slack_us for one in slacks([("graph", 5.0), ("graph", 9.0), ("exact", 3.0), ("odd", 1.0)])] == [0] * 4


# --- labels --------------------------------------------------------------------------------------


def labels_of(wanted: np.ndarray, plans: np.ndarray) -> Labels:
    """Queries that have full recall from their own rung on, and 0.8 below; time in proportion to effort."""
    n = len(wanted)
    recall = np.where(RUNGS[None] >= wanted[:, None] - 1e-9, 1.0, 0.8).astype(np.float32)
    us = np.tile(np.array(LADDER, np.float32), (n, 1))
    return Labels(plans, recall, us, np.full(n, 6.0, np.float32), np.zeros((n, 6), np.float32))


def test_labels_know_the_smallest_effort_and_interpolate():
    wanted = RUNGS[[0, 5, 13]]
    labels = labels_of(wanted, np.zeros((3, 4), np.float32))
    np.testing.assert_allclose(labels.sufficient(), wanted)
    assert between(labels.us[:1], np.array([np.log2(10)]))[0] == 10
    middle = (RUNGS[3] + RUNGS[4]) / 2
    assert between(labels.us[:1], np.array([middle]))[0] == pytest.approx((LADDER[3] + LADDER[4]) / 2, rel=0.01)
    assert between(labels.us[:1], np.array([50.0]))[0] == LADDER[-1]
    one = [Label(np.full(4, i, np.float32), labels.recall[0], labels.us[0], 6.0, [0.0] * 6) for i in range(2100)]
    many = Labels.empty(4).with_all(Labels.of(one[:50])).with_all(Labels.of(one[50:]))
    assert many.size == 2000
    assert many.plans[0, 0] == 100


def test_calibration_holds_recall_at_least_cost_and_knows_a_useless_prediction():
    rng = np.random.default_rng(1)
    wanted = RUNGS[rng.integers(0, 10, 400)]
    labels = labels_of(wanted, np.zeros((400, 4), np.float32))
    good = calibrated(labels, wanted, 0.95)
    recall, us = labels.at(good.shift + good.slope * wanted)
    assert recall.mean() >= 0.95 - 1e-6
    assert good.slope > 0
    fixed = calibrated(labels, np.zeros(400), 0.95)
    assert us.mean() < 0.7 * labels.at(np.full(400, fixed.shift))[1].mean()
    noise = calibrated(labels, rng.permutation(wanted), 0.95)
    assert noise.slope <= 0.25  # a fixed effort, or nearly
    assert calibrated(labels, wanted, 1.1) == (RUNGS[-1], 0.0)  # can't be held


def test_recall_is_held_that_is_had_without_a_planner_or_the_target():
    labels = labels_of(np.full(50, RUNGS[5]), np.zeros((50, 4), np.float32))
    default = [labels._replace(default=np.full(50, effort, np.float32)) for effort in (RUNGS[4], RUNGS[6])]
    assert held(default[0], 0.95) == pytest.approx(0.95)
    assert held(default[1], 0.95) == pytest.approx(1)  # who set it higher wants more
    missed = default[0]._replace(recall=np.full_like(labels.recall, 0.9))
    assert held(missed, 0.95) == pytest.approx(0.9)  # more can't be had


def test_leave_one_out_is_leave_one_out():
    rng = np.random.default_rng(2)
    own, wanted = rng.integers(0, 4, 30), rng.uniform(3, 9, 30)
    own[7] = 5  # alone
    for quantile in (0.0, 0.3, 0.9, 1.0):
        effort, without = efforts(own, wanted, 6, quantile)
        overall = np.quantile(wanted, quantile)
        for i in range(30):
            others = wanted[(np.arange(30) != i) & (own == own[i])]
            mean = np.quantile(others, quantile) if len(others) else 0.0
            assert without[i] == pytest.approx((len(others) * mean + 5 * overall) / (len(others) + 5))
        for p in range(5):
            mine = wanted[own == p]
            mean = np.quantile(mine, quantile) if len(mine) else 0.0
            assert effort[p] == pytest.approx((len(mine) * mean + 5 * overall) / (len(mine) + 5))


def test_patterns_take_the_smallest_quantile_that_holds_recall():
    rng = np.random.default_rng(12)
    own = rng.integers(0, 4, 400)
    rung = np.clip(own * 3 + rng.integers(-1, 2, 400), 0, 13)
    labels = labels_of(RUNGS[rung], np.zeros((400, 4), np.float32))
    every = np.ones(400, np.bool_)
    for recall in (0.9, 0.95, 0.99):
        quantile = holding(labels, own, labels.sufficient(), 4, recall, every)
        held = labels.at(efforts(own, labels.sufficient(), 4, quantile)[1])[0].mean()
        less = labels.at(efforts(own, labels.sufficient(), 4, max(0.0, quantile - 0.02))[1])[0].mean()
        assert held >= recall > less
    assert holding(labels, own, labels.sufficient(), 4, 1.1, every) == 1.0


def test_recall_holds_of_the_queries_that_patterns_answer():
    """Those are the harder ones, each near a pattern that is sure."""
    config, rng = PlannerConfig(), np.random.default_rng(0)
    centres = np.eye(10, config.hidden_dim)
    own, answered = rng.integers(0, 10, 1200), np.arange(1200) < 600
    plans = centres[own] + rng.standard_normal((1200, config.hidden_dim)) * np.where(answered, 0.03, 0.12)[:, None]
    plans /= np.linalg.norm(plans, axis=1, keepdims=True)
    rung = np.clip(own + rng.integers(-2, 3, 1200) + np.where(answered, 3, -2), 0, 13)
    labels = labels_of(RUNGS[rung], plans.astype(np.float32))
    ten, ones = np.ones(10, np.float32), np.ones(10)
    bank = Bank(centres.astype(np.float32), ten, ten, ones, 0 * ones, ten, ten)
    told = fitted(labels, bank, 0.95)
    assert (told.by_pattern == answered).all()
    assert labels.where(answered).at(told.bank.effort[own[answered]].astype(float))[0].mean() >= 0.95 - 1e-3
    calibration = taught(Learned.untrained(config)._replace(bank=bank), labels, 0.95, config, rng).calibration
    efforts_ = calibration.shift + calibration.slope * told.predicted[~answered]
    assert labels.where(~answered).at(efforts_)[0].mean() == pytest.approx(0.95, abs=0.01)


def test_the_first_pattern_that_is_sure_and_alike_supplies_the_effort():
    confidences = [0.95, 0.79, 0.81, 0.9]
    assert applied([1, 2, 0], [0.95, 0.9, 0.8], confidences) == 2
    assert applied([1, 2, 0], [0.95, 0.69, 0.6], confidences) == -1  # the sure ones are too far
    assert applied([1], [0.99], confidences) == -1
    assert applied([3, 0], [0.7, 0.7], confidences) == 3
    assert nearest(np.array([0.1, 0.9, 0.3], np.float32)) == [1, 2, 0]
    assert nearest(np.arange(100, dtype=np.float32)) == [99, 98, 97, 96, 95]
    mean, spread = smoothed([0.9, 0.9], [4.0, 6.0], [10.0, 10.0])
    assert (mean, spread) == (pytest.approx(5), pytest.approx(1))


def test_terrain_is_brute_force():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((500, DIM)).astype(np.float32) @ rng.standard_normal((DIM, DIM)).astype(np.float32)
    terrain, query = Terrain.of(rows, rng), rng.standard_normal(DIM).astype(np.float32)
    few, all_, best, gap, mean, spread = terrain.features(query)
    centred = (rows - rows.mean(axis=0)).astype(np.float64)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    parts = ((query - rows.mean(axis=0)) @ axes.T) ** 2
    assert few == pytest.approx(parts[:8].sum(), rel=1e-3)
    assert all_ == pytest.approx(parts.sum(), rel=1e-3)
    products = np.sort(terrain.matrix[DIM:-1] @ query)
    assert (best, gap) == (pytest.approx(products[-1]), pytest.approx(products[-1] - products[-2], abs=1e-5))
    assert (mean, spread) == (pytest.approx(products.mean(), abs=1e-5), pytest.approx(products.std(), rel=1e-3))
    assert Terrain.unknown(DIM).features(query) == (0.0,) * 6


# --- gain ----------------------------------------------------------------------------------------


def pairs(n: int, default: float, planned: float, recall: float, other: float) -> np.ndarray:
    noise = np.random.default_rng(4).normal(0, 1, (n, 4)) * [5, 5, 0.02, 0.02]
    return np.array([Pair(default, planned, recall, other)] * n) + noise


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((200, 100, 80, 0.95, 0.95), "helps"),
        ((99, 100, 80, 0.95, 0.95), "unclear"),  # too few
        ((200, 100, 80, 0.95, 0.93), "harms"),
        ((200, 100, 100, 0.95, 0.95), "unclear"),
        ((200, 100, 110, 0.95, 0.95), "harms"),
    ],
)
def test_a_verdict_needs_confidence(values, verdict):
    n, *rest = values
    gain = measured(pairs(n, *rest), 0.95)
    assert gain.verdict == verdict
    assert gain.speed.low <= gain.speed.value <= gain.speed.high
    assert gain.speed.value == pytest.approx(rest[0] / rest[1], rel=0.02)
    assert measured(np.empty((0, 4)), 0.95) is None


@pytest.mark.slow
def test_looking_often_turns_nothing_on():
    """Planners that gain nothing, looked at again and again."""
    rng, on, naive = np.random.default_rng(7), 0, 0
    for _ in range(25):
        values = np.column_stack([rng.exponential(100, (3000, 2)), np.ones((3000, 2))])
        gains = [measured(values[end - 100 : end], 0.95, end // 100) for end in range(100, 3001, 100)]
        on += any(gain.verdict == "helps" for gain in gains)
        naive += any(gain.speed.low > 1 for gain in gains)
    assert on <= 1
    assert naive >= 10
    helps = pairs(1000, 100, 80, 0.95, 0.95)
    assert measured(helps, 0.95, 100).verdict == "helps"  # and what helps is found however late


def test_the_bootstrap_interval_covers_in_about_19_of_20():
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(100):
        values = np.column_stack([rng.exponential(100, 150), rng.exponential(80, 150), np.ones(150), np.ones(150)])
        gain = measured(values, 0.95)
        inside += gain.speed.low <= 1.25 <= gain.speed.high
    assert 85 <= inside <= 100


def test_modes_follow_the_verdict_and_off_stays_off():
    helps, harms = measured(pairs(200, 100, 80, 0.95, 0.95), 0.95), measured(pairs(200, 100, 120, 0.95, 0.95), 0.95)
    unclear = measured(pairs(200, 100, 99.9, 0.95, 0.95), 0.95)
    assert [next_mode(mode, helps) for mode in ("off", "shadow", "on")] == ["off", "on", "on"]
    assert [next_mode(mode, harms) for mode in ("off", "shadow", "on")] == ["off", "shadow", "shadow"]
    assert [next_mode(mode, unclear) for mode in ("shadow", "on")] == ["shadow", "on"]
    assert next_mode("on", None) == "on"


# --- a planner as a whole ------------------------------------------------------------------------


def kinds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries of two kinds, and the rung that each needs: one of each kind."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(6).standard_normal((2, DIM))
    kind = rng.integers(0, 2, n)
    return (centres[kind] + 0.3 * rng.standard_normal((n, DIM))).astype(np.float32), np.array([2, 9])[kind]


def studied(config: PlannerConfig) -> Instant:
    instant = Instant(config, DIM, 0.95)
    for query, rung in zip(*kinds(300, 1), strict=True):
        choice = instant.before(query, ("graph", "fetch"), 10, 1.0, 6.0, "graph")
        instant.after(choice, [("graph", 50.0), ("fetch", 5.0), ("odd", 1.0)], 6.0, 60.0, 0.01, 1.0)
        recall = np.where(np.arange(len(LADDER)) >= rung, 1.0, 0.7).astype(np.float32)
        instant.told(choice, recall, np.array(LADDER, np.float32))
    made = cycle(instant.learned, instant.ring.look(), instant.labels, 0.95, config)
    instant.ring.forget(instant.ring.seen)
    instant.adopt(made.learned)
    return instant


def test_it_learns_which_kind_of_query_needs_how_much():
    instant = studied(PlannerConfig(pattern_clusters=8))
    queries, rungs = kinds(200, 2)
    choices = [instant.before(q, ("graph", "fetch"), 10, 1.0, 6.0, "graph") for q in queries]
    predicted = np.array([choice.predicted for choice in choices])
    assert predicted[rungs == 9].min() > predicted[rungs == 2].max()
    effort = np.array([choice.effort for choice in choices])
    assert effort[rungs == 9].mean() - effort[rungs == 2].mean() > 2
    assert {choice.kind for choice in choices} <= {"PatternApplied", "DefaultWithAdaptation"}
    filtered = instant.before(queries[0], ("filter", "graph"), 10, 0.01, 6.0, "exact", ("exact", "filtered_graph"))
    assert (filtered.kind, filtered.decade, filtered.strategy) == ("Default", 2, "exact")


def test_new_patterns_need_what_the_nearest_does_until_labels_tell():
    """Of a process that took over what another had learnt, and has no labels of its own."""
    config = PlannerConfig(pattern_clusters=8)
    instant = studied(config)
    known = instant.learned.bank.effort
    for query in kinds(300, 3)[0]:
        choice = instant.before(query, ("graph", "fetch"), 10, 1.0, 6.0, "graph")
        instant.after(choice, [("graph", 50.0)], 6.0, 60.0, 0.01, 1.0)
    made = cycle(instant.learned, instant.ring.look(), Labels.empty(config.hidden_dim), 0.95, config)
    assert not made.shift.shifted
    assert made.learned.bank.effort.max() <= known.max() + 1e-5 < RUNGS[-1] - 1


def test_the_effort_that_is_explained_is_the_nearest_number_of_cells():
    planners = Planners(PlannerConfig())
    query = np.ones(DIM, np.float32)
    situation = Situation(
        "docs", "lance", 0.95, query, 10, 3000, None, ("lance", "fetch"), 30, "lance", ("lance",), 0.0
    )
    plan = planners.choose(situation)
    planned = core.planned_effort(LanceConfig(partitions=64, nprobes=3), 28)
    explained = planners.explain(plan._replace(effort=28), [])
    assert (explained.effort, explained.default_effort) == (planned.nprobes, 3) == (3, 3)


def test_what_was_measured_before_a_shift_is_told_no_more():
    planned = Planned(PlannerConfig(), DIM, 0.95, "shadow")

    def told(pair):
        planned.instant.compared(Pair(*pair))
        planned.compared += 1
        return planned.gain()

    assert told((100, 50, 1, 1)).speed.value == 2
    planned.shifted()
    assert told((100, 200, 1, 1)).speed.value == 0.5


def test_the_same_calls_make_the_same_choices():
    one, other = studied(PlannerConfig()), studied(PlannerConfig())
    for query in kinds(50, 3)[0]:
        left, right = (i.before(query, ("graph",), 10, 1.0, 6.0, "graph") for i in (one, other))
        assert left[:10] == right[:10]
    different = studied(PlannerConfig(seed=1)).before(query, ("graph",), 10, 1.0, 6.0, "graph")
    assert not np.array_equal(different.plan, left.plan)


def test_the_adapter_that_learns_at_once_moves_towards_its_labels():
    instant = studied(PlannerConfig(micro_lora_lr=0.2))
    query = np.random.default_rng(9).standard_normal(DIM).astype(np.float32)  # like none that it knows
    before = instant.before(query, ("graph",), 10, 1.0, 6.0, "graph")
    assert before.kind == "DefaultWithAdaptation"
    recall = np.where(np.arange(len(LADDER)) >= 13, 1.0, 0.7).astype(np.float32)
    for _ in range(20):
        choice = instant.before(query, ("graph",), 10, 1.0, 6.0, "graph")
        instant.told(choice, recall, np.array(LADDER, np.float32))
    assert instant.before(query, ("graph",), 10, 1.0, 6.0, "graph").predicted > before.predicted


def test_a_shift_is_a_task_to_be_remembered():
    config = PlannerConfig(pattern_clusters=8)
    instant = studied(config)
    plans = instant.learned.reference
    seen = instant.ring.look()
    rng = np.random.default_rng(0)
    for row in rng.standard_normal((200, config.hidden_dim)).astype(np.float32):
        instant.ring.add(
            row / np.linalg.norm(row), np.zeros(len(OPERATORS), np.float32), 6.0, 50.0, 0.0, 1.0, float("nan"), 0.7
        )
    made = cycle(instant.learned, instant.ring.look(), instant.labels, 0.95, config)
    assert made.shift.shifted
    assert len(made.learned.memory.tasks) == 1
    assert made.labels.size == 0  # of other queries: nothing is chosen until there are new ones
    assert made.learned.calibration is None
    assert made.learned.earlier.size == 200
    assert len(plans) == 300
    assert seen.size == 0
    assert (made.learned.memory.tasks[0].fisher > 0).any()
    again = cycle(made.learned, instant.ring.look(), made.labels, 0.95, config)
    assert not again.shift.shifted
    told = cycle(instant.learned, instant.ring.look(), instant.labels, 0.95, config, 120)  # by the watch
    assert len(told.learned.reference) == 120


def test_what_is_forgotten_of_an_earlier_task_is_held_harder():
    """The adapter learns to overshoot what is wanted now, and so overshoots what was wanted before the shift."""
    config = PlannerConfig(pattern_clusters=4, base_lora_lr=0.5)
    rng = np.random.default_rng(13)
    plans = rng.standard_normal((400, config.hidden_dim)).astype(np.float32)
    plans /= np.linalg.norm(plans, axis=1, keepdims=True)
    now = labels_of(RUNGS[rng.integers(4, 13, 400)], plans)
    earlier = labels_of(np.full(200, RUNGS[8]), plans[:200])
    bank = Bank.empty(config.hidden_dim).with_all(
        Bank(plans[:4], *(np.ones(4, np.float32) for _ in range(2)), *(np.ones(4),) * 2, *(np.ones(4, np.float32),) * 2)
    )
    before = Learned.untrained(config)._replace(bank=bank, earlier=earlier)
    assert taught(before, now, 0.95, config, rng).memory.strength == 2 * config.ewc_lambda
    untouched = taught(before._replace(earlier=Labels.empty(config.hidden_dim)), now, 0.95, config, rng)
    assert untouched.memory.strength == config.ewc_lambda  # nothing to be forgotten


def test_the_adapter_rather_overshoots_and_stays_near_what_an_earlier_task_needs():
    config = PlannerConfig()
    rng = np.random.default_rng(14)
    plans = np.tile(rng.standard_normal(config.hidden_dim).astype(np.float32), (600, 1))
    plans /= np.linalg.norm(plans[0])
    wanted = rng.permutation(np.repeat([5.0, 7.0], 300))
    v = readout(config.hidden_dim, 0)
    untrained = Learned.untrained(config)

    def after(memory):
        return trained(untrained.adapter, memory, plans, np.full(600, 6.0), wanted, v, config, rng)[0]

    free = after(untrained.memory)
    assert (free.delta(plans[0]) @ v) > 0  # wanted is as often above as below
    ones = np.ones_like(untrained.memory.fisher)
    held = after(untrained.memory._replace(tasks=(Task(untrained.adapter.flat(), ones),)))
    moved = [np.abs(one.flat() - untrained.adapter.flat()).max() for one in (free, held)]
    assert moved[1] < 0.5 * moved[0]


def test_a_pattern_is_of_good_queries_and_sure_of_itself():
    config = PlannerConfig(pattern_clusters=2)
    rng = np.random.default_rng(15)
    plans = np.repeat(np.eye(config.hidden_dim, dtype=np.float32)[:2], 60, axis=0)
    us, one = np.zeros((120, len(OPERATORS)), np.float32), np.ones(120, np.float32)

    def found(quality):
        return patterns(Trajectories(plans, us, one, one, one, one, one, quality.astype(np.float32)), config, rng)[0]

    assert found(np.full(120, 0.7)).size == 2
    torn = np.where(np.arange(120) < 60, 0.7, np.arange(120) % 2 * 4.0)  # of the second the quality is anything
    assert found(torn).size == 1
    seen = Trajectories(plans, us, one, one, one, one, one, np.where(np.arange(120) < 60, 0.7, 0.2).astype(np.float32))
    made = cycle(Learned.untrained(config), seen, Labels.empty(config.hidden_dim), 0.95, config)
    assert made.learned.bank.weight.sum() == 60  # the others are too poor to learn from


def test_what_is_kept_is_what_was(tmp_path):
    config = PlannerConfig(pattern_clusters=8)
    planned = Planned(config, DIM, 0.95, "shadow")
    planned.instant = studied(config)
    planned.instant.bandit.timed(2, "exact", 50.0)
    np.save(tmp_path / "rows.npy", kinds(400, 8)[0])
    for query in kinds(120, 5)[0]:
        choice = planned.instant.before(query, ("graph",), 10, 1.0, 6.0, "graph")
        planned.instant.after(choice, [("graph", 9.0)], 6.0, 60.0, 0.01, 1.0)
    order = LearningOrder(
        planned.instant.learned, planned.instant.ring.look(), planned.instant.labels, 0.95, config, 0,
        tmp_path / "rows.npy",
    )  # fmt: skip
    (lesson,) = learn(order)
    planned.instant.terrain = lesson.terrain
    planned.instant.adopt(lesson.cycle.learned)
    document = state.document_of("docs", planned, config, state.Moment.of(planned.instant))
    stored = msgspec.json.decode(msgspec.json.encode(document), type=type(document))
    back = state.planned_of(stored, config)
    assert back.instant.ring.size == 120
    assert back.instant.labels.size == planned.instant.labels.size
    assert back.instant.bandit.arm(2, "exact").n == 1
    for query in kinds(50, 6)[0]:
        left, right = (p.instant.before(query, ("graph",), 10, 1.0, 6.0, "graph") for p in (planned, back))
        assert left[:10] == right[:10]
    small = state.exported(document)
    assert state.imported(small).arrays["seen.plans"].shape[0] == 0
    assert len(small) < 1 << 20
    for damaged in (small[:-5], b"nothing", small + small):
        with pytest.raises(ValueError, match=r"unpacked|cut short|follows"):
            state.imported(damaged)
    cut = msgspec.structs.replace(document, arrays={**document.arrays, "weights": document.arrays["adapter"]})
    with pytest.raises(state.Unfit, match="weights"):
        state.planned_of(cut, config)
    with pytest.raises(state.Unfit, match="hidden_dim"):
        state.planned_of(document, PlannerConfig(hidden_dim=128))
    with pytest.raises(state.Unfit, match="version 1"):
        state.planned_of(msgspec.structs.replace(document, embedding=1), config)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.7, 0.9, 1.0])
def test_the_share_that_is_looked_at_is_the_one_asked_for(share):
    planners = Planners(PlannerConfig(shadow_share=share))
    planners.of("docs", DIM, 0.95)
    looked = [planners.wants("docs", number % 50 == 0) for number in range(5000)]
    assert sum(looked) == pytest.approx(100 + share * 4900, abs=1)


def test_in_shadow_a_share_of_the_queries_is_looked_at():
    planners = Planners(PlannerConfig(shadow_share=0.1))
    query = np.ones(DIM, np.float32)
    situation = Situation("docs", "hnsw", 0.95, query, 10, 3000, None, ("graph", "fetch"), 50, "graph", ("graph",), 0.0)
    assert planners.wants("docs", False)  # nothing is known of it
    plan = planners.choose(situation)
    assert (plan.acting, plan.effort, plan.strategy) == (False, 50, "graph")
    planners.observe(plan, Outcome([("graph", 9.0)], 10.0, 9.0, 50, 600, 1.0, 0.0))
    assert sum(planners.wants("docs", False) for _ in range(100)) == 10
    assert planners.wants("docs", True)
    planners.label(plan, [Run(float(ef), 1.0) for ef in planners.ladder], Run(50.0, 1.0), Run(50.0, 1.0), 0.8)
    seen = planners.indexes["docs"].instant.ring.look()
    assert (seen.recall[0], seen.quality[0]) == (np.float32(0.8), 0)  # it missed the target
    planners.indexes["docs"].mode = "off"
    assert not planners.wants("docs", True)
    planners.indexes["docs"].mode = "on"
    assert planners.choose(situation).acting
    assert not Planners(PlannerConfig(enabled=False)).wants("docs", True)
    assert planners.of("docs", DIM, 0.95, "lance").instant.labels.size == 0  # another backend, other efforts
    assert Learned.untrained(PlannerConfig()).calibration is None
