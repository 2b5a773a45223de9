"""The lab (work): runs trials and makes eval sets, in the niced worker process, one at a time.

What is decided about a trial's figures is in `decide`, how they are measured in `jobs` and
`measure`; this shell finds what a trial needs, writes its rows and says that it is done.
"""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Never

import structlog

from actors.autotune.config import AgentConfig
from actors.autotune.decide import chosen_points, holds
from actors.autotune.evalsets import EvalSets
from actors.autotune.jobs import Champion, LiveGraph, Measured, Phase, TrialOrder, Vectors, run_trial
from actors.autotune.measure import K
from actors.base import Actor, Origin, handles
from actors.errors import Transient
from actors.graphs import GraphCache
from actors.hnsw import LIBRARY
from actors.ports import Buckets, Bus, Clock, Compute, Embedders, Journal, QueryLog, Registry, Snapshot, Snapshots
from schemas.config import HnswConfig
from schemas.documents.index import GenerationDocument, IndexDocument
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
from schemas.names import Timestamp

MAX_DELIVERIES = 3
"""A trial that killed its worker so often comes to nothing."""

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
            return [_failed(command, f"the worker died at each of {origin.delivery - 1} attempts")]
        await self._say(command, Phase("prepare", 0, None, "steps"))
        try:
            points = await self._run(command)
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

    async def _run(self, command: RunTrial) -> list[TrialPoint]:
        """Measures the trial. Raises FileNotFoundError when index, vectors or eval set are
        missing, ValueError when there are too few rows, and what the job raises."""
        found = await self._registry.load(IndexDocument, command.index)
        if found is None:
            raise FileNotFoundError(f"index {command.index!r}")
        document = found[0]
        try:
            async with self._snapshots.held(command.index) as snapshot:  # rows may come all the while
                return await self._run_on(snapshot, command, document)
        finally:
            again = await self._registry.load(IndexDocument, command.index)
            if again is None or again[0].created != document.created:
                self._graphs.drop(command.index)  # the trial's came after the index's were dropped
                raise FileNotFoundError(f"index {command.index!r}, dropped during the trial")

    async def _run_on(self, snapshot: Snapshot, command: RunTrial, document: IndexDocument) -> list[TrialPoint]:
        if snapshot.rows < 2 * K:
            raise ValueError(f"{command.index!r} has {snapshot.rows} rows: recall@{K} needs {2 * K} at least")
        vectors = Vectors.of(document, snapshot)
        name = command.harness or command.index
        eval_set, path = await self._eval_sets.current(
            document, name, vectors, self._config.harness_queries, make=command.harness in (None, command.index)
        )
        live, generation = await self._live(document)
        order = TrialOrder(
            vectors=vectors,
            eval_set=path,
            config=command.proposal.config,
            extra_ef=command.proposal.extra_ef,
            ef_bounds=self._config.ef_search_bounds,
            target_recall=command.target_recall,
            reuse_live=command.proposal.reuse_live and live is not None,
            live=live,
            champion=await self._champion(command, live, generation),
            cache=self._graphs,
        )
        measured = await self._measure(command, order)
        config = live.config if order.reuse_live and live else command.proposal.config
        shared = {
            "trial": command.trial,
            "campaign": command.campaign,
            "index": command.index,
            "harness": name,
            "dataset_version": snapshot.version,
            "rows": snapshot.rows,
            "queries": eval_set.queries,
        }
        return _points(command, measured, config, shared, self._host, self._clock.now())

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

    async def _live(self, document: IndexDocument) -> tuple[LiveGraph | None, GenerationDocument | None]:
        """The graph that serves; None before the first is built and when another build of
        hnswlib wrote it."""
        found = await self._registry.load(GenerationDocument, document.index)
        if found is None or found[0].library != LIBRARY:
            return None, None
        generation = found[0]
        path = await self._buckets.fetch(document.bucket, generation.key, generation.sha256)
        return LiveGraph(path, generation.sha256, generation.config, generation.rows), generation

    async def _champion(
        self, command: RunTrial, live: LiveGraph | None, generation: GenerationDocument | None
    ) -> Champion | None:
        """The point of the champion's trial that the campaign named; else what is live."""
        if command.champion_trial is not None:
            points = await self._journal.trial(command.index, command.champion_trial)
            for point in chosen_points(points):
                return Champion(point.trial, HnswConfig(point.M, point.ef_construction, point.ef_search, point.seed))
        if live is None or generation is None:
            return None
        return Champion(generation.trial or f"generation-{generation.generation}", live.config)

    async def _say(self, command: RunTrial, phase: Phase) -> None:
        await self._bus.signal(Progress(command.trial, command.index, phase.phase, phase.done, phase.total, phase.unit))


def _points(
    command: RunTrial, measured: Measured, config: HnswConfig, shared: dict[str, Any], host: str, now: Timestamp
) -> list[TrialPoint]:
    """The trial's rows: what was measured, and how it came about. Ascending by ef_search."""
    proposal, champion = command.proposal, measured.champion
    rows = []
    for point in sorted(measured.points, key=lambda p: p.ef_search):
        chosen = point.ef_search == measured.chosen
        ratio = measured.ratio if chosen else None
        rows.append(
            TrialPoint(
                **shared,
                build=measured.build,
                M=config.M,
                ef_construction=config.ef_construction,
                ef_search=point.ef_search,
                seed=config.seed,
                k=K,
                target_recall=command.target_recall,
                recall=point.recall,
                recall_ties=point.recall_ties,
                recall_lower=point.recall_lower,
                recall_worst_decile=point.recall_worst_decile,
                p50_us=point.p50_us,
                p95_us=point.p95_us,
                p99_us=point.p99_us,
                cpu_us=point.cpu_us,
                champion_trial=champion.trial if champion and chosen else None,
                champion_ratio=ratio.median if ratio else None,
                champion_ratio_low=ratio.low if ratio else None,
                champion_ratio_high=ratio.high if ratio else None,
                champion_recall_lower=measured.champion_recall_lower if champion and chosen else None,
                build_s=measured.build_s,
                build_cpu_s=measured.build_cpu_s,
                bytes=measured.bytes,
                library=LIBRARY,
                graph_added=measured.added,
                graph_deleted=measured.deleted,
                chosen=chosen,
                proposer=proposal.proposer,
                rule=proposal.rule,
                draw=proposal.draw,
                journal_rows=proposal.journal_rows,
                policy=proposal.policy,
                asked_by=command.asked_by,
                trigger=command.trigger,
                trigger_tag=command.trigger_tag,
                trigger_time=command.trigger_time,
                host=host,
                time=now,
            )
        )
    return rows


def _completed(command: RunTrial, points: Sequence[TrialPoint]) -> TrialCompleted:
    best = chosen_points(points)[0]
    return TrialCompleted(
        command.trial, command.campaign, command.index, best, holds(best, command.target_recall), len(points)
    )


def _failed(command: RunTrial, reason: str) -> TrialFailed:
    return TrialFailed(command.trial, command.campaign, command.index, reason)
