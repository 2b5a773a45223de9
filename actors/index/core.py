"""What the index actors decide, as values in, values out: which strategy answers a query, which
generation must exist, whether live recall has drifted. No clock, no file, no await.

Cost model, in units of one distance computation over d dimensions. Measured on 20k x 384: exact
search over gathered rows costs 0.5 ns a float, a graph search 3.4 ns a float per unit of ef
(it visits several candidates per unit and jumps about in memory). d cancels out.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import msgspec

from actors.planner_ports import counted
from schemas.config import EF_BOUNDS, REFINE_BOUNDS, IndexConfig, LanceConfig, LanceEffort
from schemas.config import Build as BuildConfig
from schemas.documents.index import GenerationDocument
from schemas.events.index import GenerationBuilt, Strategy
from schemas.names import Backend, Bytes, Rows, Share, TrialId, VectorBackend

ROWS_PER_EF = 7
"""Rows that exact search scans in the time that a graph search spends on one unit of ef."""

EF_LIMIT = 4000
"""Filtered search doesn't widen the graph search beyond this."""

UNBOUND = ROWS_PER_EF * EF_LIMIT + 1
"""Rows that no graph search is dearer than."""

OVERFETCH = 2.0
"""Filtered search first asks for this many times k / selectivity: a filter that is neither
for nor against the query leaves twice the hits needed."""

EF_MARGIN = 1.5
"""ef over the number of neighbours asked for: the far end of a result list has low recall
when ef is no larger than it."""

REUSE_GROWTH = 0.2
"""A kept graph of an earlier generation serves again while the rows have changed by no more."""

Z_95 = 1.6449
"""One-sided 95 % quantile of the normal distribution."""

MIN_SAMPLES = 30
"""Live recall is judged from so many samples on."""


def strategy(k: int, ef: int, rows: Rows, matching: Rows | None, exact_below: Rows) -> Strategy:
    """How to answer: `matching` is how many rows the filter leaves, None without a filter."""
    if matching is None:
        return "graph" if rows > 2 * k else "exact"
    if matching <= exact_below:
        return "exact"
    _, wide = widened(k, ef, rows, matching)
    return "exact" if wide > EF_LIMIT or matching <= ROWS_PER_EF * wide else "filtered_graph"


def widened(k: int, ef: int, rows: Rows, matching: Rows) -> tuple[int, int]:
    """(k', ef') of the first, unfiltered graph search for k hits among `matching` rows."""
    fetch = min(rows, math.ceil(OVERFETCH * k * rows / matching) + k)
    return fetch, max(ef, math.ceil(EF_MARGIN * fetch))


def by_codes(k: int, rows: Rows, matching: Rows | None, exact_below: Rows) -> bool:
    """Whether codes answer where there are some, and not exact search: that reads every row from the disk, which a
    graph's cost knows nothing of."""
    return rows > 2 * k if matching is None else matching > exact_below


class Choice(msgspec.Struct, frozen=True):
    """The backend that is to serve an index, and why, where that was decided."""

    backend: Backend
    why: str = ""


def graph_bytes(rows: Rows, dim: int, M: int) -> Bytes:
    """Memory of a graph with room to grow: vectors, 2M links at the lowest level and about 1.5 at those above,
    a label."""
    return int(grown_capacity(rows) * (4 * dim + 4 * (2 * M + 1.5) + 16))


def choose_backend(
    wish: VectorBackend,
    promoted: Backend | None,
    need: Bytes,
    budget: Bytes,
    installed: bool,
    measured: Mapping[Backend, float],
) -> Choice:
    """Which backend serves. `auto`: a graph in memory while it fits the budget (`need` bytes of it), for it
    answers first; once both are measured, the one that was promoted. `measured`: p50 in microseconds of
    the newest trial of each that holds the recall target."""
    if wish != "auto":
        return Choice(wish)
    figures = "; ".join(f"{backend} took {us:,.0f} µs at the target" for backend, us in sorted(measured.items()))
    memory = f"a graph takes {need >> 20:,} MB of the {budget >> 20:,} MB that indexes may take"
    if not installed:
        return Choice("hnsw", f"pylance, which Lance needs, isn't installed; {memory}")
    if need > budget:
        return Choice("lance", "; ".join(filter(None, (f"too large for memory: {memory}", figures))))
    chosen = promoted or "hnsw"
    said = f"{chosen} was promoted" if promoted else "it fits memory"
    return Choice(chosen, "; ".join(filter(None, (f"{said}: {memory}", figures))))


EXACT_OF_STORE = 4000
"""Rows of a Lance store that are read and measured one by one in the time of a search by its index."""


def store_exact(matching: Rows, rows: Rows, exact_below: Rows) -> bool:
    """Whether a filter leaves so few rows of a store that they are read one by one: then recall is certain."""
    return matching <= max(exact_below, EXACT_OF_STORE) or matching <= rows // 100


def widened_probes(nprobes: int, matching: Rows, rows: Rows, partitions: int) -> int:
    """Cells to look into for a filter: the nearest hits lie further out as fewer rows match, in proportion to
    the square root while the filter is neither for nor against the query."""
    return min(partitions, math.ceil(nprobes * math.sqrt(rows / max(1, matching))))


