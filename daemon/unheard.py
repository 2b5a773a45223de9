"""A refusal that nobody waits for is told to all: of a command from the stream, and of one that was asked for by who
didn't wait."""

from schemas.events.base import CommandRefused, Message, Refusal, tag_of


def unheard(command: Message, refusal: Refusal) -> CommandRefused:
    return CommandRefused(tag_of(type(command)), refusal.status, refusal.reason, refusal.hint, _about(command))


def _about(command: Message) -> str:
    """What a command names: the index that is to be dropped, the profile that is to be made."""
    for field in ("index", "dataset", "name", "profile", "model"):
        value = getattr(command, field, None)
        name = getattr(value, "id", value)  # a whole profile is known by its id
        if isinstance(name, str):
            return name
    return ""
