"""The searcher: answers queries from indexes in memory, follows their versions and generations,
and watches live recall. One in every process that serves; each hears every event.
"""

from collections import deque
from collections.abc import Sequence
from typing import Never

import anyio
import numpy as np
import structlog
from numpy.typing import NDArray

from actors.base import Actor, concurrent, every, handles
from actors.codec_ports import VectorCodecs
from actors.errors import CorruptState, Transient
from actors.index.config import IndexConfig
from actors.index.filters import Filters
from actors.index.loading import Loader
from actors.index.sampling import WAITING, Checker, K, Sample
from actors.index.search import Answer, search
from actors.index.served import ServedIndex
from actors.index.shelf import Shelf
from actors.ports import Buckets, Bus, Clock, Embedders, QueryLog, Registry, Snapshots, Tables
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.base import Refusal
from schemas.events.codec import CodecGraduated, CodecWithdrawn
from schemas.events.index import (
    GenerationReady,
    GenerationSwapped,
    GetIndexStats,
    IndexAppended,
    IndexDropped,
    IndexStats,
    RebuildIndex,
    RecallDrifted,
    Search,
    SearchResult,
)
from schemas.events.storage import DatasetMoved, IndexMoved
from schemas.names import IndexName, Timestamp

LOG_ROWS = 4096
"""Logged queries that may wait to be written; more are forgotten."""

log = structlog.get_logger(__name__)


