"""Who leaves the GPU for a profile: llama-swap's rules as one pure function.

    stays   what the target needs and has whole; the models of persistent profiles
    leaves  everything else for an exclusive target; an exclusive profile's models for any target;
            members of the target's group, which take turns
    may     the rest stays while there is room; else the set that costs least to load again leaves

Admission comes with it: a target that can't fit is refused with the arithmetic, before anything
is touched.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import msgspec

from actors.profile.core import Member, gib
from actors.profile.core_reconcile import is_stopping, is_whole
from schemas.events.base import Refusal
from schemas.events.profile import LoadedModel, ModelRef
from schemas.names import Bytes, ProfileName, Seconds, Timestamp

EXACT = 12
"""Up to so many candidates every set is tried (4096 of them); beyond, the cheapest per byte go first."""

BYTES_PER_S = 1 << 30
"""How fast a model is taken to load that was never measured."""


class Memory(msgspec.Struct, frozen=True):
    """What is known about the GPU's memory when a target asks for it."""

    free: Bytes | None  # None: can't be read; then room is nobody's business
    headroom: Bytes = 0  # to stay free beside the loaded models
    sizes: Mapping[ModelRef, Bytes] = {}  # what models need, where known
    load_s: Mapping[ModelRef, Seconds] = {}  # what loading them took, where measured


class Plan(msgspec.Struct, frozen=True):
    """What a swap does: `evict` in this order, then `load`; `keep` is touched by nobody. Needed
    models that are half there (stopping, partly on the CPU) are in both of the first two."""

    evict: tuple[LoadedModel, ...]
    load: tuple[ModelRef, ...]
    keep: tuple[ModelRef, ...]
    blind: str = ""  # why admission couldn't check everything: a clause for people


def plan(
    target: Member,
    running: Sequence[LoadedModel],
    members: Iterable[Member],
    active: ProfileName | None,
    memory: Memory,
    now: Timestamp,
    *,
    allow_partial: bool = False,
) -> Plan | Refusal:
    """What leaves and what is loaded for `target`. Refused: conflict, when a persistent exclusive
    profile is resident; invalid, when there can't be room."""
    keep = tuple(
        model.ref
        for model in running
        if model.ref in target.needs and not is_stopping(model, now) and (allow_partial or is_whole(model))
    )
    load = tuple(ref for ref in target.needs if ref not in keep)
    others = [model for model in running if model.ref not in keep]
    here = residents(members, [model.ref for model in running], active, target.profile)
    for each in here:
        if each.profile == active and each.persistent and each.exclusive and each.needs[0] not in target.needs:
            return Refusal(
                "conflict",
                f"profile {each.profile!r} is active, persistent and exclusive, with {each.needs[0]} in memory",
                f"deactivate it first: lakehouse profile deactivate {each.profile}",
            )
    here = [_as_it_stands(each, active) for each in here]
    must = [model for model in others if _must_leave(model, target, here)]
    fixed = next((model for model in must if model.fixed), None)
    if fixed is not None:
        return Refusal(
            "conflict",
            f"{fixed.ref} is in memory and can't be unloaded: its server runs in single mode",
            "stop that llama-server, or run it in router mode (`llama-server --models-dir …`)",
        )
    may = [model for model in others if model not in must and not model.fixed and not _persists(model.ref, here)]
    if memory.free is None or not load:
        return Plan(_ordered(must, memory, now), load, keep, "GPU memory can't be read" if load else "")
    needed = sum(memory.sizes.get(ref, 0) for ref in load) + memory.headroom
    short = needed - memory.free - sum(reclaimed(model, memory) for model in must)
    chosen = cheapest(may, short, memory, now)
    if chosen is None:
        stay = [model for model in others if model not in must and model not in may]
        return _no_room(target, load, [*must, *may], stay, here, memory)
    return Plan(_ordered([*must, *chosen], memory, now), load, keep, unsized(load, memory))


def unsized(refs: Sequence[ModelRef], memory: Memory) -> str:
    """Which models count as nothing, because nobody tells how large they are; empty: none."""
    unknown = [str(ref) for ref in refs if ref not in memory.sizes]
    return f"how much memory {' and '.join(unknown)} will take isn't known" if unknown else ""


