"""How far a job in the worker process is."""

import msgspec


class Phase(msgspec.Struct, frozen=True):
    phase: str
    done: int
    total: int | None
    unit: str
