"""Model profiles: kept as documents, and searched with. What is in the GPU's memory is the slot's
(slot.py), which is asked before anything that an active profile forbids.

A search with a profile's rights costs a few microseconds over the search itself: this actor alone
writes profiles, so it knows them, and the slot is asked only when a text has to be embedded by a
model that the profile has in memory.
"""

from collections.abc import Mapping, Sequence
from typing import Never

from actors.base import Actor, Origin, concurrent, every, handles
from actors.errors import Refused
from actors.ports import Bus, Clock, ModelServer, Registry
from actors.profile import core_profiles as core
from actors.refusals import no_index
from schemas.documents.codec import ProfileCodecDocument
from schemas.documents.index import IndexDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Refusal
from schemas.events.index import IndexCreated, IndexDropped, SearchResult, ServeIndex
from schemas.events.profile import (
    CreateProfile,
    DeleteProfile,
    GetProfile,
    GetSlot,
    ListProfiles,
    ProfileDeleted,
    ProfileInfo,
    ProfileList,
    ProfileSaved,
    ReplaceProfile,
    SearchProfile,
    SlotInfo,
)
from schemas.names import IndexName, ProfileName, ServerName
from schemas.profile import ModelProfile


class Profiles(Actor):
    """Keeps the profiles, and answers searches within them."""

    role = "control"

    def __init__(self, registry: Registry, bus: Bus, clock: Clock, servers: Mapping[ServerName, ModelServer]) -> None:
        """servers: asked for nothing but the full names of models and their URLs."""
        self._registry = registry
        self._bus = bus
        self._clock = clock
        self._servers = servers
        self.refresh_s = 30.0
        self._known: dict[ProfileName, ModelProfile] = {}  # as saved, for searches
        self._saves = 0
        self._indexes: dict[IndexName, IndexDocument] = {}  # for the embedder, which never changes

    async def start(self) -> Sequence[Never]:
        return await self.on_refresh()

    @every("refresh_s")
    async def on_refresh(self) -> Sequence[Never]:
        """What a repair changed, or a second process that shouldn't be."""
        saves = self._saves
        found = await self._registry.all(ProfileDocument)
        if saves == self._saves:  # otherwise what was read may be older than what was saved
            self._known = {name: document.profile for name, document, _ in found}
        self._indexes.clear()
        return ()

    # --- kept ---

    @handles
    async def on_create(self, command: CreateProfile, origin: Origin) -> Sequence[ProfileInfo | ProfileSaved | Refusal]:
        profile = command.profile
        wrong = core.check(profile)
        if wrong is not None:
            return (wrong,)
        found = await self._registry.load(ProfileDocument, profile.id)
        slot = await self._slot(origin)
        if found is None:
            unready = await self._provide(profile, origin)
            if unready is not None:
                return (unready,)
            now = self._clock.now()
            document = ProfileDocument(profile=profile, created=now, changed=now)
            await self._save(document, None)
        elif origin.delivery > 1 and found[0].profile == profile:
            document = found[0]  # made by an earlier delivery, perhaps: its event may be missing
        else:
            hint = f"lakehouse profile set {profile.id} changes it"
            return (Refusal("conflict", f"there is a profile {profile.id!r} already", hint),)
        return await self._info(document, slot), ProfileSaved(profile, created=True)

    @handles
    async def on_replace(
        self, command: ReplaceProfile, origin: Origin
    ) -> Sequence[ProfileInfo | ProfileSaved | Refusal]:
        profile = command.profile
        wrong = core.check(profile)
        if wrong is not None:
            return (wrong,)
        found = await self._registry.load(ProfileDocument, profile.id)
        if found is None:
            return (_unknown(profile.id),)
        document, revision = found
        slot = await self._slot(origin)
        if core.holds(slot, profile.id):
            wrong = core.check_replacement(document.profile, profile)
            if wrong is not None:
                return (wrong,)
        wrong = await self._provide(profile, origin)
        if wrong is not None:
            return (wrong,)
        if profile != document.profile:
            document = ProfileDocument(profile=profile, created=document.created, changed=self._clock.now())
            await self._save(document, revision)
        return await self._info(document, slot), ProfileSaved(profile, created=False)

    @handles
    async def on_delete(self, command: DeleteProfile, origin: Origin) -> Sequence[ProfileDeleted | Refusal]:
        name = command.profile
        found = await self._registry.load(ProfileDocument, name)
        if found is None:
            return (ProfileDeleted(name) if origin.delivery > 1 else _unknown(name),)
        slot = await self._slot(origin)
        if core.holds(slot, name):
            reason = f"profile {name!r} is active: the slot is {slot.state}"
            return (Refusal("conflict", reason, f"deactivate it first: lakehouse profile deactivate {name}"),)
        await self._registry.delete(ProfileDocument, name, expected=found[1])
        self._saves += 1
        self._known.pop(name, None)
        return (ProfileDeleted(name),)

    # --- asked ---

    @handles
    @concurrent(16)
    async def on_get(self, query: GetProfile, origin: Origin) -> Sequence[ProfileInfo | Refusal]:
        found = await self._registry.load(ProfileDocument, query.profile)
        return (await self._info(found[0], await self._slot(origin)) if found else _unknown(query.profile),)

    @handles
    @concurrent(16)
    async def on_list(self, query: ListProfiles, origin: Origin) -> Sequence[ProfileList]:
        documents = [document for _, document, _ in await self._registry.all(ProfileDocument)]
        slot = await self._slot(origin)
        return (ProfileList([await self._info(document, slot) for document in documents]),)

    @handles
    @concurrent(256)
    async def on_search(self, query: SearchProfile, origin: Origin) -> Sequence[SearchResult | Refusal]:
        profile = self._known.get(query.profile)
        if profile is None:
            found = await self._registry.load(ProfileDocument, query.profile)  # it may be damaged: that is told
            if found is None:
                return (_unknown(query.profile),)
            profile = found[0].profile
        name = core.index_of(profile, query.index)
        if isinstance(name, Refusal):
            return (name,)
        if name is None and await self._index(str(query.index)) is None:
            return (no_index(str(query.index)),)
        if name is None:
            return (core.forbidden(profile, str(query.index), list(self._known.values())),)
        index = self._indexes.get(name) or await self._index(name)
        if index is None:
            return (no_index(name),)
        wrong = core.check_backend(profile, query.backend)
        if wrong is not None:
            return (wrong,)
        if core.takes_embedding(query):
            needed = core.embeds(profile, index, self._servers)
            if isinstance(needed, Refusal):
                return (needed,)
            if needed is not None:
                slot = await self._slot(origin)
                if (slot.state, slot.profile) != ("ready", profile.id):
                    return (core.inactive(profile.id, needed, slot),)
        return (await self._bus.ask(core.scoped(query, name, profile), cause=origin),)

    # --- indexes come and go ---

    @handles
    async def on_index_created(self, event: IndexCreated) -> Sequence[Never]:
        self._indexes.pop(event.index, None)
        return ()

    @handles
    async def on_index_dropped(self, event: IndexDropped) -> Sequence[Never]:
        self._indexes.pop(event.index, None)
        return ()

    async def _provide(self, profile: ModelProfile, origin: Origin) -> Refusal | None:
        """See to it that its indexes get the backend that it searches, built in the background; or why one can't.
        An index that isn't there yet gets it at activation. Raises Unavailable when the indexes' owner is away."""
        backend = core.backend_of(profile)
        if backend is None:
            return None
        for name in profile.indexes:
            index = await self._index(name)
            if index is None:
                continue
            try:
                await self._bus.ask(ServeIndex(name, core.holding(index), backend), cause=origin)
            except Refused as error:
                said = error.refusal
                if said.status != "not_found":  # dropped meanwhile
                    return Refusal(said.status, f"index {name!r}: {said.reason}", said.hint, said.retry_after_s)
        return None

    async def _save(self, document: ProfileDocument, expected: int | None) -> None:
        await self._registry.save(document.profile.id, document, expected=expected)
        self._saves += 1
        self._known[document.profile.id] = document.profile

    async def _index(self, name: IndexName) -> IndexDocument | None:
        found = await self._registry.load(IndexDocument, name)
        if found is not None:
            self._indexes[name] = found[0]
        return found[0] if found else None

    async def _slot(self, origin: Origin) -> SlotInfo:
        return await self._bus.ask(GetSlot(), cause=origin)

    async def _info(self, document: ProfileDocument, slot: SlotInfo) -> ProfileInfo:
        profile = document.profile
        codec = await self._registry.load(ProfileCodecDocument, profile.id)
        return ProfileInfo(
            profile,
            core.active(slot, profile.id),
            document.created,
            document.changed,
            codec[0].artifact if codec else None,
        )


def _unknown(name: ProfileName) -> Refusal:
    return Refusal("not_found", f"there is no profile {name!r}", "lakehouse profile list")
