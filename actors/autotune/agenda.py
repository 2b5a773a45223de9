"""Whose turn it is: the queue with one place per index, cooldown, the hourly budget, one trial
at a time, and the memory of what was answered. Functions on the agent's document; what happens
within a campaign is in `core`."""

from collections.abc import Collection, Sequence
from typing import TypeVar

import msgspec

from actors.autotune.config import AgentConfig
from schemas.documents.agent import AgentDocument, Answered, Campaign, Emitted
from schemas.events.autotune import Decision, QueuedTuning, TuningFinished
from schemas.names import CampaignId, IndexName, MessageId, Rows, Timestamp, TrialId

V = TypeVar("V")

HOUR_S = 3600.0
DECISIONS_KEPT = 50
ANSWERS_KEPT = 32
MANUAL_TAGS = ("autotune.enqueue", "autotune.start")
"""What only a person sends: it waits for no cooldown and is done though the agent is disabled."""


def is_manual(place: QueuedTuning) -> bool:
    return place.trigger_tag in MANUAL_TAGS


def enqueued(state: AgentDocument, place: QueuedTuning) -> AgentDocument:
    """With a place for the index. One that waits already keeps it, and both wishes are met: the
    later version, and a full campaign if either asks for one; the more urgent gives the reason."""
    for i, waiting in enumerate(state.queue):
        if waiting.index != place.index:
            continue
        first = place if _urgency(place) > _urgency(waiting) else waiting
        both = msgspec.structs.replace(
            first,
            version=max(waiting.version, place.version),
            recalibrate=waiting.recalibrate and place.recalibrate,
            after=max(waiting.after, place.after),
        )
        return msgspec.structs.replace(state, queue=[*state.queue[:i], both, *state.queue[i + 1 :]])
    return msgspec.structs.replace(state, queue=[*state.queue, place])


def _urgency(place: QueuedTuning) -> int:
    """A person's wish before a drift, a drift before new rows."""
    return 2 if is_manual(place) else 1 if place.after else 0


def queued(state: AgentDocument, place: QueuedTuning, now: Timestamp) -> AgentDocument:
    """`enqueued`, and a decision on record unless the place was there and only waits for a later
    version now: a stream of appends tells nothing new."""
    before = {waiting.index: waiting for waiting in state.queue}.get(place.index)
    state = enqueued(state, place)
    after = next(waiting for waiting in state.queue if waiting.index == place.index)
    if before is not None and after == msgspec.structs.replace(before, version=after.version):
        return state
    reason = f"{place.asked_by}: {place.reason}" if is_manual(place) else place.reason
    return decided(state, place.index, now, "queued", reason)


def next_place(
    state: AgentDocument, config: AgentConfig, ready: Collection[IndexName], now: Timestamp
) -> QueuedTuning | None:
    """The first place whose time has come: a person's before a rule's. `ready` are the indexes
    that serve what they should; the agent leaves the others alone until they do."""
    busy = {campaign.index for campaign in state.campaigns}
    free = [
        place
        for place in state.queue
        if place.index not in busy and state.covered.get(place.index, -1) >= place.version
    ]
    for place in free:
        if is_manual(place):
            return place
    if not config.enabled or budget(state, config, now) == 0:
        return None
    for place in free:
        if place.index in ready and state.cooldown_until.get(place.index, 0.0) <= now:
            return place
    return None


def next_campaign(
    state: AgentDocument, config: AgentConfig, now: Timestamp, waiting: Collection[IndexName] = ()
) -> Campaign | None:
    """The campaign that runs a trial next, of an index that isn't `waiting`; None while one is
    running, or when the hour's budget is spent and nobody asked in person."""
    if running(state) is not None:
        return None
    spent = budget(state, config, now) == 0
    free = [campaign for campaign in state.campaigns if campaign.index not in waiting]
    return next((campaign for campaign in free if campaign.manual or not spent), None)


def running(state: AgentDocument) -> Campaign | None:
    return next((campaign for campaign in state.campaigns if campaign.running is not None), None)


def budget(state: AgentDocument, config: AgentConfig, now: Timestamp) -> int:
    """Trials that the agent may still start by itself in this hour."""
    return max(0, config.max_trials_per_hour - len(this_hour(state, now)))


def this_hour(state: AgentDocument, now: Timestamp) -> list[Timestamp]:
    return [time for time in state.trial_times if time > now - HOUR_S]


