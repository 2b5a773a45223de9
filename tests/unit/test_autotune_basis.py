"""What a campaign compares with may change under it: a drift that is taken back, a promotion by
hand, a rollback. Nothing may then be promoted that wasn't compared with what serves."""

from pathlib import Path

from schemas.config import DEFAULT_CONFIG, HnswConfig
from schemas.events.autotune import EnqueueTuning, GridPoint, RunTrial, StartAutotune, TuningFinished
from schemas.events.base import Message
from schemas.events.index import GenerationReady, LiveRecall, RecallDrifted
from schemas.events.promotion import Promote
from tests.unit.tuning_play import Play

RECALL = LiveRecall(samples=400, mean=0.91, lower=0.89, upper=0.93, since=0)


async def live(folder: Path, **config: object) -> Play:
    play = Play(folder, **config)  # type: ignore[arg-type]
    await play.open()
    await play.go_live()
    return play


async def tuned(folder: Path) -> Play:
    """An index whose campaign promoted a better ef and then a better graph, and has cooled down."""
    play = await live(folder)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    assert len(play.of(Promote)) == 2
    assert (await play.state()).decisions[0].action == "promoted"
    play.clock.time += 4000
    play.said.clear()
    return play


async def ready(play: Play, config: HnswConfig, id: str) -> list[Message]:
    """The generation of a configuration goes live and is told of."""
    await play.go_live(config=config)
    return await play.deliver(GenerationReady("docs", await play.generation(), config, "promoted"), id)


async def test_a_drift_of_a_generation_without_a_promotion_starts_at_once(tmp_path: Path) -> None:
    play = await live(tmp_path)
    (order,) = await play.deliver(RecallDrifted("docs", 1, 0.95, RECALL), "d-1")
    assert isinstance(order, RunTrial)
    assert order.trigger_tag == "recall.drifted"
    assert order.trigger_time == play.clock.time


