"""What a campaign's comparisons rest on: the configuration that served when its champion was
measured. A drift that is taken back, a promotion by hand or a rollback takes that away; the
campaign then begins again with what serves now."""

import msgspec

from actors.autotune.decide import chosen_points
from actors.autotune.ending import trials_run
from actors.autotune.facts import Facts
from schemas.documents.agent import Campaign
from schemas.names import Timestamp


def stale(campaign: Campaign, facts: Facts) -> str:
    """Why the champion that a campaign measures against is none any more; empty while it is one.
    The campaign's own promotion is no reason, unless someone took it back."""
    if campaign.basis is None or not (campaign.trials or campaign.running):
        return ""
    taken_back = facts.promotion.rolled_back if facts.promotion else []
    for entry in taken_back:
        if entry.trial == campaign.promoted:
            return f"trial {entry.trial}, which it had promoted, was taken back ({entry.ended_reason})"
    own = [point.config for point in chosen_points(facts.points) if point.trial == campaign.promoted]
    before, now = campaign.basis, facts.basis
    if now.live not in (before.live, *own):
        return f"{before.live} served when it began, and now {now.live} does"
    if now.promoted not in (before.promoted, *own):
        what = f"{now.promoted} was promoted" if now.promoted else "the promotion was taken back"
        return f"{what} since it began"
    return ""


def restarted(campaign: Campaign, now: Timestamp) -> Campaign:
    """The campaign from its beginning, after it became stale: what it measured counts no more.
    Its trials keep their numbers, and its limit counts them."""
    running = [campaign.running_proposal] if campaign.grid_given and campaign.running_proposal else []
    return msgspec.structs.replace(
        campaign,
        grid=[*campaign.measured_grid, *running, *campaign.grid],
        measured_grid=[],
        running=None,
        running_since=None,
        running_proposal=None,
        attempts=0,
        trials=[],
        champion_trial=None,
        promoted=None,
        rebuild="",
        without_gain=0,
        basis=None,
        restarted=now,
        void=trials_run(campaign) + (1 if campaign.running or campaign.attempts else 0),
    )
