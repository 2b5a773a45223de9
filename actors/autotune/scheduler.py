"""Goes through the agenda: starts what can start and ends what is over, at most one trial at a
time. Reads documents and the journal; the state it is given it returns changed, unsaved."""

import msgspec
import structlog

from actors.autotune import agenda, basis, core, ending
from actors.autotune.config import AgentConfig
from actors.autotune.facts import Facts, facts_of, serves_as_wanted
from actors.ports import Journal, Registry
from schemas.documents.agent import AgentDocument, Campaign, Emitted
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument
from schemas.events.autotune import QueuedTuning
from schemas.events.index import RecallDrifted
from schemas.names import CampaignId, IndexName, MessageId, Timestamp, TrialId

AGENT = "agent"
"""Its document's name, and who asked when nobody did."""

PROMOTION_LOST_S = 300.0
"""A promotion that isn't durable after so long is ordered again."""

SWAP_LOST_S = 3600.0
"""A generation that doesn't serve what is promoted after so long is waited for no more."""

log = structlog.get_logger(__name__)


class Scheduler:
    def __init__(self, registry: Registry, journal: Journal, config: AgentConfig) -> None:
        self._registry = registry
        self._journal = journal
        self._config = config
        self._waiting: dict[CampaignId, Timestamp] = {}  # verdicts, since when

    async def facts(self, index: IndexName) -> Facts | None:
        found = await self._registry.load(IndexDocument, index)
        if found is None:
            return None
        live = await self._registry.load(GenerationDocument, index)
        promotion = await self._registry.load(PromotionDocument, index)
        points = await self._journal.points(index)
        return facts_of(found[0], live[0] if live else None, promotion[0] if promotion else None, points)

    async def promoted(self, index: IndexName) -> set[TrialId]:
        """Every trial whose promotion is durable, whatever became of it later."""
        found = await self._registry.load(PromotionDocument, index)
        if found is None:
            return set()
        document = found[0]
        current = [document.current] if document.current else []
        return {entry.trial for entry in [*current, *document.history, *document.rolled_back]}

    async def overdue(self, state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
        """Verdicts whose promotion is durable though nobody said so are told; a promotion that
        a verdict has waited for too long got lost, and is ordered again."""
        said: list[Emitted] = []
        for verdict in state.verdicts:
            promoted = await self.promoted(verdict.index)
            state, told = agenda.settled(state, verdict.index, promoted)
            said += told
            since = self._waiting.setdefault(verdict.campaign, now)
            if verdict.promoted not in promoted and now - since >= PROMOTION_LOST_S:
                self._waiting[verdict.campaign] = now
                said.append(ending.promotion(verdict))
        return state, said

    def restarted(self, state: AgentDocument, campaign: Campaign, why: str, now: Timestamp) -> AgentDocument:
        """With the campaign at its beginning, as its champion is none any more."""
        state = agenda.with_campaign(state, basis.restarted(campaign, now))
        log.info("campaign restarted", index=campaign.index, campaign=campaign.campaign, reason=why)
        return agenda.decided(state, campaign.index, now, "restarted", why, campaign.campaign, campaign.running)

    async def advance(self, state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
        """Starts what can start: the next trial of a campaign, or the next campaign. At most one
        trial runs afterwards."""
        said: list[Emitted] = []
        while agenda.running(state) is None:
            fresh = [campaign for campaign in state.campaigns if not campaign.trials]
            waiting = [c.index for c in fresh if await self._waits(c.index, c.restarted, now)]
            campaign = agenda.next_campaign(state, self._config, now, waiting)
            facts = await self.facts(campaign.index) if campaign else None
            if campaign is None:
                place = await self._next_place(state, now)
                if place is None:
                    break
                facts = await self.facts(place.index)
                state = msgspec.structs.replace(
                    state,
                    queue=[other for other in state.queue if other.index != place.index],
                    changed={**state.changed, place.index: 0},
                )
                if facts is None:
                    continue
                campaign = core.begin(place, facts, now)
                state = agenda.with_campaign(state, campaign)
                state = agenda.decided(state, place.index, now, "started", place.reason, campaign.campaign)
            elif facts is None:
                state = agenda.forgotten(state, campaign.index)
                continue
            elif stale := basis.stale(campaign, facts):
                state = self.restarted(state, campaign, stale, now)
                continue
            proposal = (
                "a trial failed for good"
                if core.gave_up(campaign)
                else core.next_proposal(campaign, facts, self._config)
            )
            if isinstance(proposal, str):
                finished, orders = ending.finish(campaign, facts, self._config, proposal)
                state = agenda.ended(state, campaign, self._config, now)
                state = agenda.decided(
                    state, campaign.index, now, finished.outcome, finished.reason, campaign.campaign, finished.promoted
                )
                log.info("tuned", index=campaign.index, outcome=finished.outcome, reason=finished.reason)
                said += [order for order in orders if order is not finished]
                if finished.promoted is None or finished.promoted in await self.promoted(campaign.index):
                    said.append(finished)
                else:
                    state = msgspec.structs.replace(state, verdicts=[*state.verdicts, finished])
                continue
            campaign, order = core.issued(campaign, proposal, facts, now)
            state = agenda.with_campaign(state, campaign)
            if not campaign.manual:
                state = msgspec.structs.replace(state, trial_times=[*agenda.this_hour(state, now), now])
            state = agenda.decided(
                state, campaign.index, now, "proposed", proposal.rule, campaign.campaign, order.trial
            )
            said.append(order)
        return state, said

    async def _next_place(self, state: AgentDocument, now: Timestamp) -> QueuedTuning | None:
        if not state.queue:
            return None
        live = {name for name, _, _ in await self._registry.all(GenerationDocument)}
        ready = [
            place.index
            for place in state.queue
            if place.index in live and not await self._waits(place.index, place.time, now, place.after)
        ]
        return agenda.next_place(state, self._config, ready, now)

    async def _waits(self, index: IndexName, since: Timestamp | None, now: Timestamp, drifted: int = 0) -> bool:
        """Whether what should serve is still on its way, so that a champion measured now would be
        another's: the promotion behind generation `drifted` is about to be taken back, or the
        generation of what is promoted is being built. Not for ever: a build may fail."""
        if since is None or now - since >= SWAP_LOST_S:
            return False
        found = await self._registry.load(IndexDocument, index)
        live = await self._registry.load(GenerationDocument, index)
        if found is None or live is None:
            return False
        promotion = await self._registry.load(PromotionDocument, index)
        current = promotion[0].current if promotion else None
        if current is not None and drifted and current.generation == drifted:
            return True
        return not serves_as_wanted(found[0], live[0], promotion[0] if promotion else None)

    async def is_past(self, drift: RecallDrifted, id: MessageId) -> bool:
        """Whether a drift is of a generation that was replaced, other than because of this drift."""
        live = await self._registry.load(GenerationDocument, drift.index)
        promotion = await self._registry.load(PromotionDocument, drift.index)
        if live is None or live[0].generation <= drift.generation:
            return False
        return promotion is None or all(entry.ended_by != id for entry in promotion[0].rolled_back)

    async def first(
        self, state: AgentDocument, index: IndexName, trigger: MessageId, tag: str, time: Timestamp, now: Timestamp
    ) -> AgentDocument:
        """With a place for an index that was never tuned, is live and has rows enough."""
        known = {place.index for place in state.queue} | {campaign.index for campaign in state.campaigns}
        if index in state.tuned or index in known or not self._config.enabled:
            return state
        found = await self._registry.load(GenerationDocument, index)
        if found is None or found[0].rows < self._config.min_new_rows:
            return state
        place = QueuedTuning(index, f"{found[0].rows} rows, never tuned", AGENT, trigger, tag, time)
        return agenda.queued(state, place, now)
