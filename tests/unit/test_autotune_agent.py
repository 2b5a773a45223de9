"""The agent message by message: what it orders, promotes, and does when a message comes twice, a
process dies or two indexes want tuning at once."""

from pathlib import Path

import pytest

from schemas.config import DEFAULT_CONFIG, HnswEffort
from schemas.documents.agent import AgentDocument
from schemas.events.autotune import (
    AutotuneStarted,
    EnqueueTuning,
    GetAgentStatus,
    GridPoint,
    ListTrials,
    Replay,
    RunTrial,
    StartAutotune,
    TrialFailed,
    TuningFinished,
    TuningQueued,
)
from schemas.events.base import CommandRefused, Refusal
from schemas.events.index import GenerationReady, IndexAppended, IndexDropped, LiveRecall, RebuildIndex, RecallDrifted
from schemas.events.promotion import Promote
from tests.unit import tuning_surface
from tests.unit.tuning_play import Play


@pytest.fixture
async def play(tmp_path: Path) -> Play:
    play = Play(tmp_path)
    await play.open()
    return play


async def live(folder: Path, **config: object) -> Play:
    play = Play(folder, **config)  # type: ignore[arg-type]
    await play.open()
    for index in play.indexes:
        await play.go_live(index)
    return play


async def tuned(folder: Path, **config: object) -> Play:
    """An index whose first campaign is over and whose cooldown has passed."""
    play = await live(folder, **config)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    play.grown.clear()
    play.clock.time += 4000
    play.said.clear()
    return play


# --- a first campaign --------------------------------------------------------------------------


async def test_the_first_trial_is_the_live_graph_with_its_own_ef_measured(tmp_path: Path) -> None:
    play = await live(tmp_path)
    queued, order = await play.deliver(EnqueueTuning("docs", "please", "cli"), "m-1")
    assert queued == TuningQueued("docs", "please")
    assert isinstance(order, RunTrial)
    assert order.proposal.proposer == "champion"
    assert order.proposal.reuse_live
    assert order.proposal.extra == [HnswEffort(50)]
    assert (order.asked_by, order.trigger, order.trigger_tag) == ("cli", "m-1", "autotune.enqueue")


async def test_a_campaign_promotes_the_null_baseline_at_once_and_a_better_graph_at_its_end(tmp_path: Path) -> None:
    play = await live(tmp_path)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    first, *_ = play.of(Promote)
    champion = play.orders()[0].trial
    assert first.trial == champion
    assert first.ef_search is not None
    assert first.ef_search < 50  # bisected: smaller than the default and still holding
    assert tuning_surface.recall(16, 100, first.ef_search) >= 0.95 > tuning_surface.recall(16, 100, first.ef_search - 1)
    assert all(order.champion_trial == champion for order in play.orders()[1:])
    (finished,) = play.of(TuningFinished)
    assert finished.outcome == "promoted"
    assert 2 <= finished.trials <= play.config.max_trials_per_campaign
    won = play.of(Promote)[-1]
    point = next(p for p in play.journal.rows if p.trial == won.trial and p.chosen)
    assert tuning_surface.cost(point.M, point.ef_search) <= 0.95 * tuning_surface.cost(16, first.ef_search)
    assert won.promoted_by == "agent"
    assert "faster" in won.note


async def _grid_to_its_promotion(play: Play) -> Promote:
    """An asked grid is measured; what it ends with is ordered and not carried out."""
    orders = await play.deliver(StartAutotune("docs"), "m-1")
    while True:
        trials = [order for order in orders if isinstance(order, RunTrial)]
        if not trials:
            (promote,) = [order for order in orders if isinstance(order, Promote)]
            return promote
        orders = await play.deliver(await play.measure(trials[0]), f"done-{trials[0].trial}")


async def test_a_campaign_is_not_told_as_promoted_before_the_promotion_is_durable(tmp_path: Path) -> None:
    play = await live(tmp_path)
    promote = await _grid_to_its_promotion(play)
    assert not play.of(TuningFinished)
    await play.carry_out([promote])
    (finished,) = play.of(TuningFinished)
    assert finished.outcome == "promoted"
    assert finished.promoted == promote.trial
    assert not (await play.state()).verdicts


