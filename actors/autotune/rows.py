"""A trial's rows for the journal: what was measured, and how it came about."""

from typing import Any

from actors.autotune.jobs import Measured
from actors.autotune.measure import K
from schemas.config import IndexConfig, with_effort
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.autotune import RunTrial
from schemas.names import Timestamp


def rows_of(
    command: RunTrial, measured: Measured, config: IndexConfig, shared: dict[str, Any], host: str, now: Timestamp
) -> list[TrialPoint]:
    """One a point, ascending by effort. `shared`: the columns that are known before anything is measured."""
    proposal, champion = command.proposal, measured.champion
    rows = []
    for point in sorted(measured.points, key=lambda p: p.effort):
        chosen = point.effort == measured.chosen
        ratio = measured.ratio if chosen else None
        rows.append(
            TrialPoint(
                **shared,
                **columns_of(with_effort(config, point.effort)),
                build=measured.build,
                k=K,
                target_recall=command.target_recall,
                recall=point.recall,
                recall_ties=point.recall_ties,
                recall_lower=point.recall_lower,
                recall_worst_decile=point.recall_worst_decile,
                p50_us=point.p50_us,
                p95_us=point.p95_us,
                p99_us=point.p99_us,
                cpu_us=point.cpu_us,
                champion_trial=champion.trial if champion and chosen else None,
                champion_ratio=ratio.median if ratio else None,
                champion_ratio_low=ratio.low if ratio else None,
                champion_ratio_high=ratio.high if ratio else None,
                champion_recall_lower=measured.champion_recall_lower if champion and chosen else None,
                build_s=measured.build_s,
                build_cpu_s=measured.build_cpu_s,
                bytes=measured.bytes,
                library=measured.library,
                graph_added=measured.added,
                graph_deleted=measured.deleted,
                chosen=chosen,
                proposer=proposal.proposer,
                rule=proposal.rule,
                draw=proposal.draw,
                journal_rows=proposal.journal_rows,
                policy=proposal.policy,
                asked_by=command.asked_by,
                trigger=command.trigger,
                trigger_tag=command.trigger_tag,
                trigger_time=command.trigger_time,
                host=host,
                time=now,
            )
        )
    return rows
