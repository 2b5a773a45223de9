"""Which generation an index serves: the catalog's hand on the generation head.

A number is allotted once, in the index document, before anything is done under it; the head
only ever moves to a higher number, so whatever comes late or twice changes nothing.
"""

import msgspec

from actors.hnsw import LIBRARY
from actors.index import artifacts
from actors.index.core import Build, Reuse, next_generation, prunable, serves
from actors.ports import Buckets, Clock, Registry
from actors.promoted import Holds, config_or
from schemas.config import HnswConfig
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.events.base import Refusal
from schemas.events.index import BuildGeneration, GenerationBuilt, GenerationFailed, GenerationReady, IndexServed
from schemas.names import IndexName, Rows


class Generations:
    """Not for two tasks at once on the same index. Raises Conflict when another process's
    catalog was quicker: the message then comes again and is decided anew."""

    def __init__(self, registry: Registry, buckets: Buckets, clock: Clock, keep: int) -> None:
        self._registry = registry
        self._buckets = buckets
        self._clock = clock
        self._keep = keep

    async def ensure(
        self, name: IndexName, reason: str, rows: Rows, only_first: bool = False
    ) -> list[BuildGeneration | GenerationReady]:
        """See to it that the configuration that holds now is served, from a graph there is or
        by ordering one. Says again what was said when nothing is to be done: whoever asks may
        have died before anyone heard. With `only_first`, an index that serves or builds
        something is left alone."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return []
        document, revision = found
        head = await self._registry.load(GenerationDocument, name)
        if only_first and (head is not None or document.building is not None):
            return []
        live = head[0] if head else None
        holds = await self._holds(document)
        config, trial = holds.config, holds.trial
        if live is not None and serves(live, config, trial):
            return [_ready(live)]
        if rows == 0:
            return []  # built when rows come
        kept = await artifacts.kept(self._buckets, document.bucket, name)
        todo = next_generation(config, trial, live, kept, rows, LIBRARY)
        number = document.next_generation
        if isinstance(todo, Reuse):
            await self._allot(document, revision, None)
            built = msgspec.structs.replace(
                todo.artifact, generation=number, config=config, reason=reason, trial=trial, build_s=0.0
            )
            return [await self._move(document, built, head[1] if head else None)]
        assert isinstance(todo, Build)
        ordered = document.building
        if ordered is not None and (ordered.config, ordered.trial) == (config, trial):
            return [ordered]
        order = BuildGeneration(name, number, config, reason, trial)
        await self._allot(document, revision, order)
        return [order]

    async def standing(self, name: IndexName, default: HnswConfig | None) -> IndexServed | None:
        """The answer to `serve` where it has nothing to do: what holds is served or ordered.
        Changes nothing, and may run while others change the index."""
        found = await self._registry.load(IndexDocument, name)
        if found is None or _with_default(found[0], default) != found[0]:
            return None
        holds = await self._holds(found[0])
        head = await self._registry.load(GenerationDocument, name)
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
        holds = await self._holds(document)
        head = await self._registry.load(GenerationDocument, name)
        building = next((order.generation for order in said if isinstance(order, BuildGeneration)), None)
        return [IndexServed(name, holds.config, head[0].generation if head else 0, building), *said]

    async def rebuild(self, name: IndexName, reason: str, rows: Rows) -> BuildGeneration | Refusal:
        """Order the configuration that holds now anew, over today's rows. While it is being
        built already, that order stands."""
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return Refusal("not_found", f"there is no index {name!r}", "lakehouse indexes lists them")
        if rows == 0:
            return Refusal("invalid", f"index {name!r} has no rows to build from", "ingest some into its dataset")
        document, revision = found
        holds = await self._holds(document)
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
        head = await self._registry.load(GenerationDocument, event.index)
        if head is not None and head[0].generation > event.generation:
            await self._answered(document, revision, event.generation, "")
            return []
        if head is not None and head[0].generation == event.generation:
            ready = _ready(head[0])
        else:
            ready = await self._move(document, event, head[1] if head else None)
        await self._answered(document, revision, event.generation, "")
        return [ready]

    async def failed(self, event: GenerationFailed) -> None:
        found = await self._registry.load(IndexDocument, event.index)
        if found is not None:
            await self._answered(*found, event.generation, event.reason)

    async def _holds(self, document: IndexDocument) -> Holds:
        """The promoted configuration, else the index's own."""
        return await config_or(self._registry, document.index, document.config)

    async def _allot(self, document: IndexDocument, revision: int, order: BuildGeneration | None) -> None:
        changed = msgspec.structs.replace(
            document, next_generation=document.next_generation + 1, building=order, failure=""
        )
        await self._registry.save(document.index, changed, expected=revision, bucket=document.bucket)

    async def _answered(self, document: IndexDocument, revision: int, generation: int, failure: str) -> None:
        """The order for this generation stands no longer."""
        if document.building is not None and document.building.generation == generation:
            changed = msgspec.structs.replace(document, building=None, failure=failure)
            await self._registry.save(document.index, changed, expected=revision, bucket=document.bucket)

    async def _move(self, document: IndexDocument, built: GenerationBuilt, expected: int | None) -> GenerationReady:
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
        )
        await self._registry.save(built.index, head, expected=expected, bucket=document.bucket)
        pending = document.building.generation if document.building else None
        kept = await artifacts.kept(self._buckets, document.bucket, built.index)
        for old in prunable(head, kept, self._keep, pending):
            await artifacts.remove(self._buckets, document.bucket, old)
        return _ready(head)


def _with_default(document: IndexDocument, default: HnswConfig | None) -> IndexDocument:
    """The index with a profile's configuration in the place of its own, or with its own back there."""
    own = document.own or document.config
    config = default or own
    return msgspec.structs.replace(document, config=config, own=None if config == own else own)


def _ready(head: GenerationDocument) -> GenerationReady:
    return GenerationReady(head.index, head.generation, head.config, head.reason, head.trial)
