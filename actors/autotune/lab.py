"""The lab (work): runs trials and makes eval sets, in the niced worker process, one at a time.

What is decided about a trial's figures is in `decide`, how they are measured in `jobs` and
`measure`; this shell finds what a trial needs, writes its rows and says that it is done.
"""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Never

import structlog

from actors.autotune.builds import Phase, Vectors
from actors.autotune.config import AgentConfig
from actors.autotune.decide import chosen_points, holds
from actors.autotune.evalsets import EvalSets
from actors.autotune.jobs import Measured, TrialOrder, run_trial
from actors.autotune.measure import K
from actors.autotune.rows import rows_of
from actors.autotune.subjects import find as subjects_of
from actors.base import Actor, Origin, handles
from actors.errors import Transient
from actors.graphs import GraphCache
from actors.ports import Buckets, Bus, Clock, Compute, Embedders, Journal, QueryLog, Registry, Snapshot, Snapshots
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import IndexDocument
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import (
    BuildHarness,
    HarnessBuilt,
    HarnessInfo,
    HarnessList,
    ListHarnesses,
    RunTrial,
    TrialCompleted,
    TrialFailed,
)
from schemas.events.base import Progress, Refusal
from schemas.events.index import IndexDropped
from schemas.names import HarnessName

MAX_DELIVERIES = 3
"""A trial that killed its worker, or waited for its store, so often comes to nothing."""

log = structlog.get_logger(__name__)


class Lab(Actor):
    """Does each trial once: an order that comes again finds its rows in the journal."""

    role = "work"

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        snapshots: Snapshots,
        buckets: Buckets,
        compute: Compute,
        graphs: GraphCache,
        query_log: QueryLog,
        embedders: Embedders,
        bus: Bus,
        clock: Clock,
        host: str,
        config: AgentConfig,
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._snapshots = snapshots
        self._buckets = buckets
        self._compute = compute
        self._graphs = graphs
        self._bus = bus
        self._clock = clock
        self._host = host
        self._config = config
        self._eval_sets = EvalSets(registry, snapshots, buckets, compute, query_log, embedders, clock)

    @handles
    async def on_trial(self, command: RunTrial, origin: Origin) -> Sequence[TrialCompleted | TrialFailed]:
        points = await self._journal.trial(command.index, command.trial)
        if points:
            return [_completed(command, points)]
        if origin.delivery > MAX_DELIVERIES:
            return [_failed(command, f"the worker died, or a store lagged, at each of {origin.delivery - 1} attempts")]
        await self._say(command, Phase("prepare", 0, None, "steps"))
        try:
            points = await self._run(command, origin.delivery)
        except FileNotFoundError as error:
            return [_failed(command, f"something that the trial needs is gone: {error}")]
        except (ValueError, RuntimeError, MemoryError) as error:  # the job's own; a dead worker is Transient
            log.warning("trial failed", trial=command.trial, index=command.index, why=error)
            return [_failed(command, f"{type(error).__name__}: {error}")]
        await self._journal.append(points)
        return [_completed(command, points)]

    @handles
    async def on_build_harness(
        self, command: BuildHarness, origin: Origin
    ) -> Sequence[HarnessInfo | HarnessBuilt | Refusal]:
        info = await self._eval_sets.build(command)
        if isinstance(info, Refusal):
            return [info]
        log.info("eval set built", harness=info.harness, index=info.index, queries=info.queries, asked=origin.asked)
        return [HarnessBuilt(info.harness, info.index, info.queries, info.source, info.version), info]

    @handles
    async def on_list_harnesses(self, query: ListHarnesses) -> Sequence[HarnessList]:
        return [HarnessList(await self._eval_sets.all(query.index))]

    @handles
    async def on_index_dropped(self, event: IndexDropped) -> Sequence[Never]:
        await self._eval_sets.drop(event.index)
        await self._snapshots.forget(event.index)
        self._graphs.drop(event.index)
        return ()

    async def _run(self, command: RunTrial, delivery: int) -> list[TrialPoint]:
        """Measures the trial. Raises FileNotFoundError when index, vectors or eval set are
        missing, ValueError when there are too few rows, and what the job raises."""
        found = await self._registry.load(IndexDocument, command.index)
        if found is None:
            raise FileNotFoundError(f"index {command.index!r}")
        document = found[0]
        try:
            async with self._snapshots.held(command.index) as snapshot:  # rows may come all the while
                return await self._run_on(snapshot, command, document, delivery)
        finally:
            again = await self._registry.load(IndexDocument, command.index)
            if again is None or again[0].created != document.created:
                self._graphs.drop(command.index)  # the trial's came after the index's were dropped
                raise FileNotFoundError(f"index {command.index!r}, dropped during the trial")

    async def _run_on(
        self, snapshot: Snapshot, command: RunTrial, document: IndexDocument, delivery: int
    ) -> list[TrialPoint]:
        if snapshot.rows < 2 * K:
            raise ValueError(f"{command.index!r} has {snapshot.rows} rows: recall@{K} needs {2 * K} at least")
        name = command.harness or command.index
        before = await self._registry.load(HarnessDocument, name)
        try:
            return await self._measured(snapshot, name, command, document, delivery)
        except FileNotFoundError as error:
            now = await self._registry.load(HarnessDocument, name)
            if now is None or now == before:
                raise
            raise Transient(f"eval set {name!r} was replaced meanwhile", 0.1) from error

    async def _measured(
        self, snapshot: Snapshot, name: HarnessName, command: RunTrial, document: IndexDocument, delivery: int
    ) -> list[TrialPoint]:
        """The trial's points, on an eval set."""
        vectors = Vectors.of(document, snapshot)
        eval_set, path = await self._eval_sets.current(
            document, name, vectors, self._config.harness_queries, make=command.harness in (None, command.index)
        )
        subjects = await subjects_of(
            command, document, snapshot.version, delivery, self._registry, self._buckets, self._journal
        )
        order = TrialOrder(
            vectors=vectors,
            eval_set=path,
            config=subjects.config,
            extra=command.proposal.extra,
            ef_bounds=self._config.ef_search_bounds,
            target_recall=command.target_recall,
            live=subjects.live,
            reuse_live=subjects.reuse_live,
            champion=subjects.champion,
            cache=self._graphs,
            store=subjects.store,
        )
        measured = await self._measure(command, order)
        shared = {
            "trial": command.trial,
            "campaign": command.campaign,
            "index": command.index,
            "harness": name,
            "dataset_version": snapshot.version,
            "rows": snapshot.rows,
            "queries": eval_set.queries,
        }
        return rows_of(command, measured, subjects.config, shared, self._host, self._clock.now())

    async def _measure(self, command: RunTrial, order: TrialOrder) -> Measured:
        measured: Measured | None = None
        async with aclosing(self._compute.stream(run_trial, order)) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Phase):
                    await self._say(command, item)
                else:
                    measured = item
        if measured is None:
            raise Transient(f"trial {command.trial} ended without a result")
        return measured

    async def _say(self, command: RunTrial, phase: Phase) -> None:
        await self._bus.signal(Progress(command.trial, command.index, phase.phase, phase.done, phase.total, phase.unit))


def _completed(command: RunTrial, points: Sequence[TrialPoint]) -> TrialCompleted:
    best = chosen_points(points)[0]
    return TrialCompleted(
        command.trial, command.campaign, command.index, best, holds(best, command.target_recall), len(points)
    )


def _failed(command: RunTrial, reason: str) -> TrialFailed:
    return TrialFailed(command.trial, command.campaign, command.index, reason)
