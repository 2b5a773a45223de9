"""What the servers' reports mean: whether a model is whole, and what the slot must then be.

A model that is listed with its time run out is being stopped: neither ready nor gone. One look
never decides; reconciler.py looks twice before it believes a change.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from actors.profile.core import Happened, Member, placed
from schemas.events.profile import LoadedModel, ModelRef, SlotState
from schemas.names import ProfileName, ServerName, Timestamp

GIVEN_UP_S = 600.0
"""Memory that hasn't come free for so long, with nothing of it listed, is somebody else's: what can
be loaded is then decided by what is free."""

Presence = Literal["whole", "partial", "stopping", "gone", "unseen"]

Seen = Mapping[ServerName, Sequence[LoadedModel] | None]
"""What each server lists; None: it didn't answer."""


def is_stopping(model: LoadedModel, now: Timestamp) -> bool:
    return model.expires_at is not None and model.expires_at <= now


def is_whole(model: LoadedModel) -> bool:
    """On the GPU with all its bytes, as far as its server says."""
    return model.size is None or model.size_vram is None or model.size_vram >= model.size


def find(ref: ModelRef, seen: Seen) -> LoadedModel | None:
    return next((model for model in seen.get(ref.server) or () if model.ref == ref), None)


def presence(ref: ModelRef, seen: Seen, now: Timestamp, *, allow_partial: bool = False) -> Presence:
    """Where a model stands by one look."""
    if seen.get(ref.server) is None:
        return "unseen"
    model = find(ref, seen)
    if model is None:
        return "gone"
    if is_stopping(model, now):
        return "stopping"
    return "whole" if allow_partial or is_whole(model) else "partial"


def decide(
    state: SlotState, profile: ProfileName | None, found: Mapping[ModelRef, Presence], *, freed: bool = True
) -> Happened | None:
    """What has happened to a slot whose models are `found` like this, when no order is under way;
    None: nothing. `freed`: the memory of what was being unloaded is free, as far as can be read."""
    if state == "empty":
        return None
    kinds = set(found.values())
    if "unseen" in kinds or "stopping" in kinds:
        return None if state == "unknown" else "in doubt"
    if profile is not None and kinds == {"whole"}:
        return None if state == "ready" else "seen ready"
    if state == "ready":
        return "model lost" if "gone" in kinds or not kinds else "in doubt"
    if "partial" in kinds and "gone" not in kinds:
        return None if state == "unknown" else "in doubt"
    if freed or kinds & {"whole", "partial"}:  # what is left is told to leave, and its memory waited for
        return "seen empty"
    return None if state == "unknown" else "in doubt"


def holder(
    members: Sequence[Member], running: Sequence[LoadedModel], now: Timestamp, *, allow_partial: bool = False
) -> Member | None:
    """Whose the slot is when nobody knows, by what runs: the one profile that has all of its models there, whole,
    and beside an exclusive one nothing but persistent profiles' models. None when several could have it, or none."""
    seen: Seen = {model.server: [each for each in running if each.server == model.server] for model in running}
    whole = {model.ref for model in running if presence(model.ref, seen, now, allow_partial=allow_partial) == "whole"}
    there = [each for each in members if set(each.needs) <= whole]
    there = [each for each in there if not any(set(each.needs) < set(other.needs) for other in there)]
    if len(there) != 1:
        return None
    (found,) = there
    stays = {ref for each in members if each.persistent for ref in each.needs} | set(found.needs)
    return found if not found.exclusive or {model.ref for model in running} <= stays else None


def why(found: Mapping[ModelRef, Presence], seen: Seen, reasons: Mapping[ServerName, str], *, came: bool = True) -> str:
    """Why the slot isn't what it was, or should be: a clause for people. `came`: the models were there before."""
    parts = []
    for ref, kind in found.items():
        model = find(ref, seen)
        if kind == "unseen":
            parts.append(reasons.get(ref.server) or f"{ref.server} doesn't answer")
        elif kind == "gone":
            parts.append(f"{ref} left the memory" if came else f"{ref} isn't listed")
        elif kind == "stopping":
            parts.append(f"{ref} is being stopped by its server")
        elif kind == "partial" and model is not None:
            parts.append(f"{ref}: {placed(model)}")
    return "; ".join(dict.fromkeys(parts))