def known_sizes(told: Mapping[ModelRef, Bytes | None], measured: Mapping[ModelRef, Bytes]) -> dict[ModelRef, Bytes]:
    """What models need: as measured when they were loaded last, or as their servers tell, whichever is more. A
    file is less than what it takes in memory, and a name that was pulled again may have grown."""
    sizes = dict(measured)
    for ref, size in told.items():
        if size is not None:
            sizes[ref] = max(size, sizes.get(ref, 0))
    return sizes


def residents(
    members: Iterable[Member], running: Sequence[ModelRef], active: ProfileName | None, target: ProfileName | None
) -> list[Member]:
    """The profiles, other than the target, whose models are in memory for their own sake: the
    active one, and every other whose own model runs. Several profiles may share a model; while one
    of them is active, the model is there for that one."""
    every = [each for each in members if each.profile != target]
    holder = next((each for each in every if each.profile == active), None)
    found = [holder] if holder is not None else []
    held = set(holder.needs[:1]) if holder is not None else set()
    found += [each for each in every if each is not holder and each.needs[0] in running and each.needs[0] not in held]
    return found


def cheapest(
    candidates: Sequence[LoadedModel], short: Bytes, memory: Memory, now: Timestamp
) -> tuple[LoadedModel, ...] | None:
    """The candidates whose leaving frees at least `short` bytes and costs least to undo; of equal
    ones the fewer, then those that would leave by themselves soonest. None: all of them don't."""
    if short <= 0:
        return ()
    if sum(reclaimed(model, memory) for model in candidates) < short:
        return None
    if len(candidates) > EXACT:
        return _greedy(candidates, short, memory, now)
    sets = (chosen for count in range(1, len(candidates) + 1) for chosen in combinations(candidates, count))
    enough = (chosen for chosen in sets if sum(reclaimed(model, memory) for model in chosen) >= short)
    return min(enough, key=lambda chosen: _price(chosen, memory, now))


def cost(model: LoadedModel, memory: Memory, now: Timestamp) -> Seconds:
    """Seconds to load it again; nothing for one whose time has run out."""
    if is_stopping(model, now):
        return 0.0
    measured = memory.load_s.get(model.ref)
    return measured if measured is not None else (model.size or memory.sizes.get(model.ref, 0)) / BYTES_PER_S


def reclaimed(model: LoadedModel, memory: Memory) -> Bytes:
    """What comes free when it leaves; where its server doesn't tell, what it is known to need."""
    return memory.sizes.get(model.ref, 0) if model.size_vram is None else model.size_vram


def unshared(
    refs: Sequence[ModelRef], running: Sequence[LoadedModel], others: Iterable[Member], active: ProfileName | None
) -> tuple[LoadedModel, ...]:
    """Of a profile's models those that no other resident profile needs: they leave when it is
    deactivated. `others` are all profiles but that one, `active` the one of them that is active."""
    own = set(refs)
    names = [model.ref for model in running]
    staying = {
        ref
        for each in others
        if each.profile == active or (each.needs[0] in names and each.needs[0] not in own)
        for ref in each.needs
    }
    return tuple(model for model in running if model.ref in own - staying)


def unwelcome(
    ref: ModelRef, running: Sequence[LoadedModel], members: Sequence[Member], active: ProfileName | None
) -> Refusal | None:
    """Why a model may not be loaded beside what runs: an exclusive profile shares the GPU with
    nobody but persistent ones, whichever of the two came first."""
    if any(each.persistent and ref in each.needs for each in members):
        return None
    names = [model.ref for model in running]
    for each in residents(members, names, active, None):
        if each.exclusive and ref not in each.needs:
            return Refusal(
                "conflict",
                f"model {ref} can't come beside exclusive profile {each.profile!r}, whose model is {each.needs[0]}",
                f"activate a profile that needs {ref.model}, or lakehouse profile deactivate {each.profile}",
            )
    for each in members:
        if not each.exclusive or each.needs[0] != ref:
            continue
        persistent = {need for other in members if other.persistent for need in other.needs}
        strangers = [name for name in names if name not in each.needs and name not in persistent]
        if strangers:
            return Refusal(
                "conflict",
                f"model {ref} is that of exclusive profile {each.profile!r}, and {strangers[0]} is in memory",
                f"lakehouse profile activate {each.profile}, which unloads what is in its way",
            )
    return None


