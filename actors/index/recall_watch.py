"""Live recall, watched: sampled queries are kept, run again exactly in the background, and counted in their
index's window; a window below its target is told. What a recall is, and the thread, are sampling.py's.
"""

from collections import deque

import structlog

from actors.index.answer import Answer
from actors.index.lance_served import LanceServed
from actors.index.planning import Planning
from actors.index.sampling import WAITING, Checker, K, Sample, recall_against, recall_of
from actors.index.shelf import Served, Shelf
from actors.index.vectors import VectorSet
from actors.ports import Clock
from schemas.documents.index import GenerationDocument
from schemas.events.index import RecallDrifted, Search

STORE_SAMPLES = 32
STORE_CHECK_S = 30.0
"""Sampled queries of a Lance store are checked once there are so many, or after so long."""

MOST_HITS = 100
"""Queries for more aren't run again for the planner: the ladder would take too long."""

log = structlog.get_logger(__name__)


class RecallWatch:
    def __init__(self, shelf: Shelf, planning: Planning, clock: Clock) -> None:
        self._shelf = shelf
        self._planning = planning
        self._clock = clock
        self._checker = Checker()
        self._samples: deque[tuple[str, Sample]] = deque(maxlen=WAITING)  # by the head's registry name
        self._stores_checked = 0.0

    def open(self) -> None:
        self._checker.open()

    def close(self) -> None:
        self._checker.close()

    def keep(self, index: Served, query: Search, answer: Answer) -> None:
        """A sampled query. With an effort of its own it says nothing of the configuration's recall; filtered, or for
        less than K, it only says something to the planner."""
        own = query.ef_search is None and query.nprobes is None and query.refine_factor is None
        comparable = answer.strategy in ("graph", "codes", "lance") and answer.matching is None and own
        plan = answer.plan if query.k <= MOST_HITS else None
        if comparable and query.mode == "vector" and (query.k >= K or plan is not None) and len(answer.vectors):
            for vector, distances in zip(answer.queries, answer.found[1], strict=True):
                sample = Sample(
                    answer.result.generation, vector, distances, answer.vectors, answer.codec, query.k, plan
                )
                self._samples.append((index.place, sample))
        else:
            self._planning.keep(index, query, answer)

    async def check(self) -> list[RecallDrifted]:
        """Runs those that wait again, and tells of every index that is below its target now."""
        await self._planning.check()
        taken = self._due()
        if not taken:
            return []
        truths = await self._checker.truths([sample for _, sample in taken])
        checked = [(*pair, truth) for pair, truth in zip(taken, truths, strict=True) if truth is not None]
        for name, sample, truth in checked:
            served = self._shelf.loaded(name)
            if sample.plan is not None and served is not None and served.vectors.version == sample.vectors.version:
                nearest = truth[: sample.k]
                answered = recall_against(sample.distances, nearest)
                await self._planning.label(served, sample.plan, sample.query[None], nearest, answered)
        for index in self._shelf.all():
            mine = [(sample, truth) for name, sample, truth in checked if name == index.place]
            index.window.add([recall_of(sample, truth) for sample, truth in mine if index.window.is_of(sample)])
        return [drift for index in self._shelf.all() if (drift := self._drift(index)) is not None]

    def _drift(self, index: Served) -> RecallDrifted | None:
        """Told once. A codec has no promotion to take back, and a companion serves nobody who didn't ask for it."""
        window, target = index.window, index.document.target_recall
        recall = window.live_recall()
        if recall is None or not window.has_drifted(target):
            return None
        window.reported = True
        if index.codes is not None:
            codec = index.codes.artifact
            log.warning("recall of the codec is below target", index=index.place, codec=codec, recall=recall.mean)
            return None
        if index.place != index.document.index:
            log.warning("recall of a companion is below target", index=index.place, recall=recall.mean)
            return None
        head = built(index)
        return None if head is None else RecallDrifted(index.place, head.generation, target, recall, head.trial)

    def _due(self) -> list[tuple[str, Sample]]:
        """The samples to be run again now. Those of a store wait for each other: it is read once for all."""
        taken = [self._samples.popleft() for _ in range(len(self._samples))]
        stored = [entry for entry in taken if not isinstance(entry[1].vectors, VectorSet)]
        now = self._clock.monotonic()
        if stored and len(stored) < STORE_SAMPLES and now - self._stores_checked < STORE_CHECK_S:
            self._samples.extend(stored)
            return [entry for entry in taken if isinstance(entry[1].vectors, VectorSet)]
        if stored:
            self._stores_checked = now
        return taken


def built(index: Served) -> GenerationDocument | None:
    """The generation that it serves by a graph or a store; None while it is searched exactly."""
    if isinstance(index, LanceServed):
        return index.head
    return index.graph.document if index.graph is not None else None
