"""How the buckets are: reachable or not, how much lies in them, what has its home there, what waits for them."""

import contextlib
from collections.abc import Sequence

import anyio
import msgspec

from actors.errors import CorruptState, Transient
from actors.ports import Buckets, Registry, Waiting
from actors.storage import core
from schemas.documents.codec import CodecDocument
from schemas.documents.dataset import DatasetDocument
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import IndexDocument
from schemas.documents.move import MoveDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.storage import BucketInfo, BucketList, Health, Home
from schemas.names import BucketName

LOOK_S = 5.0
"""A bucket that doesn't answer in this time is down; one whose objects can't be counted in it has no size."""


class Listing:
    def __init__(self, registry: Registry, buckets: Buckets) -> None:
        self.look_s = LOOK_S
        self._registry = registry
        self._buckets = buckets

    async def all(self, moves: Sequence[MoveDocument]) -> BucketList:
        names = await self._buckets.names()
        waiting = await self.waiting()
        homes = {name: await self.homes(name, moves) for name in names}
        found: dict[BucketName, BucketInfo] = {}

        async def look(name: BucketName) -> None:
            with contextlib.suppress(KeyError):  # it was taken away meanwhile
                found[name] = await self._look(name, homes[name], waiting.get(name))

        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(look, name)
        return BucketList([found[name] for name in names if name in found], core.clashes(await self._registry.census()))

    async def info(self, name: BucketName, moves: Sequence[MoveDocument] = ()) -> BucketInfo:
        """Raises KeyError for an unknown one."""
        return await self._look(name, await self.homes(name, moves), (await self.waiting()).get(name))

    async def waiting(self) -> dict[BucketName, Waiting]:
        return {each.bucket: each for each in await self._buckets.waiting()}

    async def homes(self, name: BucketName, moves: Sequence[MoveDocument]) -> list[Home]:
        """What has its home in a bucket, is on its way there, or has left something behind."""
        fields: list[tuple[str, str, BucketName | None]] = []
        registry = self._registry
        fields += [("dataset", each, document.bucket) for each, document, _ in await registry.all(DatasetDocument)]
        fields += [("index", each, document.bucket) for each, document, _ in await registry.all(IndexDocument)]
        fields += [("harness", each, document.bucket) for each, document, _ in await registry.all(HarnessDocument)]
        fields += [("codec", each, document.bucket) for each, document, _ in await registry.all(CodecDocument)]
        profiles = await registry.all(ProfileDocument)
        fields += [("profile", each, document.profile.bucket) for each, document, _ in profiles]
        return core.home_to(name, fields, await self._registry.homes(), moves)

    async def _look(self, name: BucketName, homes: list[Home], waiting: Waiting | None) -> BucketInfo:
        place = await self._buckets.place(name)
        info = BucketInfo(name, place.url, place.origin, place.options, "ok", homes=homes)
        if waiting is not None:
            info = msgspec.structs.replace(info, health="degraded", reason=waiting.reason, waiting=waiting.objects)
        with anyio.move_on_after(self.look_s) as reaching:
            try:
                await self._buckets.reach(name)
            except (Transient, CorruptState) as error:
                return _down(info, str(error))
        if reaching.cancelled_caught:
            return _down(info, f"it doesn't answer within {self.look_s:g} s")
        with anyio.move_on_after(self.look_s):
            try:
                there = await self._buckets.entries(name, "")
            except Transient as error:
                return _down(info, str(error))
            return msgspec.structs.replace(info, objects=len(there), bytes=sum(entry.bytes for entry in there))
        return info


def _down(info: BucketInfo, reason: str) -> BucketInfo:
    down: Health = "down"
    return msgspec.structs.replace(info, health=down, reason=reason)
