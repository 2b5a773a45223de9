"""The planner's shell: runs the background cycles, keeps the state, and turns the planner on and off per index. It
lives where searches do (serve), one in each process; a cycle's result is a registry document, which the others take
over when they hear of it. What happens to every query is in instant.py.
"""

from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Never

import anyio.to_thread
import numpy as np
import structlog

from actors.base import Actor, concurrent, every, handles
from actors.errors import Conflict, CorruptState, Transient
from actors.planner import core_boundary, core_gain, state
from actors.planner.config import PlannerConfig
from actors.planner.core_labels import Labels
from actors.planner.core_ring import Trajectories
from actors.planner.keeping import Keeper
from actors.planner.learning import LearningOrder, Lesson, learn
from actors.planner.planners import FORGET, Planned, Planners
from actors.ports import Clock, Compute, Registry, Snapshots
from schemas.documents.index import IndexDocument
from schemas.documents.planner import PlannerDocument
from schemas.events.base import Refusal
from schemas.events.index import IndexDropped, RecallDrifted
from schemas.events.planner import (
    ExportPlanner,
    GetPlanner,
    ImportPlanner,
    LearnPlanner,
    PatternShift,
    PlannerExport,
    PlannerForgot,
    PlannerLearned,
    PlannerModeChanged,
    PlannerStatus,
    ResetPlanner,
    SetPlanner,
)
from schemas.events.promotion import ConfigPromoted
from schemas.names import IndexName
from schemas.planner import PlannerGain, PlannerMode

KEEP_EACH = 50
"""New labels that are worth a revision of the state: a process that is killed takes no more with it."""
log = structlog.get_logger(__name__)

Lessons = PlannerLearned | PatternShift | PlannerModeChanged


