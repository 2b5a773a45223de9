"""What the profiles' shell decides: whether a profile makes sense by itself, what of it may change
while it is active, and which index a search with its rights may reach.

Values in, values out. Whether the GPU has room for it, and whether its indexes and models are
there, is asked at activation (checks.py, core_eviction.py).
"""

from collections.abc import Mapping, Sequence

from actors.profile.core import Named, embedder_ref, member
from schemas.config import HnswConfig
from schemas.documents.index import IndexDocument
from schemas.events.base import Refusal
from schemas.events.index import EmbedderSpec, Search
from schemas.events.profile import ModelRef, SearchProfile, SlotInfo
from schemas.names import Backend, IndexName, ProfileName, ServerName
from schemas.profile import ModelProfile


def check(profile: ModelProfile) -> Refusal | None:
    """What is wrong with a profile whatever the machine is; None: nothing."""
    name = profile.id
    for field, values in (("indexes", profile.indexes), ("adapters", [each.name for each in profile.adapters])):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            return _invalid(f"profile {name!r} names {twice!r} twice in {field}", "name it once")
    if unserved := check_adapters(profile):
        return unserved
    if profile.hnsw is not None and profile.vector_backend == "lance":
        return _invalid(
            f"profile {name!r} has hnsw settings, and its vector_backend is lance",
            'leave hnsw out, or set vector_backend to "hnsw" or "auto"',
        )
    return _check_embedder(name, profile.embedder) if profile.embedder is not None else None


def check_adapters(profile: ModelProfile) -> Refusal | None:
    """Adapters that its server is to load must be llama.cpp's; those with folders may be merged into the model."""
    unserved = [each.name for each in profile.adapters if each.folder is None]
    if not unserved or profile.server == "llamacpp":
        return None
    return _invalid(
        f"profile {profile.id!r} has adapters ({', '.join(unserved)}), which its server {profile.server} doesn't take",
        'leave adapters out, have it served by "llamacpp", or give their folders, for a gate to merge them',
    )


def _check_embedder(name: ProfileName, spec: EmbedderSpec) -> Refusal | None:
    if spec.kind in ("ollama", "openai"):
        if not spec.model:
            return _invalid(
                f"the {spec.kind} embedder of profile {name!r} names no model",
                "give embedder.model, as the server names it",
            )
        if spec.url and not spec.url.startswith(("http://", "https://")):
            return _invalid(
                f"embedder.url of profile {name!r} must begin with http:// or https://, got {spec.url!r}",
                "leave it out for the server in lakehouse.toml",
            )
    elif spec.model or spec.url:
        return _invalid(
            f"the {spec.kind} embedder of profile {name!r} runs on no model server, "
            f"and embedder.{'model' if spec.model else 'url'} names one",
            'leave it out, or set embedder.kind to "ollama" or "openai"',
        )
    return None


def holds(slot: SlotInfo, profile: ProfileName) -> bool:
    """Whether a profile counts as active: its models are in memory, on their way in or out, or
    nobody knows."""
    return slot.state != "empty" and profile in (slot.profile, slot.target)


def active(slot: SlotInfo, profile: ProfileName) -> bool:
    """Whether it is the one that holds the slot; one that is to come doesn't yet."""
    return slot.state != "empty" and slot.profile == profile


def check_replacement(old: ModelProfile, new: ModelProfile) -> Refusal | None:
    """What may not change of the active profile: what is in memory for it."""
    for field in ("server", "model", "embedder"):
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            return Refusal(
                "conflict",
                f"profile {old.id!r} is active: its {field} can't change from {_said(before)} to {_said(after)}",
                f"deactivate it first: lakehouse profile deactivate {old.id}",
            )
    return None


# --- search -------------------------------------------------------------------------------------


def index_of(profile: ModelProfile, asked: IndexName | None) -> IndexName | Refusal | None:
    """The index that a search with the profile's rights reaches; None when it isn't the profile's."""
    if asked is not None:
        return asked if asked in profile.indexes else None
    if len(profile.indexes) == 1:
        return profile.indexes[0]
    if not profile.indexes:
        return _invalid(
            f"profile {profile.id!r} has no index to search",
            f"add some: lakehouse profile set {profile.id} --index NAME",
        )
    return _invalid(
        f"profile {profile.id!r} has {len(profile.indexes)} indexes and the search names none",
        f"name one of {', '.join(profile.indexes)}",
    )


