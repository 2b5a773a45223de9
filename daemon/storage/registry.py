"""The registry: documents whose heads move by compare-and-set. A revision is written durably
into its bucket first, then the head moves; so a head never points at nothing, and heads can be
rebuilt from the buckets alone (repair.py). The stored form is in revisions.py.
"""

from contextlib import suppress
from typing import TypeVar, cast

import anyio
import msgspec
import structlog

from actors.errors import Conflict, CorruptState
from actors.ports import Buckets, Lying
from daemon.bus.heads import Heads, gathered
from daemon.storage import revisions
from daemon.storage.census import lying
from daemon.storage.revisions import Head, head_key
from schemas.documents.base import FORMAT, Document, kind_of_document
from schemas.names import BucketName, Sha256

D = TypeVar("D", bound=Document)

log = structlog.get_logger(__name__)

KEEP_REVISIONS = 20
PRUNE_EVERY = 10
_LOOKS, _LOOKS_S = 10, 0.1
"""How often, and after how long each time, it is looked whether revisions without a head get one."""


class DocumentRegistry:
    """The port `Registry`. For tests: `DocumentRegistry(ObjectBuckets({"primary": "memory://"}, tmp_path),
    MemoryHeads())`."""

    def __init__(self, buckets: Buckets, heads: Heads) -> None:
        self._buckets = buckets
        self._heads = heads
        self._decoded: dict[str, tuple[Sha256, Document]] = {}
        self._damaged: set[str] = set()  # left out by `all` and logged
        self._own: dict[str, tuple[Head, int]] = {}  # heads where our own saves left them

    async def load(self, kind: type[D], name: str) -> tuple[D, int] | None:
        return await self._load(kind, head_key(kind_of_document(kind), name))

    async def save(self, name: str, document: D, *, expected: int | None, bucket: BucketName = "primary") -> int:
        kind = kind_of_document(type(document))
        key = head_key(kind, name)
        own = self._own.pop(key, None)
        if own is not None and own[0].revision == expected:
            with suppress(Conflict):  # someone moved the head: it has to be read
                return await self._save(key, kind, name, document, bucket, own)
        found = await self._head(key)
        current = found[0].revision if found and not found[0].deleted else None
        if current != expected:
            raise Conflict(f"{kind} {name} is at revision {current}, not {expected}")
        if found is None:
            await self._refuse_headless(kind, name, bucket)
        return await self._save(key, kind, name, document, bucket, found)

    async def _save(
        self, key: str, kind: str, name: str, document: Document, bucket: BucketName, found: tuple[Head, int] | None
    ) -> int:
        """On top of the head that was found. Raises Conflict when it isn't there any more."""
        head, body = revisions.pack(kind, name, found[0].revision + 1 if found else 1, document, bucket)
        self._own[key] = head, await self._move(key, head, body, found[1] if found else None)
        self._decoded[key] = (head.sha256, document)
        if head.revision % PRUNE_EVERY == 0:
            await self._prune(kind, name, head)
        return head.revision

    async def delete(self, kind: type[D], name: str, *, expected: int | None = None) -> None:
        """Writes a tombstone revision, so that a repair doesn't bring the document back."""
        key = head_key(kind_of_document(kind), name)
        while True:
            found = await self._head(key)
            if found is None or found[0].deleted:
                return
            head, revision = found
            if expected is not None and head.revision != expected:
                raise Conflict(f"{key} is at revision {head.revision}, not {expected}")
            tombstone, body = revisions.pack(kind_of_document(kind), name, head.revision + 1, None, head.bucket)
            try:
                await self._move(key, tombstone, body, revision)
            except Conflict:
                if expected is not None:
                    raise
                continue  # someone saved meanwhile: delete that
            self._decoded.pop(key, None)
            self._own.pop(key, None)
            return

    async def all(self, kind: type[D]) -> list[tuple[str, D, int]]:
        prefix = head_key(kind_of_document(kind), "")
        heads = await self._heads.all(prefix)
        loaded = await gathered(self._undamaged(kind, key, value) for key, (value, _) in heads.items())
        return [(key.removeprefix(prefix), *each) for key, each in zip(heads, loaded, strict=True) if each]

    async def homes(self) -> list[tuple[str, str, BucketName]]:
        heads = [(key, _decoded(key, value)) for key, (value, _) in (await self._heads.all()).items()]
        return [(*_split(key), head.bucket) for key, head in heads if not head.deleted]

    async def census(self) -> list[Lying]:
        return await lying(self._buckets, {(kind, name): bucket for kind, name, bucket in await self.homes()})

    async def rehome(self, kind: type[Document], name: str, source: BucketName, bucket: BucketName) -> None:
        tag = kind_of_document(kind)
        while True:
            found, head = await self.load(kind, name), await self._head(head_key(tag, name))
            if found is None or head is None or head[0].bucket not in (source, bucket):
                return
            if head[0].bucket == bucket:
                break
            with suppress(Conflict):  # someone saved meanwhile: bring that
                await self.save(name, found[0], expected=found[1], bucket=bucket)
        await self._buckets.delete_prefix(source, revisions.folder(tag, name))

    async def _undamaged(self, kind: type[D], key: str, value: bytes) -> tuple[D, int] | None:
        """None for a damaged one: whoever asks for it by name is told; the others are served."""
        try:
            loaded = await self._current(kind, key, _decoded(key, value))
        except CorruptState as error:
            if key not in self._damaged:
                log.error("a document is left out", document=key, why=str(error))
                self._damaged.add(key)
            return None
        self._damaged.discard(key)
        return loaded

    async def _load(self, kind: type[D], key: str) -> tuple[D, int] | None:
        found = await self._head(key)
        return await self._current(kind, key, found[0]) if found else None

    async def _current(self, kind: type[D], key: str, head: Head) -> tuple[D, int] | None:
        """The document of a head, or, where that has moved on meanwhile and its revision went, of the newer one."""
        while True:
            try:
                return await self._document(kind, key, head)
            except CorruptState:
                newer = await self._head(key)
                if newer is None:
                    return None
                if newer[0] == head:
                    raise
                head = newer[0]

    async def _document(self, kind: type[D], key: str, head: Head) -> tuple[D, int] | None:
        if head.deleted:
            return None
        cached = self._decoded.get(key)
        if cached is None or cached[0] != head.sha256:
            try:
                body = await self._buckets.get(head.bucket, head.key)
            except FileNotFoundError as error:
                raise CorruptState(
                    f"registry object {head.key} is missing from bucket {head.bucket}; {revisions.REPAIR}"
                ) from error
            document = revisions.decode(revisions.unpack(body, head.key), kind, head.key)
            cached = self._decoded[key] = (head.sha256, document)
        return cast(D, cached[1]), head.revision

    async def _head(self, key: str) -> tuple[Head, int] | None:
        found = await self._heads.get(key)
        return (_decoded(key, found[0]), found[1]) if found else None

    async def _move(self, key: str, head: Head, body: bytes, expected: int | None) -> int:
        """Write the revision, then move the head, and return where it is now; take the revision away
        again when another writer won, but never when the outcome is unknown."""
        await self._buckets.put(head.bucket, head.key, body)
        try:
            return await self._heads.set(key, msgspec.json.encode(head), expected)
        except Conflict:
            await self._buckets.delete(head.bucket, head.key)
            raise

    async def _refuse_headless(self, kind: str, name: str, bucket: BucketName) -> None:
        """A document that has revisions but no head has lost it: starting again at revision 1
        would hide them. Unless somebody is just saving it: then its head follows, or it goes again."""
        for _ in range(_LOOKS):
            if not await self._buckets.list(bucket, revisions.folder(kind, name)):
                return
            if await self._head(head_key(kind, name)) is not None:
                raise Conflict(f"{kind} {name} was made meanwhile")
            await anyio.sleep(_LOOKS_S)
        raise CorruptState(f"{kind} {name} has revisions in bucket {bucket} but no head; run `lakehouse repair`")

    async def _prune(self, kind: str, name: str, head: Head) -> None:
        for key in await self._buckets.list(head.bucket, revisions.folder(kind, name)):
            match = revisions.KEY.fullmatch(key)
            if match and int(match["revision"]) <= head.revision - KEEP_REVISIONS:
                await self._buckets.delete(head.bucket, key)


def _split(key: str) -> tuple[str, str]:
    kind, _, name = key.partition(".")
    return kind, name


def _decoded(key: str, value: bytes) -> Head:
    """Raises CorruptState."""
    try:
        head = msgspec.json.decode(value, type=Head)
    except msgspec.DecodeError as error:
        raise CorruptState(f"head {key} can't be read ({error}); run `lakehouse repair`") from error
    if head.format > FORMAT:
        raise revisions.newer_format(head.key, head.format)
    return head
