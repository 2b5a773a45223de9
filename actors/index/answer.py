"""What is found for a query before it is an answer, and the watch that times its steps."""

from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.index.filters import Matching
from actors.index.vectors import ExactSearch
from actors.planner_ports import Plan
from actors.vector_backend import Neighbours
from schemas.codec import ArtifactName
from schemas.config import Effort
from schemas.events.index import Hit, SearchResult, Step, Strategy


class Stopwatch:
    """Times of a query and its steps; with notes when somebody wants them explained."""

    def __init__(self, explain: bool) -> None:
        self.started = self._lap = perf_counter()
        self.steps: list[Step] = []
        self.laps: list[tuple[str, float]] = []  # operators and their microseconds
        self._explain = explain

    def step(self, name: str, note: str = "", *values: object) -> None:
        """A step ended here. The note is formatted with the values, as a log line is."""
        now = perf_counter()
        us = (now - self._lap) * 1e6
        self._lap = now
        self.laps.append((name, us))
        if self._explain:
            self.steps.append(Step(name, us, note % values))

    @property
    def total_us(self) -> float:
        return (perf_counter() - self.started) * 1e6


class Near(msgspec.Struct, frozen=True):
    """Neighbours, and how they were found."""

    found: Neighbours  # (q, <= k)
    strategy: Strategy
    vectors: ExactSearch  # what was searched
    effort: Effort | None  # that it took; None: an exact search
    hits: list[list[Hit]] | None = None  # where the columns came along


class Answer(msgspec.Struct, frozen=True):
    """A search's answer, and what a sample of it needs."""

    queries: NDArray[np.float32]  # (q, d)
    found: Neighbours  # (q, <= k)
    strategy: Strategy
    effort: Effort | None
    matching: int | None  # rows that the filter leaves
    vectors: ExactSearch
    codec: ArtifactName | None  # by whose codes
    result: SearchResult
    plan: Plan | None = None  # what the planner said, where it did
    filtered: Matching | None = None
