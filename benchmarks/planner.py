"""Does a learned effort per query pay? The planner against the best fixed ef_search, a static difficulty feature alone,
patterns whose efforts are permuted (placebo), and oracles.

    python -m benchmarks.planner [--cache /tmp/planner] [--proof equal|filters|drift|live] [--seed 7]
    python -m benchmarks.planner --backend lance --labels 2000

All policies are compared on the same measurements (planner_tables.py): recall and CPU time of every query at every rung
of an ef ladder. Queries are split into train (labels), calibration and test. The planner is the product's: it chooses
as it would live, having calibrated itself on its labels; the other policies are calibrated on the calibration queries.
What choosing takes, measured here, is charged to every query. 95 % intervals: paired bootstrap over the test queries.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors.planner.config import PlannerConfig
from actors.planner.core_cycle import cycle
from actors.planner.core_labels import LADDER, RUNGS, Labels, calibrated
from actors.planner.core_predictor import nearest, smoothed
from actors.planner.core_terrain import Terrain
from actors.planner.instant import Choice, Instant
from benchmarks.planner_tables import Tables, measured
from schemas.names import Backend

SIZES: dict[Backend, dict[str, tuple[int, int]]] = {
    "hnsw": {"docstrings": (25_000, 7000), "clusters": (40_000, 8000)},
    "lance": {"docstrings": (70_000, 5500), "clusters": (200_000, 5500)},
}
"""Rows and queries of each corpus."""
TEST, CALIBRATION = 2500, 1000
TARGETS = (0.95, 0.99)
DRAWS = 2000
PLAN = ("graph", "fetch")

F64 = NDArray[np.float64]
console = Console(width=190)


@dataclass(frozen=True)
class Split:
    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    test: NDArray[np.int64]


def split(n: int, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(n)
    return Split(order[TEST + CALIBRATION :], order[TEST : TEST + CALIBRATION], order[:TEST])


class Studied:
    """A planner that has seen the training queries, and what it predicts for any."""

    def __init__(self, tables: Tables, train: NDArray[np.int64], labels: int, target: float, seed: int) -> None:
        self.tables = tables
        self.config = PlannerConfig(seed=seed)
        self.instant = Instant(self.config, tables.queries.shape[1], target)
        self.instant.terrain = Terrain.of(tables.vectors, np.random.default_rng(seed))
        self.default = default = float(np.log2(fixed_for(tables, train, target)))
        for place, i in enumerate(train):
            choice = self.choose(i)
            number = self.instant.after(choice, [("graph", 100.0)], default, 100.0, 0.1, 1.0)
            if place < labels:
                self.instant.ring.grade(number, 1.0, target)
                told = tables.recall[i], tables.cost_us[i].astype(np.float32)
                self.instant.told(choice, *told)
        made = cycle(self.instant.learned, self.instant.ring.look(), self.instant.labels, target, self.config)
        self.instant.adopt(made.learned)
        self.cycle = made

    def choose(self, i: int) -> Choice:
        return self.instant.before(self.tables.queries[i], PLAN, 10, 1.0, self.default, "graph")

    def efforts(self, among: NDArray[np.int64]) -> F64:
        """(m,) what it takes for each."""
        return np.array([2 ** self.choose(i).effort for i in among])

    def predicted(self, among: NDArray[np.int64]) -> F64:
        return np.array([self.choose(i).predicted for i in among])

    def permuted(self, seed: int) -> None:
        """The placebo: patterns keep their places and get each other's efforts."""
        bank = self.instant.learned.bank
        order = np.random.default_rng(seed).permutation(bank.size)
        mixed = bank._replace(effort=bank.effort[order], labels=bank.labels[order])
        self.instant.adopt(self.instant.learned._replace(bank=mixed))


def calibrate(tables: Tables, among: NDArray[np.int64], predicted: F64, target: float) -> Callable[[F64], F64]:
    """Efforts from predictions, by the (shift, slope) that hold the target on the calibration queries at least cost."""
    recall, us = tables.recall[among], tables.cost_us[among].astype(np.float32)
    none = np.empty((len(among), 1), np.float32)
    shift, slope = calibrated(Labels(none, recall, us, none[:, 0], none), predicted, target)
    return lambda values: 2 ** np.clip(shift + slope * values, RUNGS[0], RUNGS[-1])


def fixed_for(tables: Tables, among: NDArray[np.int64], recall: float) -> float:
    """The fixed ef, bisected, of that mean recall."""
    return _bisected(lambda ef: tables.at(np.full(len(among), ef), among)[0].mean() < recall)


