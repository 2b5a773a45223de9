"""deploy/slot.md, drawn from the slot's table: what an operator needs to know of the states."""

from typing import get_args

from actors.profile.core import MEANING, TRANSITIONS, Happened
from actors.profile.core_reconcile import GIVEN_UP_S, Presence, decide
from actors.profile.core_settle import BLIND_S
from actors.profile.look import BELIEVED_S
from schemas.events.profile import ModelRef, SlotState

SEEN: dict[str, set[Presence]] = {
    "all models whole": {"whole"},
    "one is gone": {"whole", "gone"},
    "one is being stopped": {"whole", "stopping"},
    "one is partly on the CPU": {"whole", "partial"},
    "a server doesn't answer": {"unseen"},
}

STATES: dict[SlotState, str] = {
    "empty": "no profile holds the slot",
    "loading": "the profile's models are on their way in",
    "ready": "the profile's models were seen in memory, as a whole, a moment ago",
    "unloading": "models are on their way out",
    "unknown": "the truth can't be established; nothing is loaded until it is",
}

NOTES = """## Who leaves
For an exclusive profile everything leaves but the models of persistent ones. For any other, an exclusive
profile's models leave, and those of its own group, whose members take turns; the rest stays while there is
room, else the set of models leaves that takes the fewest seconds to load again. A model that the profile
needs and that is in memory as a whole isn't touched. A persistent exclusive profile makes way for nobody while
it is active: deactivate it first.

When a model of the active profile leaves by itself, the profile is deactivated and what else it has in memory
leaves too: an empty slot is one.

## Admission
Before anything is unloaded: the missing models' sizes (as measured when they were last loaded or as their server
tells, whichever is more) + `[slot] headroom_mb` must fit into the free memory + what those hold that may leave.
Else 422 with the arithmetic. Where GPU memory can't be read nothing is checked, and a model whose size nobody
knows counts as nothing: the log says so of both.

## When memory is free
A model is out when its server no longer lists it, 90 % of what it held has come free, and two readings are
within `[slot] settle_tolerance_mb`; when servers claimed more than they held, half of it will do after two
seconds' rest. All of that within `[slot] unload_deadline_s` from the order to leave.

Where GPU memory can't be read, a model is out when its server no longer lists it. Its memory may come free a moment
later: a model that came up partly on the CPU because of that is unloaded and loaded once more, {blind:g} s later.

The readings were right to the MiB on an NVIDIA H200: `python -m benchmarks.vram --allocate 4GiB` says whether they
are on another GPU.

## What the slot doesn't see
The slot governs what goes through it. A text search without a profile, and an index that catches up with its
dataset, have their texts embedded by the index's own embedder: when that is a model of Ollama, Ollama loads it,
also behind an exclusive profile. Make it the profile's embedder, too, or use the lexical one.

## unknown
The old models didn't leave in time, a server doesn't answer, or a model is being stopped. `lakehouse profile
active` says which. Every `[slot] reconcile_s` the servers are asked again, and two equal looks a second apart
decide. An activation or deactivation tries once more to unload what is in doubt. When a server doesn't let go
of a model, restart the server.

A server that hasn't answered for {believed:g} s (a daemon that has just started counts from its start) is taken to
have ended by what a person orders: its profile can be deactivated, and one that doesn't need it be activated. Until
then both are refused, with the seconds that are left. Memory that the slot waits for is waited for all the same.

Memory that hasn't come free {given_up:g} minutes after the slot became `unknown`, with none of its models listed
any more, is somebody else's: another program has taken it meanwhile, or the driver has lost it, and the two can't
be told apart. The slot is then `empty`, for it can't stay shut for ever; whether a profile fits is decided by what
is really free, so nothing is loaded on top of what is missing.

A document that is damaged is set aside (it stays in its bucket) and the slot is `unknown` until the servers have
been asked: the one profile that has all of its models in memory holds it again, else it is empty.
"""


def mermaid() -> str:
    """The states as a `stateDiagram-v2`."""
    lines = ["stateDiagram-v2", "    [*] --> empty"]
    for state, happenings in TRANSITIONS.items():
        lines += [f"    {state} --> {after}: {happened}" for happened, after in happenings.items()]
    return "\n".join(lines)


def page() -> str:
    """deploy/slot.md."""
    parts = [
        "# The slot",
        "Written by `make docs` from the table in actors/profile/core.py.",
        f"```mermaid\n{mermaid()}\n```",
        _table(["State", "Means"], [[state, text] for state, text in STATES.items()]),
        "## What happens, and what follows",
        _table(["What happens", "Means", *TRANSITIONS], [_row(happened) for happened in MEANING]),
        "## What a look at the servers makes of it",
        _table(["The servers report", *_states()], [[text, *_after(kinds)] for text, kinds in SEEN.items()]),
        NOTES.format(given_up=GIVEN_UP_S / 60, believed=BELIEVED_S, blind=BLIND_S).strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _row(happened: Happened) -> list[str]:
    return [happened, MEANING[happened], *(row.get(happened, "") for row in TRANSITIONS.values())]


def _states() -> list[SlotState]:
    return [state for state in get_args(SlotState) if state != "empty"]


def _after(kinds: set[Presence]) -> list[str]:
    """What each state becomes when the profile's models look like this."""
    found: dict[ModelRef, Presence] = {ModelRef("ollama", kind): kind for kind in sorted(kinds)}
    happened = [decide(state, "p", found) for state in _states()]
    return [
        state if what is None else TRANSITIONS[state][what] for state, what in zip(_states(), happened, strict=True)
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
