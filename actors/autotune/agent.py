"""The agent (control): hears what happened to an index, keeps the queue and the campaigns, orders
one trial after another, and promotes what won.

Each handler loads the agent's document, decides, and saves it by compare-and-set before it
returns; what it returns is saved with it, so a redelivered message gets the same answer and is
decided once. Whose turn it is: `scheduler`; what a campaign does: `core`; what the agent is
asked: `questions`.
"""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import msgspec
import structlog

from actors.autotune import agenda, basis, core
from actors.autotune.config import AgentConfig
from actors.autotune.progress import TrialProgress
from actors.autotune.questions import Questions
from actors.autotune.scheduler import AGENT, Scheduler
from actors.base import Actor, Origin, every, handles
from actors.errors import Conflict
from actors.ports import Bus, Clock, Journal, Registry
from actors.refusals import no_index
from schemas.documents.agent import AgentDocument, Campaign, Emitted
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.autotune import (
    AgentStatus,
    AutotuneStarted,
    EnqueueTuning,
    GetAgentStatus,
    ListTrials,
    QueuedTuning,
    Replay,
    ReplayReport,
    RunTrial,
    StartAutotune,
    TrialCompleted,
    TrialFailed,
    TrialList,
    TuningFinished,
    TuningQueued,
)
from schemas.events.base import CommandRefused, Refusal, tag_of
from schemas.events.dataset import DatasetAppended
from schemas.events.index import GenerationReady, IndexAppended, IndexDropped, RebuildIndex, RecallDrifted
from schemas.events.promotion import ConfigPromoted, Promote
from schemas.names import IndexName, MessageId, Timestamp

SAVE_ATTEMPTS = 5
LOST_AFTER_S = 3600.0
"""A trial that nothing was heard of for so long is ordered again."""

Orders = Sequence[RunTrial | Promote | RebuildIndex | TuningQueued | TuningFinished]
Change = Callable[[AgentDocument, Timestamp], Awaitable[tuple[AgentDocument, list[Emitted]]]]

log = structlog.get_logger(__name__)