def planned_effort(config: LanceConfig, planned: int) -> LanceEffort:
    """The Lance effort of one number: all that the configuration spends, cells looked into, candidates rescored and ef,
    grows and shrinks in proportion to it."""
    own, share = config.effort, planned / counted(config.effort)
    nprobes = min(max(1, round(own.nprobes * share)), config.partitions)
    refine = 1 if config.index_type == "IVF_FLAT" else min(max(1, round(own.refine_factor * share)), REFINE_BOUNDS[1])
    ef = min(max(1, round(own.ef * share)), EF_BOUNDS[1]) if own.ef else 0
    return LanceEffort(nprobes, refine, ef)


def grown_capacity(rows: Rows) -> Rows:
    """Room that a graph of so many rows gets: appends then seldom resize it."""
    return rows + max(1024, rows // 4)


class RecallBounds(msgspec.Struct, frozen=True):
    mean: Share
    lower: Share  # one-sided 95 % bounds on the mean
    upper: Share


def recall_bounds(samples: int, total: float, squares: float) -> RecallBounds:
    """Of recalls with sum `total` and sum of squares `squares`: normal approximation, with one
    sample more of the extreme that each bound guards against. So equal samples give no
    certainty, and skewed ones no more errors than 1 in 20."""
    if samples == 0:
        return RecallBounds(0.0, 0.0, 1.0)
    n = samples + 1
    low, high = total / n, (total + 1) / n
    lower = low - Z_95 * math.sqrt(max(0.0, squares / n - low**2) / n)
    upper = high + Z_95 * math.sqrt(max(0.0, (squares + 1) / n - high**2) / n)
    return RecallBounds(min(1.0, total / samples), max(0.0, lower), min(1.0, upper))


def drifted(samples: int, bounds: RecallBounds, target: Share) -> bool:
    """Below target with confidence."""
    return samples >= MIN_SAMPLES and bounds.upper < target


OPTIMISE_ROWS = 256
"""Rows outside a Lance index that are worth taking in; fewer cost a search nothing."""
OPTIMISE_FRAGMENTS = 100
"""Files of a Lance store that are worth merging: each append makes one, and a search opens them all."""
RETRAIN_GROWTH = 0.2
"""Cells are trained again for recall once this share of the rows is younger than they."""


def optimise_due(unindexed: Rows, rows: Rows, fragments: int, share: Share) -> str:
    """Why a Lance store is to be optimised now; empty when it isn't."""
    if unindexed >= OPTIMISE_ROWS and unindexed >= share * rows:
        return f"{unindexed} of {rows} rows lie outside the index: {share:.0%} or more"
    if fragments >= OPTIMISE_FRAGMENTS:
        return f"its rows lie in {fragments} files"
    return ""


def retrain_due(trained: Rows, rows: Rows) -> str:
    """Why a Lance index whose recall fell is to be trained again; empty when its rows are those that it was
    trained on, more or less."""
    grown = abs(rows - trained)
    if trained and grown >= RETRAIN_GROWTH * trained:
        return f"its cells were trained on {trained} rows, there are {rows}"
    return ""


class Reuse(msgspec.Struct, frozen=True):
    """Serve the configuration from a build that exists."""

    artifact: GenerationBuilt


class Build(msgspec.Struct, frozen=True):
    """Build a graph, or an index in the store."""

    build: BuildConfig


def serves(live: GenerationDocument | None, desired: IndexConfig, trial: TrialId | None) -> bool:
    """Whether the live generation is the one that must be."""
    return live is not None and (live.config, live.trial) == (desired, trial)


def next_generation(
    desired: IndexConfig,
    trial: TrialId | None,
    live: GenerationDocument | None,
    kept: Sequence[GenerationBuilt],
    rows: Rows,
) -> Reuse | Build | None:
    """What it takes to serve `desired`, which `trial` measured, over `rows` rows; None when it
    is live already.

    `kept` are the artifacts in the bucket that this library can read. The live build serves with
    any effort, whatever its age: it is kept up to date. An earlier one must be near today's rows,
    for what it lacks is added one by one, or scanned.
    """
    if serves(live, desired, trial):
        return None
    fit = [built for built in kept if built.config.build == desired.build]
    for built in sorted(fit, key=lambda built: built.generation, reverse=True):
        if live is not None and (built.key, built.sha256) == (live.key, live.sha256):
            return Reuse(built)
        if built.rows and abs(rows - built.rows) <= REUSE_GROWTH * built.rows:
            return Reuse(built)
    return Build(desired.build)


def prunable(
    live: GenerationDocument, kept: Sequence[GenerationBuilt], keep: int, spared: Collection[int]
) -> list[GenerationBuilt]:
    """Artifacts to delete, of the live one's backend: all but it, the newest `keep` - 1 others, whatever is
    newer than the live generation, and those `spared`: just being built, or a companion's."""
    same = [built for built in kept if built.config.backend == live.config.backend]
    others = [
        built
        for built in same
        if (built.key, built.sha256) != (live.key, live.sha256) and built.generation not in spared
    ]
    older = sorted((b for b in others if b.generation < live.generation), key=lambda b: -b.generation)
    return older[max(0, keep - 1) :]
