"""The lineage actor: hears what happened, and tells it as OpenLineage runs: stored for ever in the
table `lineage`, and posted to an endpoint when there is one. What an event becomes is in runs.py.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from actors.base import Actor, Origin, concurrent, handles
from actors.lineage import runs
from actors.lineage.config import LineageConfig
from actors.lineage.runs import Described
from actors.ports import Clock, Journal, Registry
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.documents.lineage import LineageRow
from schemas.events.autotune import TrialCompleted, TuningFinished
from schemas.events.base import Refusal
from schemas.events.dataset import DatasetAppended, IngestRejected
from schemas.events.index import GenerationBuilt, GenerationFailed
from schemas.events.lineage import GetLineage, LineageGraph, PostLineage
from schemas.events.promotion import ConfigPromoted
from schemas.lineage import RunState
from schemas.names import Timestamp

CONSIDERED = 20_000
"""Newest stored events that a walk looks at."""


class LineageLog(Protocol):
    """Run events, for ever."""

    async def append(self, rows: Sequence[LineageRow]) -> None:
        """Rows of one run, in order. Durable on return; nothing when its last state is there already."""
        ...

    async def newest(self, limit: int) -> list[LineageRow]:
        """In the order written."""
        ...


class LineageSink(Protocol):
    """An endpoint for run events."""

    async def post(self, event: bytes) -> None:
        """Raises Transient when it is away or busy, Poison when it says no."""
        ...


class Lineage(Actor):
    """Tells where everything came from."""

    def __init__(
        self,
        log: LineageLog,
        sink: LineageSink,
        registry: Registry,
        journal: Journal,
        clock: Clock,
        config: LineageConfig,
    ) -> None:
        self._log = log
        self._sink = sink
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._config = config
        self._running: set[str] = set()  # campaigns that were told to have begun

    @handles
    async def on_appended(self, event: DatasetAppended, origin: Origin) -> Sequence[PostLineage]:
        found = await self._registry.load(DatasetDocument, event.dataset)
        run = runs.ingest(event, found[0] if found else None, self._config.namespace)
        detail = f"{event.rows:,} rows from {event.source or 'a request'}, version {event.version}"
        return await self._ended(run, event.started or origin.time, "COMPLETE", detail, origin)

    @handles
    async def on_rejected(self, event: IngestRejected, origin: Origin) -> Sequence[PostLineage]:
        if not event.refused:
            return ()  # rows of it were set aside, the others are told as appended
        run = runs.refused_ingest(event, self._config.namespace)
        return await self._ended(run, event.started or origin.time, "FAIL", event.reason, origin)

    @handles
    async def on_built(self, event: GenerationBuilt, origin: Origin) -> Sequence[PostLineage]:
        run = runs.build(event, await self._index(event.index), self._config.namespace)
        detail = f"generation {event.generation}, {event.rows:,} rows: {event.reason}"
        return await self._ended(run, origin.time - event.build_s, "COMPLETE", detail, origin)

    @handles
    async def on_failed(self, event: GenerationFailed, origin: Origin) -> Sequence[PostLineage]:
        run = runs.build(event, await self._index(event.index), self._config.namespace)
        return await self._ended(run, origin.time, "FAIL", event.reason, origin)

    @handles
    async def on_trial(self, event: TrialCompleted, origin: Origin) -> Sequence[PostLineage]:
        """The first of a campaign tells that it runs."""
        run = runs.campaign(event, self._config.namespace)
        if run.id in self._running:
            return ()
        said = await self._say([self._row(run, "START", origin.time, f"tuning {event.index}", origin)])
        self._running.add(run.id)
        return said

    @handles
    async def on_finished(self, event: TuningFinished, origin: Origin) -> Sequence[PostLineage]:
        run = runs.campaign(event, self._config.namespace)
        state: RunState = "FAIL" if event.outcome in ("failed", "cancelled") else "COMPLETE"
        return await self._ended(run, origin.time, state, f"{event.outcome}: {event.reason}", origin)

    @handles
    async def on_promoted(self, event: ConfigPromoted, origin: Origin) -> Sequence[PostLineage]:
        points = await self._journal.trial(event.index, event.entry.trial)
        campaign = points[0].campaign if points else None
        run = runs.promotion(event, origin.id, campaign, self._config.namespace)
        word = "rolled back to" if event.rolled_back else "promoted"
        return await self._ended(run, origin.time, "COMPLETE", f"{word} trial {event.entry.trial}", origin)

    @handles
    @concurrent(4)
    async def on_post(self, command: PostLineage) -> Sequence[PostLineage]:
        if self._config.url:
            await self._sink.post(bytes(command.event))
        return ()

    @handles
    @concurrent(4)
    async def on_get(self, query: GetLineage) -> Sequence[LineageGraph | Refusal]:
        graph = runs.walk(await self._log.newest(CONSIDERED), query.name, query.limit)
        if not graph.roots:
            return [
                Refusal("not_found", f"nothing is known of where {query.name} came from", "name a dataset or an index")
            ]
        return [graph]

    async def _index(self, name: str) -> IndexDocument | None:
        found = await self._registry.load(IndexDocument, name)
        return found[0] if found else None

    async def _ended(
        self, run: Described, started: Timestamp, state: RunState, detail: str, origin: Origin
    ) -> Sequence[PostLineage]:
        rows = [self._row(run, state, origin.time, detail, origin)]
        if run.id not in self._running:
            rows.insert(0, self._row(run, "START", min(started, origin.time), detail, origin))
        said = await self._say(rows)
        self._running.discard(run.id)
        return said

    def _row(self, run: Described, state: RunState, time: Timestamp, detail: str, origin: Origin) -> LineageRow:
        return runs.row(run, state, time, detail, origin.id, self._config.namespace)

    async def _say(self, rows: Sequence[LineageRow]) -> Sequence[PostLineage]:
        await self._log.append(rows)
        return [PostLineage(msgspec.Raw(each.event.encode())) for each in rows] if self._config.url else ()
