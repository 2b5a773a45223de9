"""A made-up journal and a made-up surface: recall and cost as smooth functions of the
configuration, on either backend, so that what tuners do can be checked against what is known."""

import math
from typing import Any

import msgspec

from actors.autotune.decide import choose
from actors.autotune.sweep import Bounds, efforts
from schemas.config import HnswConfig, IndexConfig, LanceConfig, with_effort
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.autotune import RunTrial


def recall(M: int, ef_construction: int, ef: int) -> float:
    """Grows with all three and never reaches 1."""
    quality = 0.25 * math.log2(M / 4 + 1) + 0.2 * math.log2(ef_construction / 10)
    return 1 - 1.7 * math.exp(-quality) * ef**-0.75


def cost(M: int, ef: int) -> float:
    """µs per query."""
    return 5 + 0.5 * ef * (1 + M / 24)


LOSS = {"IVF_FLAT": 0.0, "IVF_HNSW_SQ": 0.01, "IVF_RQ": 0.3, "IVF_PQ": 0.35}
"""Recall that a Lance type loses by how it keeps vectors, before it rescores."""
LANCE_US = 2500.0
"""What a Lance search costs before it reads anything."""


def lance_recall(config: LanceConfig) -> float:
    """Grows with nprobes, refine_factor and ef; in all cells it is what the type keeps."""
    cells = (
        1 - 0.4 * math.exp(-6 * (config.nprobes / config.partitions) ** 0.5)
        if config.nprobes < config.partitions
        else 1.0
    )
    loss = LOSS[config.index_type] * (8 / max(config.sub_vectors, 1) if config.index_type == "IVF_PQ" else 1)
    graph = 1 - 0.5 * config.ef**-0.75 if config.ef else 1.0
    return cells * graph * (1 - min(0.9, loss) * config.refine_factor**-1.2)


def lance_cost(config: LanceConfig, rows: int = 100_000) -> float:
    """µs per query."""
    read = rows * config.nprobes / config.partitions
    weight = {"IVF_FLAT": 0.2, "IVF_HNSW_SQ": 0.001, "IVF_RQ": 0.01, "IVF_PQ": 0.02}[config.index_type]
    return LANCE_US + weight * read + 2 * config.partitions**0.5 + 12 * config.refine_factor + 3 * config.ef


def recall_of(config: IndexConfig) -> float:
    if isinstance(config, HnswConfig):
        return recall(config.M, config.ef_construction, config.ef_search)
    return lance_recall(config)


def cost_of(config: IndexConfig) -> float:
    return cost(config.M, config.ef_search) if isinstance(config, HnswConfig) else lance_cost(config)


def lance_point(config: LanceConfig, **changed: Any) -> TrialPoint:
    """A row of the journal on Lance."""
    nothing = {"M": None, "ef_construction": None, "ef_search": None, "seed": None}
    return point(**{**nothing, **columns_of(config), **changed})


def point(**changed: Any) -> TrialPoint:
    """A row of the journal; what isn't named is unremarkable."""
    values: dict[str, Any] = {
        "trial": "t-1",
        "campaign": "c-1",
        "index": "docs",
        "build": "b",
        "harness": "docs",
        "dataset_version": 1,
        "rows": 1000,
        "M": 16,
        "ef_construction": 100,
        "ef_search": 50,
        "seed": 42,
        "queries": 500,
        "target_recall": 0.95,
        "recall": 0.97,
        "recall_ties": 0.97,
        "recall_lower": 0.96,
        "recall_worst_decile": 0.8,
        "p50_us": 100.0,
        "p95_us": 150.0,
        "p99_us": 200.0,
        "cpu_us": 100.0,
        "build_s": 1.0,
        "build_cpu_s": 1.0,
        "bytes": 1000,
        "library": "hnswlib",
        "chosen": True,
        "proposer": "champion",
        "rule": "",
        "journal_rows": 0,
        "asked_by": "agent",
        "trigger": "m",
        "trigger_tag": "t",
        "host": "h",
        "time": 0.0,
    }
    return TrialPoint(**{**values, **changed})


def run(
    order: RunTrial, live: IndexConfig = HnswConfig(), version: int = 1, rows: int = 1000, **changed: Any
) -> list[TrialPoint]:
    """What the lab would write about an order, on the made-up surface. `live`: what its champion is."""
    config = order.proposal.config
    search = efforts(config, Bounds(11, 400), order.proposal.extra)
    asked = [next(search)]
    while True:
        try:
            asked.append(search.send(recall_of(with_effort(config, asked[-1])) >= order.target_recall))
        except StopIteration:
            break
    measured = []
    for effort in sorted(asked):
        at = with_effort(config, effort)
        measured.append(
            point(
                **{"M": None, "ef_construction": None, "ef_search": None, "seed": None, **columns_of(at)},
                trial=order.trial, campaign=order.campaign, index=order.index, dataset_version=version, rows=rows,
                target_recall=order.target_recall, recall=recall_of(at), recall_lower=recall_of(at),
                p50_us=cost_of(at), cpu_us=cost_of(at), chosen=False,
                proposer=order.proposal.proposer, rule=order.proposal.rule, draw=order.proposal.draw,
                journal_rows=order.proposal.journal_rows, policy=order.proposal.policy, trigger=order.trigger,
                trigger_tag=order.trigger_tag,
                trigger_time=order.trigger_time,
            )
        )  # fmt: skip
    chosen = choose(measured, order.target_recall)
    champion_cost = changed.pop("champion_cost", cost_of(live))
    ratio = cost_of(with_effort(config, chosen)) / champion_cost
    told: dict[str, Any] = {
        "chosen": True,
        "champion_trial": order.champion_trial or "generation-1",
        "champion_ratio": ratio,
        "champion_ratio_low": ratio * 0.99,
        "champion_ratio_high": ratio * 1.01,
        "champion_recall_lower": recall_of(live),
        **changed,
    }
    return [_with(row, told) if row.effort == chosen else _with(row, changed) for row in measured]


def _with(row: TrialPoint, values: dict[str, Any]) -> TrialPoint:
    return msgspec.structs.replace(row, **values)
