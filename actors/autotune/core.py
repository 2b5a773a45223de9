"""A campaign from its first trial to its verdict: what to try next, what a result means, when
it is over. Values in, values out; whose turn it is among campaigns is in `agenda`, how a graph
is proposed in `proposer`, what figures mean in `decide`.

A campaign of the agent first measures what serves now at every ef that matters ("champion"); that
alone may mend it, and then it says what a challenger has to beat. A grid campaign runs its grid.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from actors.autotune import agenda
from actors.autotune.config import AgentConfig
from actors.autotune.decide import chosen_points, holds, rebuild_reason, recalibrated, verdict
from actors.autotune.proposer import Policy, by_graph, exhausted, journal_champion, propose
from actors.base import Origin
from schemas.config import HnswConfig
from schemas.documents.agent import Basis, Campaign, Emitted
from schemas.documents.promotion import PromotionDocument
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import (
    DEFAULT_GRID,
    Proposal,
    QueuedTuning,
    RunTrial,
    StartAutotune,
    TrialCompleted,
    TuningFinished,
)
from schemas.events.index import RebuildIndex
from schemas.events.promotion import Promote
from schemas.names import CampaignId, IndexName, MessageId, Share, Timestamp

ATTEMPTS = 2
"""A trial that failed so often is given up."""
PROMOTED_BY = "agent"


@dataclass(frozen=True)
class Facts:
    """What a decision about an index is made from."""

    target_recall: Share
    config: HnswConfig  # live, or as created while nothing is
    is_live: bool  # there is a generation
    points: Sequence[TrialPoint]  # the index's journal, in the order written
    promotion: PromotionDocument | None = None

    @property
    def basis(self) -> Basis:
        current = self.promotion.current if self.promotion else None
        return Basis(self.config, current.config if current else None)


def policy(campaign_target: Share, config: AgentConfig) -> Policy:
    return Policy(
        campaign_target, config.epsilon, config.m_bounds, config.ef_construction_bounds, config.ef_search_bounds
    )


def begin(place: QueuedTuning, facts: Facts, now: Timestamp) -> Campaign:
    """A campaign for a place in the queue."""
    return Campaign(
        campaign=campaign_id(place.index, place.trigger, now),
        index=place.index,
        reason=place.reason,
        asked_by=place.asked_by,
        trigger=place.trigger,
        trigger_tag=place.trigger_tag,
        trigger_time=place.time,
        started=now,
        target_recall=facts.target_recall,
        objective="cost_first",
        manual=agenda.is_manual(place),
        recalibrate=place.recalibrate and facts.is_live,
    )


def begin_asked(command: StartAutotune, origin: Origin, facts: Facts, config: AgentConfig, now: Timestamp) -> Campaign:
    """A campaign that someone asked for, with a grid unless the rule is to propose."""
    high = config.ef_search_bounds[1]
    points = DEFAULT_GRID if command.grid is None else command.grid
    grid = by_graph([HnswConfig(point.M, point.ef_construction, point.ef_search) for point in points])
    if command.objective == "recall_first":  # what a graph can reach is seen at the highest ef
        grid = [msgspec.structs.replace(p, extra_ef=sorted({*p.extra_ef, high})) for p in grid]
    return Campaign(
        campaign=campaign_id(command.index, origin.id, now),
        index=command.index,
        reason="asked",
        asked_by=command.asked_by,
        trigger=origin.id,
        trigger_tag="autotune.start",
        trigger_time=origin.time,
        started=now,
        target_recall=command.min_recall or facts.target_recall,
        objective=command.objective,
        harness=command.harness,
        manual=True,
        grid=[] if command.agent else grid,
        grid_given=not command.agent,
    )


def campaign_id(index: IndexName, trigger: MessageId, now: Timestamp) -> CampaignId:
    return "c-" + hashlib.sha256(f"{index}\n{trigger}\n{now!r}".encode()).hexdigest()[:12]


def next_proposal(campaign: Campaign, facts: Facts, config: AgentConfig) -> Proposal | str:
    """What to try next, or why the campaign is over."""
    if campaign.grid_given:
        if not campaign.grid:
            return "the grid is done"
        return msgspec.structs.replace(campaign.grid[0], journal_rows=len(facts.points))
    if campaign.running_proposal is not None:  # it failed and is tried again
        return msgspec.structs.replace(campaign.running_proposal, journal_rows=len(facts.points))
    if not campaign.trials:
        return _champion(facts, "the live graph" if facts.is_live else "the index's own configuration")
    if campaign.recalibrate and not campaign.rebuild:
        return "ef_search on the live graph settles it"
    if campaign.rebuild and len(campaign.trials) == 1 and _grown(campaign, facts):
        return _champion(facts, f"the live configuration built again: {campaign.rebuild}", reuse_live=False)
    if trials_run(campaign) >= config.max_trials_per_campaign:
        return f"{trials_run(campaign)} trials are as many as one campaign may take"
    if campaign.without_gain >= config.patience:
        return f"{campaign.without_gain} trials in a row brought nothing"
    rule = policy(campaign.target_recall, config)
    if exhausted(facts.points, rule):
        return "every step from the champion is tried"
    return propose(campaign.index, facts.points, rule) or "nothing untried is left within the bounds"


def trials_run(campaign: Campaign) -> int:
    """How many it has run."""
    return len(campaign.trials) + campaign.void


def issued(campaign: Campaign, proposal: Proposal, facts: Facts, now: Timestamp) -> tuple[Campaign, RunTrial]:
    """The campaign with the proposal running, and the order for the lab."""
    number = trials_run(campaign) + campaign.failed + 1
    trial = f"{campaign.campaign.replace('c-', 't-', 1)}-{number:02}"
    running = msgspec.structs.replace(
        campaign,
        running=trial,
        running_since=now,
        running_proposal=proposal,
        grid=campaign.grid[1:],
        basis=campaign.basis if campaign.trials else facts.basis,
    )
    return running, order(running)


def order(campaign: Campaign) -> RunTrial:
    """The order for the campaign's running trial: the same each time it has to be given."""
    if campaign.running is None or campaign.running_proposal is None:
        raise ValueError(f"campaign {campaign.campaign} runs no trial")
    return RunTrial(
        trial=campaign.running,
        campaign=campaign.campaign,
        index=campaign.index,
        proposal=campaign.running_proposal,
        target_recall=campaign.target_recall,
        harness=campaign.harness,
        asked_by=campaign.asked_by,
        trigger=campaign.trigger,
        trigger_tag=campaign.trigger_tag,
        champion_trial=campaign.champion_trial,
        trigger_time=campaign.trigger_time,
    )