async def test_a_drift_of_a_promotion_waits_until_what_comes_back_serves(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    bad = await play.serving("docs")
    drift = RecallDrifted("docs", await play.generation(), 0.95, RECALL)
    assert await play.deliver(drift, "d-1") == []
    assert await play.wake() == []
    restored = await play.roll_back("d-1")
    assert restored.entry.config != bad
    assert await play.deliver(restored, "r-1") == []  # the bad one serves still
    assert await play.wake() == []
    (order,) = await ready(play, restored.entry.config, "g-1")
    assert isinstance(order, RunTrial)
    assert (order.proposal.config, order.proposal.reuse_live) == (restored.entry.config, True)
    await play.carry_out([order])
    (finished,) = play.of(TuningFinished)
    assert finished.champion is not None
    assert finished.champion.M == restored.entry.config.M


async def test_a_drift_that_was_taken_back_before_it_is_heard_is_tuned_all_the_same(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    drift = RecallDrifted("docs", await play.generation(), 0.95, RECALL)
    restored = await play.roll_back("d-1")
    assert await play.deliver(restored, "r-1") == []
    assert await ready(play, restored.entry.config, "g-1") == []
    assert len(await play.deliver(drift, "d-1")) == 1


async def test_a_drift_of_a_generation_that_is_gone_is_skipped(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    assert await play.deliver(RecallDrifted("docs", 1, 0.95, RECALL), "d-1") == []
    state = await play.state()
    assert (state.queue, state.decisions[0].action) == ([], "skipped")


async def test_a_swap_that_never_comes_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    await play.deliver(RecallDrifted("docs", await play.generation(), 0.95, RECALL), "d-1")
    await play.roll_back("d-1")
    play.clock.time += 3599
    assert await play.wake() == []
    play.clock.time += 1
    assert len(await play.wake()) == 1


async def test_a_rollback_to_what_serves_already_ends_the_wait(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    current = await play.serving("docs")
    entries = [p for p in play.journal.rows if p.chosen and p.trial != play.journal.rows[-1].trial]
    again = await play.promote(Promote("docs", entries[0].trial, ef_search=entries[0].ef_search))
    back = await play.roll_back("r-0")
    assert back.entry.config == current != again.entry.config
    await play.deliver(RecallDrifted("docs", await play.generation(), 0.95, RECALL), "d-1")
    assert play.orders() == []
    await play.go_live(config=current)
    assert len(await play.deliver(back, "r-1")) == 1


async def test_a_champion_that_was_taken_back_while_measured_is_measured_no_more(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    bad = await play.serving("docs")
    _, order = await play.deliver(EnqueueTuning("docs"), "m-2")
    assert isinstance(order, RunTrial)
    assert order.proposal.config == bad
    done = await play.measure(order)
    restored = await play.roll_back("d-1")
    assert await play.deliver(restored, "r-1") == []
    assert await play.deliver(done, "done") == []  # void, and the bad one serves still
    assert (await play.state()).decisions[0].action == "restarted"
    (again,) = await ready(play, restored.entry.config, "g-1")
    assert isinstance(again, RunTrial)
    assert again.trial != order.trial
    assert (again.proposal.config, again.proposal.proposer) == (restored.entry.config, "champion")
    await play.carry_out([again])
    (finished,) = play.of(TuningFinished)
    assert finished.champion is not None
    assert finished.champion.trial == again.trial
    assert all(o.champion_trial == again.trial for o in play.orders()[2:])
    assert finished.trials == len(play.orders())


async def test_a_promotion_by_hand_makes_the_trials_before_it_void(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    serving = await play.serving("docs")
    _, first = await play.deliver(EnqueueTuning("docs"), "m-2")
    assert isinstance(first, RunTrial)
    (challenger,) = await play.deliver(await play.measure(first), "done-1")
    assert isinstance(challenger, RunTrial)
    other = next(
        p for p in play.journal.rows if p.chosen and (p.M, p.ef_construction) != (serving.M, serving.ef_construction)
    )
    by_hand = await play.promote(Promote("docs", other.trial, ef_search=other.ef_search, promoted_by="me"))
    assert await play.deliver(by_hand, "p-1") == []
    (again,) = await play.deliver(await play.measure(challenger), "done-2")
    assert isinstance(again, RunTrial)
    assert (again.proposal.config, again.proposal.proposer) == (by_hand.entry.config, "champion")
    await play.carry_out([again])
    (finished,) = play.of(TuningFinished)
    assert finished.champion is not None
    assert finished.champion.trial == again.trial


async def test_its_own_promotion_is_no_reason_unless_it_is_taken_back(tmp_path: Path) -> None:
    play = await live(tmp_path)
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    assert isinstance(order, RunTrial)
    promote, challenger = await play.deliver(await play.measure(order), "done-1")
    assert isinstance(promote, Promote)
    assert isinstance(challenger, RunTrial)
    await play.deliver(await play.promote(promote), "p-1")
    (following,) = await play.deliver(await play.measure(challenger), "done-2")
    assert isinstance(following, RunTrial)
    assert following.champion_trial == order.trial
    await play.clear("r-1")
    assert await play.deliver(await play.measure(following), "done-3") == []
    assert "taken back" in (await play.state()).decisions[0].reason
    (again,) = await ready(play, DEFAULT_CONFIG, "g-1")
    assert isinstance(again, RunTrial)
    assert (again.proposal.proposer, again.champion_trial) == ("champion", None)


async def test_a_grid_runs_again_when_what_it_was_compared_with_is_gone(tmp_path: Path) -> None:
    play = await tuned(tmp_path)
    grid = [GridPoint(20, 30), GridPoint(40, 30)]
    _, first = await play.deliver(StartAutotune("docs", grid=grid), "m-2")
    assert isinstance(first, RunTrial)
    (second,) = await play.deliver(await play.measure(first), "done-1")
    assert isinstance(second, RunTrial)
    restored = await play.roll_back("r-1")
    await play.deliver(restored, "r-2")
    assert await play.deliver(await play.measure(second), "done-2") == []
    orders = await ready(play, restored.entry.config, "g-1")
    await play.carry_out(orders)
    assert [o.proposal.config.ef_construction for o in play.orders()] == [20, 40, 20, 40]
    assert len({o.trial for o in play.orders()}) == 4
    (finished,) = play.of(TuningFinished)
    assert finished.trials == 4
