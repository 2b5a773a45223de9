"""A made-up journal and a made-up surface: recall and cost as smooth functions of the
configuration, so that what tuners do can be checked against what is known."""

import math
from typing import Any

import msgspec

from actors.autotune.decide import choose_ef
from actors.autotune.sweep import sweep
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import RunTrial


def recall(M: int, ef_construction: int, ef: int) -> float:
    """Grows with all three and never reaches 1."""
    quality = 0.25 * math.log2(M / 4 + 1) + 0.2 * math.log2(ef_construction / 10)
    return 1 - 1.7 * math.exp(-quality) * ef**-0.75


def cost(M: int, ef: int) -> float:
    """µs per query."""
    return 5 + 0.5 * ef * (1 + M / 24)


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


def run(order: RunTrial, live_ef: int = 50, version: int = 1, rows: int = 1000, **changed: Any) -> list[TrialPoint]:
    """What the lab would write about an order, on the made-up surface."""
    config = order.proposal.config
    search = sweep(config.ef_search, 11, 400, order.proposal.extra_ef)
    asked = [next(search)]
    while True:
        try:
            asked.append(search.send(recall(config.M, config.ef_construction, asked[-1]) >= order.target_recall))
        except StopIteration:
            break
    measured = [
        point(
            trial=order.trial, campaign=order.campaign, index=order.index, dataset_version=version, rows=rows,
            M=config.M, ef_construction=config.ef_construction, ef_search=ef, target_recall=order.target_recall,
            recall=recall(config.M, config.ef_construction, ef),
            recall_lower=recall(config.M, config.ef_construction, ef),
            p50_us=cost(config.M, ef), cpu_us=cost(config.M, ef), chosen=False,
            proposer=order.proposal.proposer, rule=order.proposal.rule, draw=order.proposal.draw,
            journal_rows=order.proposal.journal_rows, policy=order.proposal.policy, trigger=order.trigger,
            trigger_tag=order.trigger_tag,
            trigger_time=order.trigger_time,
        )
        for ef in sorted(asked)
    ]  # fmt: skip
    chosen = choose_ef(measured, order.target_recall)
    champion_cost = changed.pop("champion_cost", cost(16, live_ef))
    ratio = cost(config.M, chosen) / champion_cost
    told: dict[str, Any] = {
        "chosen": True,
        "champion_trial": order.champion_trial or "generation-1",
        "champion_ratio": ratio,
        "champion_ratio_low": ratio * 0.99,
        "champion_ratio_high": ratio * 1.01,
        "champion_recall_lower": recall(16, 100, live_ef),
        **changed,
    }
    return [_with(row, told) if row.ef_search == chosen else _with(row, changed) for row in measured]


def _with(row: TrialPoint, values: dict[str, Any]) -> TrialPoint:
    return msgspec.structs.replace(row, **values)
