"""Moves a dataset or an index from one bucket to another: copy and verify while everybody goes on, have the owner
switch, and clear the old place once no reader can be in it any more. The MoveDocument says how far it is; killed at
any step it is whole in one place, and the next run goes on from there.

    copying   `source` is home; whatever lies in `bucket` is a copy under way
    switched  `bucket` is home; `source` holds leftovers until LINGER is over
"""

import anyio
import msgspec
import structlog

from actors.base import Origin
from actors.errors import Conflict, CorruptState, Refused
from actors.mirror import Mirror
from actors.ports import Bus, Clock, Registry
from actors.storage import core
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.documents.move import MoveDocument
from schemas.events.base import Refusal
from schemas.events.storage import (
    ClearDataset,
    ClearIndex,
    DatasetMoved,
    IndexMoved,
    SwitchDataset,
    Switched,
    SwitchIndex,
)
from schemas.names import BucketName, Seconds

ASK_S = 3600.0
"""A switch copies what came since the first pass: seconds, but over slow links more."""

log = structlog.get_logger(__name__)


class Moving:
    def __init__(self, registry: Registry, mirror: Mirror, bus: Bus, clock: Clock) -> None:
        self.linger_s: Seconds = 30.0  # so long a reader may go on in the old place
        self.patience_s: Seconds = 120.0  # so long a build may take that a switch waits for
        self._registry = registry
        self._mirror = mirror
        self._bus = bus
        self._clock = clock
        self._locks: dict[tuple[core.What, str], anyio.Lock] = {}

    async def pending(self) -> list[MoveDocument]:
        return [document for _, document, _ in await self._registry.all(MoveDocument)]

    async def move(
        self, what: core.What, name: str, bucket: BucketName, origin: Origin | None = None
    ) -> DatasetMoved | IndexMoved | Refusal:
        """To its end, but for the leftovers. Goes on with a move that was begun. Raises Transient, Unavailable; then
        it is repeated, by whoever asked or by the sweep."""
        async with self._lock(what, name):
            home = await self._home(what, name)
            if home is None:
                listing = "lakehouse datasets" if what == "dataset" else "lakehouse indexes"
                return Refusal("not_found", f"there is no {what} {name!r}", f"{listing} lists them")
            found = next((move for move in await self.pending() if (move.what, move.name) == (what, name)), None)
            refusal = core.refuse_move(what, name, bucket, found)
            if refusal is not None:
                return refusal
            if found is not None and found.state == "switched":
                if found.bucket == bucket:  # what an asker didn't hear
                    return _moved(found, Switched(0, 0))
                await self._clear(found)
                found = None
            if home == bucket and found is None:
                return _moved(_begun(what, name, home, bucket, 0.0), Switched(0, 0))
            move = found or _begun(what, name, home, bucket, self._clock.now())
            if found is None:
                await self._registry.save(_key(move), move, expected=None)
            try:
                if home == move.source:
                    await self._mirror.run(move.source, bucket, core.folders(what, name))
                switched = await self._switch(move, origin)
            except Refused as error:
                await self._clear_copy(move)
                return error.refusal
            except CorruptState as error:
                await self._clear_copy(move)
                return Refusal("unavailable", str(error), "nothing was moved")
            await self._set(msgspec.structs.replace(move, state="switched", since=self._clock.now()))
            log.info("moved", what=what, name=name, source=move.source, bucket=bucket, bytes=switched.bytes)
            return _moved(move, switched)

    async def sweep(self) -> None:
        """Clear the old places of moves whose readers had time to leave. Raises Transient."""
        for move in await self.pending():
            if move.state == "switched" and self._clock.now() >= move.since + self.linger_s:
                async with self._lock(move.what, move.name):
                    await self._clear(move)

    def under_way(self, move: MoveDocument) -> bool:
        """Whether this process is at it."""
        return self._lock(move.what, move.name).locked()

    async def _home(self, what: core.What, name: str) -> BucketName | None:
        if what == "dataset":
            dataset = await self._registry.load(DatasetDocument, name)
            return dataset[0].bucket if dataset else None
        index = await self._registry.load(IndexDocument, name)
        return index[0].bucket if index else None

    async def _switch(self, move: MoveDocument, origin: Origin | None) -> Switched:
        """Raises Refused. A build is waited for."""
        order = (
            SwitchDataset(move.name, move.source, move.bucket)
            if move.what == "dataset"
            else SwitchIndex(move.name, move.source, move.bucket)
        )
        until = self._clock.monotonic() + self.patience_s
        while True:
            try:
                return await self._bus.ask(order, cause=origin, timeout_s=ASK_S)
            except Refused as error:
                if error.refusal.status != "busy" or self._clock.monotonic() > until:
                    raise
                await self._clock.sleep(0.5)

    async def _clear(self, move: MoveDocument) -> None:
        """Leave nothing in the old place, and end the move."""
        await self._bus.ask(_clearing(move, move.source), timeout_s=ASK_S)
        await self._end(move)

    async def _clear_copy(self, move: MoveDocument) -> None:
        """Leave nothing in the new place, unless it has become home after all, and end the move."""
        await self._bus.ask(_clearing(move, move.bucket), timeout_s=ASK_S)
        await self._end(move)

    async def _end(self, move: MoveDocument) -> None:
        self._mirror.forget(move.source, move.bucket)
        await self._registry.delete(MoveDocument, _key(move))

    async def _set(self, move: MoveDocument) -> None:
        found = await self._registry.load(MoveDocument, _key(move))
        if found is None:
            raise Conflict(f"the move of {move.what} {move.name} was ended by another process")
        await self._registry.save(_key(move), move, expected=found[1])

    def _lock(self, what: core.What, name: str) -> anyio.Lock:
        return self._locks.setdefault((what, name), anyio.Lock())


def _key(move: MoveDocument) -> str:
    return f"{move.what}.{move.name}.{round(move.begun * 1000)}"


def _begun(what: core.What, name: str, source: BucketName, bucket: BucketName, now: float) -> MoveDocument:
    return MoveDocument(what=what, name=name, source=source, bucket=bucket, begun=now, since=now)


def _clearing(move: MoveDocument, bucket: BucketName) -> ClearDataset | ClearIndex:
    return ClearDataset(move.name, bucket) if move.what == "dataset" else ClearIndex(move.name, bucket)


def _moved(move: MoveDocument, switched: Switched) -> DatasetMoved | IndexMoved:
    kind = DatasetMoved if move.what == "dataset" else IndexMoved
    return kind(move.name, move.source, move.bucket, switched.objects, switched.bytes)
