"""The ε-greedy rule: same journal, same proposal; never a graph twice; replayable."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.autotune.config import AgentConfig
from actors.autotune.facts import Facts, policy
from actors.autotune.grid import by_graph
from actors.autotune.proposer import exhausted, journal_champion, propose
from actors.autotune.replay import replay
from actors.autotune.spaces import LADDER, Policy
from actors.autotune.surrogate import predicted_cost
from schemas.config import GraphConfig, HnswConfig, HnswEffort
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import DEFAULT_GRID, Proposal, RunTrial
from tests.unit.tuning_surface import point, run

RULE = Policy(0.95)


def order_of(proposal: Proposal, number: int, champion: str | None) -> RunTrial:
    return RunTrial(
        trial=f"t-{number}", campaign="c-1", index="docs", proposal=proposal, target_recall=0.95, harness=None,
        asked_by="agent", trigger="m", trigger_tag="t", champion_trial=champion,
    )  # fmt: skip


def journal_of(proposals: int, rule: Policy = RULE, index: str = "docs") -> list[TrialPoint]:
    """A journal as a campaign writes it."""
    journal = run(order_of(Proposal(HnswConfig(), "champion", "champion", extra=[HnswEffort(50)]), 0, None))
    for number in range(1, proposals + 1):
        proposal = propose(index, journal, rule)
        if proposal is None:
            break
        journal += run(order_of(proposal, number, "t-0"))
    return journal


@settings(max_examples=30, deadline=None)
@given(index=st.sampled_from(["docs", "a", "b-2"]), epsilon=st.floats(0, 1), trials=st.integers(0, 15))
def test_replay_makes_every_proposal_again(index: str, epsilon: float, trials: int) -> None:
    rule = msgspec.structs.replace(RULE, epsilon=epsilon)
    journal = journal_of(trials, rule, index)
    report = replay(index, journal, RULE)  # today's policy is another: the past has its own
    assert len(report.proposals) == trials
    assert all(proposal.same for proposal in report.proposals)
    assert report.next == propose(index, journal, RULE)


def test_replay_sees_a_journal_that_was_tampered_with() -> None:
    journal = journal_of(5)
    forged = [msgspec.structs.replace(p, M=p.M + 1) if p.trial == "t-3" else p for p in journal]
    different = [p.trial for p in replay("docs", forged, RULE).proposals if not p.same]
    assert different[0] == "t-3"  # and what was proposed from a forged row may differ too


def test_an_index_name_or_one_more_row_gives_another_draw() -> None:
    journal = journal_of(2)
    draws = {propose(index, rows, RULE).draw for index in ("docs", "other") for rows in (journal, journal[:-1])}  # type: ignore[union-attr]
    assert len(draws) == 4


def test_no_graph_twice_on_a_dataset_version_until_all_are_tried() -> None:
    journal = journal_of(200)
    graphs = [(p.M, p.ef_construction) for p in journal if p.chosen]
    assert len(set(graphs)) == len(graphs) == len(LADDER.M) * len(LADDER.ef_construction)
    assert propose("docs", journal, RULE) is None


def test_a_new_dataset_version_may_try_them_again() -> None:
    journal = journal_of(200)
    again = journal + run(order_of(Proposal(HnswConfig(), "champion", ""), 999, None), version=2)
    assert propose("docs", again, RULE) is not None


def test_epsilon_decides_how_often_it_explores() -> None:
    journal = journal_of(0)
    kinds = [propose(f"index-{i}", journal, RULE).proposer for i in range(400)]  # type: ignore[union-attr]
    share = kinds.count("explore") / 400
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_exploit_is_one_rung_from_the_champion() -> None:
    journal = journal_of(0)
    for i in range(50):
        proposal = propose(f"index-{i}", journal, msgspec.structs.replace(RULE, epsilon=0.0))
        assert proposal is not None
        assert proposal.proposer == "exploit"
        assert proposal.config.M in (12, 16, 24)
        assert proposal.config.ef_construction in (80, 100, 150)


def test_a_champion_that_misses_the_target_only_steps_up() -> None:
    journal = [point(recall_lower=0.90)]
    config = propose("docs", journal, msgspec.structs.replace(RULE, epsilon=0.0)).config  # type: ignore[union-attr]
    assert (config.M, config.ef_construction) in {(24, 100), (16, 150), (24, 150)}


@pytest.mark.parametrize("M", [4, 64])
def test_proposals_stay_within_the_bounds(M: int) -> None:
    """Also where someone promoted what is outside them."""
    rule = Policy(0.95, 0.3, (10, 40), (50, 120))
    journal = [point(M=M)]
    for number in range(1, 40):
        proposal = propose("docs", journal, rule)
        if proposal is None:
            break
        assert 10 <= proposal.config.M <= 40
        assert 50 <= proposal.config.ef_construction <= 120
        journal += [point(trial=f"t-{number}", M=proposal.config.M, ef_construction=proposal.config.ef_construction,
                          proposer=proposal.proposer, recall_lower=0.5)]  # fmt: skip
    assert number > 10


def test_the_first_step_raises_ef_construction_and_the_second_follows_what_was_measured() -> None:
    greedy = msgspec.structs.replace(RULE, epsilon=0.0)
    first = propose("docs", [point()], greedy)
    assert first is not None
    assert first.config.ef_construction == 150
    start = point(cpu_us=100)
    worse = [
        point(trial="t-2", M=24, ef_construction=100, cpu_us=140),
        point(trial="t-3", M=24, ef_construction=150, cpu_us=140),
    ]
    costs = predicted_cost([GraphConfig(12, 100), GraphConfig(24, 80)], [start, *worse], start, 0.95)
    assert costs[0] < 0 < costs[1]  # M up was dear, so M down looks cheap


def test_the_journals_champion_is_what_beat_it() -> None:
    base = point(trial="t-1")

    def challenger(trial: str, high: float, **changed: float) -> TrialPoint:
        return point(trial=trial, proposer="exploit", champion_trial="t-1", champion_ratio=high - 0.02,
                     champion_ratio_high=high, **changed)  # fmt: skip

    better, noise, best = challenger("t-2", 0.9), challenger("t-3", 0.89), challenger("t-4", 0.8)
    missing = challenger("t-5", 0.2, recall_lower=0.9)
    assert journal_champion([base, challenger("t-2", 1.01)], 0.95) is base
    assert journal_champion([base, better, noise], 0.95) is better  # 0.89 isn't surely below 0.88
    assert journal_champion([base, better, noise, best, missing], 0.95) is best
    again = point(trial="t-9", M=8)
    assert journal_champion([base, best, again], 0.95) is again  # a champion's own trial says what is live


def test_neighbourhood_exhausted() -> None:
    journal = [point()]
    assert not exhausted(journal, RULE)
    near = [(m, e) for m in (12, 16, 24) for e in (80, 100, 150)]
    journal += [
        point(trial=f"t-{m}-{e}", proposer="exploit", M=m, ef_construction=e, recall_lower=0.1) for m, e in near
    ]
    assert exhausted(journal, RULE)


def test_the_default_grid_is_four_builds() -> None:
    grid = by_graph([HnswConfig(p.M, p.ef_construction, p.ef_search) for p in DEFAULT_GRID])
    assert [(p.config.build.ef_construction, p.extra) for p in grid] == [  # type: ignore[union-attr]
        (20, [HnswEffort(30)]),
        (40, [HnswEffort(30)]),
        (80, [HnswEffort(30), HnswEffort(60)]),
        (160, [HnswEffort(30)]),
    ]


def test_policy_is_the_agents_section() -> None:
    config = AgentConfig(epsilon=0.5, m_bounds=(8, 32))
    facts = Facts(0.95, HnswConfig(), True, [], backends=("hnsw",), dim=8, rows=1000)
    assert policy(0.9, config, facts) == Policy(0.9, 0.5, (8, 32), dim=8, rows=1000)
