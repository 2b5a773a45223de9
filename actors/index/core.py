"""What the index actors decide, as values in, values out: which strategy answers a query, which
generation must exist, whether live recall has drifted. No clock, no file, no await.

Cost model, in units of one distance computation over d dimensions. Measured on 20k x 384: exact
search over gathered rows costs 0.5 ns a float, a graph search 3.4 ns a float per unit of ef
(it visits several candidates per unit and jumps about in memory). d cancels out.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from schemas.config import GraphConfig, HnswConfig
from schemas.documents.index import GenerationDocument
from schemas.events.index import GenerationBuilt
from schemas.names import Rows, Share, TrialId

Strategy = Literal["graph", "filtered_graph", "codes", "exact"]

ROWS_PER_EF = 7
"""Rows that exact search scans in the time that a graph search spends on one unit of ef."""

EF_LIMIT = 4000
"""Filtered search doesn't widen the graph search beyond this."""

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


class Reuse(msgspec.Struct, frozen=True):
    """Serve the configuration from a graph that exists."""

    artifact: GenerationBuilt


class Build(msgspec.Struct, frozen=True):
    """Build a graph."""

    graph: GraphConfig


def serves(live: GenerationDocument | None, desired: HnswConfig, trial: TrialId | None) -> bool:
    """Whether the live generation is the one that must be."""
    return live is not None and (live.config, live.trial) == (desired, trial)


def next_generation(
    desired: HnswConfig,
    trial: TrialId | None,
    live: GenerationDocument | None,
    kept: Sequence[GenerationBuilt],
    rows: Rows,
    library: str,
) -> Reuse | Build | None:
    """What it takes to serve `desired`, which `trial` measured, over `rows` rows; None when it
    is live already.

    `kept` are the artifacts in the bucket. The live graph serves any ef_search, whatever its
    age: it is kept up to date in memory. An earlier one must be near today's rows, for a
    searcher adds what it lacks one by one.
    """
    if serves(live, desired, trial):
        return None
    fit = [built for built in kept if built.config.graph == desired.graph and built.library == library]
    for built in sorted(fit, key=lambda built: built.generation, reverse=True):
        if live is not None and built.key == live.key:
            return Reuse(built)
        if built.rows and abs(rows - built.rows) <= REUSE_GROWTH * built.rows:
            return Reuse(built)
    return Build(desired.graph)


def prunable(
    live: GenerationDocument, kept: Sequence[GenerationBuilt], keep: int, pending: int | None
) -> list[GenerationBuilt]:
    """Artifacts to delete: all but the live one, the newest `keep` - 1 others, and whatever is
    newer than the live generation or just being built."""
    others = [built for built in kept if built.key != live.key and built.generation != pending]
    older = sorted((b for b in others if b.generation < live.generation), key=lambda b: -b.generation)
    return older[max(0, keep - 1) :]
