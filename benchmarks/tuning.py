"""Build-seconds until a tuner is within 5 % of the cheapest configuration that holds its recall
target: our sweep + ε-greedy against single-point ε-greedy, random search and Optuna's TPE, all
on the same measured surface, with the null baseline beside them.

    python benchmarks/tuning.py [--rows 50000] [--seeds 30] [--cache DIR] [--docstrings]

Every graph of a 15-graph grid is built and measured once (benchmarks/tuning_surface.py); then the
tuners play on the measurements. A tuner pays the CPU seconds of each build it orders, sees
latencies with 3 % noise, and is judged by the noiseless cost of what it believes to be best.
Ours runs the daemon's own proposer, sweep and rules. Needs `optuna` for TPE (extra `tune`).
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors.autotune.bounds import mean_lower_bound
from actors.autotune.config import AgentConfig
from actors.autotune.decide import choose, chosen_points, holds, verdict
from actors.autotune.facts import Facts, policy
from actors.autotune.proposer import exhausted, journal_champion, propose
from actors.autotune.spaces import Ladder
from actors.autotune.sweep import sweep
from benchmarks.docstrings import docstrings
from benchmarks.tuning_surface import EF_CONSTRUCTION_AXIS, EF_LADDER, M_AXIS, Surface, clustered, measure
from schemas.config import HnswConfig
from schemas.documents.trial import TrialPoint

NEAR = 1.05
NOISE = 0.03
CAP = 300  # trials of a single-point tuner
EF_STEPS = EF_LADDER[::2]  # each about 1.17 times the one before: fine enough to come within 5 %
DEFAULT = (16, 100, min(EF_STEPS, key=lambda ef: abs(ef - 50)))
LADDER = Ladder(M=M_AXIS, ef_construction=EF_CONSTRUCTION_AXIS)

Step = tuple[float, float]
"""Build seconds spent so far, true cost of the best known so far (inf while none holds)."""


class Game:
    """A surface with a target: what a tuner may ask, and what is true."""

    def __init__(self, surface: Surface, target: float) -> None:
        self.surface, self.target = surface, target
        self.lower = np.array([[mean_lower_bound(recall) for recall in graph] for graph in surface.recall])
        # CPU time has its own ripple: cost as a function of ef is smoothed along the ladder
        self.cost = np.array([np.maximum.accumulate(_smooth(row)) for row in surface.cost_us])
        self.graphs = {(g.M, g.ef_construction): i for i, g in enumerate(surface.graphs)}
        feasible = self.lower >= target
        self.optimum = float(self.cost[feasible].min()) if feasible.any() else np.inf
        self.best = np.unravel_index(np.where(feasible, self.cost, np.inf).argmin(), self.cost.shape)
        g = self.graphs[DEFAULT[:2]]
        held = np.flatnonzero(feasible[g])
        self.null = float(self.cost[g, held[0]]) if len(held) else np.inf

    def seen(self, graph: tuple[int, int], ef: int, rng: np.random.Generator) -> tuple[float, float, float]:
        """(lower bound, latency as observed, true cost)"""
        g, e = self.graphs[graph], self.surface.rung(ef)
        true = float(self.cost[g, e])
        return float(self.lower[g, e]), true * float(np.exp(NOISE * rng.normal())), true

    def build_s(self, graph: tuple[int, int]) -> float:
        return float(self.surface.build_s[self.graphs[graph]])


def ours(game: Game, seed: int, whole_campaign: bool = False) -> Iterator[Step]:
    """The daemon's campaign: the default graph swept, then the ε-greedy rule. `whole_campaign`
    stops where the daemon would; otherwise it goes on until nothing is left to try."""
    rng, name, config = np.random.default_rng(seed), f"seed-{seed}", AgentConfig()
    rule = policy(game.target, config, Facts(game.target, HnswConfig(), False, []))
    rule = msgspec.structs.replace(rule, m_bounds=(M_AXIS[0], M_AXIS[-1]), ef_construction_bounds=(40, 200))
    journal: list[TrialPoint] = []
    spent, without_gain, graph, ef, proposer = 0.0, 0, DEFAULT[:2], DEFAULT[2], "champion"
    first: TrialPoint | None = None
    for number in itertools.count(1):
        spent += game.build_s(graph)
        rows = _trial(game, f"t{number}", graph, ef, proposer, first, rng)
        journal += rows
        chosen = chosen_points(rows)[0]
        first = first or chosen
        best = journal_champion(journal, game.target)
        without_gain = 0 if best is chosen else without_gain + (number > 1)
        if whole_campaign:
            said = verdict([p for p in journal if p.trial != "t1"], game.target, "cost_first", config.min_gain, first)
            best = said.winner or (first if holds(first, game.target) else best)
        yield spent, _true(game, best) if best and holds(best, game.target) else np.inf
        if whole_campaign and (
            number >= config.max_trials_per_campaign
            or without_gain >= config.patience
            or exhausted(journal, rule, LADDER)
        ):
            return
        proposal = propose(name, journal, rule, LADDER)
        if proposal is None:
            return
        graph, ef, proposer = (
            (proposal.config.M, proposal.config.ef_construction),
            proposal.config.ef_search,
            proposal.proposer,
        )


def single_point(game: Game, seed: int, epsilon: float = 0.25, cached: bool = False) -> Iterator[Step]:
    """ε-greedy over (M, ef_construction, ef_search), one build and one point a trial; `cached`
    pays each graph once. ε = 1 is random search."""
    rng = np.random.default_rng(seed)
    axes = (M_AXIS, EF_CONSTRUCTION_AXIS, EF_STEPS)
    everything = set(itertools.product(*axes))
    tried: dict[tuple[int, int, int], tuple[float, float, float]] = {}
    built: set[tuple[int, int]] = set()
    spent, config = 0.0, DEFAULT
    for _ in range(CAP):
        graph = config[:2]
        spent += 0.0 if cached and graph in built else game.build_s(graph)
        built.add(graph)
        tried[config] = game.seen(graph, config[2], rng)
        best = _best(tried, game.target)
        yield spent, tried[best][2] if tried[best][0] >= game.target else np.inf
        near = [
            c
            for c in itertools.product(*(_near(axis, value) for axis, value in zip(axes, best, strict=True)))
            if c not in tried
        ]
        pool = sorted(everything - tried.keys()) if rng.random() < epsilon or not near else near
        if not pool:
            return
        config = pool[int(rng.integers(len(pool)))]


def tpe(game: Game, seed: int) -> Iterator[Step]:
    """Optuna's TPE on the same three axes; infeasible points cost more the more they miss."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = np.random.default_rng(seed)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(
        {"M": M_AXIS.index(16), "efc": EF_CONSTRUCTION_AXIS.index(100), "ef": EF_STEPS.index(DEFAULT[2])}
    )
    worst = float(game.cost.max())
    tried: dict[tuple[int, int, int], tuple[float, float, float]] = {}
    spent = 0.0
    for _ in range(CAP // 3):
        trial = study.ask()
        config = (
            M_AXIS[trial.suggest_int("M", 0, len(M_AXIS) - 1)],
            EF_CONSTRUCTION_AXIS[trial.suggest_int("efc", 0, len(EF_CONSTRUCTION_AXIS) - 1)],
            EF_STEPS[trial.suggest_int("ef", 0, len(EF_STEPS) - 1)],
        )
        spent += game.build_s(config[:2])
        lower, cost, true = game.seen(config[:2], config[2], rng)
        tried[config] = (lower, cost, true)
        study.tell(trial, cost if lower >= game.target else worst * (1 + game.target - lower))
        best = _best(tried, game.target)
        yield spent, tried[best][2] if tried[best][0] >= game.target else np.inf


def report(game: Game, seeds: int) -> None:
    surface = game.surface
    g = surface.graphs[game.best[0]]
    print(f"\n{surface.name}, target {game.target}: cheapest is M {g.M}, ef_construction {g.ef_construction}, "
          f"ef_search {surface.ef[game.best[1]]} at {game.optimum:.1f} µs CPU per query")  # fmt: skip
    if not np.isfinite(game.optimum):
        print("  no configuration of the grid holds it")
        return
    tuners: list[tuple[str, Callable[[Game, int], Iterator[Step]]]] = [
        ("ours: sweep + ε-greedy", ours),
        ("single-point ε-greedy", single_point),
        ("single-point ε-greedy, graph cache", lambda game, seed: single_point(game, seed, cached=True)),
        ("random search", lambda game, seed: single_point(game, seed, epsilon=1.0)),
    ]
    try:
        import optuna  # noqa: F401

        tuners.append(("Optuna TPE", tpe))
    except ImportError:
        print("  (Optuna isn't installed: TPE is left out)")
    single = None
    print(f"  {'tuner':36} {'build s, median':>16} {'quartiles':>16} {'reached':>8} {'× single-point':>15}")
    results = {name: [_until_near(tuner(game, seed), game) for seed in range(seeds)] for name, tuner in tuners}
    single = float(np.median([s for s, _ in results["single-point ε-greedy"]]))
    for name, found in results.items():
        seconds = [s for s, _ in found]
        low, median, high = np.percentile(seconds, (25, 50, 75))
        reached = sum(ok for _, ok in found)
        print(
            f"  {name:36} {median:16.1f} {f'{low:.0f} to {high:.0f}':>16} {reached:5}/{seeds} {median / single:15.2f}"
        )
    default_s = game.build_s(DEFAULT[:2])
    near = "yes" if game.null <= NEAR * game.optimum else "never"
    print(f"  {'null: default graph, ef bisected':36} {default_s:16.1f} {'':16} {near:>8}"
          f"   ({game.null / game.optimum - 1:+.1%} over the cheapest)")  # fmt: skip
    ends = [list(ours(game, seed, whole_campaign=True)) for seed in range(seeds)]
    final = np.array([steps[-1][1] for steps in ends])
    print(f"  one campaign of ours ends after {np.median([len(s) for s in ends]):.0f} builds, "
          f"{np.median([s[-1][0] for s in ends]):.0f} s: {np.median(final) / game.optimum - 1:+.1%} over the cheapest, "
          f"{_better(game.null, final)}")  # fmt: skip


def _better(null: float, final: np.ndarray) -> str:
    if not np.isfinite(null):
        return "where the null baseline holds it nowhere"
    low, median, high = np.percentile(1 - final / null, (25, 50, 75))
    return f"{median:.1%} (quartiles {low:.1%} to {high:.1%}) cheaper than the null baseline"


def _until_near(steps: Iterator[Step], game: Game) -> tuple[float, bool]:
    """Build seconds until within 5 %, or all that were spent; and whether it got there."""
    spent = 0.0
    for spent, cost in steps:
        if cost <= NEAR * game.optimum:
            return spent, True
    return spent, False


def _trial(game, trial, graph, start, proposer, first, rng) -> list[TrialPoint]:
    """One build and its sweep, as journal rows."""
    ladder = [int(ef) for ef in game.surface.ef]
    search = sweep(start, ladder[0], ladder[-1])
    measured = {}
    ef = next(search)
    while True:
        measured[ef] = game.seen(graph, ef, rng)
        try:
            ef = search.send(measured[ef][0] >= game.target)
        except StopIteration:
            break
    points = [_point(trial, graph, ef, seen, proposer) for ef, seen in sorted(measured.items())]
    chosen = choose(points, game.target)
    marked = []
    for point in points:
        if point.effort == chosen:
            point = msgspec.structs.replace(point, chosen=True)
            if first is not None:  # interleaved: both sides meet the same noise, a third of it is left
                ratio = _true(game, point) / _true(game, first) * float(np.exp(NOISE / 3 * rng.normal()))
                spread = 1.96 * NOISE / 3
                point = msgspec.structs.replace(
                    point,
                    champion_trial=first.trial,
                    champion_ratio=ratio,
                    champion_ratio_low=ratio * (1 - spread),
                    champion_ratio_high=ratio * (1 + spread),
                    champion_recall_lower=first.recall_lower,
                )
        marked.append(point)
    return marked


def _point(trial: str, graph: tuple[int, int], ef: int, seen: tuple[float, float, float], proposer: str) -> TrialPoint:
    lower, cost, _ = seen
    return TrialPoint(
        trial=trial, campaign="c", index="i", build=f"{graph}", harness="i", dataset_version=1, rows=1,
        M=graph[0], ef_construction=graph[1], ef_search=ef, seed=42, queries=500,
        recall=lower, recall_ties=lower, recall_lower=lower, recall_worst_decile=lower,
        p50_us=cost, p95_us=cost, p99_us=cost, cpu_us=cost, build_s=0, build_cpu_s=0, bytes=0, library="",
        proposer=proposer, rule="", journal_rows=0, asked_by="agent", trigger="m", trigger_tag="", host="", time=0,
    )  # fmt: skip


def _true(game: Game, point: TrialPoint) -> float:
    return float(game.cost[game.graphs[point.M, point.ef_construction], game.surface.rung(point.ef_search)])


def _best(tried, target):
    return min(tried, key=lambda c: (0, tried[c][1]) if tried[c][0] >= target else (1, -tried[c][0]))


def _near(axis: tuple[int, ...], value: int) -> list[int]:
    """A step either way; on the fine axis of ef_search also one of three rungs (1.6 times)."""
    at = axis.index(value)
    reach = (-3, -1, 0, 1, 3) if axis == EF_STEPS else (-1, 0, 1)
    return [axis[at + step] for step in reach if 0 <= at + step < len(axis)]


def _smooth(row: np.ndarray) -> np.ndarray:
    """Median of three along the ladder."""
    padded = np.pad(row, 1, mode="edge")
    return np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lakehouse-benchmarks")
    parser.add_argument("--docstrings", action="store_true", help="the docstring corpus too (embedding takes a while)")
    asked = parser.parse_args()
    surfaces = [measure(f"clustered-{asked.rows}x128", lambda: clustered(asked.rows, 128), asked.cache)]
    if asked.docstrings:
        surfaces.append(measure("docstrings", lambda: docstrings(25_000), asked.cache))
    for surface in surfaces:
        for target in (0.95, 0.99):
            report(Game(surface, target), asked.seeds)


if __name__ == "__main__":
    main()
