"""CPU seconds of measuring configurations our way (one build per graph, one eval set, the sweep
and the comparison with the champion included) against the naive way: for each configuration a
build, the ground truth, and one pass over the queries.

    python benchmarks/tuning_cost.py [--rows 50000]

Goals: 20 configurations on 5 graphs in at most 0.28 of the naive time; the default grid (5
configurations, 4 graphs) in at most 0.8. CPU time, since a shared machine's wall time is noise.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in the worker; before numpy is imported

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors import hnsw
from actors.autotune import harness, measure
from actors.autotune.builds import LiveGraph, Vectors
from actors.autotune.grid import by_graph
from actors.autotune.harness import EvalSet
from actors.autotune.jobs import Champion, TrialOrder, make_eval_set, run_trial
from actors.backends.hnsw import HnswBackend
from actors.graphs import GraphCache
from benchmarks.tuning_surface import clustered, finish
from schemas.config import DEFAULT_CONFIG, HnswConfig
from schemas.events.autotune import DEFAULT_GRID

QUERIES = 500
TWENTY = [HnswConfig(16, efc, ef) for efc in (20, 40, 80, 120, 160) for ef in (20, 30, 60, 120)]
GRID = [HnswConfig(point.M, point.ef_construction, point.ef_search) for point in DEFAULT_GRID]


def last(items: Iterator[Any]) -> Any:
    """The last thing that a job yields: its result."""
    for item in items:
        result = item
    return result


def naive(vectors: Vectors, configs: Sequence[HnswConfig]) -> float:
    """CPU seconds of a build, the ground truth and a pass for each configuration."""
    started = time.process_time()
    rows, stored = vectors.load()
    for config in configs:
        picked = harness.sample(rows, QUERIES, 42)
        truth = harness.create(stored[picked], rows[picked], rows, stored, vectors.metric, kept=measure.K)
        graph = finish(hnsw.build(stored, rows, vectors.metric, config.build))
        measure.point(HnswBackend(graph, vectors.metric), truth, config.effort)
    return time.process_time() - started


def trial(order: TrialOrder) -> tuple[float, int]:
    """CPU seconds of a trial, and how many points it measured."""
    started = time.process_time()
    points = len(last(run_trial(order)).points)
    return time.process_time() - started, points


def both(vectors: Vectors, configs: Sequence[HnswConfig], live: LiveGraph, folder: Path) -> tuple[float, float, int]:
    """CPU seconds naively and as a grid campaign, and the campaign's points. Graph by graph the
    two take turns, so that a busy moment hits both."""
    started = time.process_time()
    eval_set: EvalSet = last(make_eval_set(vectors, None, QUERIES, 42))
    path = folder / "eval-set.npz"
    path.write_bytes(harness.dump(eval_set))
    theirs, mine, measured = 0.0, time.process_time() - started, 0
    for proposal in by_graph(configs):
        order = TrialOrder(
            vectors=vectors,
            eval_set=path,
            config=proposal.config,
            extra=proposal.extra,
            ef_bounds=(10, 400),
            target_recall=0.95,
            reuse_live=False,
            live=live,
            champion=Champion("generation-1", live.config),
            cache=GraphCache(folder / f"graphs-{len(configs)}", 1 << 40),
        )
        seconds, points = trial(order)
        mine, measured = mine + seconds, measured + points
        theirs += naive(vectors, [config for config in configs if config.build == proposal.config.build])
    return theirs, mine, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors = Vectors("bench", 1, "cosine", folder / "rows.npy", folder / "vectors.npy")
        np.save(vectors.rows_path, np.arange(asked.rows, dtype=np.int64))
        np.save(vectors.vectors_path, clustered(asked.rows, 128))
        rows, stored = vectors.load()
        path = folder / "live.hnsw"
        sha256 = hnsw.save(finish(hnsw.build(stored, rows, "cosine", DEFAULT_CONFIG.build)), path)
        live = LiveGraph(path, sha256, DEFAULT_CONFIG, asked.rows)
        print(f"{asked.rows} x 128 clustered, {QUERIES} queries, CPU seconds; shared machine: read the ratio")
        print(f"{'':28} {'naive':>8} {'ours':>8} {'ratio':>7} {'goal':>6} {'points measured':>16}")
        for what, configs, goal in (("default grid, 5 on 4 graphs", GRID, 0.8), ("20 on 5 graphs", TWENTY, 0.28)):
            theirs, mine, points = both(vectors, configs, live, folder)
            print(f"{what:28} {theirs:8.1f} {mine:8.1f} {mine / theirs:7.3f} {goal:6.2f} {points:16}", flush=True)


if __name__ == "__main__":
    main()
