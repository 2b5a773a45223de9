"""The end of a campaign: its verdict, and the orders that follow. Pure."""

from typing import Literal

from actors.autotune.config import AgentConfig
from actors.autotune.decide import chosen_points, rebuild_reason, recalibrated, verdict
from actors.autotune.facts import Facts
from schemas.config import HnswEffort, LanceEffort
from schemas.documents.agent import Campaign, Emitted
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import TuningFinished
from schemas.events.index import RebuildIndex
from schemas.events.promotion import Promote

PROMOTED_BY = "agent"


def trials_run(campaign: Campaign) -> int:
    """How many it has run."""
    return len(campaign.trials) + campaign.void


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
        orders.append(promote_order(winner, reason, facts))
    elif campaign.promoted is not None:
        outcome, winner = "promoted", champion
        if challengers and champion is not None:
            reason = f"{champion.effort} on the live build was promoted; {reason}"
    again = _rebuild(campaign, champion, winner, facts)
    if again:
        orders.append(RebuildIndex(campaign.index, again))
        reason += f"; built again: {again}"
    finished = _finished(campaign, outcome, f"{reason} ({why})", winner, said.best, champion)
    return finished, [*orders, finished]


def promotion(verdict: TuningFinished) -> Promote:
    """The order that a verdict speaks of, once more."""
    points = [point for point in (verdict.best, verdict.champion) if point and point.trial == verdict.promoted]
    return promote_order(points[0], verdict.reason, None)


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


def promote_order(winner: TrialPoint, reason: str, facts: Facts | None) -> Promote:
    """Decided on `facts`: a rollback that they don't have yet overtakes it."""
    taken_back = facts.promotion.rolled_back if facts and facts.promotion else []
    known = None if facts is None else (taken_back[0].ended_by or "") if taken_back else ""
    effort = winner.effort
    return Promote(
        index=winner.index,
        trial=winner.trial,
        ef_search=effort.ef_search if isinstance(effort, HnswEffort) else None,
        nprobes=effort.nprobes if isinstance(effort, LanceEffort) else None,
        refine_factor=effort.refine_factor if isinstance(effort, LanceEffort) else None,
        ef=effort.ef if isinstance(effort, LanceEffort) else None,
        promoted_by=PROMOTED_BY,
        note=reason,
        rollback_known=known,
    )


def out_of_date(point: TrialPoint) -> str:
    """Why what this point was measured on has to be built again; empty when it hasn't."""
    return rebuild_reason(point.rows - point.graph_added + point.graph_deleted, point.graph_added, point.graph_deleted)


def has_grown(campaign: Campaign, facts: Facts) -> bool:
    """Whether building the live configuration again could give another build than the live one."""
    points = [p for p in facts.points if p.trial == campaign.champion_trial]
    return any(p.graph_added or p.graph_deleted for p in points)


def _rebuild(campaign: Campaign, champion: TrialPoint | None, winner: TrialPoint | None, facts: Facts) -> str:
    """Why the live configuration is to be built again; empty when it isn't. A promotion of
    another build is made over today's rows anyway; one of the same build only moves the effort."""
    if champion is None or not facts.is_live:
        return ""
    if winner is not None and winner.config.build != champion.config.build:
        return ""
    if winner is not None and winner.trial != champion.trial and has_grown(campaign, facts):
        return campaign.rebuild  # the winner is the live configuration, freshly built
    return out_of_date(champion)
