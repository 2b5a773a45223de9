"""The catalog's part in an index's move to another bucket: the switch, while nothing of it is written, and the
clearing of the old place. How a move goes as a whole is the storage desk's (actors/storage/moving.py).

With the index's document everything below `indexes/<name>` changes its home at one stroke, generations and vectors
too: they are named relative to it. An eval set names its bucket itself, so each follows by itself; until then its old
one is read.
"""

import msgspec

from actors.errors import CorruptState
from actors.index import artifacts
from actors.index.heads import StoreHeads, serving_names
from actors.mirror import Mirror
from actors.ports import Buckets, Registry, Tables
from schemas.documents.codec import IndexCodecDocument
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.planner import PlannerDocument
from schemas.documents.promotion import PromotionDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Refusal
from schemas.events.storage import Cleared, ClearIndex, Switched, SwitchIndex
from schemas.names import BucketName, IndexName

BESIDE = (PromotionDocument, PlannerDocument, IndexCodecDocument, StoreDocument)
"""Documents of the index's own name that lie in its bucket."""


class IndexMoves:
    """The caller holds the index's lock meanwhile."""

    def __init__(self, registry: Registry, tables: Tables, buckets: Buckets, heads: StoreHeads, mirror: Mirror) -> None:
        self._heads = heads
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._mirror = mirror

    async def switch(self, order: SwitchIndex) -> Switched | Refusal:
        """Copies what came since the first pass, verifies the live generation, moves the head."""
        name = order.index
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return Refusal("not_found", f"there is no index {name!r}", "it was dropped meanwhile")
        document, revision = found
        if document.bucket == order.bucket:  # an answer that was lost, or a kill right after the switch
            await self._follow(name, order.source, order.bucket)
            return Switched(0, 0)
        if document.bucket != order.source:
            return Refusal("conflict", f"index {name!r} lies in bucket {document.bucket!r}", "look again")
        for building in (document.building, document.companion_building):
            if building is not None:
                reason = f"generation {building.generation} of index {name!r} is being built"
                return Refusal("busy", reason, "wait until it is served", retry_after_s=5.0)
        async with self._heads.lock(name):  # nothing is appended to its Lance store meanwhile
            try:
                mirrored = await self._mirror.run(order.source, order.bucket, [f"indexes/{name}"])
                for place in serving_names(name):
                    head = await self._registry.load(GenerationDocument, place)
                    if head is not None and not head[0].vector_index:
                        await self._buckets.fetch(order.bucket, head[0].key, head[0].sha256)
            except CorruptState as error:
                return Refusal("unavailable", str(error), "nothing was moved")
            moved = msgspec.structs.replace(document, bucket=order.bucket)
            await self._registry.save(name, moved, expected=revision, bucket=order.bucket)
            await self._follow(name, order.source, order.bucket)
        return Switched(mirrored.objects, mirrored.bytes)

    async def clear(self, order: ClearIndex) -> Cleared:
        name = order.index
        found = await self._registry.load(IndexDocument, name)
        if found is not None and found[0].bucket == order.bucket:
            return Cleared()
        if found is not None:
            await self._follow(name, order.bucket, found[0].bucket)
        await self._tables.drop(artifacts.vectors_in(order.bucket, name))
        await self._buckets.delete_prefix(order.bucket, f"indexes/{name}")
        return Cleared()

    async def _follow(self, name: IndexName, source: BucketName, bucket: BucketName) -> None:
        """What lies beside the index goes where it went."""
        await self._registry.rehome(IndexDocument, name, source, bucket)
        for kind in BESIDE:
            await self._registry.rehome(kind, name, source, bucket)
        for place in serving_names(name):
            await self._registry.rehome(GenerationDocument, place, source, bucket)
        for harness, document, revision in await self._registry.all(HarnessDocument):
            if document.index != name:
                continue
            if document.bucket == source:  # one that was made meanwhile isn't among the copies
                await self._buckets.copy(source, document.key, bucket)
                moved = msgspec.structs.replace(document, bucket=bucket)
                await self._registry.save(harness, moved, expected=revision, bucket=bucket)
            await self._registry.rehome(HarnessDocument, harness, source, bucket)
