"""What the agent is asked: how it stands, what was tried, and whether its proposals follow from
the journal. Reads only."""

import msgspec

from actors.autotune import agenda
from actors.autotune.config import AgentConfig
from actors.autotune.facts import Facts, policy
from actors.autotune.progress import TrialProgress
from actors.autotune.replay import replay
from actors.autotune.scheduler import Scheduler
from actors.ports import Clock, Journal, Registry
from actors.refusals import no_index
from schemas.documents.agent import AgentDocument
from schemas.documents.index import IndexDocument
from schemas.events.autotune import AgentStatus, ListTrials, Replay, ReplayReport, TrialList
from schemas.events.base import Refusal


class Questions:
    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        clock: Clock,
        scheduler: Scheduler,
        progress: TrialProgress,
        config: AgentConfig,
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._scheduler = scheduler
        self._progress = progress
        self._config = config

    def status(self, state: AgentDocument) -> AgentStatus:
        now = self._clock.now()
        return AgentStatus(
            enabled=self._config.enabled,
            queue=state.queue,
            running=[self._progress.shown(campaign) for campaign in state.campaigns if campaign.running],
            trials_this_hour=len(agenda.this_hour(state, now)),
            max_trials_per_hour=self._config.max_trials_per_hour,
            budget_left=agenda.budget(state, self._config, now),
            cooldown_until={name: until for name, until in state.cooldown_until.items() if until > now},
            decisions=state.decisions,
        )

    async def trials(self, query: ListTrials) -> TrialList | Refusal:
        points = await self._journal.points(query.index)
        if not points and await self._registry.load(IndexDocument, query.index) is None:
            return no_index(query.index)
        return TrialList(query.index, points[::-1][: query.limit], len(points))

    async def replay(self, query: Replay) -> ReplayReport | Refusal:
        started = self._clock.monotonic()
        facts = await self._scheduler.facts(query.index)
        points = facts.points if facts else await self._journal.points(query.index)
        if facts is None and not points:
            return no_index(query.index)
        if facts is None:  # of an index that was dropped
            facts = Facts(points[-1].target_recall, points[-1].config, False, points)
        report = replay(query.index, points, policy(facts.target_recall, self._config, facts))
        return msgspec.structs.replace(report, seconds=self._clock.monotonic() - started)
