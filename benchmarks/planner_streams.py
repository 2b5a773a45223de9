"""Streams of queries for the planner's benchmark: filtered ones, topics that change half way, and a live one."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors import hnsw
from actors.index import core
from actors.index.vectors import VectorSet
from actors.planner.config import PlannerConfig
from actors.planner.core_boundary import watched
from actors.planner.core_cycle import cycle
from actors.planner.core_terrain import Terrain
from actors.planner.instant import EXACT, Instant
from benchmarks import planner
from benchmarks.planner_tables import TIE, K, Tables, graph_of, searching

F64 = NDArray[np.float64]
console = Console(width=190)

LABEL_SHARE = 0.01
WATCH_EACH, CYCLE_EACH = 60, 3600
"""Of an index that is asked once a second: the watch for shifts each minute, a cycle each hour."""
STREAM = 30_000
"""Queries before the topics change, and after."""
WINDOW = 200
SELECTIVITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def drift(tables: Tables, seed: int, target: float = 0.95) -> None:
    """The topics change half way; the planner acts all the time, on labels of one query in a hundred. Queries are drawn
    again and again, but those that are labelled are never judged: a third of all is kept for labels."""
    rng = np.random.default_rng(seed)
    topics = np.unique(tables.topic)
    late = rng.permutation(topics)[: len(topics) // 2]
    is_late, for_labels = np.isin(tables.topic, late), rng.random(len(tables.topic)) < 1 / 3
    judged, labelled = (
        np.concatenate([rng.choice(np.flatnonzero(side & (for_labels == own)), STREAM) for side in (~is_late, is_late)])
        for own in (False, True)
    )
    default = planner.fixed_for(tables, labelled[:2000], target)
    config = PlannerConfig(seed=seed)
    instant = Instant(config, tables.queries.shape[1], target)
    instant.terrain = Terrain.of(tables.vectors, rng)
    recall, fixed = np.empty(2 * STREAM), tables.at(np.full(2 * STREAM, default), judged)[0]
    shifts, windows = [], [0, 0]
    for place in range(2 * STREAM):
        sampled = rng.random() < LABEL_SHARE
        i = labelled[place] if sampled else judged[place]
        choice = instant.before(tables.queries[i], planner.PLAN, K, 1.0, float(np.log2(default)), "graph")
        effort = choice.default_effort if sampled else choice.effort  # what is sampled is not acted on
        found, us = tables.at(np.array([2**effort]), np.array([i]))
        recall[place] = fixed[place] if sampled else found[0]
        number = instant.after(choice, [("graph", us[0])], effort, us[0], 0.01, 1.0)
        if sampled:
            instant.ring.grade(number, found[0], target)
            instant.told(choice, tables.recall[i], tables.cost_us[i].astype(np.float32))
        recent = 0
        if place % WATCH_EACH == WATCH_EACH - 1:
            plans, newest = instant.ring.look(instant.ring.seen - windows[0]).plans, instant.ring.seen - windows[1]
            windows = [windows[1], instant.ring.seen]
            if watched(instant.learned.reference, plans[:-newest], plans[-newest:], config.ewc_boundary_threshold, rng):
                recent = len(plans)
        if recent or place % CYCLE_EACH == CYCLE_EACH - 1:
            made = cycle(instant.learned, instant.ring.look(), instant.labels, target, config, recent)
            instant.ring.forget(instant.ring.seen)
            instant.labels = made.labels
            instant.adopt(made.learned)
            if made.shift is not None and made.shift.shifted:
                shifts.append(place)
    table = Table("", "recall before", "first 500 after", "later", "longest under target", box=None)
    for name, values in (("planner", recall), (f"fixed ef {default:.0f}", fixed)):
        table.add_row(
            name, f"{values[STREAM // 2 : STREAM].mean():.4f}", f"{values[STREAM : STREAM + 500].mean():.4f}",
            f"{values[STREAM + 500 :].mean():.4f}", f"{longest_under(values[STREAM // 2 :], target)} queries",
        )  # fmt: skip
    after = [place - STREAM for place in shifts if place >= STREAM]
    console.print(
        f"\n{tables.name}: topics change at {STREAM:,} of {2 * STREAM:,}; a shift was told "
        f"{len(shifts) - len(after)} times before, {len(after)} times after, first {after[0] if after else 'never'} "
        f"queries after. Under target: the upper 95 % bound of the last {WINDOW} queries' mean recall.", table,
    )  # fmt: skip


def longest_under(recall: F64, target: float) -> int:
    """Queries in a row at which the mean of the last WINDOW lies under target with confidence."""
    longest = run = 0
    for end in range(WINDOW, len(recall) + 1):
        values = recall[end - WINDOW : end]
        bounds = core.recall_bounds(WINDOW, float(values.sum()), float((values**2).sum()))
        run = run + 1 if bounds.upper < target else 0
        longest = max(longest, run)
    return longest


def live(tables: Tables, seed: int, cache: Path) -> None:
    """The search itself instead of the tables: each test query is searched with the fixed ef and as planned, in a drawn
    order, the planner running in the loop. CPU time: other load isn't the planner's."""
    parts = planner.split(len(tables.queries), seed)
    search, now = searching(tables.name, tables.vectors, cache, tables.backend)
    for target in planner.TARGETS:
        studied = planner.Studied(tables, parts.train, 2000, target, seed)
        efforts = studied.efforts(parts.test)
        default = planner.fixed_for(tables, parts.test, tables.at(efforts, parts.test)[0].mean())
        _, truth = hnsw.exact_topk(tables.queries[parts.test], tables.vectors, K, "cosine")
        us, recall = np.empty((len(parts.test), 2)), np.empty((len(parts.test), 2))
        rng = np.random.default_rng(seed)
        for place, i in enumerate(parts.test):
            for side in rng.permutation(2):
                started = now()
                if side:
                    choice = studied.choose(i)
                    ef = round(2**choice.effort)
                else:
                    ef = round(default)
                distances = search(tables.queries[i], ef)
                if side:
                    studied.instant.after(choice, [("graph", 100.0)], 6.0, 100.0, 0.01, 1.0)
                us[place, side] = (now() - started) / 1e3
                recall[place, side] = np.count_nonzero(distances <= truth[place, -1] + TIE) / K
        speed = planner.interval(us[:, 0], us[:, 1])
        console.print(
            f"{tables.name} on {tables.backend}, live, target {target}: "
            f"fixed {us[:, 0].mean():.0f} µs recall {recall[:, 0].mean():.4f}; "
            f"planned {us[:, 1].mean():.0f} µs recall {recall[:, 1].mean():.4f}; {speed[0]:.3f} times as fast "
            f"({speed[1]:.3f} to {speed[2]:.3f}), all included"
        )


# --- filters -------------------------------------------------------------------------------------


class Mixed:
    """Queries of every selectivity, each measured by every strategy once."""

    def __init__(self, tables: Tables, seed: int, cache: Path, each: int = 600) -> None:
        graph = graph_of(tables.vectors, cache / f"planner-{tables.name}.hnsw")
        rng = np.random.default_rng(seed)
        self.rows = len(tables.vectors)
        vectors = VectorSet(1, np.arange(self.rows), tables.vectors, "cosine")
        number = rng.random(self.rows)
        self.share = np.repeat(SELECTIVITIES, each)
        self.queries = tables.queries[rng.permutation(len(tables.queries))[: len(self.share)]]
        self.ef = int(planner.fixed_for(tables, np.arange(len(tables.queries)), 0.96))
        self.us = {name: np.full(len(self.share), np.inf) for name in ("exact", "graph", "exact_all")}
        self.recall = {name: np.ones(len(self.share)) for name in self.us}
        self.matching = np.empty(len(self.share), np.int64)
        for i, share in enumerate(self.share):
            among = np.flatnonzero(number < share)
            self.matching[i] = len(among)
            query = self.queries[i : i + 1]
            best = dict.fromkeys(self.us, np.inf)
            for _ in range(3):
                started = time.thread_time_ns()
                _, truth = vectors.exact(query, K, None if share == 1 else among)
                best["exact"] = min(best["exact"], (time.thread_time_ns() - started) / 1e3)
                started = time.thread_time_ns()
                dots = 1 - tables.vectors @ query[0]
                np.partition(np.where(number < share, dots, np.inf), K)
                best["exact_all"] = min(best["exact_all"], (time.thread_time_ns() - started) / 1e3)
                started = time.thread_time_ns()
                distances = self._graph(graph, query, number < share, len(among))
                best["graph"] = min(best["graph"], (time.thread_time_ns() - started) / 1e3)
            if distances is None:  # exact search must answer after all
                best["graph"] += best["exact"]
            else:
                self.recall["graph"][i] = np.count_nonzero(distances <= truth[0, -1] + TIE) / K
            for name, us in best.items():
                self.us[name][i] = us

    def _graph(
        self, graph: hnsw.Graph, query: NDArray[np.float32], holds: NDArray[np.bool_], matching: int
    ) -> NDArray[np.float32] | None:
        """As the searcher widens it."""
        if matching == self.rows:
            return hnsw.knn(graph, query, K, self.ef)[1][0]
        fetch, wide = core.widened(K, self.ef, self.rows, matching)
        while wide <= core.EF_LIMIT:
            labels, distances = hnsw.knn(graph, query, fetch, wide)
            kept = distances[0][holds[labels[0]]]
            if len(kept) >= K:
                return kept[:K]
            fetch, wide = min(self.rows, 2 * fetch), 2 * wide
        return None

    def rule(self, i: int) -> str:
        """What answers without a planner."""
        left = None if self.share[i] == 1 else int(self.matching[i])
        return "exact" if core.strategy(K, self.ef, self.rows, left, 2000) == "exact" else "graph"

    def offered(self, i: int) -> tuple[str, ...]:
        left = int(self.matching[i])
        return ("exact", "graph") if core.widened(K, 1, self.rows, left)[1] <= core.EF_LIMIT else ("exact",)


def filters(tables: Tables, seed: int, cache: Path) -> None:
    """A mix of selectivities from 0.1 % to 100 %: the bandit learns on half of the queries, drawn again and again, 1 %
    of them run again; it is judged on the others, each once."""
    own: list[float] = []
    mixed = Mixed(tables, seed, cache)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(mixed.share))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    instant = Instant(PlannerConfig(seed=seed), mixed.queries.shape[1], 0.95)

    def run(stream: NDArray[np.int64], acting: bool) -> NDArray[np.object_]:
        made = np.empty(len(stream), object)
        for place, i in enumerate(stream):
            rule, share = mixed.rule(i), mixed.share[i]
            started = time.thread_time_ns()
            choice = instant.before(
                mixed.queries[i], ("filter", "graph", "fetch"), K, share, 6.0, rule, mixed.offered(i)
            )
            own.append((time.thread_time_ns() - started) / 1e3)
            sampled = rng.random() < LABEL_SHARE
            answers = choice.strategy if acting and not sampled else rule
            instant.played(choice, answers, mixed.us[answers][i])
            if sampled:
                for name in mixed.offered(i):
                    if name not in EXACT:
                        instant.bandit.sampled(choice.decade, name, mixed.recall[name][i])
                    if name != rule:
                        instant.bandit.timed(choice.decade, name, mixed.us[name][i])
            made[place] = answers
        return made

    run(rng.choice(train, 20_000), acting=False)
    stream = test
    planned = run(stream, acting=True)
    table = Table("strategy", "mean", "recall", "planner times as fast", box=None)
    us = np.array([mixed.us[name][i] for name, i in zip(planned, stream, strict=True)]) + np.mean(own)
    recall = np.array([mixed.recall[name][i] for name, i in zip(planned, stream, strict=True)])
    table.add_row("planner, its time included", f"{us.mean():.0f} µs", f"{recall.mean():.4f}", "")
    best = np.array([min(mixed.us[name][i] for name in mixed.offered(i)) for i in stream])
    rule = [mixed.rule(i) for i in stream]
    others = {
        "exact over the filtered rows": (mixed.us["exact"][stream], mixed.recall["exact"][stream]),
        "graph, widened": (mixed.us["graph"][stream], mixed.recall["graph"][stream]),
        "exact over all": (mixed.us["exact_all"][stream], mixed.recall["exact_all"][stream]),
        "the rule without a planner": (
            np.array([mixed.us[name][i] for name, i in zip(rule, stream, strict=True)]),
            np.array([mixed.recall[name][i] for name, i in zip(rule, stream, strict=True)]),
        ),
        "oracle: the faster of each": (best, np.ones(len(stream))),
    }
    for name, (time_us, found) in others.items():
        speed = planner.interval(time_us, us)
        table.add_row(
            name, f"{time_us.mean():.0f} µs", f"{found.mean():.4f}", "{:.2f} ({:.2f} to {:.2f})".format(*speed)
        )
    console.print(
        f"\n{tables.name}, filters: {mixed.rows:,} rows, ef {mixed.ef}, {len(stream):,} queries of every selectivity; "
        f"choosing took {np.mean(own):.1f} µs",
        table,
    )