def no_room(ref: ModelRef, memory: Memory) -> Refusal | None:
    """Why a model can't be loaded beside what runs without anything leaving."""
    size = memory.sizes.get(ref, 0)
    if memory.free is None or size + memory.headroom <= memory.free:
        return None
    return Refusal(
        "invalid",
        f"model {ref} needs {gib(size)} + {gib(memory.headroom)} headroom = {gib(size + memory.headroom)}, "
        f"but {gib(memory.free)} of GPU memory are free",
        "unload something first (lakehouse vram shows what is loaded), or lower [slot] headroom_mb",
    )


def _as_it_stands(each: Member, active: ProfileName | None) -> Member:
    """A persistent exclusive profile that isn't active keeps nobody out: its model was only preloaded, for while it
    was active nothing else came."""
    return each if each.profile == active or not each.exclusive else msgspec.structs.replace(each, persistent=False)


def _must_leave(model: LoadedModel, target: Member, here: Sequence[Member]) -> bool:
    if model.ref in target.needs:
        return True  # half there: stopping, or partly on the CPU
    if _persists(model.ref, here):
        return False
    holders = [each for each in here if model.ref in each.needs]
    if target.exclusive or any(each.exclusive for each in holders):
        return True
    return bool(holders) and all(each.group == target.group for each in holders)


def _persists(ref: ModelRef, here: Sequence[Member]) -> bool:
    return any(each.persistent and ref in each.needs for each in here)


def _price(chosen: Sequence[LoadedModel], memory: Memory, now: Timestamp) -> tuple[float, int, float, list[ModelRef]]:
    return (
        round(sum(cost(model, memory, now) for model in chosen), 9),
        len(chosen),
        sum(_left(model, now) for model in chosen),
        sorted(model.ref for model in chosen),
    )


def _left(model: LoadedModel, now: Timestamp) -> Seconds:
    """Until it would leave unused; a day for one that would stay."""
    return 86400.0 if model.expires_at is None else max(0.0, model.expires_at - now)


def _greedy(candidates: Sequence[LoadedModel], short: Bytes, memory: Memory, now: Timestamp) -> tuple[LoadedModel, ...]:
    """Cheapest per byte first, until it is enough; then whatever turned out not to be needed stays,
    the dearest first."""
    worth = [model for model in candidates if reclaimed(model, memory) > 0]
    worth.sort(key=lambda model: (cost(model, memory, now) / reclaimed(model, memory), _left(model, now), model.ref))
    chosen: list[LoadedModel] = []
    for model in worth:
        if short <= 0:
            break
        chosen.append(model)
        short -= reclaimed(model, memory)
    for model in sorted(chosen, key=lambda model: (-cost(model, memory, now), model.ref)):
        if short + reclaimed(model, memory) <= 0:
            chosen.remove(model)
            short += reclaimed(model, memory)
    return tuple(chosen)


def _ordered(models: Sequence[LoadedModel], memory: Memory, now: Timestamp) -> tuple[LoadedModel, ...]:
    return tuple(sorted(models, key=lambda model: (cost(model, memory, now), model.ref)))


def _no_room(
    target: Member,
    load: Sequence[ModelRef],
    leave: Sequence[LoadedModel],
    stay: Sequence[LoadedModel],
    here: Sequence[Member],
    memory: Memory,
) -> Refusal:
    """With the arithmetic. `stay`: the models of persistent profiles, which are among `here`."""
    assert memory.free is not None
    wanted = [f"{ref.model} {gib(memory.sizes[ref])}" if ref in memory.sizes else f"{ref.model} ?" for ref in load]
    needed = sum(memory.sizes.get(ref, 0) for ref in load) + memory.headroom
    had = sum(reclaimed(model, memory) for model in leave)
    of = " + ".join(f"{model.model} {gib(reclaimed(model, memory))}" for model in leave)
    kept = " + ".join(f"{model.model} {gib(reclaimed(model, memory))}" for model in stay)
    owners = [each.profile for each in here if each.persistent and any(model.ref in each.needs for model in stay)]
    lets_go = "".join(f"lakehouse profile deactivate {owner}, which is persistent; or " for owner in owners)
    return Refusal(
        "invalid",
        f"profile {target.profile!r} needs {gib(needed)} of GPU memory ({' + '.join(wanted)} + headroom "
        f"{gib(memory.headroom)}), but {gib(memory.free + had)} can be had: {gib(memory.free)} free + "
        f"{gib(had)} of models that may leave{f' ({of})' if of else ''}"
        + (f"; persistent profiles keep {kept}" if kept else ""),
        f"nothing was unloaded; {lets_go}use a smaller model or quantisation, or free memory that other programs hold "
        "(lakehouse vram)",
    )
