"""What runs in the worker process: eval sets and trials. Generators, so that progress streams;
their arguments are plain values and local paths, and nothing here knows a bus or a registry.
What is built or found to be measured: `builds`.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.autotune import builds, harness, measure
from actors.autotune.bounds import Ratio
from actors.autotune.builds import Built, Live, Phase, Site, Vectors
from actors.autotune.decide import choose
from actors.autotune.harness import EvalSet
from actors.autotune.measure import Point
from actors.autotune.sweep import Bounds, efforts
from actors.backends.lance_store import Place
from actors.graphs import GraphCache
from schemas.config import Effort, IndexConfig
from schemas.names import Bytes, Rows, Seconds, TrialId


@dataclass(frozen=True)
class Champion:
    """What a challenger is measured against."""

    trial: TrialId
    config: IndexConfig


@dataclass(frozen=True)
class TrialOrder:
    vectors: Vectors
    eval_set: Path  # .npz, with truth at the vectors' version
    config: IndexConfig
    extra: Sequence[Effort]
    ef_bounds: tuple[int, int]
    target_recall: float
    live: Live | None
    reuse_live: bool  # measure what is live: `config` is its
    champion: Champion | None
    cache: GraphCache
    store: Place | None = None  # of the index, at the vectors' version


@dataclass(frozen=True)
class Measured:
    """A trial's result, the job's last item."""

    points: list[Point]
    chosen: Effort  # of the point that the trial stands for
    champion: Champion | None  # None when there was none to compare with
    ratio: Ratio | None
    champion_recall_lower: float | None
    build: str
    build_s: Seconds
    build_cpu_s: Seconds
    bytes: Bytes
    library: str
    added: Rows
    deleted: Rows


def make_eval_set(
    vectors: Vectors, queries: NDArray[np.float32] | None, many: int, seed: int
) -> Iterator[Phase | EvalSet]:
    """An eval set of given queries, or of `many` sampled rows."""
    rows, stored = vectors.load()
    if queries is None:
        picked = harness.sample(rows, many, seed)
        queries, own = np.ascontiguousarray(stored[picked]), rows[picked]
    else:
        own = np.full(len(queries), harness.NOWHERE, np.int64)
    yield Phase("truth", 0, len(queries), "queries")
    yield harness.create(queries, own, rows, stored, vectors.metric)


def merge_eval_set(path: Path, vectors: Vectors) -> Iterator[Phase | EvalSet]:
    """The eval set with its truth brought up to the snapshot."""
    eval_set = harness.parse(path.read_bytes())
    yield Phase("truth", 0, len(eval_set.queries), "queries")
    yield harness.bring_up(eval_set, *vectors.load(), vectors.metric)


def run_trial(order: TrialOrder) -> Iterator[Phase | Measured]:
    """One build, its sweep, and the comparison with the champion."""
    eval_set = harness.parse(order.eval_set.read_bytes())
    site = Site(order.vectors, eval_set, *order.vectors.load(), order.cache, order.store)
    if order.reuse_live:
        if order.live is None:
            raise ValueError("nothing is live that could be measured")
        built = yield from builds.live(site, order.live)
    else:
        built = yield from builds.fresh(site, order.config)
    measure.warm_up(built.backend, eval_set.queries, order.config.effort)
    points = yield from _sweep(order, built, eval_set)
    chosen = choose(points, order.target_recall)
    yield Phase("compare", 0, min(measure.PAIRS, len(eval_set.queries)), "queries")
    ratio, champion_lower = yield from _against_champion(order, site, built, points, chosen)
    yield Measured(
        points=points,
        chosen=chosen,
        champion=order.champion if ratio is not None else None,
        ratio=ratio,
        champion_recall_lower=champion_lower,
        build=built.build,
        build_s=built.build_s,
        build_cpu_s=built.build_cpu_s,
        bytes=built.bytes,
        library=built.library,
        added=built.added,
        deleted=built.deleted,
    )


def _sweep(order: TrialOrder, built: Built, eval_set: EvalSet) -> Generator[Phase, None, list[Point]]:
    low, high = order.ef_bounds
    low = max(low, measure.K + 1)  # a graph is searched with max(ef, k), and k + 1 are asked for
    points: list[Point] = []
    search = efforts(order.config, Bounds(low, max(low, high)), order.extra)
    effort = next(search)
    while True:
        points.append(measure.point(built.backend, eval_set, effort))
        yield Phase("sweep", len(points), None, "points")
        try:
            effort = search.send(points[-1].recall_lower >= order.target_recall)
        except StopIteration:
            return points


def _against_champion(
    order: TrialOrder, site: Site, built: Built, points: list[Point], chosen: Effort
) -> Generator[Phase, None, tuple[Ratio | None, float | None]]:
    """The latency ratio, and the lower bound of the champion's recall. None for a challenger that
    misses the target, and where the champion's build is nowhere to be had."""
    eval_set, champion, live = site.eval_set, order.champion, order.live
    if champion is None:
        return None, None
    held = next(p for p in points if p.effort == chosen).recall_lower >= order.target_recall
    if not held and not order.reuse_live:
        return None, None  # it can't win, however fast it is
    against: Built | None
    if live is not None and champion.config.build == live.config.build:
        against = built if order.reuse_live else (yield from builds.live(site, live))
    else:
        against = yield from builds.there(site, champion.config)
    if against is None:
        return None, None
    effort = champion.config.effort
    measured = [p for p in points if p.effort == effort] if against is built else []
    lower = (measured[0] if measured else measure.point(against.backend, eval_set, effort)).recall_lower
    if against is built and effort == chosen:
        return Ratio(1.0, 1.0, 1.0), lower
    return measure.compare((built.backend, chosen), (against.backend, effort), eval_set.queries), lower
