"""Live recall: sampled queries run again exactly, in one thread of low priority, and the mean
over the newest of them. Judged by distance ties: corpora are full of equal texts, and which of
them a search returns doesn't matter.
"""

import asyncio
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.errors import CorruptState, Transient
from actors.index.core import RecallBounds, drifted, recall_bounds
from actors.index.vectors import ExactSearch
from actors.planner_ports import Plan
from schemas.codec import ArtifactName
from schemas.events.index import LiveRecall
from schemas.names import Share, Timestamp

K = 10
"""Recall is told at this k: of queries that asked for no fewer, by their first K answers."""
WINDOW = 2000
"""Samples that the mean is over: the newest."""

WAITING = 64
"""Sampled queries that may wait for their check; more are forgotten."""

TIE = 1e-5
"""Distances are equal within this: hnswlib and BLAS round differently."""


class Sample(msgspec.Struct, frozen=True):
    """A query as it was answered."""

    generation: int
    query: NDArray[np.float32]  # (d,)
    distances: NDArray[np.float32]  # (<= K,) ascending, as answered
    vectors: ExactSearch  # what it was answered from
    codec: ArtifactName | None = None  # by whose codes; None: by the graph
    plan: Plan | None = None  # what the planner said of it, and wants to hear more of
    counted: bool = True  # in live recall; else the planner alone wants it


class RecallWindow:
    """Recall of one generation of one index, or of the codec that serves in its place."""

    def __init__(self, generation: int, since: Timestamp, codec: ArtifactName | None = None) -> None:
        self.reported = False  # a drift is told once
        self._generation = generation
        self._codec = codec
        self._since = since
        self._recalls: deque[float] = deque(maxlen=WINDOW)

    def is_of(self, sample: Sample) -> bool:
        """A codec's answers are its own, whatever generation waits behind it."""
        if sample.codec is not None or self._codec is not None:
            return sample.codec == self._codec
        return sample.generation == self._generation

    def add(self, recalls: list[float]) -> None:
        self._recalls.extend(recalls)

    def _bounds(self) -> RecallBounds:
        values = np.array(self._recalls)
        return recall_bounds(len(values), float(values.sum()), float((values**2).sum()))

    def live_recall(self) -> LiveRecall | None:
        """None before the first sample."""
        if not self._recalls:
            return None
        bounds = self._bounds()
        return LiveRecall(len(self._recalls), bounds.mean, bounds.lower, bounds.upper, self._since)

    def has_drifted(self, target: Share) -> bool:
        return not self.reported and drifted(len(self._recalls), self._bounds(), target)


class Checker:
    """Runs samples again. One thread, niced: it takes what queries leave over."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def open(self) -> None:
        self.close()
        self._thread = ThreadPoolExecutor(1, "recall", initializer=_be_nice)

    async def truths(self, samples: list[Sample]) -> list[NDArray[np.float32] | None]:
        """(<= K,) exact distances of each sample, in order. See `truths_of`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, truths_of, samples)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None


def truths_of(samples: list[Sample]) -> list[NDArray[np.float32] | None]:
    """Of each, the distances of the K true nearest rows (of all, if there are fewer). There must be rows. Samples of
    the same vectors are asked together: a store is read once for all. None where the vectors can't be read any more."""
    together: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        together.setdefault(id(sample.vectors), []).append(place)
    truths: list[NDArray[np.float32] | None] = [None] * len(samples)
    for places in together.values():
        some = [samples[place] for place in places]
        try:
            _, truth = some[0].vectors.exact(np.stack([sample.query for sample in some]), K)
        except (FileNotFoundError, CorruptState, Transient):  # of a store that was optimised or dropped since
            continue
        for place, line in zip(places, truth, strict=True):
            truths[place] = line
    return truths


def recall_of(sample: Sample, truth: NDArray[np.float32]) -> float:
    """Share of the true nearest that it answered, a row as near as the last of them being as good."""
    return int(np.count_nonzero(sample.distances <= truth[-1] + TIE)) / len(truth)


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # Linux: of this thread alone
