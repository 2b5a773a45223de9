"""A background cycle as a job of the worker process: the cycle itself and the terrain of the index's rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.planner.config import PlannerConfig
from actors.planner.core_cycle import Cycle, Learned, cycle
from actors.planner.core_labels import Labels
from actors.planner.core_ring import Trajectories
from actors.planner.core_terrain import SAMPLE, Terrain

LONGEST = 1e15
"""Rows of longer numbers have no terrain: sums of their squares leave float32."""


@dataclass(frozen=True)
class LearningOrder:
    learned: Learned
    seen: Trajectories
    labels: Labels
    target: float
    config: PlannerConfig
    recent: int  # trajectories since a shift that the watch told of
    rows: Path | None  # (n, d) float32 .npy; None: the terrain stays as it is


@dataclass(frozen=True)
class Lesson:
    cycle: Cycle
    terrain: Terrain | None


def learn(order: LearningOrder) -> Iterator[Lesson]:
    """One lesson."""
    terrain = None
    if order.rows is not None:
        rows = np.load(order.rows, mmap_mode="r")
        if len(rows):
            rng = np.random.default_rng(order.config.seed)
            places = np.sort(rng.choice(len(rows), min(SAMPLE, len(rows)), replace=False))
            some = np.asarray(rows[places], np.float32)
            if np.abs(some).max() < LONGEST:
                terrain = Terrain.of(some, rng)
    made = cycle(order.learned, order.seen, order.labels, order.target, order.config, order.recent)
    yield Lesson(made, terrain)
