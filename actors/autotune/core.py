"""A campaign from its first trial to its verdict: what to try next, what a result means, when
it is over. Values in, values out; whose turn it is among campaigns is in `agenda`, how a build
is proposed in `proposer`, what figures mean in `decide`, what an end gives in `ending`.

A campaign of the agent first measures what serves now at every ef that matters ("champion"); that
alone may mend it, and then it says what a challenger has to beat. A grid campaign runs its grid.
"""

import hashlib

import msgspec

from actors.autotune import agenda
from actors.autotune.config import AgentConfig
from actors.autotune.decide import holds, recalibrated
from actors.autotune.ending import has_grown, out_of_date, promote_order, trials_run
from actors.autotune.facts import Facts, best_known, other_backend, policy
from actors.autotune.grid import grid_of
from actors.autotune.proposer import exhausted, journal_champion, propose
from actors.base import Origin
from schemas.documents.agent import Campaign
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import Proposal, QueuedTuning, RunTrial, StartAutotune, TrialCompleted
from schemas.events.promotion import Promote
from schemas.names import Backend, CampaignId, IndexName, MessageId, Timestamp

ATTEMPTS = 2
"""A trial that failed so often is given up."""


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
    """A campaign that someone asked for, with a grid unless the rule is to propose. Raises ValueError for a grid
    that this index can't have."""
    grid = (
        []
        if command.agent
        else grid_of(command, facts.config.backend, facts.rows, facts.dim, config.ef_search_bounds[1])
    )
    for proposal in grid:
        if proposal.config.backend not in facts.backends:
            may = " or ".join(facts.backends)
            raise ValueError(f"index {command.index!r} may be served by {may}, not by {proposal.config.build}")
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
        grid=grid,
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
        return _champion(facts, "what is live" if facts.is_live else "the index's own configuration")
    if campaign.rebuild and len(campaign.trials) == 1 and has_grown(campaign, facts):
        return _champion(facts, f"the live configuration built again: {campaign.rebuild}", reuse_live=False)
    other = other_backend(facts)
    if other is not None and other not in campaign.given_up and trials_run(campaign) < config.max_trials_per_campaign:
        return _other(facts, other)
    if campaign.recalibrate and not campaign.rebuild:
        return "another effort on the live build settles it"
    if trials_run(campaign) >= config.max_trials_per_campaign:
        return f"{trials_run(campaign)} trials are as many as one campaign may take"
    if campaign.without_gain >= config.patience:
        return f"{campaign.without_gain} trials in a row brought nothing"
    rule = policy(campaign.target_recall, config, facts)
    if exhausted(facts.points, rule):
        return "every step from the champion is tried"
    return propose(campaign.index, facts.points, rule) or "nothing untried is left within the bounds"


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
        misses = "" if holds(best, campaign.target_recall) else f"no effort alone mends it: {said.reason}"
        stale = out_of_date(best) or misses
        promoted = said.winner.trial if said.winner else None
        done = msgspec.structs.replace(done, champion_trial=event.trial, promoted=promoted, rebuild=stale)
        return done, promote_order(said.winner, said.reason, facts) if said.winner else None, said.reason
    if best.proposer == "backend":
        return done, None, _figures(best, campaign.target_recall)
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
    tried = campaign.running_proposal
    other = tried.config.backend if tried is not None and tried.proposer == "backend" else None
    return msgspec.structs.replace(
        campaign,
        running=None,
        running_since=None,
        running_proposal=None,
        attempts=0 if campaign.grid or other else ATTEMPTS,
        given_up=[*campaign.given_up, other] if other else campaign.given_up,
        failed=campaign.failed + 1,
    )


def gave_up(campaign: Campaign) -> bool:
    """Its trial failed for good, and the same journal would only propose it again."""
    return campaign.attempts >= ATTEMPTS


def _running(campaign: Campaign) -> list[Proposal]:
    return [campaign.running_proposal] if campaign.running_proposal else []


def _champion(facts: Facts, what: str, reuse_live: bool | None = None) -> Proposal:
    reuse = facts.is_live if reuse_live is None else reuse_live
    return Proposal(
        config=facts.config,
        proposer="champion",
        rule=f"champion: {what}, {facts.config.build}",
        journal_rows=len(facts.points),
        extra=[facts.config.effort] if reuse else [],
        reuse_live=reuse,
    )


def _other(facts: Facts, backend: Backend) -> Proposal:
    config = best_known(facts, backend)
    return Proposal(
        config=config,
        proposer="backend",
        rule=f"backend: {backend} on {facts.rows} rows, {config.build}",
        journal_rows=len(facts.points),
    )


def _figures(point: TrialPoint, target: float) -> str:
    held = "holds" if holds(point, target) else "misses"
    ratio = ""
    if point.champion_ratio is not None:
        low, high = point.champion_ratio_low, point.champion_ratio_high
        ratio = f", {point.champion_ratio:.3f} of the champion's latency ({low:.3f} to {high:.3f})"
    return f"{point.config} {held} {target:g}: lower bound {point.recall_lower:.4f}, p50 {point.p50_us:.0f} µs{ratio}"