def with_campaign(state: AgentDocument, campaign: Campaign, *, last: bool = False) -> AgentDocument:
    """With the index's campaign replaced or added; `last`: the others have their turn first."""
    others = [other for other in state.campaigns if other.index != campaign.index]
    if last:
        return msgspec.structs.replace(state, campaigns=[*others, campaign])
    if len(others) == len(state.campaigns):
        return msgspec.structs.replace(state, campaigns=[campaign, *others])
    same = [campaign if other.index == campaign.index else other for other in state.campaigns]
    return msgspec.structs.replace(state, campaigns=same)


def ended(state: AgentDocument, campaign: Campaign, config: AgentConfig, now: Timestamp) -> AgentDocument:
    """Without the campaign; its index cools down."""
    return msgspec.structs.replace(
        state,
        campaigns=[other for other in state.campaigns if other.index != campaign.index],
        cooldown_until={**state.cooldown_until, campaign.index: now + config.cooldown_s},
        tuned={**state.tuned, campaign.index: now},
        begun={**state.begun, campaign.index: campaign.started},
    )


def answered_since(state: AgentDocument, index: IndexName, asked: Timestamp) -> bool:
    """Whether a campaign began after the index's tuning was asked for: it is the answer, and a
    flood of such wishes is one wish."""
    running = [campaign.started for campaign in state.campaigns if campaign.index == index]
    return max([state.begun.get(index, 0.0), *running]) > asked


def settled(
    state: AgentDocument, index: IndexName, promoted: Collection[TrialId], refused: str = ""
) -> tuple[AgentDocument, list[TuningFinished]]:
    """The verdicts on an index that can be told now: their trial is among `promoted`, or its
    promotion was refused, which makes them another verdict."""
    told: list[TuningFinished] = []
    for verdict in state.verdicts:
        if verdict.index == index and verdict.promoted in promoted:
            told.append(verdict)
        elif verdict.index == index and refused:
            reason = f"{verdict.reason}; the promotion was refused: {refused}"
            told.append(msgspec.structs.replace(verdict, outcome="kept", promoted=None, reason=reason))
    done = {verdict.campaign for verdict in told}
    return msgspec.structs.replace(state, verdicts=[v for v in state.verdicts if v.campaign not in done]), told


def forgotten(state: AgentDocument, index: IndexName) -> AgentDocument:
    """Without anything about a dropped index."""

    def without(known: dict[IndexName, V]) -> dict[IndexName, V]:
        return {name: value for name, value in known.items() if name != index}

    return msgspec.structs.replace(
        state,
        queue=[place for place in state.queue if place.index != index],
        campaigns=[campaign for campaign in state.campaigns if campaign.index != index],
        verdicts=[verdict for verdict in state.verdicts if verdict.index != index],
        cooldown_until=without(state.cooldown_until),
        changed=without(state.changed),
        tuned=without(state.tuned),
        begun=without(state.begun),
        covered=without(state.covered),
    )


def changed(state: AgentDocument, index: IndexName, rows: Rows) -> AgentDocument:
    """`rows` more have come or gone since the last tuning."""
    total = state.changed.get(index, 0) + rows
    return msgspec.structs.replace(state, changed={**state.changed, index: total})


def decided(
    state: AgentDocument,
    index: IndexName,
    now: Timestamp,
    action: str,
    reason: str,
    campaign: CampaignId | None = None,
    trial: TrialId | None = None,
) -> AgentDocument:
    """With one more decision on record."""
    decision = Decision(index, now, action, reason, campaign, trial)
    return msgspec.structs.replace(state, decisions=[decision, *state.decisions][:DECISIONS_KEPT])


def skipped(state: AgentDocument, index: IndexName, now: Timestamp, reason: str) -> AgentDocument:
    """With a skip on record, in the place of the one before when nothing else was decided on the
    index since: many small appends are no news."""
    last = next((decision for decision in state.decisions if decision.index == index), None)
    if last is not None and last.action == "skipped":
        state = msgspec.structs.replace(state, decisions=[d for d in state.decisions if d is not last])
    return decided(state, index, now, "skipped", reason)


def answer_to(state: AgentDocument, cause: MessageId) -> list[Emitted] | None:
    """What this message was answered with before; None when it is new."""
    return next((list(answered.messages) for answered in state.answered if answered.cause == cause), None)


def answered(state: AgentDocument, cause: MessageId, messages: Sequence[Emitted]) -> AgentDocument:
    return msgspec.structs.replace(state, answered=[Answered(cause, list(messages)), *state.answered][:ANSWERS_KEPT])
