"""What runs in the worker process: a graph's build, an index's build in a Lance store, a store's
optimising. Generators, so that progress streams."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from actors import hnsw
from actors.backends import lance_store
from actors.backends.lance_store import Place
from schemas.config import GraphConfig, LanceBuild
from schemas.names import Metric, Rows, Seconds, Sha256

PER_MILLE = 1000

REPORT_S = 0.25
"""Time between two progress reports."""


class BuildProgress(msgspec.Struct, frozen=True):
    done: Rows


class GraphFile(msgspec.Struct, frozen=True):
    """The last item: the graph is saved."""

    sha256: Sha256
    rows: Rows
    build_s: Seconds


def build_graph(
    rows_path: Path, vectors_path: Path, metric: Metric, config: GraphConfig, path: Path
) -> Iterator[BuildProgress | GraphFile]:
    """Builds a graph over a snapshot and saves it at `path`."""
    started = reported = time.perf_counter()
    rows = np.load(rows_path)
    build = hnsw.build(np.load(vectors_path, mmap_mode="r"), rows, metric, config)
    while True:
        try:
            done = next(build)
        except StopIteration as stop:
            graph = stop.value
            break
        if time.perf_counter() - reported > REPORT_S:
            reported = time.perf_counter()
            yield BuildProgress(done)
    build_s = time.perf_counter() - started
    yield GraphFile(hnsw.save(graph, path), len(rows), build_s)


class InStore(msgspec.Struct, frozen=True):
    """The last item of what is done to a store."""

    lance_version: int  # that has it
    seconds: Seconds


def build_vector_index(place: Place, metric: Metric, build: LanceBuild, name: str) -> Iterator[BuildProgress | InStore]:
    """Builds an index in a store. Progress is in thousandths."""
    started = time.perf_counter()
    work = lance_store.build_index(place, metric, build, name)
    while True:
        try:
            yield BuildProgress(int(next(work) * PER_MILLE))
        except StopIteration as stop:
            yield InStore(stop.value, time.perf_counter() - started)
            return


def optimise_store(
    place: Place, keep: Sequence[str], merge: Sequence[str], retrain: bool, keep_s: Seconds
) -> Iterator[BuildProgress | InStore]:
    """See `lance_store.optimise`."""
    started = time.perf_counter()
    yield BuildProgress(0)
    lance_version = lance_store.optimise(place, keep, merge, retrain, keep_s)
    yield InStore(lance_version, time.perf_counter() - started)
