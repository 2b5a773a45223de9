"""Where the planner's states are kept: in memory for the searches, in the registry for the next start and for other
processes; and what is said of one to whoever asks.
"""

import anyio.to_thread
import structlog

from actors.errors import Conflict
from actors.planner import state
from actors.planner.config import PlannerConfig
from actors.planner.planners import Planned, Planners
from actors.ports import Registry
from actors.refusals import no_index
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.planner import PlannerDocument
from schemas.events.base import Refusal
from schemas.events.planner import PlannerStatus
from schemas.names import Backend, IndexName

TRIES = 5
"""At a document that other processes change too."""

log = structlog.get_logger(__name__)


class Keeper:
    def __init__(self, planners: Planners, registry: Registry, config: PlannerConfig, process_id: str) -> None:
        self._planners = planners
        self._registry = registry
        self._config = config
        self._process_id = process_id

    async def planned(self, name: IndexName) -> Planned:
        known = self._planners.indexes.get(name)
        if known is not None:
            return known
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            raise Conflict(f"index {name} was dropped")
        return self._planners.of(name, found[0].dim, found[0].target_recall)

    async def backend(self, name: IndexName) -> Backend | None:
        """Whose efforts its queries take."""
        head, index = (
            await self._registry.load(GenerationDocument, name),
            await self._registry.load(IndexDocument, name),
        )
        found = head or index
        return None if found is None else found[0].config.backend

    async def missing(self, name: IndexName) -> Refusal | None:
        if not self._config.enabled:
            return Refusal("conflict", "the planner is off", "[planner] enabled = true")
        if await self._registry.load(IndexDocument, name) is None:
            return no_index(name)
        return None

    async def adopt(self, name: IndexName, document: PlannerDocument) -> None:
        if not self._config.enabled:
            return
        try:
            self._planners.indexes[name] = await anyio.to_thread.run_sync(state.planned_of, document, self._config)
        except state.Unfit as error:
            log.warning("the planner starts anew", index=name, why=str(error))
            if document.mode == "off" and document.dim > 0:  # asked for, not learnt
                off = self._planners.of(name, document.dim, document.target)
                off.mode, off.why = document.mode, document.why

    async def follow(self, name: IndexName, process: str) -> None:
        """Take over what another process learnt; what this one has seen since is kept."""
        if process == self._process_id:
            return
        found = await self._registry.load(PlannerDocument, name)
        if found is None:
            return
        document, own = found[0], self._planners.indexes.get(name)
        await self.adopt(name, document)
        taken = self._planners.indexes.get(name)
        if own is None or taken is None or taken is own or own.instant.embedding.dim != document.dim:
            return
        if own.backend in (None, document.backend):  # else this process hasn't yet seen that another backend serves
            own.backend = document.backend
            own.instant.terrain = taken.instant.terrain
            own.instant.adopt(taken.instant.learned)
            own.mode, own.why = taken.mode, taken.why
        self._planners.indexes[name] = own

    async def save(self, name: IndexName) -> None:
        planned = self._planners.indexes.get(name)
        index = await self._registry.load(IndexDocument, name)
        if planned is None or index is None:
            return
        labelled = planned.instant.labelled
        document = await self.document(name, planned)
        for attempt in range(TRIES):
            found = await self._registry.load(PlannerDocument, name)
            if self._planners.indexes.get(name) is not planned:  # reset or replaced meanwhile
                return
            try:
                await self._registry.save(name, document, expected=found[1] if found else None, bucket=index[0].bucket)
                planned.kept = labelled
                return
            except Conflict:
                if attempt == TRIES - 1:
                    raise

    async def document(self, name: IndexName, planned: Planned) -> PlannerDocument:
        moment = state.Moment.of(planned.instant)
        return await anyio.to_thread.run_sync(state.document_of, name, planned, self._config, moment)

    async def status(self, name: IndexName) -> PlannerStatus:
        planned = await self.planned(name)
        gain = await anyio.to_thread.run_sync(planned.gain)
        instant, broken = planned.instant, self._planners.broken.get(name)
        return PlannerStatus(
            index=name,
            enabled=self._config.enabled,
            mode=planned.mode if broken is None else "off",
            why=planned.why if broken is None else broken,
            queries_processed=instant.queries,
            pattern_hit_rate=instant.hits / instant.queries if instant.queries else 0.0,
            avg_latency_us=instant.latency_us / instant.queries if instant.queries else 0.0,
            planner_us=planned.own_us / planned.chosen if planned.chosen else 0.0,
            background_cycles=planned.cycles,
            patterns_stored=instant.learned.bank.size,
            trajectories=instant.ring.size,
            trajectories_dropped=instant.ring.dropped,
            labels=instant.labels.size,
            ewc_tasks=len(instant.learned.memory.tasks),
            learned=planned.learned,
            cycle_s=planned.cycle_s,
            gain=gain,
        )