class Searcher(Actor):
    role = "serve"
    fanout = True

    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        snapshots: Snapshots,
        embedders: Embedders,
        codecs: VectorCodecs,
        query_log: QueryLog,
        bus: Bus,
        clock: Clock,
        config: IndexConfig,
        process_id: str,
        rng: np.random.Generator,
    ) -> None:
        self.take_in_s = 0.25
        self.check_s = 1.0
        self.upkeep_s = 10.0
        self._registry = registry
        self._snapshots = snapshots
        self._query_log = query_log
        self._clock = clock
        self._config = config
        self._process_id = process_id
        self._rng = rng
        self._loader = Loader(registry, tables, buckets, snapshots, embedders, codecs, clock, config)
        self._shelf = Shelf(self._loader.load, config.memory_budget_mb << 20)
        self._filters = Filters(tables)
        self._checker = Checker()
        self._samples: deque[tuple[IndexName, Sample]] = deque(maxlen=WAITING)
        self._logged: deque[tuple[IndexName, NDArray[np.float32], Timestamp]] = deque(maxlen=LOG_ROWS)

    async def start(self) -> Sequence[GenerationSwapped | RebuildIndex]:
        """Loads every index, as far as the memory budget goes; nothing is rebuilt."""
        self._checker.open()
        swapped: list[GenerationSwapped] = []
        for name, _, _ in await self._registry.all(IndexDocument):
            if swapped and self._shelf.bytes > self._config.memory_budget_mb << 20:
                break
            started = self._clock.monotonic()
            index = await self._shelf.get(name)
            if isinstance(index, ServedIndex) and index.graph is not None:
                swapped.append(self._swapped(index, index.graph.document, started))
        return [*swapped, *self._rebuilds()]

    async def stop(self) -> None:
        self._checker.close()
        await self._flush()

    @handles
    @concurrent(256)
    async def on_search(self, query: Search) -> Sequence[SearchResult | Refusal]:
        index = self._shelf.here(query.index) or await self._shelf.get(query.index)
        if isinstance(index, Refusal):
            return (index,)
        answer = await search(index, query, self._filters)
        if isinstance(answer, Refusal):
            return (answer,)
        self._sample(index, query, answer)
        return (answer.result,)

    @handles
    @concurrent(16)
    async def on_stats(self, query: GetIndexStats) -> Sequence[IndexStats | Refusal]:
        index = self._shelf.here(query.name)
        if index is not None:
            return (
                IndexStats(
                    index=query.name,
                    loaded=True,
                    generation=index.generation,
                    config=index.config,
                    rows=len(index.vectors),
                    fresh_rows=index.fresh_rows,
                    deleted=index.graph.deleted if index.graph else 0,
                    bytes=index.bytes,
                    queries=index.queries,
                    live_recall=index.window.live_recall(),
                    codec=index.codes.artifact if index.codes else None,
                ),
            )
        found = await self._registry.load(IndexDocument, query.name)
        if found is None:
            return (Refusal("not_found", f"there is no index {query.name!r}", "lakehouse indexes lists them"),)
        head = await self._registry.load(GenerationDocument, query.name)
        number, config, rows = (head[0].generation, head[0].config, head[0].rows) if head else (0, found[0].config, 0)
        return (IndexStats(query.name, False, number, config, rows, fresh_rows=0, deleted=0, bytes=0, queries=0),)

    @handles
    async def on_ready(self, event: GenerationReady) -> Sequence[GenerationSwapped | RebuildIndex]:
        started = self._clock.monotonic()
        index: ServedIndex | Refusal | None = await self._shelf.settled(event.index)
        if index is None:
            index = await self._shelf.get(event.index)
        if isinstance(index, Refusal):
            if index.status == "unavailable":
                raise Transient(index.reason, index.retry_after_s or 1.0)
            return ()  # dropped meanwhile
        await self._loader.follow(index)
        self._shelf.evict()
        if index.codes is not None:
            return ()  # it is remembered, and serves when the codec is withdrawn
        if index.graph is None or index.generation != event.generation:
            return self._rebuilds()  # superseded, or unreadable
        return [self._swapped(index, index.graph.document, started)]

    @handles
    @concurrent(4)
    async def on_appended(self, event: IndexAppended) -> Sequence[Never]:
        """An index that isn't in memory needs nothing: loading takes the newest version."""
        index = await self._shelf.settled(event.index)
        if index is not None and index.vectors.version < event.version:
            served_by_codes = index.codes is not None
            await index.sync(self._snapshots)
            if served_by_codes and index.codes is None:
                await self._loader.follow(index)
        return ()

    @handles
    async def on_graduated(self, event: CodecGraduated) -> Sequence[Never]:
        await self._follow_codec(event.index)
        return ()

    @handles
    async def on_withdrawn(self, event: CodecWithdrawn) -> Sequence[GenerationSwapped | RebuildIndex]:
        started = self._clock.monotonic()
        index = await self._follow_codec(event.index)
        if index is None or index.graph is None:
            return self._rebuilds()
        return [self._swapped(index, index.graph.document, started)]

    @handles
    async def on_moved(self, event: IndexMoved) -> Sequence[Never]:
        index = await self._shelf.settled(event.index)
        if index is not None:
            await self._loader.follow(index)
        return ()

    @handles
    async def on_dataset_moved(self, event: DatasetMoved) -> Sequence[Never]:
        for index in self._shelf.all():
            if index.document.dataset == event.dataset:
                await self._loader.follow(index)
        return ()

    @handles
    async def on_dropped(self, event: IndexDropped) -> Sequence[Never]:
        await self._shelf.drop(event.index)
        await self._snapshots.forget(event.index)
        self._loader.unreadable.pop(event.index, None)
        return ()

    @every("take_in_s")
    async def on_take_in(self) -> Sequence[RebuildIndex]:
        """Fresh rows go into the graphs; searches have them already."""
        async with anyio.create_task_group() as group:
            for index in self._shelf.all():
                if index.graph is not None and index.fresh_rows:
                    group.start_soon(index.graph.take_in)
        return self._rebuilds()

    @every("check_s")
    async def on_check(self) -> Sequence[RecallDrifted]:
        """Sampled queries are run again exactly."""
        taken = [self._samples.popleft() for _ in range(len(self._samples))]
        if not taken:
            return ()
        recalls = await self._checker.recalls([sample for _, sample in taken])
        drifts = []
        for index in self._shelf.all():
            name, window = index.document.index, index.window
            mine = zip(taken, recalls, strict=True)
            window.add([r for (n, s), r in mine if n == name and window.is_of(s)])
            if not window.has_drifted(index.document.target_recall):
                continue
            recall = window.live_recall()
            assert recall is not None
            window.reported = True
            if index.codes is not None:  # there is no promotion to take back
                codec = index.codes.artifact
                log.warning("recall of the codec is below target", index=name, codec=codec, recall=recall.mean)
            elif index.graph is not None:
                document = index.graph.document
                target = index.document.target_recall
                drifts.append(RecallDrifted(name, document.generation, target, recall, document.trial))
        return drifts

    @every("upkeep_s")
    async def on_upkeep(self) -> Sequence[RebuildIndex]:
        """Logged queries are written, and whatever an event should have told is looked up."""
        await self._flush()
        for index in self._shelf.all():
            try:
                await index.sync(self._snapshots)
                await self._loader.follow(index)
            except FileNotFoundError:  # dropped
                continue
            except (CorruptState, Transient) as error:  # it goes on with what it has, and the others with theirs
                log.error("index can't follow its dataset", index=index.document.index, why=str(error))
        self._shelf.evict()
        return self._rebuilds()

    async def _follow_codec(self, name: IndexName | None) -> ServedIndex | None:
        """An index that isn't in memory needs nothing: loading takes what it uses."""
        index = await self._shelf.settled(name) if name is not None else None
        if index is not None:
            await self._loader.follow(index)
            self._shelf.evict()
        return index

    def _sample(self, index: ServedIndex, query: Search, answer: Answer) -> None:
        """Some queries are logged, some kept to be run again exactly."""
        draw = self._rng.random()  # one for both: the low end is logged, the high end sampled
        if draw < self._config.log_share:
            for vector in answer.queries:
                self._logged.append((query.index, vector, self._clock.now()))
        sampled = draw >= 1 - self._config.sample_share
        comparable = answer.strategy in ("graph", "codes") and query.ef_search is None and query.k >= K
        if sampled and comparable and len(answer.vectors):
            for vector, distances in zip(answer.queries, answer.found[1], strict=True):
                sample = Sample(answer.result.generation, vector, distances[:K], answer.vectors, answer.codec)
                self._samples.append((query.index, sample))

    async def _flush(self) -> None:
        by_index: dict[IndexName, list[tuple[NDArray[np.float32], Timestamp]]] = {}
        while self._logged:
            name, vector, time = self._logged.popleft()
            by_index.setdefault(name, []).append((vector, time))
        for name, entries in by_index.items():
            await self._query_log.append(name, np.stack([v for v, _ in entries]), [t for _, t in entries])

    def _swapped(self, index: ServedIndex, document: GenerationDocument, started: float) -> GenerationSwapped:
        load_ms = (self._clock.monotonic() - started) * 1e3
        log.info("serving", index=document.index, generation=document.generation, load_ms=round(load_ms, 1))
        return GenerationSwapped(
            document.index, document.generation, document.config, self._process_id, load_ms, document.trial
        )

    def _rebuilds(self) -> list[RebuildIndex]:
        """One order for each graph file found unreadable."""
        found, self._loader.unreadable = self._loader.unreadable, {}
        return [RebuildIndex(name, reason) for name, reason in found.items()]