async def test_a_promotion_that_got_lost_is_ordered_again(tmp_path: Path) -> None:
    play = await live(tmp_path, enabled=False)
    promote = await _grid_to_its_promotion(play)
    assert await play.wake() == []
    play.clock.time += 299
    assert await play.wake() == []
    play.clock.time += 2
    (again,) = await play.wake()
    assert isinstance(again, Promote)
    assert (again.trial, again.ef_search) == (promote.trial, promote.ef_search)
    play.clock.time += 60
    assert await play.wake() == []  # once, not at every wake
    await play.carry_out([again])
    assert [finished.promoted for finished in play.of(TuningFinished)] == [promote.trial]


async def test_a_refused_promotion_is_told_as_kept_with_the_reason(tmp_path: Path) -> None:
    play = await live(tmp_path)
    await _grid_to_its_promotion(play)
    await play.deliver(CommandRefused("index.create", "invalid", "no", about="docs"), "r-1")
    await play.deliver(CommandRefused("promotion.promote", "conflict", "another won", about="other"), "r-2")
    assert not play.of(TuningFinished)
    await play.deliver(CommandRefused("promotion.promote", "conflict", "another won", about="docs"), "r-3")
    (finished,) = play.of(TuningFinished)
    assert finished.outcome == "kept"
    assert finished.promoted is None
    assert "another won" in finished.reason


async def test_before_anything_is_live_the_default_is_built(play: Play) -> None:
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    assert isinstance(order, RunTrial)
    assert not order.proposal.reuse_live
    assert (order.proposal.config.M, order.proposal.config.ef_construction) == (16, 100)


async def test_the_first_generation_sets_off_the_first_campaign(tmp_path: Path) -> None:
    play = await live(tmp_path)
    (order,) = await play.deliver(GenerationReady("docs", 1, DEFAULT_CONFIG, "created"), "m-1")
    assert isinstance(order, RunTrial)
    assert (order.trigger, order.trigger_tag, order.asked_by) == ("m-1", "index.ready", "agent")


async def test_a_wake_finds_an_index_that_was_never_tuned(tmp_path: Path) -> None:
    play = await live(tmp_path)
    (order,) = await play.wake()
    assert isinstance(order, RunTrial)
    assert await play.wake() == []  # one trial at a time


# --- appends -----------------------------------------------------------------------------------


async def test_an_append_is_answered_when_the_vectors_cover_it(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=500)
    (order,) = await play.append(600)
    assert isinstance(order, RunTrial)
    assert order.proposal.reuse_live
    assert (order.trigger, order.trigger_tag) == ("append-2", "dataset.appended")


async def test_vectors_may_be_told_of_before_rows(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=500)
    event = IndexAppended("docs", "docs-rows", 2, 600, 2600)
    assert await play.deliver(event, "covered") == []
    play.version = 1
    assert len(await play.append(600)) == 1


async def test_an_append_that_ef_settles_costs_one_trial_and_no_build(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=500)
    await play.carry_out(await play.append(600))
    assert len(play.orders()) == 1
    (finished,) = play.of(TuningFinished)
    assert finished.outcome == "kept"
    assert play.of(RebuildIndex) == []


async def test_small_appends_add_up(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=1000)
    assert await play.append(600) == []
    assert "600 changed since the last tuning, below 1000" in (await play.state()).decisions[0].reason
    assert len(await play.append(600)) == 1