def forbidden(profile: ModelProfile, index: IndexName, others: Sequence[ModelProfile]) -> Refusal:
    """Another profile's index, or nobody's. `others`: every profile there is."""
    owners = [other.id for other in others if index in other.indexes]
    may = f"which may search {', '.join(profile.indexes)}" if profile.indexes else "which has no indexes"
    whose = f"it belongs to {', '.join(owners)}" if owners else "it belongs to no profile"
    take = f"search it with profile {owners[0]}" if owners else "search it without a profile"
    return Refusal(
        "forbidden",
        f"index {index!r} is not one of profile {profile.id!r}, {may}; {whose}",
        f"{take}, or add it to the indexes of {profile.id}",
    )


def backend_of(profile: ModelProfile) -> Backend | None:
    """What the profile's searches go through; None: whatever serves the index."""
    return None if profile.vector_backend == "auto" else profile.vector_backend


def check_backend(profile: ModelProfile, asked: Backend | None) -> Refusal | None:
    """A search that asks for another backend than its profile's."""
    own = backend_of(profile)
    if asked is None or own is None or asked == own:
        return None
    return _invalid(
        f"profile {profile.id!r} searches {own}, and the search asks for {asked}",
        f"leave backend out, or set vector_backend of {profile.id} to {asked} or auto",
    )


def holding(index: IndexDocument) -> HnswConfig | None:
    """The `default` for `ServeIndex` that leaves in place what holds where nothing is promoted."""
    return index.config if index.own is not None else None


def takes_embedding(query: SearchProfile) -> bool:
    """Whether its text has to be made a vector."""
    return query.text is not None and query.vector is None and query.mode != "text"


def embeds(
    profile: ModelProfile, index: IndexDocument, servers: Mapping[ServerName, Named]
) -> ModelRef | Refusal | None:
    """The model in the GPU's memory that a text search on the index takes; None when it takes
    none. Refused when it isn't one that the profile brings there."""
    needed = embedder_ref(index.embedder, servers)
    if needed is None or needed in member(profile, servers).needs:
        return needed
    own = profile.embedder.model or profile.embedder.kind if profile.embedder else "none"
    return _invalid(
        f"index {index.index!r} embeds text with {needed}, the embedder of profile {profile.id!r} is {own}",
        f"give the profile the index's embedder, or search by a vector of {index.dim} numbers",
    )


def inactive(profile: ProfileName, needed: ModelRef, slot: SlotInfo) -> Refusal:
    """A text search whose model isn't surely in memory."""
    if not holds(slot, profile):
        other = slot.profile if slot.state != "empty" else None
        now = f"the slot is held by {other} ({slot.state})" if other else f"the slot is {slot.state}"
        hint = f"lakehouse profile activate {profile}, or search by vector"
    else:
        now = f"its slot is {slot.state}" + (f" ({slot.reason})" if slot.reason else "")
        hint = "lakehouse profile active shows when it is ready; or search by vector"
    return Refusal("conflict", f"the text is embedded by {needed} and profile {profile!r} isn't active: {now}", hint)


def scoped(query: SearchProfile, index: IndexName, profile: ModelProfile) -> Search:
    """The search itself, once it may be made, through the profile's backend."""
    return Search(
        index=index,
        text=query.text,
        vector=query.vector,
        vectors=query.vectors,
        k=query.k,
        ef_search=query.ef_search,
        filter=query.filter,
        columns=query.columns,
        explain=query.explain,
        mode=query.mode,
        backend=backend_of(profile) or query.backend,
        nprobes=query.nprobes,
        refine_factor=query.refine_factor,
        version=query.version,
    )


def _invalid(reason: str, hint: str) -> Refusal:
    return Refusal("invalid", reason, hint)


def _said(value: str | EmbedderSpec | None) -> str:
    if isinstance(value, EmbedderSpec):
        return " ".join(filter(None, (value.kind, value.model, value.url)))
    return value or "none"
