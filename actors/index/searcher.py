"""The searcher: answers queries from indexes in memory, follows their versions and generations,
and watches live recall. One in every process that serves; each hears every event.
"""

import contextlib
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
from actors.index.answer import Answer
from actors.index.by_text import TextSearch
from actors.index.config import IndexConfig
from actors.index.filters import Filters
from actors.index.heads import StoreHeads, companion_name, serving_names
from actors.index.lance_served import LanceServed, View
from actors.index.loading import Loader
from actors.index.past import Past
from actors.index.planning import Planning
from actors.index.recall_watch import RecallWatch, built
from actors.index.search import search
from actors.index.served import ServedIndex
from actors.index.shelf import Served, Shelf
from actors.planner_ports import QueryPlanner
from actors.ports import Buckets, Bus, Clock, Embedders, QueryLog, Registry, Snapshots, TableRef, Tables
from actors.refusals import no_index
from schemas.config import IndexConfig as AnyConfig
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
from schemas.events.lance import StoreAdvanced, StoreDropped
from schemas.events.storage import DatasetMoved, IndexMoved
from schemas.names import IndexName, Timestamp

Where = tuple[TableRef, View | None]
"""An index's dataset, and what of its store serves."""

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
        planner: QueryPlanner,
        heads: StoreHeads | None = None,
    ) -> None:
        """heads: those of the stores' shell, where it runs in this process."""
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
        heads = heads or StoreHeads(registry)
        heads.on_moved(self._keep_up)
        self._loader = Loader(registry, tables, buckets, snapshots, embedders, codecs, heads, clock, config)
        self._shelf = Shelf(self._loader.load, config.memory_budget_mb << 20)
        self._filters = Filters(tables)
        self._texts = TextSearch(heads, buckets, config.full_text)
        self._past = Past(tables, buckets, snapshots, heads)
        self._planning = Planning(planner, self._shelf)
        self._recall = RecallWatch(self._shelf, self._planning, clock)
        self._logged: deque[tuple[IndexName, NDArray[np.float32], Timestamp]] = deque(maxlen=LOG_ROWS)

    async def start(self) -> Sequence[GenerationSwapped | RebuildIndex]:
        """Loads every index, as far as the memory budget goes; nothing is rebuilt."""
        self._recall.open()
        swapped: list[GenerationSwapped] = []
        for name, _, _ in await self._registry.all(IndexDocument):
            if swapped and self._shelf.bytes > self._config.memory_budget_mb << 20:
                break
            started = self._clock.monotonic()
            index = await self._shelf.get(name)
            head = None if isinstance(index, Refusal) else built(index)
            if head is not None:
                swapped.append(self._swapped(head, started))
        return [*swapped, *self._rebuilds()]

    async def stop(self) -> None:
        self._recall.close()
        await self._flush()

    @handles
    @concurrent(256)
    async def on_search(self, query: Search) -> Sequence[SearchResult | Refusal]:
        index: Served | Refusal = self._shelf.here(query.index) or await self._shelf.get(query.index)
        if query.backend is not None and not isinstance(index, Refusal) and index.backend != query.backend:
            place = companion_name(query.index, query.backend)
            index = self._shelf.here(place) or await self._shelf.get(place)
        if isinstance(index, Refusal):
            return (index,)
        draw = self._rng.random()  # one for both: the low end is logged, the high end sampled
        sampled = draw >= 1 - self._config.sample_share
        where = _where(index)
        try:
            answer = await search(index, query, self._filters, self._texts, self._past, self._planning, sampled)
        except (CorruptState, FileNotFoundError) as error:  # of a store, or a table: it may be gone by now
            return (await self._unreadable(index, where, error),)
        if isinstance(answer, Refusal):
            return (answer,)
        self._sample(index, query, answer, draw)
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
                    deleted=index.deleted,
                    bytes=index.bytes,
                    stored_bytes=index.stored_bytes,
                    queries=index.queries,
                    live_recall=index.window.live_recall(),
                    codec=index.codes.artifact if index.codes else None,
                    backend=index.backend,
                    why_backend=index.document.why_backend,
                ),
            )
        found = await self._registry.load(IndexDocument, query.name)
        if found is None:
            return (no_index(query.name),)
        head = await self._registry.load(GenerationDocument, query.name)
        config: AnyConfig = head[0].config if head else found[0].config
        number, rows = (head[0].generation, head[0].rows) if head else (0, 0)
        return (
            IndexStats(
                query.name, False, number, config, rows, fresh_rows=0, deleted=0, bytes=0, queries=0,
                backend=config.backend, why_backend=found[0].why_backend,
            ),
        )  # fmt: skip

    @handles
    async def on_ready(self, event: GenerationReady) -> Sequence[GenerationSwapped | RebuildIndex]:
        started = self._clock.monotonic()
        place = companion_name(event.index, event.config.backend) if event.companion else event.index
        index: Served | Refusal | None = await self._shelf.settled(place)
        if index is None:
            if event.companion:
                return ()  # loaded when someone asks for it
            index = await self._shelf.get(place)
        elif not isinstance(index, Refusal) and index.backend != event.config.backend:
            await self._loader.caught_up(event.index)
            index = await self._shelf.renew(place)
        if isinstance(index, Refusal):
            if index.status == "unavailable":
                raise Transient(index.reason, index.retry_after_s or 1.0)
            return ()  # dropped meanwhile
        await self._loader.follow(index)
        self._shelf.evict()
        head = built(index)
        if index.codes is not None:
            return ()  # it is remembered, and serves when the codec is withdrawn
        if head is None or head.generation != event.generation or event.companion:
            return self._rebuilds()  # superseded, or unreadable
        return [self._swapped(head, started)]

    @handles
    async def on_advanced(self, event: StoreAdvanced) -> Sequence[Never]:
        await self._keep_up(event.index)
        return ()

    @handles
    async def on_store_dropped(self, event: StoreDropped) -> Sequence[Never]:
        self._texts.forget(event.index)
        await self._shelf.drop(companion_name(event.index, "lance"))
        return ()

    @handles
    @concurrent(4)
    async def on_appended(self, event: IndexAppended) -> Sequence[Never]:
        """An index that isn't in memory needs nothing: loading takes the newest version."""
        for place in (event.index, companion_name(event.index, "hnsw")):
            index = await self._shelf.settled(place)
            if isinstance(index, ServedIndex) and index.vectors.version < event.version:
                served_by_codes = index.codes is not None
                try:
                    await index.sync(self._snapshots)
                except FileNotFoundError:
                    if await self._registry.load(IndexDocument, event.index) is not None:
                        raise
                    return ()  # dropped meanwhile
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
        return [self._swapped(index.graph.document, started)]

    @handles
    async def on_moved(self, event: IndexMoved) -> Sequence[Never]:
        for place in serving_names(event.index):
            index = await self._shelf.settled(place)
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
        for place in serving_names(event.index):
            await self._shelf.drop(place)
        self._texts.forget(event.index)
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
        return await self._recall.check()

    @every("upkeep_s")
    async def on_upkeep(self) -> Sequence[RebuildIndex]:
        """Logged queries are written, and whatever an event should have told is looked up."""
        await self._flush()
        for index in self._shelf.all():
            try:
                head = await self._registry.load(GenerationDocument, index.place)
                if head is not None and head[0].config.backend != index.backend:
                    await self._loader.caught_up(index.document.index)
                    await self._shelf.renew(index.place)
                    continue
                await index.sync(self._snapshots)
                await self._loader.follow(index)
                if index.place == index.document.index and "lance" in index.document.companions:
                    await self._shelf.get(companion_name(index.place, "lance"))  # the planner may send queries there
            except FileNotFoundError:  # dropped
                continue
            except (CorruptState, Transient) as error:  # it goes on with what it has, and the others with theirs
                log.error("index can't follow its dataset", index=index.document.index, why=str(error))
        self._shelf.evict()
        return self._rebuilds()

    async def _keep_up(self, name: IndexName) -> None:
        """To its newest version, if that can be read: what is damaged is found by who searches it."""
        for place in serving_names(name):
            index = await self._shelf.settled(place)
            with contextlib.suppress(CorruptState, FileNotFoundError):
                if isinstance(index, LanceServed):
                    await self._loader.follow(index)
                elif index is not None:
                    await index.sync(self._snapshots)

    async def _follow_codec(self, name: IndexName | None) -> Served | None:
        """An index that isn't in memory needs nothing: loading takes what it uses."""
        index = await self._shelf.settled(name) if name is not None else None
        if index is not None:
            await self._loader.follow(index)
            self._shelf.evict()
        return index

    async def _unreadable(self, index: Served, where: Where, error: Exception) -> Refusal:
        """What to say of an index whose store or table can't be read `where` it was: it moved, or it is damaged."""
        name, hint = index.document.index, "it is looked for anew: try again"
        if await self._registry.load(IndexDocument, name) is None:
            return no_index(name)
        with contextlib.suppress(CorruptState, FileNotFoundError):
            await self._loader.follow(index)
        if _where(index) != where:  # who asked at the same time may have followed already
            return Refusal("unavailable", f"index {name!r} is elsewhere by now", hint, retry_after_s=0.1)
        if isinstance(index, ServedIndex):
            hint = f"it is its dataset's table: lakehouse datasets show {index.document.dataset}"
        elif index.place == name:
            self._loader.unreadable[name] = f"its store can't be read: {error}"
        else:
            hint = f"lakehouse lance drop {name} and lakehouse lance migrate {name} make it anew"
        return Refusal("unavailable", f"index {name!r} can't be read: {error}", hint, retry_after_s=5.0)

    def _sample(self, index: Served, query: Search, answer: Answer, draw: float) -> None:
        """Some queries are logged, some kept to be run again exactly."""
        if draw < self._config.log_share:
            for vector in answer.queries:
                self._logged.append((query.index, vector, self._clock.now()))
        if draw >= 1 - self._config.sample_share:
            self._recall.keep(index, query, answer)

    async def _flush(self) -> None:
        by_index: dict[IndexName, list[tuple[NDArray[np.float32], Timestamp]]] = {}
        while self._logged:
            name, vector, time = self._logged.popleft()
            by_index.setdefault(name, []).append((vector, time))
        for name, entries in by_index.items():
            await self._query_log.append(name, np.stack([v for v, _ in entries]), [t for _, t in entries])

    def _swapped(self, document: GenerationDocument, started: float) -> GenerationSwapped:
        load_ms = (self._clock.monotonic() - started) * 1e3
        log.info("serving", index=document.index, generation=document.generation, load_ms=round(load_ms, 1))
        return GenerationSwapped(
            document.index, document.generation, document.config, self._process_id, load_ms, document.trial
        )

    def _rebuilds(self) -> list[RebuildIndex]:
        """One order for each graph file found unreadable."""
        found, self._loader.unreadable = self._loader.unreadable, {}
        return [RebuildIndex(name, reason) for name, reason in found.items()]


def _where(index: Served) -> Where:
    return index.dataset, index.view if isinstance(index, LanceServed) else None