def fixed_at(tables: Tables, among: NDArray[np.int64], us: float) -> float:
    """The fixed ef, bisected, of that mean cost."""
    return _bisected(lambda ef: tables.at(np.full(len(among), ef), among)[1].mean() < us)


def _bisected(low_side: Callable[[float], bool]) -> float:
    low, high = RUNGS[0], RUNGS[-1]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if low_side(2**middle) else (low, middle)
    return float(2**high)


def marginal(tables: Tables, among: NDArray[np.int64], recall: float) -> F64:
    """The best that any choice of efforts could do: each query's recall - λ cost at its greatest."""
    cost = tables.cost_us[among].mean(axis=0)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        rung = (tables.recall[among] - middle * cost).argmax(axis=1)
        low, high = (middle, high) if tables.recall[among, rung].mean() >= recall else (low, middle)
    return np.array(LADDER, np.float64)[(tables.recall[among] - low * cost).argmax(axis=1)]


# --- proofs 1 and 2 ------------------------------------------------------------------------------


def equal(tables: Tables, own_us: float, seed: int, labels: int) -> None:
    parts = split(len(tables.queries), seed)
    table = Table(
        "target", "policy", "recall", "times as fast at equal recall", "were choosing free", "under target",
        "of fixed, at equal time", "worst decile (fixed)", box=None,
    )  # fmt: skip
    for target in TARGETS:
        for name, values, own in policies(tables, parts, target, seed, labels, own_us):
            report(table, tables, parts.test, name, values, target, own)
    console.print(
        f"\n{tables.name} on {tables.backend}: {len(tables.vectors):,} x {tables.vectors.shape[1]}, {labels:,} labels, "
        f"{len(parts.test):,} test queries", table,
    )  # fmt: skip


def policies(
    tables: Tables, parts: Split, target: float, seed: int, labels: int, own_us: float
) -> list[tuple[str, F64, float]]:
    """Name, (t,) efforts on the test queries, and what choosing costs."""
    studied = Studied(tables, parts.train, labels, target, seed)
    made = [("planner", studied.efforts(parts.test), own_us)]
    first = parts.train[:labels]
    for name, columns in (("static: nearest centroid", [2]), ("static: six features", list(range(6)))):
        static = [np.array([studied.instant.terrain.features(_unit(tables.queries[i])) for i in among])[:, columns]
                  for among in (first, parts.calibration, parts.test)]  # fmt: skip
        w = _ridge(static[0], tables.sufficient(first))
        values = calibrate(tables, parts.calibration, w(static[1]), target)(w(static[2]))
        made.append((name, values, own_us if len(columns) > 1 else 0.0))
    for name in ("patterns alone", "patterns alone, permuted"):
        kind = [np.array([pattern_only(studied, i) for i in among]) for among in (parts.calibration, parts.test)]
        made.append((name, calibrate(tables, parts.calibration, kind[0], target)(kind[1]), own_us))
        if name == "patterns alone":
            studied.permuted(seed)
            made.append(("placebo: the planner, permuted", studied.efforts(parts.test), own_us))
    wanted = [tables.sufficient(among) for among in (parts.calibration, parts.test)]
    made.append(("oracle: its own label", calibrate(tables, parts.calibration, wanted[0], target)(wanted[1]), 0.0))
    made.append(("oracle: best possible", marginal(tables, parts.test, target), 0.0))
    return made


def pattern_only(studied: Studied, i: int) -> float:
    """The smoothed effort of the nearest patterns, without static features and adapters."""
    bank = studied.instant.learned.bank
    plan = studied.instant.embedding.embed(studied.tables.queries[i], PLAN, 10, 1.0)
    similar = bank.centroids @ plan
    places = nearest(similar)
    return smoothed(similar[places].tolist(), bank.effort[places].tolist(), bank.labels[places].tolist())[0]


def _unit(query: NDArray[np.float32]) -> NDArray[np.float32]:
    return query / max(float(np.linalg.norm(query)), 1e-12)


