"""Which generation an index serves: the catalog's hand on the generation heads. There is one that
serves, and there may be a companion, which the other backend keeps ready for those who ask for it.

A number is allotted once, in the index document, before anything is done under it; a head
only ever moves to a higher number, so whatever comes late or twice changes nothing.
"""

import msgspec

from actors.hnsw import LIBRARY
from actors.index import artifacts
from actors.index.choosing import BackendChooser
from actors.index.core import Build, Reuse, next_generation, prunable, serves
from actors.index.heads import StoreHeads, companion_name, indexed, renewed
from actors.ports import Buckets, Clock, Registry
from actors.promoted import Holds, config_or, own_on
from actors.refusals import no_index
from schemas.config import HnswConfig, LanceConfig
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import VectorIndex
from schemas.events.base import Refusal
from schemas.events.index import BuildGeneration, GenerationBuilt, GenerationFailed, GenerationReady, IndexServed
from schemas.names import Backend, IndexName, Rows

Ordered = BuildGeneration | GenerationReady


class Generations:
    """Not for two tasks at once on the same index. Raises Conflict when another process's
    catalog was quicker: the message then comes again and is decided anew."""

    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        heads: StoreHeads,
        chooser: BackendChooser,
        clock: Clock,
        keep: int,
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._heads = heads
        self._chooser = chooser
        self._clock = clock
        self._keep = keep

    async def ensure(self, name: IndexName, reason: str, rows: Rows, only_first: bool = False) -> list[Ordered]:
        """See to it that the configuration that holds now is served, from a build there is or
        by ordering one. Says again what was said when nothing is to be done: whoever asks may
        have died before anyone heard. With `only_first`, an index that serves or builds
        something is left alone, unless the backend is to be another."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return []
        head = await self._registry.load(GenerationDocument, name)
        choice = await self._chooser.choose(found[0], rows)
        serving = head[0].config.backend if head else choice.backend
        if only_first and (head is not None or found[0].building is not None) and choice.backend == serving:
            return []
        document = msgspec.structs.replace(found[0], why_backend=choice.why)
        revision = found[1]
        if document != found[0]:
            revision = await self._registry.save(name, document, expected=revision, bucket=document.bucket)
        said = await self._ensure(document, revision, choice.backend, name, reason, rows)
        for backend in document.companions:
            if backend != choice.backend:
                said += await self.ensure_companion(name, backend, reason, rows)
        return said

    async def ensure_companion(self, name: IndexName, backend: Backend, reason: str, rows: Rows) -> list[Ordered]:
        """As `ensure`, of the generation that is kept ready beside the one that serves."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return []
        return await self._ensure(*found, backend, companion_name(name, backend), reason, rows)

    async def standing(self, name: IndexName, default: HnswConfig | None) -> IndexServed | None:
        """The answer to `serve` where it has nothing to do: what holds is served or ordered.
        Changes nothing, and may run while others change the index."""
        found = await self._registry.load(IndexDocument, name)
        if found is None or _with_default(found[0], default) != found[0]:
            return None
        head = await self._registry.load(GenerationDocument, name)
        serving = head[0].config.backend if head else await self._serving(found[0], 0)
        holds = await self.holds(found[0], serving, 0)
        number = head[0].generation if head else 0
        if head is not None and serves(head[0], holds.config, holds.trial):
            return IndexServed(name, holds.config, number)
        ordered = found[0].building
        if ordered is not None and (ordered.config, ordered.trial) == (holds.config, holds.trial):
            return IndexServed(name, holds.config, number, ordered.generation)
        return None

    async def serve(
        self, name: IndexName, default: HnswConfig | None, rows: Rows
    ) -> list[IndexServed | BuildGeneration | GenerationReady]:
        """As `ensure`, after `default` has become what holds where nothing is promoted, or without one
        the index's own again; and where it then stands. Nothing for an unknown index."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return []
        document = _with_default(found[0], default)
        if document != found[0]:
            await self._registry.save(name, document, expected=found[1], bucket=document.bucket)
        said = await self.ensure(name, "activated", rows)
        head = await self._registry.load(GenerationDocument, name)
        holds = await self.holds(document, await self._serving(document, rows), rows)
        building = next((o.generation for o in said if isinstance(o, BuildGeneration) and not o.companion), None)
        return [IndexServed(name, holds.config, head[0].generation if head else 0, building), *said]

    async def rebuild(self, name: IndexName, reason: str, rows: Rows) -> BuildGeneration | Refusal:
        """Order the configuration that holds now anew, over today's rows. While it is being
        built already, that order stands."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return no_index(name)
        if rows == 0:
            return Refusal("invalid", f"index {name!r} has no rows to build from", "ingest some into its dataset")
        document, revision = found
        holds = await self.holds(document, await self._serving(document, rows), rows)
        if document.building is not None and document.building.config == holds.config:
            return document.building
        order = BuildGeneration(name, document.next_generation, holds.config, reason, holds.trial)
        await self._allot(document, revision, order)
        return order

    async def built(self, event: GenerationBuilt) -> list[GenerationReady]:
        """Move the head to a finished artifact, unless it is further already."""
        found = await self._registry.load(IndexDocument, event.index)
        if found is None:
            return []  # dropped meanwhile; its files went with it
        document, revision = found
        if event.vector_index and not await self._in_store(event):
            await self._answered(document, revision, event, "its Lance store was dropped meanwhile")
            return []
        serving = await self._registry.load(GenerationDocument, event.index)
        if event.companion and serving is not None and serving[0].config.backend == event.config.backend:
            await self._answered(document, revision, event, "")
            return []  # it serves by now: it needs nothing beside it
        place = companion_name(event.index, event.config.backend) if event.companion else event.index
        head = await self._registry.load(GenerationDocument, place)
        if head is not None and head[0].generation > event.generation:
            await self._answered(document, revision, event, "")
            return []
        if head is not None and head[0].generation == event.generation:
            ready = _ready(head[0], event.companion)
        else:
            ready = await self._move(document, event, place, head[1] if head else None)
        await self._answered(document, revision, event, "")
        return [ready]

    async def failed(self, event: GenerationFailed) -> None:
        found = await self._registry.load(IndexDocument, event.index)
        if found is not None:
            await self._answered(*found, event, event.reason)

    async def holds(self, document: IndexDocument, backend: Backend, rows: Rows) -> Holds:
        """What is promoted on a backend, else the index's own."""
        return await config_or(self._registry, document.index, own_on(document, backend, rows), backend)

    async def _serving(self, document: IndexDocument, rows: Rows) -> Backend:
        return (await self._chooser.choose(document, rows)).backend

    async def _ensure(
        self, document: IndexDocument, revision: int, backend: Backend, place: str, reason: str, rows: Rows
    ) -> list[Ordered]:
        """`document` may differ from what is stored: it is saved with the next number."""
        name, beside = document.index, place != document.index
        head = await self._registry.load(GenerationDocument, place)
        live = head[0] if head else None
        holds = await self.holds(document, backend, rows)
        config, trial = holds.config, holds.trial
        if live is not None and serves(live, config, trial):
            return [_ready(live, beside)]
        if rows == 0:
            return []  # built when rows come
        own = own_on(document, backend, rows)
        if isinstance(own, LanceConfig):  # by rule, once: it must not change with every row
            document = msgspec.structs.replace(document, lance=own)
        kept = await self._usable(document, backend)
        todo = next_generation(config, trial, live, kept, rows)
        number = document.next_generation
        if isinstance(todo, Reuse):
            document = await self._allot(document, revision, None, beside)
            built = msgspec.structs.replace(
                todo.artifact,
                generation=number,
                config=config,
                reason=reason,
                trial=trial,
                build_s=0.0,
                companion=beside,
            )
            return [await self._move(document, built, place, head[1] if head else None)]
        assert isinstance(todo, Build)
        ordered = document.companion_building if beside else document.building
        if ordered is not None and (ordered.config, ordered.trial) == (config, trial):
            return [ordered]
        order = BuildGeneration(name, number, config, reason, trial, beside)
        await self._allot(document, revision, order, beside)
        return [order]

    async def _usable(self, document: IndexDocument, backend: Backend) -> list[GenerationBuilt]:
        """Kept artifacts that can be served: graphs of this build of hnswlib, indexes of today's store."""
        kept = await artifacts.kept(self._buckets, document.bucket, document.index)
        if backend == "hnsw":
            return [built for built in kept if built.library == LIBRARY and not built.vector_index]
        store = await self._heads.load(document.index)
        names = {index.name for index in store.indexes} if store else set()
        return [built for built in kept if store and built.key == store.key and built.vector_index in names]

    async def _in_store(self, event: GenerationBuilt) -> bool:
        """Whether the index lies in today's store, whose head names it from now on."""
        assert isinstance(event.config, LanceConfig)
        index = VectorIndex(event.vector_index, event.config.build, event.version, event.rows, self._clock.now())
        async with self._heads.lock(event.index):
            changed = await self._heads.change(
                event.index, event.key, lambda store: indexed(renewed(store, event.lance_version), index)
            )
        return changed is not None

    async def _allot(
        self, document: IndexDocument, revision: int, order: BuildGeneration | None, companion: bool = False
    ) -> IndexDocument:
        changed = msgspec.structs.replace(document, next_generation=document.next_generation + 1, failure="")
        field = "companion_building" if companion else "building"
        changed = msgspec.structs.replace(changed, **{field: order})
        await self._registry.save(document.index, changed, expected=revision, bucket=document.bucket)
        return changed

    async def _answered(
        self, document: IndexDocument, revision: int, event: GenerationBuilt | GenerationFailed, failure: str
    ) -> None:
        """The order for this generation stands no longer."""
        for field in ("building", "companion_building"):
            order = getattr(document, field)
            if order is not None and order.generation == event.generation:
                changed = msgspec.structs.replace(document, **{field: None}, failure=failure)
                await self._registry.save(document.index, changed, expected=revision, bucket=document.bucket)
                return

    async def _move(
        self, document: IndexDocument, built: GenerationBuilt, place: str, expected: int | None
    ) -> GenerationReady:
        head = GenerationDocument(
            index=built.index,
            generation=built.generation,
            config=built.config,
            key=built.key,
            sha256=built.sha256,
            bytes=built.bytes,
            version=built.version,
            rows=built.rows,
            build_s=built.build_s,
            reason=built.reason,
            library=built.library,
            built=self._clock.now(),
            trial=built.trial,
            vector_index=built.vector_index,
        )
        await self._registry.save(place, head, expected=expected, bucket=document.bucket)
        if place == document.index:  # what it serves needs no companion
            await self._registry.delete(GenerationDocument, companion_name(place, head.config.backend))
        await self._prune(document, head, place)
        return _ready(head, place != document.index)

    async def _prune(self, document: IndexDocument, head: GenerationDocument, place: str) -> None:
        pending = [order.generation for order in (document.building, document.companion_building) if order]
        kept = await artifacts.kept(self._buckets, document.bucket, document.index)
        beside = place != document.index
        elsewhere = document.index if beside else companion_name(place, head.config.backend)
        other = await self._registry.load(GenerationDocument, elsewhere)
        same = [built for built in kept if other and (built.key, built.sha256) == (other[0].key, other[0].sha256)]
        spared = {*pending, *(built.generation for built in same)}
        gone = prunable(head, kept, self._keep, spared)
        for old in gone:
            await artifacts.remove(self._buckets, document.bucket, old)
        names = {old.vector_index for old in gone if old.vector_index}
        if names:
            async with self._heads.lock(document.index):
                await self._heads.change(
                    document.index,
                    head.key,
                    lambda store: msgspec.structs.replace(
                        store, indexes=[index for index in store.indexes if index.name not in names]
                    ),
                )


def _with_default(document: IndexDocument, default: HnswConfig | None) -> IndexDocument:
    """The index with a profile's configuration in the place of its own, or with its own back there."""
    own = document.own or document.config
    config = default or own
    return msgspec.structs.replace(document, config=config, own=None if config == own else own)


def _ready(head: GenerationDocument, companion: bool) -> GenerationReady:
    return GenerationReady(head.index, head.generation, head.config, head.reason, head.trial, companion)