def completed(
    campaign: Campaign, event: TrialCompleted, facts: Facts, config: AgentConfig
) -> tuple[Campaign, Promote | None, str]:
    """What a finished trial changes: the campaign, a promotion that need not wait for its end,
    and why."""
    first = not campaign.trials
    best = event.best
    done = msgspec.structs.replace(
        campaign,
        running=None,
        running_since=None,
        running_proposal=None,
        attempts=0,
        trials=[*campaign.trials, event.trial],
    )
    if campaign.grid_given:
        ran = [*campaign.measured_grid, *_running(campaign)]
        done = msgspec.structs.replace(done, measured_grid=ran)
        return done, None, _figures(best, campaign.target_recall)
    if first:
        said = recalibrated(best, campaign.target_recall, config.min_gain)
        stale = _stale(best) or ("" if holds(best, campaign.target_recall) else f"ef_search alone fails: {said.reason}")
        promoted = said.winner.trial if said.winner else None
        done = msgspec.structs.replace(done, champion_trial=event.trial, promoted=promoted, rebuild=stale)
        return done, _promote(said.winner, said.reason, facts) if said.winner else None, said.reason
    champion = journal_champion(facts.points, campaign.target_recall)
    gained = champion is not None and champion.trial == event.trial
    done = msgspec.structs.replace(done, without_gain=0 if gained else campaign.without_gain + 1)
    return done, None, _figures(best, campaign.target_recall)


def failed(campaign: Campaign) -> Campaign:
    """After a failure: the same trial again, or, given up, what comes after it."""
    if campaign.attempts + 1 < ATTEMPTS:
        # running_proposal stays: it is what next_proposal gives; a grid gets its point back
        back = _running(campaign) if campaign.grid_given else []
        return msgspec.structs.replace(
            campaign,
            running=None,
            running_since=None,
            running_proposal=None if campaign.grid_given else campaign.running_proposal,
            grid=[*back, *campaign.grid],
            attempts=campaign.attempts + 1,
        )
    return msgspec.structs.replace(
        campaign,
        running=None,
        running_since=None,
        running_proposal=None,
        attempts=0 if campaign.grid else ATTEMPTS,
        failed=campaign.failed + 1,
    )


def gave_up(campaign: Campaign) -> bool:
    """Its trial failed for good, and the same journal would only propose it again."""
    return campaign.attempts >= ATTEMPTS


