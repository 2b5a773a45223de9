"""What the gate's shells need beside ports.py: the rows of `gate_events`. The daemon implements it."""

from collections.abc import Sequence
from typing import Protocol

from schemas.documents.gate import GateEvent


class GateJournal(Protocol):
    """What trainings of gates gave, for ever."""

    async def append(self, events: Sequence[GateEvent]) -> None:
        """Of one run. Durable on return; rows of a run that is there already are not written again."""
        ...

    async def run(self, run: str) -> list[GateEvent]:
        """The rows of a run; empty when it has none."""
        ...