async def test_doubled_rows_are_built_again(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    await play.carry_out(await play.append(3000))
    recalibration, rebuilt, *challengers = play.orders()
    assert recalibration.proposal.reuse_live
    assert rebuilt.proposal.proposer == "champion"
    assert not rebuilt.proposal.reuse_live
    assert challengers
    (finished,) = play.of(TuningFinished)
    swapped = [p for p in play.of(Promote) if p.trial != recalibration.trial]
    assert play.of(RebuildIndex) or swapped  # today's rows are under a fresh graph either way
    assert "doubled" in (play.of(RebuildIndex)[0].reason if play.of(RebuildIndex) else rebuilt.proposal.rule)
    assert finished.trials == len(play.orders())


async def test_ef_that_can_not_reach_the_target_brings_other_graphs(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    (order,) = await play.append(1100)
    assert isinstance(order, RunTrial)
    done = await play.measure(order, recall_lower=0.90, champion_recall_lower=0.90)
    (rebuilt,) = await play.deliver(done, "done")
    assert isinstance(rebuilt, RunTrial)
    assert rebuilt.proposal.proposer == "champion"
    assert "no effort alone mends it" in rebuilt.proposal.rule


async def test_deleted_rows_count_as_change(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=500)
    (order,) = await play.deliver(IndexAppended("docs", "docs-rows", 2, 0, 1400, deleted=600), "m-2")
    assert isinstance(order, RunTrial)
    assert order.trigger_tag == "index.appended"


async def test_drift_starts_a_campaign_whatever_the_rows(tmp_path: Path) -> None:
    play = await live(tmp_path)
    recall = LiveRecall(samples=400, mean=0.91, lower=0.89, upper=0.93, since=0)
    (order,) = await play.deliver(RecallDrifted("docs", 1, 0.95, recall), "m-2")
    assert isinstance(order, RunTrial)
    assert "live recall 0.9100" in (await play.state()).decisions[2].reason


async def test_a_drip_of_appends_leaves_the_decisions_before_it_on_record(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=200, max_trials_per_hour=0)
    before = (await play.state()).decisions
    for _ in range(100):
        await play.append(7)  # skipped until 200 have come, queued from then on
    fresh = [decision for decision in (await play.state()).decisions if decision not in before]
    assert [decision.action for decision in fresh] == ["queued", "skipped"]
    assert "196 changed" in fresh[1].reason
    assert (await play.state()).queue[0].version == play.version  # the place is kept up to date
    recall = LiveRecall(samples=400, mean=0.91, lower=0.89, upper=0.93, since=0)
    await play.deliver(RecallDrifted("docs", await play.generation(), 0.95, recall), "d-1")
    assert (await play.state()).decisions[0].reason.startswith("live recall")  # another reason is news
    assert (await play.state()).queue[0].trigger_tag == "recall.drifted"


async def test_what_a_person_asks_for_is_not_taken_from_the_agents_hour(tmp_path: Path) -> None:
    play = await live(tmp_path, max_trials_per_hour=3)
    await play.carry_out(await play.deliver(StartAutotune("docs"), "m-1"))
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-2"))
    (status,) = await play.agent.on_status(GetAgentStatus())
    assert (status.trials_this_hour, status.budget_left) == (0, 3)
    play.clock.time += 600
    await play.carry_out(await play.append(1100))
    (status,) = await play.agent.on_status(GetAgentStatus())
    assert status.trials_this_hour > 0
    assert status.budget_left == 3 - status.trials_this_hour


# --- once, and nothing lost --------------------------------------------------------------------


async def test_a_message_that_comes_twice_is_decided_once(tmp_path: Path) -> None:
    play = await tuned(tmp_path, min_new_rows=100)
    await play.append(60, id="a")
    await play.append(60, id="a")  # the same event again: rows must not count twice
    assert play.orders() == []
    assert (await play.state()).changed["docs"] == 60
    play.said.clear()
    (order,) = await play.append(60, id="b")
    assert isinstance(order, RunTrial)
    done = await play.measure(order)
    await play.deliver(done, "done")
    before = await play.state()
    assert await play.deliver(done, "done", delivery=2) == []  # published already
    assert await play.deliver(done, "done-again") == []  # the same news under another id
    assert [c.trials for c in (await play.state()).campaigns] == [c.trials for c in before.campaigns]


async def test_a_crash_between_save_and_publish_loses_no_order(tmp_path: Path) -> None:
    play = await live(tmp_path)
    assert await play.deliver(EnqueueTuning("docs"), "m-1", crash=True) == []
    assert (await play.state()).campaigns[0].running is not None
    queued, order = await play.deliver(EnqueueTuning("docs"), "m-1", delivery=2)
    assert isinstance(queued, TuningQueued)
    assert isinstance(order, RunTrial)
    assert order.trial == (await play.state()).campaigns[0].running


async def test_every_crash_point_of_a_campaign_ends_in_the_same_campaign(tmp_path: Path) -> None:
    """Each message is once handled by a process that dies before publishing, and delivered again."""
    smooth, bumpy = await live(tmp_path / "a"), await live(tmp_path / "b")
    await smooth.carry_out(await smooth.deliver(EnqueueTuning("docs"), "m-1"))
    await bumpy.deliver(EnqueueTuning("docs"), "m-1", crash=True)
    pending = await bumpy.deliver(EnqueueTuning("docs"), "m-1", delivery=2)
    while pending:
        order = pending.pop(0)
        if isinstance(order, Promote):
            promoted = await bumpy.promote(order)
            await bumpy.deliver(promoted, f"promoted-{order.trial}", crash=True)
            pending += await bumpy.deliver(promoted, f"promoted-{order.trial}", delivery=2)
        if isinstance(order, RunTrial):
            done = await bumpy.measure(order)
            await bumpy.deliver(done, f"done-{order.trial}", crash=True)
            pending += await bumpy.deliver(done, f"done-{order.trial}", delivery=2)
    assert [(p.trial, p.ef_search) for p in bumpy.journal.rows] == [(p.trial, p.ef_search) for p in smooth.journal.rows]
    assert bumpy.of(TuningFinished) == smooth.of(TuningFinished)
    assert bumpy.of(Promote) == smooth.of(Promote)


async def test_a_restart_orders_the_running_trial_again(tmp_path: Path) -> None:
    play = await live(tmp_path)
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    play.reboot()
    assert list(await play.agent.start()) == [order]
    await play.agent.stop()


async def test_two_agents_that_save_at_once_decide_one_after_the_other(tmp_path: Path) -> None:
    play = await live(tmp_path)
    save, raced = play.registry.save, []

    async def race(name: str, document: AgentDocument, *, expected: int | None, bucket: str = "primary") -> int:
        if not raced:
            raced.append(True)
            await save(name, AgentDocument(changed={"docs": 7}), expected=expected)
        return await save(name, document, expected=expected, bucket=bucket)

    play.registry.save = race  # type: ignore[method-assign,assignment]
    orders = await play.deliver(EnqueueTuning("docs"), "m-1")
    assert len(orders) == 2
    assert raced


# --- failures ----------------------------------------------------------------------------------


async def test_a_failed_trial_is_tried_once_more_and_then_given_up(tmp_path: Path) -> None:
    play = await live(tmp_path)
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    assert isinstance(order, RunTrial)
    (again,) = await play.deliver(TrialFailed(order.trial, order.campaign, "docs", "no memory"), "f-1")
    assert again == order
    (finished,) = await play.deliver(TrialFailed(order.trial, order.campaign, "docs", "no memory"), "f-2")
    assert isinstance(finished, TuningFinished)
    assert finished.outcome == "failed"
    assert (await play.state()).campaigns == []


async def test_a_grid_goes_on_after_a_trial_that_fails(tmp_path: Path) -> None:
    play = await live(tmp_path)
    _, order = await play.deliver(StartAutotune("docs"), "m-1")
    assert isinstance(order, RunTrial)
    (order,) = await play.deliver(TrialFailed(order.trial, order.campaign, "docs", "no"), "f-1")
    (following,) = await play.deliver(TrialFailed(order.trial, order.campaign, "docs", "no"), "f-2")
    assert isinstance(following, RunTrial)
    assert following.trial != order.trial
    assert following.proposal.config.ef_construction == 40
    await play.carry_out([following])
    (finished,) = play.of(TuningFinished)
    assert finished.trials == 3


async def test_a_lost_trial_is_ordered_again(tmp_path: Path) -> None:
    play = await live(tmp_path)
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    play.clock.time += 3000
    assert await play.wake() == []
    play.clock.time += 1000
    assert await play.wake() == [order]


async def test_a_dropped_index_leaves_nothing_behind(tmp_path: Path) -> None:
    play = await live(tmp_path, indexes=("docs", "other"))
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    await play.deliver(EnqueueTuning("other"), "m-2")
    assert isinstance(order, RunTrial)
    (following,) = await play.deliver(IndexDropped("docs"), "m-3")
    assert isinstance(following, RunTrial)
    assert following.index == "other"
    assert await play.deliver(await play.measure(order), "late") == []
    assert [c.index for c in (await play.state()).campaigns] == ["other"]


# --- whose turn --------------------------------------------------------------------------------


async def test_two_indexes_are_tuned_one_after_the_other_and_never_at_once(tmp_path: Path) -> None:
    play = await live(tmp_path, indexes=("docs", "other"))
    pending = await play.deliver(EnqueueTuning("docs"), "m-1") + await play.deliver(EnqueueTuning("other"), "m-2")
    assert len(play.orders()) == 1
    await play.carry_out(pending)
    assert {finished.index for finished in play.of(TuningFinished)} == {"docs", "other"}
    by_index = [order.index for order in play.orders()]
    assert by_index == sorted(by_index)  # docs to its end, then other


async def test_wishes_older_than_a_campaign_are_answered_by_it(tmp_path: Path) -> None:
    play = await live(tmp_path)
    asked = play.clock.time
    play.clock.time += 1
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    trials = len(play.orders())
    now, play.clock.time = play.clock.time, asked  # these were published before it began
    for number in range(20):
        (queued,) = await play.deliver(EnqueueTuning("docs"), f"late-{number}")
        assert isinstance(queued, TuningQueued)
    play.clock.time = now + 1
    assert not (await play.state()).queue
    assert len(play.orders()) == trials
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-2"))
    assert len(play.orders()) > trials


async def test_one_place_per_index(tmp_path: Path) -> None:
    play = await live(tmp_path, indexes=("docs", "other"))
    await play.deliver(EnqueueTuning("docs"), "m-1")
    for i in range(3):
        await play.deliver(EnqueueTuning("other", f"reason {i}"), f"m-2-{i}")
    assert [place.index for place in (await play.state()).queue] == ["other"]


async def test_the_hours_budget_holds_a_rule_up_but_no_person(tmp_path: Path) -> None:
    play = await live(tmp_path, max_trials_per_hour=2)
    (order,) = await play.wake()
    await play.carry_out([order])
    assert len(play.orders()) == 2
    assert play.of(TuningFinished) == []
    (asked,) = list(await play.deliver(StartAutotune("docs"), "m-0"))
    assert isinstance(asked, Refusal)  # its campaign waits, but it is there
    play.clock.time += 1800
    assert await play.wake() == []
    play.clock.time += 1801
    (order,) = await play.wake()
    assert isinstance(order, RunTrial)


async def test_a_person_need_not_wait_for_budget_or_cooldown(tmp_path: Path) -> None:
    play = await live(tmp_path, max_trials_per_hour=0, cooldown_s=1e6)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    assert play.of(TuningFinished)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-2"))
    assert len(play.of(TuningFinished)) == 2


async def test_cooldown(tmp_path: Path) -> None:
    play = await live(tmp_path, cooldown_s=300.0, min_new_rows=10)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    assert await play.append(50) == []
    assert [place.index for place in (await play.state()).queue] == ["docs"]
    play.clock.time += 299
    assert await play.wake() == []
    play.clock.time += 2
    assert len(await play.wake()) == 1


async def test_a_disabled_agent_only_does_as_told(tmp_path: Path) -> None:
    play = await live(tmp_path, enabled=False, min_new_rows=1)
    assert await play.wake() == []
    assert await play.append(5000) == []
    assert len(await play.deliver(EnqueueTuning("docs"), "m-9")) == 2


# --- asked in person ---------------------------------------------------------------------------


async def test_the_default_grid_is_four_trials_and_a_verdict(tmp_path: Path) -> None:
    play = await live(tmp_path)
    started, *orders = await play.deliver(StartAutotune("docs"), "m-1")
    assert isinstance(started, AutotuneStarted)
    assert started.trials == 4
    await play.carry_out(orders)
    assert [[e.ef_search for e in order.proposal.extra] for order in play.orders()] == [[30], [30], [30, 60], [30]]
    (finished,) = play.of(TuningFinished)
    assert finished.campaign == started.campaign
    measured = {(p.ef_construction, p.ef_search) for p in play.journal.rows}
    assert measured >= {(20, 30), (40, 30), (80, 30), (80, 60), (160, 30)}


async def test_one_autotune_per_index_at_a_time(tmp_path: Path) -> None:
    play = await live(tmp_path)
    await play.deliver(StartAutotune("docs"), "m-1")
    (refusal,) = await play.deliver(StartAutotune("docs"), "m-2")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.retry_after_s) == ("busy", None)


async def test_nothing_holds_it_so_nothing_is_promoted_and_the_answer_says_how_far_it_was(tmp_path: Path) -> None:
    play = await live(tmp_path)
    grid = [GridPoint(10, 30, 4), GridPoint(20, 30, 4)]
    await play.carry_out(await play.deliver(StartAutotune("docs", min_recall=0.9999, grid=grid), "m-1"))
    assert play.of(Promote) == []
    (finished,) = play.of(TuningFinished)
    assert finished.outcome == "infeasible"
    assert f"best reached {tuning_surface.recall(4, 20, 400):.4f}" in finished.reason
    assert finished.best is not None


async def test_recall_first_promotes_the_highest_recall(tmp_path: Path) -> None:
    play = await live(tmp_path)
    await play.carry_out(await play.deliver(StartAutotune("docs", objective="recall_first"), "m-1"))
    (promote,) = play.of(Promote)
    assert promote.ef_search == 400


async def test_who_asks_for_what_is_not_there_is_told(play: Play) -> None:
    for message in (EnqueueTuning("nope"), StartAutotune("nope"), ListTrials("nope"), Replay("nope")):
        (refusal,) = await play.deliver(message, f"m-{message}")
        assert isinstance(refusal, Refusal)
        assert refusal.status == "not_found"
    (refusal,) = await play.deliver(StartAutotune("docs", harness="nope"), "m")
    assert isinstance(refusal, Refusal)
    assert "no eval set 'nope'" in refusal.reason
    (refusal,) = await play.deliver(StartAutotune("docs", grid=[]), "m-grid")
    assert isinstance(refusal, Refusal)
    assert refusal.status == "invalid"


async def test_status_trials_and_replay(tmp_path: Path) -> None:
    play = await live(tmp_path)
    pending = await play.deliver(EnqueueTuning("docs"), "m-1")
    (status,) = await play.agent.on_status(GetAgentStatus())
    assert [running.phase for running in status.running] == ["ordered"]
    assert status.trials_this_hour == 0  # asked in person
    await play.carry_out(pending)
    (status,) = await play.agent.on_status(GetAgentStatus())
    assert status.running == []
    assert status.cooldown_until["docs"] == play.clock.time + play.config.cooldown_s
    assert status.decisions[0].action == "promoted"
    (trials,) = await play.agent.on_list_trials(ListTrials("docs", limit=5))
    assert trials.total == len(play.journal.rows)
    assert trials.points == play.journal.rows[::-1][:5]
    (report,) = await play.agent.on_replay(Replay("docs"))
    assert report.proposals
    assert all(proposal.same for proposal in report.proposals)


async def test_what_it_remembers_stays_small(tmp_path: Path) -> None:
    play = await live(tmp_path, enabled=False)
    for i in range(120):
        await play.append(1, id=f"a-{i}")
    state = await play.state()
    assert len(state.answered) <= 32
    assert len(state.decisions) <= 50
