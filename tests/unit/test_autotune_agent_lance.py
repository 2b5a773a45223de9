"""The agent on an index that Lance serves, and on one that either backend may serve."""

from pathlib import Path

import msgspec

from actors.backends.lance_rules import first_config, resolve
from schemas.config import HnswConfig, IndexConfig, LanceBuild, LanceConfig, LanceEffort
from schemas.documents.index import GenerationDocument
from schemas.documents.promotion import PromotionDocument
from schemas.events.autotune import (
    AutotuneStarted,
    EnqueueTuning,
    GridPoint,
    LancePoint,
    Replay,
    RunTrial,
    StartAutotune,
    TrialFailed,
    TuningFinished,
)
from schemas.events.base import Message, Refusal
from schemas.events.index import GenerationReady
from schemas.events.promotion import Promote
from tests.unit import tuning_surface
from tests.unit.tuning_play import Play

DEFAULT = first_config(resolve(100_000, 64))


async def live(folder: Path, config: IndexConfig = DEFAULT, **more: object) -> Play:
    play = Play(folder, **{"backend": "lance", **more})  # type: ignore[arg-type]
    play.rows = 100_000
    await play.open()
    await play.go_live(config=config)
    return play


async def both(folder: Path, **more: object) -> Play:
    """An `auto` index that a graph serves, with a store beside it."""
    return await live(folder, HnswConfig(), backend="auto", companions=("lance",), **more)


def rest(said: list[Message]) -> list[RunTrial]:
    return [message for message in said if isinstance(message, RunTrial)]


# --- Lance alone -------------------------------------------------------------------------------


async def test_the_first_trial_is_the_live_index_with_its_own_effort_measured(tmp_path: Path) -> None:
    play = await live(tmp_path)
    _, order = await play.deliver(EnqueueTuning("docs"), "m-1")
    assert isinstance(order, RunTrial)
    assert (order.proposal.config, order.proposal.reuse_live) == (DEFAULT, True)
    assert order.proposal.extra == [DEFAULT.effort]
    assert order.proposal.rule == "champion: what is live, IVF_RQ, 62 partitions"


async def test_a_campaign_promotes_a_better_effort_at_once_and_what_it_found_can_be_replayed(tmp_path: Path) -> None:
    play = await live(tmp_path)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    promotes = play.of(Promote)
    first = promotes[0]
    assert (first.trial, first.ef_search) == (play.orders()[0].trial, None)
    assert (first.nprobes, first.refine_factor, first.ef) != (None, None, None)
    better = LanceConfig.of(DEFAULT.build, LanceEffort(first.nprobes or 0, first.refine_factor or 0))
    assert tuning_surface.lance_recall(better) >= 0.95
    assert tuning_surface.lance_cost(better) < tuning_surface.lance_cost(DEFAULT)
    assert {order.proposal.config.backend for order in play.orders()} == {"lance"}
    (finished,) = play.of(TuningFinished)
    assert 2 <= finished.trials <= play.config.max_trials_per_campaign
    report = (await play.agent.on_replay(Replay("docs")))[0]
    assert not isinstance(report, Refusal)
    assert len(report.proposals) >= 2
    assert all(proposal.same for proposal in report.proposals)
    assert report.next is not None
    assert isinstance(report.next.config, LanceConfig)


async def test_rows_that_doubled_build_the_live_index_again(tmp_path: Path) -> None:
    play = await live(tmp_path, cooldown_s=0)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    play.grown.clear()
    play.said.clear()
    (order,) = rest(await play.append(150_000))
    assert order.proposal.reuse_live
    orders = rest(await play.deliver(await play.measure(order), "done-1"))
    assert "doubled" in orders[0].proposal.rule
    assert (orders[0].proposal.reuse_live, orders[0].proposal.proposer) == (False, "champion")