class Agent(Actor):
    """Keeps every index at the cheapest configuration that holds its recall target."""

    role = "control"

    def __init__(self, registry: Registry, journal: Journal, bus: Bus, clock: Clock, config: AgentConfig) -> None:
        self._registry = registry
        self._clock = clock
        self._config = config
        self.wake_s = config.wake_s
        self._scheduler = Scheduler(registry, journal, config)
        self._one_at_a_time = anyio.Lock()
        self._progress = TrialProgress(bus, clock)
        self._questions = Questions(registry, journal, clock, self._scheduler, self._progress, config)

    async def start(self) -> Sequence[RunTrial]:
        """A running trial is ordered once more: its first order may have died with the last
        process before it was published. The lab does each trial once."""
        self._progress.start()
        state, _ = await self._load()
        return [core.order(campaign) for campaign in state.campaigns if campaign.running is not None]

    async def stop(self) -> None:
        await self._progress.stop()

    # --- what sets tuning off ------------------------------------------------------------------

    @handles
    async def on_dataset_appended(self, event: DatasetAppended, origin: Origin) -> Orders:
        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            for _, document, _ in await self._registry.all(IndexDocument):
                if document.dataset == event.dataset:
                    state = agenda.changed(state, document.index, event.rows)
                    place = self._place(state, document.index, f"{event.rows} rows appended", event, origin)
                    state = self._by_rule(state, msgspec.structs.replace(place, version=event.version), now)
            return await self._scheduler.advance(state, now)

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_index_appended(self, event: IndexAppended, origin: Origin) -> Orders:
        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            covered = max(event.version, state.covered.get(event.index, -1))
            state = msgspec.structs.replace(state, covered={**state.covered, event.index: covered})
            if event.deleted:
                state = agenda.changed(state, event.index, event.deleted)
                place = self._place(state, event.index, f"{event.deleted} rows went", event, origin)
                state = self._by_rule(state, place, now)
            return await self._scheduler.advance(state, now)

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_generation_ready(self, event: GenerationReady, origin: Origin) -> Orders:
        """The first generation of an index sets off its first campaign; a later one may be what
        a campaign waits for."""

        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            if event.companion:
                return await self._scheduler.advance(state, now)
            tag = tag_of(GenerationReady)
            state = await self._scheduler.first(state, event.index, origin.id, tag, origin.time, now)
            return await self._scheduler.advance(state, now)

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_drift(self, event: RecallDrifted, origin: Origin) -> Orders:
        """Promotion hears it too, and takes back what it promoted: the campaign comes after that."""

        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            live = event.recall
            reason = (
                f"live recall {live.mean:.4f} (at most {live.upper:.4f}) over {live.samples} queries, "
                f"target {event.target:g}"
            )
            if not self._config.enabled:
                state = agenda.skipped(state, event.index, now, f"{reason}; the agent is disabled")
            elif await self._scheduler.is_past(event, origin.id):
                state = agenda.skipped(state, event.index, now, f"{reason}; another generation serves by now")
            else:
                place = self._place(state, event.index, reason, event, origin)
                place = msgspec.structs.replace(place, recalibrate=False, after=event.generation)
                state = agenda.queued(state, place, now)
            return await self._scheduler.advance(state, now)

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_enqueue(
        self, command: EnqueueTuning, origin: Origin
    ) -> Sequence[TuningQueued | RunTrial | Promote | RebuildIndex | TuningFinished | Refusal]:
        if await self._registry.load(IndexDocument, command.index) is None:
            return [no_index(command.index)]

        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            if agenda.answered_since(state, command.index, origin.time):
                return state, [TuningQueued(command.index, f"{command.reason}; the last campaign began after this")]
            tag = tag_of(EnqueueTuning)
            place = QueuedTuning(command.index, command.reason, command.asked_by, origin.id, tag, origin.time)
            state = agenda.queued(state, place, now)
            state, orders = await self._scheduler.advance(state, now)
            return state, [TuningQueued(command.index, command.reason), *orders]

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_start_autotune(
        self, command: StartAutotune, origin: Origin
    ) -> Sequence[AutotuneStarted | RunTrial | Promote | RebuildIndex | TuningFinished | Refusal]:
        facts = await self._scheduler.facts(command.index)
        if facts is None:
            return [no_index(command.index)]
        if not (command.grid or command.lance) and (command.grid, command.lance) != (None, None):
            return [Refusal("invalid", "the grid is empty", "leave it out for the default grid")]
        if command.harness is not None:
            found = await self._registry.load(HarnessDocument, command.harness)
            if found is None or found[0].index != command.index:
                reason = f"index {command.index!r} has no eval set {command.harness!r}"
                return [Refusal("not_found", reason, "leave it out for the index's own")]
        try:
            asked = core.begin_asked(command, origin, facts, self._config, self._clock.now())
        except ValueError as error:
            return [Refusal("invalid", str(error), "choose another point")]

        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            for campaign in state.campaigns:
                if campaign.index == command.index:
                    reason = (
                        f"index {command.index!r} is being tuned: campaign {campaign.campaign}, "
                        f"{len(campaign.trials)} trials done"
                    )
                    return state, [Refusal("busy", reason, "one autotune per index at a time: wait for its end")]
            campaign = msgspec.structs.replace(asked, started=now)
            state = agenda.with_campaign(state, campaign)
            state = agenda.decided(
                state, command.index, now, "started", f"asked by {command.asked_by}", campaign.campaign
            )
            builds = len(campaign.grid)
            state, orders = await self._scheduler.advance(state, now)
            return state, [AutotuneStarted(campaign.campaign, command.index, builds), *orders]

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @every("wake_s")
    async def on_wake(self) -> Orders:
        """Picks up what no message will: a cooldown that is over, an hour's new budget, an index
        that was never tuned, a trial or a promotion that was lost."""

        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            for name, live, _ in await self._registry.all(GenerationDocument):
                if name != live.index:  # a companion: what serves is tuned
                    continue
                state = await self._scheduler.first(state, name, f"wake-{now:.0f}", "autotune.wake", now, now)
            campaign = agenda.running(state)
            if campaign is not None and self._progress.heard_of(campaign) < now - LOST_AFTER_S:
                reason = f"nothing was heard of trial {campaign.running} for {LOST_AFTER_S:.0f} s"
                state = agenda.decided(
                    state, campaign.index, now, "failed", reason, campaign.campaign, campaign.running
                )
                state = agenda.with_campaign(state, core.failed(campaign))
            state, overdue = await self._scheduler.overdue(state, now)
            state, orders = await self._scheduler.advance(state, now)
            return state, [*overdue, *orders]

        return await self._decide(None, change)  # type: ignore[return-value]

    # --- how a campaign goes on ----------------------------------------------------------------

    @handles
    async def on_completed(self, event: TrialCompleted, origin: Origin) -> Orders:
        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            campaign = _running(state, event)
            facts = await self._scheduler.facts(event.index) if campaign else None
            if campaign is None or facts is None:
                return state, []
            stale = basis.stale(campaign, facts)
            if stale:
                state = self._scheduler.restarted(state, campaign, stale, now)
                return await self._scheduler.advance(state, now)
            campaign, promote, reason = core.completed(campaign, event, facts, self._config)
            state = agenda.with_campaign(state, campaign, last=True)
            action = "promoted" if promote else "measured"
            state = agenda.decided(state, event.index, now, action, reason, campaign.campaign, event.trial)
            state, orders = await self._scheduler.advance(state, now)
            return state, [*([promote] if promote else []), *orders]

        self._progress.forget(event.trial)
        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_failed(self, event: TrialFailed, origin: Origin) -> Orders:
        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            campaign = _running(state, event)
            if campaign is None:
                return state, []
            state = agenda.with_campaign(state, core.failed(campaign))
            state = agenda.decided(state, event.index, now, "failed", event.reason, event.campaign, event.trial)
            return await self._scheduler.advance(state, now)

        self._progress.forget(event.trial)
        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_promoted(self, event: ConfigPromoted, origin: Origin) -> Orders:
        """The verdict that waited for this promotion is told. What waited for a rollback to a
        configuration that serves already goes on: no new generation will tell of it."""

        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            promoted = {event.entry.trial} | await self._scheduler.promoted(event.index)
            state, told = agenda.settled(state, event.index, promoted)
            state, orders = await self._scheduler.advance(state, now)
            return state, [*told, *orders]

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_refused(self, event: CommandRefused, origin: Origin) -> Sequence[TuningFinished]:
        """The promotion that a verdict waited for won't be: another won the race, say."""
        if event.command != tag_of(Promote):
            return []

        async def change(state: AgentDocument, _: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            promoted = await self._scheduler.promoted(event.about)
            state, told = agenda.settled(state, event.about, promoted, refused=event.reason)
            return state, [*told]

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    @handles
    async def on_index_dropped(self, event: IndexDropped, origin: Origin) -> Orders:
        async def change(state: AgentDocument, now: Timestamp) -> tuple[AgentDocument, list[Emitted]]:
            return await self._scheduler.advance(agenda.forgotten(state, event.index), now)

        return await self._decide(origin.id, change)  # type: ignore[return-value]

    # --- questions -----------------------------------------------------------------------------

    @handles
    async def on_status(self, query: GetAgentStatus) -> Sequence[AgentStatus]:
        state, _ = await self._load()
        return [self._questions.status(state)]

    @handles
    async def on_list_trials(self, query: ListTrials) -> Sequence[TrialList | Refusal]:
        return [await self._questions.trials(query)]

    @handles
    async def on_replay(self, query: Replay) -> Sequence[ReplayReport | Refusal]:
        return [await self._questions.replay(query)]

    # --- the shell's own -----------------------------------------------------------------------

    async def _decide(self, cause: MessageId | None, change: Change) -> Sequence[Emitted]:
        """Load, decide, save; again when someone else saved meanwhile. Raises Conflict when that
        happens too often."""
        async with self._one_at_a_time:
            for _ in range(SAVE_ATTEMPTS):
                before, revision = await self._load()
                known = agenda.answer_to(before, cause) if cause else None
                if known is not None:
                    return known
                state, messages = await change(before, self._clock.now())
                if state == before:
                    return messages
                if cause:
                    state = agenda.answered(state, cause, messages)
                try:
                    await self._registry.save(AGENT, state, expected=revision)
                except Conflict:
                    continue
                return messages
        raise Conflict(f"the agent's state was changed {SAVE_ATTEMPTS} times while it decided")

    def _place(
        self,
        state: AgentDocument,
        index: IndexName,
        reason: str,
        event: DatasetAppended | IndexAppended | RecallDrifted,
        origin: Origin,
    ) -> QueuedTuning:
        """A place that an event asks for. An index that was tuned before is re-calibrated first."""
        recalibrate = index in state.tuned
        return QueuedTuning(index, reason, AGENT, origin.id, tag_of(type(event)), origin.time, recalibrate=recalibrate)

    def _by_rule(self, state: AgentDocument, place: QueuedTuning, now: Timestamp) -> AgentDocument:
        """With the place, if enough has changed."""
        changed, least = state.changed.get(place.index, 0), self._config.min_new_rows
        if not self._config.enabled:
            return agenda.skipped(state, place.index, now, f"{place.reason}; the agent is disabled")
        if changed < least:
            reason = f"{place.reason}; {changed} changed since the last tuning, below {least}"
            return agenda.skipped(state, place.index, now, reason)
        return agenda.queued(state, place, now)

    async def _load(self) -> tuple[AgentDocument, int | None]:
        return await self._registry.load(AgentDocument, AGENT) or (AgentDocument(), None)


def _running(state: AgentDocument, event: TrialCompleted | TrialFailed) -> Campaign | None:
    """The campaign that waits for this trial."""
    return next((campaign for campaign in state.campaigns if campaign.running == event.trial), None)