def _ridge(x: F64, y: F64) -> Callable[[F64], F64]:
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = (x - mean) / spread
    w = np.linalg.solve(z.T @ z + 20 * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return lambda values: (values - mean) / spread @ w + y.mean()


def report(
    table: Table, tables: Tables, test: NDArray[np.int64], name: str, values: F64, target: float, own_us: float
) -> None:
    recall, cost = tables.at(values, test)
    same = np.full(len(test), fixed_for(tables, test, recall.mean()))
    free = interval(tables.at(same, test)[1], cost)
    cost = cost + own_us
    speed = interval(tables.at(same, test)[1], cost)
    as_long = np.full(len(test), fixed_at(tables, test, cost.mean()))
    other = tables.at(as_long, test)[0]
    missed, missed_fixed = recall < target - 1e-9, other < target - 1e-9
    share = interval(missed.astype(float), missed_fixed.astype(float))
    worst, worst_fixed = (np.sort(r)[: len(r) // 10].mean() for r in (recall, other))
    table.add_row(
        f"{target}", name, f"{recall.mean():.4f}", "{:.3f} ({:.3f} to {:.3f})".format(*speed),
        "{:.3f} ({:.3f} to {:.3f})".format(*free), f"{missed.mean():.1%}",
        "{:.2f} ({:.2f} to {:.2f})".format(*share), f"{worst:.3f} ({worst_fixed:.3f})",
    )  # fmt: skip


def interval(above: F64, below: F64) -> tuple[float, float, float]:
    """Ratio of means and its paired 95 % interval."""
    draws = np.random.default_rng(0).integers(0, len(above), (DRAWS, len(above)))
    ratios = above[draws].mean(axis=1) / np.maximum(below[draws].mean(axis=1), 1e-12)
    return above.mean() / max(below.mean(), 1e-12), *np.quantile(ratios, (0.025, 0.975))


def own_time(tables: Tables, seed: int) -> tuple[float, float, float]:
    """Median and p99 of the CPU time of choosing and remembering, and their mean: microseconds."""
    studied = Studied(tables, np.arange(2000), 500, 0.95, seed)
    took = []
    for i in range(4000):
        started = time.thread_time_ns()
        choice = studied.choose(i % len(tables.queries))
        studied.instant.after(choice, [("graph", 100.0), ("fetch", 10.0)], 6.0, 120.0, 0.01, 1.0)
        studied.instant.played(choice, "graph", 100.0)
        took.append((time.thread_time_ns() - started) / 1e3)
    return float(np.median(took)), float(np.quantile(took, 0.99)), float(np.mean(took))


def known_before(tables: Tables, seed: int, labels: int) -> float:
    """Correlation of what is predicted before a search with what the test queries needed."""
    parts = split(len(tables.queries), seed)
    predicted = Studied(tables, parts.train, labels, 0.99, seed).predicted(parts.test)
    return float(np.corrcoef(predicted, tables.sufficient(parts.test))[0, 1])


def cycle_time(tables: Tables, seed: int) -> float:
    """Seconds of a background cycle over 10,000 trajectories and 2,000 labels."""
    studied = Studied(tables, np.arange(2000), 2000, 0.95, seed)
    for i in range(8000):
        choice = studied.choose(i % len(tables.queries))
        studied.instant.after(choice, [("graph", 100.0)], 6.0, 120.0, 0.01, 1.0)
    instant = studied.instant
    seen = instant.ring.look()
    started = time.process_time()
    cycle(instant.learned, seen, instant.labels, 0.95, studied.config)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/planner"), help="tables of measurements")
    parser.add_argument("--proof", choices=["equal", "filters", "drift", "live", "none"], action="append")
    parser.add_argument("--backend", choices=["hnsw", "lance"], default="hnsw", help="lance: equal and live")
    parser.add_argument("--labels", type=int, action="append")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    all_of_them = ["equal", "live"] if args.backend == "lance" else ["equal", "filters", "drift", "live"]
    proofs = args.proof or all_of_them
    if other := set(proofs) - {*all_of_them, "none"}:
        parser.error(f"a Lance index has no strategies to choose from: --proof {' '.join(other)} is hnsw's")
    from benchmarks import planner_streams

    for name, sizes in SIZES[args.backend].items():
        tables = measured(name, *sizes, args.cache, args.backend)
        median, p99, mean = own_time(tables, args.seed)
        console.print(f"{name}: the instant loop takes {median:.1f} µs, p99 {p99:.1f}, mean {mean:.1f} (CPU)")
        console.print(
            f"{name}: a background cycle over 10,000 queries takes {cycle_time(tables, args.seed):.1f} s; predictions "
            f"correlate with what queries need by {known_before(tables, args.seed, 2000):.2f}"
        )
        if "equal" in proofs:
            for labels in args.labels or [500, 2000]:
                equal(tables, mean, args.seed, labels)
        if "drift" in proofs:
            planner_streams.drift(tables, args.seed)
        if "filters" in proofs:
            planner_streams.filters(tables, args.seed, args.cache)
        if "live" in proofs:
            planner_streams.live(tables, args.seed, args.cache)


if __name__ == "__main__":
    main()