async def test_the_default_grid_is_one_build_of_each_type_that_the_dimensions_allow(tmp_path: Path) -> None:
    play = await live(tmp_path)
    started, *orders = await play.deliver(StartAutotune("docs"), "m-1")
    assert isinstance(started, AutotuneStarted)
    assert started.trials == 4
    await play.carry_out(orders)
    assert [order.proposal.config.build for order in play.orders()] == [
        resolve(100_000, 64, kind) for kind in ("IVF_RQ", "IVF_FLAT", "IVF_PQ", "IVF_HNSW_SQ")
    ]
    (finished,) = play.of(TuningFinished)
    assert finished.trials == 4


async def test_ivf_pq_that_misses_the_target_is_never_promoted(tmp_path: Path) -> None:
    """However fast it is: 0.835 once went live under a gate of 0.9."""
    play = await live(tmp_path)
    asked = [LancePoint("IVF_PQ", 64, 1)]
    orders = rest(await play.deliver(StartAutotune("docs", lance=asked, min_recall=0.9), "m-1"))
    done = await play.measure(orders[0], recall=0.845, recall_lower=0.835, champion_ratio=0.1, champion_ratio_high=0.11)
    said = await play.deliver(done, "done")
    assert not [message for message in said if isinstance(message, Promote)]
    (finished,) = [message for message in said if isinstance(message, TuningFinished)]
    assert (finished.outcome, finished.promoted) == ("infeasible", None)
    assert "best reached 0.8350" in finished.reason
    assert "IVF_PQ, 64 partitions, 1 sub-vectors" in finished.reason


async def test_a_grid_that_the_index_can_not_have_is_refused(tmp_path: Path) -> None:
    play = await live(tmp_path)
    for command, words in (
        (StartAutotune("docs", grid=[GridPoint(20, 30)]), "may be served by lance"),
        (StartAutotune("docs", lance=[]), "empty"),
        (StartAutotune("docs", lance=[LancePoint("IVF_PQ", 64, 7)]), "64 dimensions don't divide into 7"),
        (StartAutotune("docs", lance=[LancePoint("IVF_FLAT", 64, 8)]), "IVF_FLAT has none"),
    ):
        (refusal,) = await play.deliver(command, f"m-{words}")
        assert isinstance(refusal, Refusal)
        assert refusal.status == "invalid"
        assert words in refusal.reason
    graphs = await live(tmp_path / "2", HnswConfig(), backend="hnsw")
    (refusal,) = await graphs.deliver(StartAutotune("docs", lance=[LancePoint("IVF_RQ")]), "m-1")
    assert isinstance(refusal, Refusal)
    assert "may be served by hnsw" in refusal.reason


# --- either ------------------------------------------------------------------------------------


async def test_the_other_backend_is_tried_once_in_the_first_campaign(tmp_path: Path) -> None:
    play = await both(tmp_path)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    kinds = [(order.proposal.proposer, order.proposal.config.backend) for order in play.orders()]
    assert kinds[:2] == [("champion", "hnsw"), ("backend", "lance")]
    assert set(kinds[2:]) <= {("explore", "hnsw"), ("exploit", "hnsw")}
    assert play.orders()[1].proposal.config == DEFAULT
    assert isinstance(await play.serving("docs"), HnswConfig), "in memory it is faster by far"
    play.clock.time += 4000
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-2"))
    assert [order.proposal.proposer for order in play.orders()].count("backend") == 1


async def test_it_is_tried_again_when_the_rows_doubled(tmp_path: Path) -> None:
    play = await both(tmp_path, cooldown_s=0)
    await play.carry_out(await play.deliver(EnqueueTuning("docs"), "m-1"))
    play.grown.clear()
    for rows in (60_000, 39_000):
        await play.carry_out(await play.append(rows))
    assert [order.proposal.proposer for order in play.orders()].count("backend") == 1
    play.clock.time += 4000
    play.grown.clear()  # its graph was built again meanwhile: nothing but the other backend is due
    await play.carry_out(await play.append(2000))
    assert [order.proposal.proposer for order in play.orders()].count("backend") == 2


