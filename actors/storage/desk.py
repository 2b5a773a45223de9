"""The storage desk: buckets are made, listed and taken away at run time, datasets and indexes move between them, and
what waits in `rescue` is brought home.
"""

from collections.abc import Sequence
from pathlib import Path

import anyio
import structlog

from actors.base import Actor, Origin, concurrent, every, handles
from actors.errors import CorruptState, Refused, Transient, Unavailable
from actors.mirror import Mirror
from actors.ports import Buckets, Bus, Clock, Place, Registry, Waiting
from actors.roots import OutsideRoots, real_path
from actors.storage import core
from actors.storage.listing import Listing
from actors.storage.moving import Moving
from schemas.events.base import Refusal
from schemas.events.storage import (
    BucketDegraded,
    BucketInfo,
    BucketList,
    BucketProvisioned,
    BucketRemoved,
    BucketRestored,
    DatasetMoved,
    GetBucket,
    IndexMoved,
    ListBuckets,
    MoveDataset,
    MoveIndex,
    ProvisionBucket,
    RemoveBucket,
)
from schemas.names import BucketName

log = structlog.get_logger(__name__)


class StorageDesk(Actor):
    role = "control"

    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        mirror: Mirror,
        bus: Bus,
        clock: Clock,
        allowed_roots: Sequence[str | Path],
    ) -> None:
        """allowed_roots: folders below which `file://` buckets may be made."""
        self.sweep_s = 5.0
        self.mend_s = 2.0
        self.moving = Moving(registry, mirror, bus, clock)
        self._buckets = buckets
        self._allowed_roots = allowed_roots
        self._listing = Listing(registry, buckets)
        self._brought: dict[BucketName, Waiting] = {}  # of degraded buckets: what went home since
        self._changing = anyio.Lock()  # buckets are made and taken away one after another

    # --- made and taken away ---

    @handles
    async def on_provision(self, command: ProvisionBucket) -> Sequence[BucketInfo | BucketProvisioned | Refusal]:
        async with self._changing:
            return await self._provision(command)

    async def _provision(self, command: ProvisionBucket) -> Sequence[BucketInfo | BucketProvisioned | Refusal]:
        name = command.name
        places = {bucket: await self._buckets.place(bucket) for bucket in await self._buckets.names()}
        if name in places:
            if _same(places[name], command):
                return [await self._listing.info(name)]
            return [Refusal("conflict", f"bucket {name!r} exists already, at {places[name].url}", "take another name")]
        refusal = core.refuse_url(name, command.url, places) if command.url else None
        refusal = refusal or self._refuse_folder(command.url)
        if refusal is not None:
            return [refusal]
        try:
            made = await self._buckets.provision(name, command.url, command.options)
        except ValueError as error:
            return [Refusal("invalid", str(error))]
        try:
            await self._buckets.check(name)
        except (Transient, CorruptState) as error:
            if made:
                await self._buckets.remove(name)
            return [Refusal("invalid", f"nothing can be kept there: {error}", "is the URL right, may it be written?")]
        info = await self._listing.info(name)
        return [info, BucketProvisioned(name, info.url)] if made else [info]

    def _refuse_folder(self, url: str) -> Refusal | None:
        if not url.startswith("file://"):
            return None
        try:
            real_path(core.path_of(url), self._allowed_roots, "storage.allowed_roots")
        except OutsideRoots as error:
            return Refusal(error.status, error.reason, error.hint)
        return None

    @handles
    async def on_remove(self, command: RemoveBucket, origin: Origin) -> Sequence[BucketRemoved | Refusal]:
        name = command.name
        async with self._changing:
            known = await self._buckets.names()
            if name not in known:
                return [BucketRemoved(name) if origin.delivery > 1 else _unknown(name, known)]
            place = await self._buckets.place(name)
            if refusal := await self._refuse_removal(name, place):
                return [refusal]
            await self._buckets.remove(name)
            if refusal := await self._refuse_removal(name, place):  # something settled in it meanwhile
                await self._buckets.provision(name, place.url, place.options)
                return [refusal]
            return [BucketRemoved(name)]

    async def _refuse_removal(self, name: BucketName, place: Place) -> Refusal | None:
        homes = await self._listing.homes(name, await self.moving.pending())
        waiting = (await self._listing.waiting()).get(name)
        return core.refuse_removal(name, place.origin, homes, waiting.objects if waiting else 0)

    # --- asked ---

    @handles
    @concurrent(4)
    async def on_list(self, query: ListBuckets) -> Sequence[BucketList]:
        return [await self._listing.all(await self.moving.pending())]

    @handles
    @concurrent(4)
    async def on_get(self, query: GetBucket) -> Sequence[BucketInfo | Refusal]:
        try:
            return [await self._listing.info(query.name, await self.moving.pending())]
        except KeyError:
            return [_unknown(query.name, await self._buckets.names())]

    # --- moved ---

    @handles
    @concurrent(4)
    async def on_move_dataset(self, command: MoveDataset, origin: Origin) -> Sequence[DatasetMoved | Refusal]:
        if refusal := await self._refuse_target(command.bucket):
            return [refusal]
        moved = await self.moving.move("dataset", command.dataset, command.bucket, origin)
        assert not isinstance(moved, IndexMoved)
        return [moved]

    @handles
    @concurrent(4)
    async def on_move_index(self, command: MoveIndex, origin: Origin) -> Sequence[IndexMoved | Refusal]:
        if refusal := await self._refuse_target(command.bucket):
            return [refusal]
        moved = await self.moving.move("index", command.index, command.bucket, origin)
        assert not isinstance(moved, DatasetMoved)
        return [moved]

    async def _refuse_target(self, bucket: BucketName) -> Refusal | None:
        waiting = await self._listing.waiting()
        return core.refuse_target(bucket, await self._buckets.names(), waiting.keys())

    @every("sweep_s")
    async def on_sweep(self) -> Sequence[DatasetMoved | IndexMoved]:
        """Moves that a kill or a failure cut short go on, and old places are cleared."""
        said = []
        for move in await self.moving.pending():
            if move.state != "copying" or self.moving.under_way(move):
                continue
            try:
                if await self._refuse_target(move.bucket) is not None:
                    continue  # not yet
                moved = await self.moving.move(move.what, move.name, move.bucket)
            except (Transient, Unavailable) as error:
                log.warning("a move can't go on yet", what=move.what, name=move.name, why=str(error))
                continue
            if isinstance(moved, Refusal):
                log.warning("a move was given up", what=move.what, name=move.name, why=moved.reason)
            else:
                said.append(moved)
        try:
            await self.moving.sweep()
        except (Refused, Transient, Unavailable) as error:
            log.warning("an old place can't be cleared yet", why=str(error))
        return said

    # --- rescued ---

    @every("mend_s")
    async def on_mend(self) -> Sequence[BucketDegraded | BucketRestored]:
        """What waits in `rescue` goes home as soon as it can."""
        said: list[BucketDegraded | BucketRestored] = []
        for each in await self._buckets.waiting():
            if each.bucket not in self._brought:
                self._brought[each.bucket] = Waiting(each.bucket, 0, 0, each.reason)
                log.warning("bucket is degraded", bucket=each.bucket, why=each.reason, waiting=each.objects)
                said.append(BucketDegraded(each.bucket, each.reason, each.objects, each.bytes))
        if not self._brought:
            return said
        for bucket in self._brought:
            try:
                self._brought[bucket] = core.together(self._brought[bucket], await self._buckets.bring_home(bucket))
            except Transient:  # not yet
                continue
            except (CorruptState, KeyError) as error:
                log.error("what waits in rescue can't be brought home", bucket=bucket, why=str(error))
        waiting = {each.bucket for each in await self._buckets.waiting()}
        for bucket in sorted(self._brought.keys() - waiting):
            brought = self._brought.pop(bucket)
            log.info("bucket is restored", bucket=bucket, objects=brought.objects)
            said.append(BucketRestored(bucket, brought.objects, brought.bytes))
        return said


def _same(place: Place, command: ProvisionBucket) -> bool:
    """Whether a bucket is what is asked for."""
    if not command.url:
        return place.origin == "provisioned"
    return place.url.rstrip("/") == command.url.rstrip("/") and place.options == command.options


def _unknown(name: BucketName, known: Sequence[BucketName]) -> Refusal:
    return Refusal("not_found", f"there is no bucket {name!r}", f"known are {', '.join(known)}")
