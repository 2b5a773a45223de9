"""Where an index's heads are: the generation that serves it, a companion that the other backend keeps
ready, and its Lance store. Reading is everyone's; the store's head is moved under its lock.
"""

import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import msgspec

from actors.errors import Conflict, CorruptState, Transient
from actors.ports import Registry
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import MAX_HISTORY, StoreDocument, StoreVersion, VectorIndex
from schemas.names import Backend, IndexName, Rows

ATTEMPTS = 10
BESIDE = "="
"""Between an index's name and a companion's backend: in no name, and allowed in a key of NATS, as + isn't."""

R = TypeVar("R")


def companion_name(index: IndexName, backend: Backend) -> str:
    return f"{index}{BESIDE}{backend}"


def index_of(head: str) -> IndexName:
    return head.partition(BESIDE)[0]


def serving_names(index: IndexName) -> list[str]:
    """Of every head that an index may have."""
    return [index, companion_name(index, "hnsw"), companion_name(index, "lance")]


async def companion(registry: Registry, index: IndexName, backend: Backend) -> tuple[GenerationDocument, int] | None:
    return await registry.load(GenerationDocument, companion_name(index, backend))


class StoreHeads:
    """The heads of Lance stores. The catalog and the stores' shell share one: what either commits to a store
    is visible when its head moves, and a head doesn't move while the other is half way. A searcher in the
    same process shares it too, and is asked to follow before a writer is told that its rows are searchable."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._locks: defaultdict[IndexName, anyio.Lock] = defaultdict(anyio.Lock)
        self._followers: list[Callable[[IndexName], Awaitable[None]]] = []

    def on_moved(self, follow: Callable[[IndexName], Awaitable[None]]) -> None:
        """From now on `follow` is among those that `followed` waits for."""
        self._followers.append(follow)

    async def followed(self, index: IndexName) -> None:
        """Returns once whoever searches in this process is at the index's newest version, or can't be."""
        for follow in self._followers:
            with contextlib.suppress(Transient):
                await follow(index)

    def lock(self, index: IndexName) -> anyio.Lock:
        return self._locks[index]

    async def load(self, index: IndexName) -> StoreDocument | None:
        found = await self._registry.load(StoreDocument, index)
        return found[0] if found else None

    async def reading(self, index: IndexName, read: Callable[[StoreDocument | None], Awaitable[R]]) -> R:
        """What `read` makes of the store as its head has it; where that moved meanwhile, and what `read` looked for is
        gone with it, of the store as it is by then. Raises CorruptState and FileNotFoundError of a head that stayed."""
        while True:
            store = await self.load(index)
            try:
                return await read(store)
            except (CorruptState, FileNotFoundError):
                if await self.load(index) == store:
                    raise

    async def change(
        self, index: IndexName, key: str, change: Callable[[StoreDocument], StoreDocument]
    ) -> StoreDocument | None:
        """By compare-and-set. None when the store is gone, or another took its place. Raises Conflict."""
        for _ in range(ATTEMPTS):
            found = await self._registry.load(StoreDocument, index)
            home = await self._registry.load(IndexDocument, index)
            if found is None or home is None or found[0].key != key:
                return None
            changed = change(found[0])
            if changed == found[0]:
                return changed
            try:
                await self._registry.save(index, changed, expected=found[1], bucket=home[0].bucket)
            except Conflict:
                continue
            return changed
        raise Conflict(f"the head of {index}'s store was moved {ATTEMPTS} times meanwhile")


def advanced(store: StoreDocument, lance_version: int, version: int, rows: Rows, added: Rows) -> StoreDocument:
    """The store at a later version of its dataset, `added` of its `rows` new."""
    history = [one for one in store.history if one.version != version]
    history = [StoreVersion(version, lance_version), *history][:MAX_HISTORY]
    outside = store.unindexed_rows + added
    return msgspec.structs.replace(
        store, lance_version=lance_version, version=version, rows=rows, unindexed_rows=outside, history=history
    )


def renewed(store: StoreDocument, lance_version: int, unindexed: Rows | None = None) -> StoreDocument:
    """The same rows in a later version of the store: an index came, or it was optimised."""
    history = [
        StoreVersion(one.version, lance_version) if one.version == store.version else one for one in store.history
    ]
    return msgspec.structs.replace(
        store,
        lance_version=max(lance_version, store.lance_version),
        history=history,
        unindexed_rows=store.unindexed_rows if unindexed is None else unindexed,
    )


def indexed(store: StoreDocument, index: VectorIndex) -> StoreDocument:
    """With a vector index, the newest first."""
    others = [one for one in store.indexes if one.name != index.name]
    outside = max(0, store.rows - index.rows)
    return msgspec.structs.replace(store, indexes=[index, *others], unindexed_rows=outside)