async def test_a_backend_that_wins_is_promoted_and_searched_from_then_on(tmp_path: Path) -> None:
    play = await both(tmp_path)
    (order,) = rest(await play.deliver(EnqueueTuning("docs"), "m-1"))
    said = await play.deliver(await play.measure(order), "done-1")
    await play.carry_out([message for message in said if isinstance(message, Promote)])
    (order,) = rest(said)
    assert order.proposal.proposer == "backend"
    said = await play.deliver(await play.measure(order, champion_cost=1e6), "done-2")  # in another world
    (order,) = rest(said)
    assert isinstance(order.proposal.config, LanceConfig)
    assert order.proposal.proposer in ("explore", "exploit")
    await play.carry_out([order], champion_cost=1e6)
    won = play.of(Promote)[-1]
    assert won.nprobes is not None
    assert isinstance(await play.serving("docs"), LanceConfig)
    (finished,) = play.of(TuningFinished)
    assert finished.outcome == "promoted"
    assert "faster" in won.note
    play.clock.time += 4000
    play.said.clear()
    (order,) = rest(await play.deliver(EnqueueTuning("docs"), "m-2"))
    assert (order.proposal.proposer, order.proposal.config) == ("champion", await play.serving("docs"))


async def test_a_backend_that_can_not_be_tried_holds_up_nothing(tmp_path: Path) -> None:
    play = await both(tmp_path)
    (order,) = rest(await play.deliver(EnqueueTuning("docs"), "m-1"))
    said = await play.deliver(await play.measure(order), "done-1")
    await play.carry_out([message for message in said if isinstance(message, Promote)])
    (order,) = rest(said)
    (order,) = await play.deliver(TrialFailed(order.trial, order.campaign, "docs", "no store"), "f-1")  # type: ignore[assignment]
    assert order.proposal.proposer == "backend"
    (order,) = await play.deliver(TrialFailed(order.trial, order.campaign, "docs", "no store"), "f-2")  # type: ignore[assignment]
    assert isinstance(order.proposal.config, HnswConfig)
    await play.carry_out([order])
    assert len(play.of(TuningFinished)) == 1


async def test_rolled_back_from_lance_to_a_graph_and_back(tmp_path: Path) -> None:
    play = await both(tmp_path)
    (order,) = rest(await play.deliver(EnqueueTuning("docs"), "m-1"))
    await play.carry_out([order], champion_cost=1e6)
    served = await play.serving("docs")
    assert isinstance(served, LanceConfig)
    back = await play.roll_back("r-1")
    assert isinstance(back.entry.config, HnswConfig)
    assert await play.deliver(back, "r-1") == []
    play.clock.time += 4000
    await play.go_live(config=back.entry.config)
    ready = GenerationReady("docs", await play.generation(), back.entry.config, "rolled back")
    assert await play.deliver(ready, "g-1") == []
    (order,) = rest(await play.deliver(EnqueueTuning("docs"), "m-2"))
    assert (order.proposal.config, order.proposal.proposer) == (back.entry.config, "champion")
    await play.carry_out([order], champion_cost=1e6)
    found = await play.registry.load(PromotionDocument, "docs")
    assert found is not None
    assert found[0].rolled_back[0].config == served


async def test_a_companion_is_no_index_of_its_own(tmp_path: Path) -> None:
    play = await both(tmp_path, min_new_rows=1)
    found = await play.registry.load(GenerationDocument, "docs")
    assert found is not None
    beside = msgspec.structs.replace(found[0], config=DEFAULT, generation=2)
    await play.registry.save("docs=lance", beside, expected=None)
    await play.carry_out(await play.wake())
    assert {order.index for order in play.orders()} == {"docs"}
    ready = GenerationReady("docs", 2, LanceConfig.of(LanceBuild("IVF_RQ", 62), LanceEffort(9, 4)), "", companion=True)
    assert await play.deliver(ready, "g-2") == []