class Planner(Actor):
    role = "serve"
    fanout = True

    def __init__(
        self,
        planners: Planners,
        registry: Registry,
        snapshots: Snapshots,
        compute: Compute,
        clock: Clock,
        config: PlannerConfig,
        process_id: str,
    ) -> None:
        self.cycle_s = config.background_interval_s
        self.watch_s = min(60.0, config.background_interval_s)
        self._planners = planners
        self._registry = registry
        self._keeper = Keeper(planners, registry, config, process_id)
        self._snapshots = snapshots
        self._compute = compute
        self._clock = clock
        self._config = config
        self._process_id = process_id
        self._learning: set[IndexName] = set()

    async def start(self) -> Sequence[Never]:
        for name, document, _ in await self._registry.all(PlannerDocument):
            await self._keeper.adopt(name, document)
        return ()

    async def stop(self) -> None:
        for name in list(self._planners.indexes):
            try:
                await self._keeper.save(name)
            except (Conflict, CorruptState, Transient) as error:  # another process keeps its own
                log.warning("what the planner saw can't be kept", index=name, why=str(error))

    @every("cycle_s")
    async def on_cycle(self) -> Sequence[Lessons]:
        said: list[Lessons] = []
        for name, _ in self._active():
            said += await self._apart(name, self._learn(name))
        return said

    @every("watch_s")
    async def on_watch(self) -> Sequence[Lessons]:
        """Looks whether the planner helps, and whether the queries have shifted: then a cycle runs at once."""
        said: list[Lessons] = []
        for name, planned in self._active():
            said += await self._apart(name, self._watch(name, planned))
        return said

    def _active(self) -> list[tuple[IndexName, Planned]]:
        return [(name, planned) for name, planned in self._planners.indexes.items() if planned.mode != "off"]

    @handles
    async def on_learn(
        self, command: LearnPlanner
    ) -> Sequence[PlannerLearned | PatternShift | PlannerModeChanged | Refusal]:
        if (missing := await self._keeper.missing(command.index)) is not None:
            return (missing,)
        lessons = await self._learn(command.index)
        return (lessons,) if isinstance(lessons, Refusal) else lessons

    @handles
    async def on_drift(self, event: RecallDrifted) -> Sequence[Lessons]:
        planned = self._planners.indexes.get(event.index)
        if planned is None or planned.mode == "off":
            return ()
        planned.instant.bandit.discount(FORGET)
        return await self._apart(event.index, self._learn(event.index))

    @handles
    async def on_promoted(self, event: ConfigPromoted) -> Sequence[Never]:
        planned = self._planners.indexes.get(event.index)
        if planned is not None:
            planned.promoted(event.previous, event.entry.config)
            await self._apart(event.index, self._keep(event.index))
        return ()

    @handles
    async def on_learned(self, event: PlannerLearned) -> Sequence[Never]:
        await self._keeper.follow(event.index, event.process)
        return ()

    @handles
    async def on_mode(self, event: PlannerModeChanged) -> Sequence[Never]:
        planned = self._planners.indexes.get(event.index)
        if planned is None:
            await self._keeper.follow(event.index, event.process)
        elif event.process != self._process_id:
            planned.mode, planned.why = event.mode, event.why
        return ()

    @handles
    async def on_forgot(self, event: PlannerForgot) -> Sequence[Never]:
        if event.process != self._process_id:
            self._planners.forget(event.index)
            await self._keeper.follow(event.index, event.process)
        return ()

    @handles
    async def on_dropped(self, event: IndexDropped) -> Sequence[Never]:
        self._planners.forget(event.index)
        if await self._registry.load(IndexDocument, event.index) is None:
            await self._forget(event.index)
        return ()

    @handles
    @concurrent(8)
    async def on_get(self, query: GetPlanner) -> Sequence[PlannerStatus | Refusal]:
        if (missing := await self._keeper.missing(query.index)) is not None:
            return (missing,)
        return (await self._keeper.status(query.index),)

    @handles
    async def on_set(self, command: SetPlanner) -> Sequence[PlannerStatus | PlannerModeChanged | Refusal]:
        if (missing := await self._keeper.missing(command.index)) is not None:
            return (missing,)
        planned = await self._keeper.planned(command.index)
        said = await self._set(command.index, planned, command.mode, "asked")
        return (*said, await self._keeper.status(command.index))

    @handles
    async def on_reset(self, command: ResetPlanner) -> Sequence[PlannerStatus | PlannerForgot | Refusal]:
        if (missing := await self._keeper.missing(command.index)) is not None:
            return (missing,)
        before = self._planners.indexes.get(command.index)
        self._planners.forget(command.index)
        await self._registry.delete(PlannerDocument, command.index)
        planned = await self._keeper.planned(command.index)
        if before is not None and before.mode == "off":  # that wasn't learnt, it was asked for
            planned.mode, planned.why = before.mode, before.why
            await self._keeper.save(command.index)
        forgot = PlannerForgot(command.index, False, self._process_id)
        return (forgot, await self._keeper.status(command.index))

    @handles
    @concurrent(2)
    async def on_export(self, query: ExportPlanner) -> Sequence[PlannerExport | Refusal]:
        if (missing := await self._keeper.missing(query.index)) is not None:
            return (missing,)
        planned = await self._keeper.planned(query.index)
        document = await self._keeper.document(query.index, planned)
        return (PlannerExport(query.index, await anyio.to_thread.run_sync(state.exported, document)),)

    @handles
    async def on_import(self, command: ImportPlanner) -> Sequence[PlannerStatus | PlannerForgot | Refusal]:
        if (missing := await self._keeper.missing(command.index)) is not None:
            return (missing,)
        try:
            document = await anyio.to_thread.run_sync(state.imported, command.state)
        except ValueError as error:
            return (
                Refusal("invalid", f"this is no planner's state: {error}", "what `lakehouse planner export` wrote"),
            )
        own, backend = await self._keeper.planned(command.index), await self._keeper.backend(command.index)
        if document.dim != own.instant.embedding.dim:
            reason = f"it is of {document.dim} dimensions, index {command.index!r} has {own.instant.embedding.dim}"
            return (Refusal("invalid", reason, "import it into an index of as many"),)
        if document.backend not in (None, backend):
            reason = f"it has learnt efforts of {document.backend}, index {command.index!r} is served by {backend}"
            return (Refusal("invalid", reason, "import it into an index on the same backend"),)
        try:
            planned = await anyio.to_thread.run_sync(state.planned_of, document, self._config)
        except state.Unfit as error:
            hint = "`lakehouse planner export` where [planner] has the hidden_dim, seed and ranks that it has here"
            return (Refusal("invalid", f"this state doesn't fit: {error}", hint),)
        planned.mode, planned.why = "shadow", "imported"
        planned.instant.target = own.instant.target
        planned.instant.pairs = planned.instant.pairs[:0]  # what it did elsewhere proves nothing here
        planned.compared = planned.judged = planned.looks = 0
        self._planners.forget(command.index)
        self._planners.indexes[command.index] = planned
        await self._keeper.save(command.index)
        return (PlannerForgot(command.index, True, self._process_id), await self._keeper.status(command.index))

    async def _watch(self, name: IndexName, planned: Planned) -> list[Lessons]:
        if await self._registry.load(IndexDocument, name) is None:  # a search, or a cycle, outlived its index
            await self._forget(name)
            return []
        said = await self._apart(name, self._judge(name, planned))
        if planned.instant.labelled - planned.kept >= KEEP_EACH:
            said += await self._apart(name, self._keep(name))
        recent = await self._shifted(planned)
        if recent and name not in self._learning:
            said += await self._apart(name, self._learn(name, recent))
        return said

    async def _keep(self, name: IndexName) -> list[Lessons]:
        await self._keeper.save(name)
        return []

    async def _forget(self, name: IndexName) -> None:
        self._planners.forget(name)
        await self._registry.delete(PlannerDocument, name)

    # --- learning ---

    async def _apart(self, name: IndexName, work: Awaitable[list[Lessons] | Refusal]) -> list[Lessons]:
        """What fails of one index doesn't keep the others from theirs."""
        try:
            lessons = await work
        except (Conflict, CorruptState, Transient) as error:
            log.warning("the planner can't learn, or keep what it learnt", index=name, why=str(error))
            return []
        return [] if isinstance(lessons, Refusal) else lessons

    async def _learn(self, name: IndexName, recent: int = 0) -> list[Lessons] | Refusal:
        planned = await self._keeper.planned(name)
        instant = planned.instant
        if instant.ring.size < self._config.min_trajectories:  # before anything is taken out of it
            needed = self._config.min_trajectories
            reason = f"index {name!r} needs {needed} queries to learn from, and has {instant.ring.size}"
            return Refusal("conflict", reason, "[planner] min_trajectories", retry_after_s=60.0)
        if name in self._learning:
            return Refusal("busy", f"index {name!r} is being learnt from", "wait for it to end", retry_after_s=5.0)
        self._learning.add(name)
        try:
            return await self._lesson(name, planned, recent)
        finally:
            self._learning.discard(name)

    async def _lesson(self, name: IndexName, planned: Planned, recent: int) -> list[Lessons] | Refusal:
        instant = planned.instant
        started, seen, upto = self._clock.monotonic(), instant.ring.look(), instant.ring.seen
        labels, labelled, promotions = instant.labels, instant.labelled, planned.promotions
        lesson = await self._taught(name, planned, seen, labels, recent)
        if self._planners.indexes.get(name) is not planned or planned.promotions != promotions:
            reason = f"what was known of index {name!r} was reset or replaced while it was learnt from"
            return Refusal("conflict", reason, "what was learnt is thrown away; learn again")
        made = lesson.cycle
        instant.ring.forget(upto)  # not before: a worker that dies takes nothing with it
        instant.labels = made.labels.with_all(instant.labels.newest(instant.labelled - labelled))  # and those meanwhile
        if lesson.terrain is not None:
            instant.terrain = lesson.terrain
        instant.adopt(made.learned)
        shifted = made.shift is not None and made.shift.shifted
        if shifted:
            planned.shifted()
        planned.cycles += 1
        planned.learned, planned.cycle_s = self._clock.now(), self._clock.monotonic() - started
        said = await self._judge(name, planned)
        await self._keeper.save(name)
        bank = made.learned.bank.size
        log.info("planner learnt", index=name, queries=seen.size, labels=labels.size, patterns=bank, s=planned.cycle_s)
        if shifted and made.shift is not None:
            said.append(PatternShift(name, made.shift.z, made.shift.p, seen.size))
        learned = PlannerLearned(name, seen.size, labels.size, made.clusters, bank, planned.cycle_s, self._process_id)
        return [learned, *said]

    async def _taught(
        self, name: IndexName, planned: Planned, seen: Trajectories, labels: Labels, recent: int
    ) -> Lesson:
        instant = planned.instant

        async def run(rows: Path | None) -> Lesson:
            order = LearningOrder(instant.learned, seen, labels, instant.target, self._config, recent, rows)
            async with aclosing(self._compute.stream(learn, order)) as lessons:  # type: ignore[type-var]
                async for lesson in lessons:
                    return lesson
            raise Transient(f"the cycle of {name} ended without a lesson")

        try:
            async with self._snapshots.held(name) as snapshot:
                return await run(snapshot.vectors_path if snapshot.rows else None)
        except FileNotFoundError:  # of a companion, or being dropped
            return await run(None)

    async def _shifted(self, planned: Planned) -> int:
        """How many of the newest queries came after a shift; 0: there was none."""
        ring, (before, last) = planned.instant.ring, planned.tested
        seen = ring.seen
        if seen - last < core_boundary.MIN_SAMPLES:
            return 0
        planned.tested = (last, seen)
        plans, newest = ring.look(seen - before).plans, seen - last
        windows = plans[:-newest], plans[-newest:]
        rng, threshold = np.random.default_rng(self._config.seed), self._config.ewc_boundary_threshold
        reference = planned.instant.learned.reference
        moved = await anyio.to_thread.run_sync(core_boundary.watched, reference, *windows, threshold, rng)
        return sum(len(window) for window in windows) if moved else 0

    # --- modes ---

    async def _judge(self, name: IndexName, planned: Planned) -> list[Lessons]:
        shadow = planned.mode == "shadow"
        if planned.compared - planned.judged < (core_gain.LEAST if shadow else 1):
            return []
        judged = planned.judged = planned.compared
        planned.looks += shadow  # only those looks can turn it on by chance
        gain = await anyio.to_thread.run_sync(planned.gain)
        if self._planners.indexes.get(name) is not planned or planned.judged != judged:  # reset meanwhile, or shifted
            return []
        mode = core_gain.next_mode(planned.mode, gain)
        if mode == planned.mode or gain is None:
            return []
        word = "helps" if mode == "on" else "no longer helps"
        return [*await self._set(name, planned, mode, f"measured on {gain.pairs} queries: it {word}, {_said(gain)}")]

    async def _set(self, name: IndexName, planned: Planned, mode: PlannerMode, why: str) -> list[PlannerModeChanged]:
        before, planned.mode, planned.why = planned.mode, mode, why
        await self._keeper.save(name)
        return [PlannerModeChanged(name, mode, before, why, self._process_id)] if mode != before else []


def _said(gain: PlannerGain) -> str:
    speed, recall = gain.speed, gain.recall
    return (
        f"{speed.value:.2f} times as fast ({speed.low:.2f} to {speed.high:.2f}), "
        f"recall {recall.value:+.4f} ({recall.low:+.4f} to {recall.high:+.4f})"
    )
