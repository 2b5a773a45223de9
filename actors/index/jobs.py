"""What runs in the worker process: one graph build. A generator, so that its progress streams."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from actors import hnsw
from schemas.config import GraphConfig
from schemas.names import Metric, Rows, Seconds, Sha256

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