def finish(campaign: Campaign, facts: Facts, config: AgentConfig, why: str) -> tuple[TuningFinished, list[Emitted]]:
    """The verdict, and the orders that follow from it, the verdict last."""
    own = [point for point in facts.points if point.trial in campaign.trials]
    champion = next((p for p in chosen_points(own) if p.trial == campaign.champion_trial), None)
    challengers = [point for point in own if champion is None or point.trial != champion.trial]
    target = campaign.target_recall
    outcome: Literal["promoted", "kept", "infeasible", "failed"]
    if not own:
        finished = _finished(campaign, "failed", why, None, None, None)
        return finished, [finished]
    if not challengers and champion is not None:
        said = recalibrated(champion, target, config.min_gain)
    else:
        said = verdict(challengers, target, campaign.objective, config.min_gain, champion)
    orders: list[Emitted] = []
    outcome, winner = said.outcome, said.winner
    reason = said.reason
    if winner is not None and winner.trial != campaign.promoted:
        orders.append(_promote(winner, reason, facts))
    elif campaign.promoted is not None:
        outcome, winner = "promoted", champion
        if challengers and champion is not None:
            reason = f"ef_search {champion.ef_search} on the live graph was promoted; {reason}"
    again = _rebuild(campaign, champion, winner, facts)
    if again:
        orders.append(RebuildIndex(campaign.index, again))
        reason += f"; built again: {again}"
    finished = _finished(campaign, outcome, f"{reason} ({why})", winner, said.best, champion)
    return finished, [*orders, finished]


def promotion(verdict: TuningFinished) -> Promote:
    """The order that a verdict speaks of, once more."""
    points = [point for point in (verdict.best, verdict.champion) if point and point.trial == verdict.promoted]
    return _promote(points[0], verdict.reason, None)


def _finished(
    campaign: Campaign,
    outcome: Literal["promoted", "kept", "infeasible", "failed"],
    reason: str,
    winner: TrialPoint | None,
    best: TrialPoint | None,
    champion: TrialPoint | None,
) -> TuningFinished:
    return TuningFinished(
        campaign=campaign.campaign,
        index=campaign.index,
        outcome=outcome,
        reason=reason,
        trials=trials_run(campaign),
        promoted=winner.trial if winner and outcome == "promoted" else None,
        best=best,
        champion=champion,
    )


def _running(campaign: Campaign) -> list[Proposal]:
    return [campaign.running_proposal] if campaign.running_proposal else []


def _champion(facts: Facts, what: str, reuse_live: bool | None = None) -> Proposal:
    reuse = facts.is_live if reuse_live is None else reuse_live
    return Proposal(
        config=facts.config,
        proposer="champion",
        rule=f"champion: {what}, M {facts.config.M}, ef_construction {facts.config.ef_construction}",
        journal_rows=len(facts.points),
        extra_ef=[facts.config.ef_search] if reuse else [],
        reuse_live=reuse,
    )


def _promote(winner: TrialPoint, reason: str, facts: Facts | None) -> Promote:
    """Decided on `facts`: a rollback that they don't have yet overtakes it."""
    taken_back = facts.promotion.rolled_back if facts and facts.promotion else []
    known = None if facts is None else (taken_back[0].ended_by or "") if taken_back else ""
    return Promote(
        index=winner.index,
        trial=winner.trial,
        ef_search=winner.ef_search,
        promoted_by=PROMOTED_BY,
        note=reason,
        rollback_known=known,
    )


def _stale(point: TrialPoint) -> str:
    """Whether the graph that this point was measured on has to be built again, and why."""
    return rebuild_reason(point.rows - point.graph_added + point.graph_deleted, point.graph_added, point.graph_deleted)


def _grown(campaign: Campaign, facts: Facts) -> bool:
    """Whether building the live configuration again could give another graph than the live one."""
    points = [p for p in facts.points if p.trial == campaign.champion_trial]
    return any(p.graph_added or p.graph_deleted for p in points)


def _rebuild(campaign: Campaign, champion: TrialPoint | None, winner: TrialPoint | None, facts: Facts) -> str:
    """Why the live configuration is to be built again; empty when it isn't. A promotion of
    another graph builds over today's rows anyway; one of the same graph only moves ef."""
    if champion is None or not facts.is_live:
        return ""
    same_graph = winner is None or (winner.M, winner.ef_construction) == (champion.M, champion.ef_construction)
    if not same_graph:
        return ""
    if winner is not None and winner.trial != champion.trial and _grown(campaign, facts):
        return campaign.rebuild  # the winner is the live configuration, freshly built
    return _stale(champion)


def _figures(point: TrialPoint, target: float) -> str:
    held = "holds" if holds(point, target) else "misses"
    ratio = ""
    if point.champion_ratio is not None:
        low, high = point.champion_ratio_low, point.champion_ratio_high
        ratio = f", {point.champion_ratio:.3f} of the champion's latency ({low:.3f} to {high:.3f})"
    return (
        f"M {point.M}, ef_construction {point.ef_construction}, ef_search {point.ef_search} {held} {target:g}: "
        f"lower bound {point.recall_lower:.4f}, p50 {point.p50_us:.0f} µs{ratio}"
    )
