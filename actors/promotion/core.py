"""What promotion decides: values in, values out.

Which point of a trial is promoted, how the history moves, which generation belongs to the
current entry. No clock, no registry, no bus: `actor.py` loads, asks here, and saves.
"""

from collections.abc import Mapping, Sequence

import msgspec

from schemas.documents.promotion import MAX_HISTORY, PromotionDocument, PromotionEntry
from schemas.documents.trial import TrialPoint
from schemas.events.base import Refusal
from schemas.events.index import GenerationSwapped, RecallDrifted
from schemas.names import MessageId, Share, Timestamp

EFFORTS = ("ef_search", "nprobes", "refine_factor", "ef")
"""What names a point of a trial: the first on HNSW, the others on Lance."""


def promote(document: PromotionDocument, entry: PromotionEntry) -> PromotionDocument:
    """`entry` becomes current; what was current heads the history, the oldest beyond
    MAX_HISTORY falls out. Promoting again what is current changes nothing."""
    history = document.history
    if document.current is not None:
        if (document.current.trial, document.current.config) == (entry.trial, entry.config):
            return document
        old = _ended(document.current, entry.time, f"replaced by trial {entry.trial}", entry.cause)
        history = [old, *history][:MAX_HISTORY]
    return msgspec.structs.replace(document, current=entry, history=history)


def rollback(
    document: PromotionDocument, reason: str, now: Timestamp, cause: MessageId
) -> tuple[PromotionDocument, PromotionEntry | None]:
    """The newest entry of the history becomes current again; an empty history clears current.

    Returns the document and the entry that is current now. What was current is kept, with the
    reason, in `rolled_back`. The entry that returns has no generation until one serves it.
    Raises ValueError when nothing is current."""
    if document.current is None:
        raise ValueError("nothing is promoted")
    popped = _ended(document.current, now, reason, cause)
    restored, history = None, document.history
    if history:
        restored = msgspec.structs.replace(history[0], generation=None, ended=None, ended_reason="", ended_by=None)
        history = history[1:]
    rolled_back = [popped, *document.rolled_back][:MAX_HISTORY]
    return msgspec.structs.replace(document, current=restored, history=history, rolled_back=rolled_back), restored


def swapped(document: PromotionDocument, event: GenerationSwapped) -> PromotionDocument:
    """Writes the generation that serves the current entry into it. A searcher that lags and
    reports an older generation, or another configuration, changes nothing."""
    current = document.current
    if current is None or current.config != event.config or event.trial not in (None, current.trial):
        return document
    if current.generation is not None and current.generation >= event.generation:
        return document
    return msgspec.structs.replace(document, current=msgspec.structs.replace(current, generation=event.generation))


def newest_rollback(document: PromotionDocument) -> MessageId:
    """The id of the message that took the last promotion back; empty when none was."""
    return (document.rolled_back[0].ended_by or "") if document.rolled_back else ""


def was_promoted(document: PromotionDocument, cause: MessageId) -> PromotionEntry | None:
    """The entry that a command made, wherever it is now: a redelivered command finds it."""
    entries = [*([document.current] if document.current else []), *document.history, *document.rolled_back]
    return next((entry for entry in entries if entry.cause == cause), None)


def was_rolled_back(document: PromotionDocument, cause: MessageId) -> PromotionEntry | None:
    """The entry that a rollback command popped."""
    return next((entry for entry in document.rolled_back if entry.ended_by == cause), None)


def pick(
    points: Sequence[TrialPoint], effort: Mapping[str, int], target_recall: Share, force: bool
) -> TrialPoint | Refusal:
    """The point of a trial to promote: one measured at `effort` (ef_search; or nprobes, refine_factor and ef,
    as far as they are given), the one that the trial chose if it is among them, else the cheapest of them that
    holds the target.

    The target is what the trial was asked to hold; `target_recall`, the index's, where its
    points don't say. Refused (invalid) when `effort` was never measured, or when the point's
    recall lower bound is under the target and `force` isn't given. `points`: at least one."""
    measured = [point for point in points if all(getattr(point, name) == n for name, n in effort.items())]
    if not measured:
        efforts = "; ".join(str(one) for one in sorted(point.effort for point in points))
        return Refusal(
            status="invalid",
            reason=f"trial {points[0].trial} did not measure {', '.join(f'{name} {n}' for name, n in effort.items())}",
            hint=f"measured: {efforts}",
        )
    chosen = [point for point in measured if point.chosen]
    point = chosen[-1] if chosen else _cheapest(measured, target_recall)
    target = _target(point, target_recall)
    if point.recall_lower < target and not force:
        return Refusal(
            status="invalid",
            reason=(
                f"trial {point.trial} at {point.effort} does not hold recall@{point.k} {target:g}: "
                f"measured {point.recall:.4f}, lower bound {point.recall_lower:.4f} over {point.queries} queries"
            ),
            hint="promote another trial, or pass force to promote it all the same",
        )
    return point


def entry_of(point: TrialPoint, promoted_by: str, note: str, now: Timestamp, cause: MessageId) -> PromotionEntry:
    """A promotion with the figures that it was decided on."""
    return PromotionEntry(
        config=point.config,
        trial=point.trial,
        recall=point.recall,
        recall_lower=point.recall_lower,
        p50_us=point.p50_us,
        promoted_by=promoted_by,
        note=note,
        time=now,
        cause=cause,
    )


def drift_reason(event: RecallDrifted) -> str:
    """The figures of a drift, as they are kept with the entry that it ended."""
    recall = event.recall
    return (
        f"live recall@10 fell to {recall.mean:.4f} (95 % bounds {recall.lower:.4f} to {recall.upper:.4f}, "
        f"{recall.samples} sampled queries), under the target {event.target:g}, on generation {event.generation}"
    )


def _ended(entry: PromotionEntry, now: Timestamp, reason: str, by: MessageId) -> PromotionEntry:
    return msgspec.structs.replace(entry, ended=now, ended_reason=reason, ended_by=by)


def _cheapest(points: Sequence[TrialPoint], target_recall: Share) -> TrialPoint:
    holding = [point for point in points if point.recall_lower >= _target(point, target_recall)]
    if holding:
        return min(holding, key=lambda point: (point.p50_us, point.effort))
    return max(points, key=lambda point: (point.recall_lower, -point.p50_us))


def _target(point: TrialPoint, of_index: Share) -> Share:
    return point.target_recall or of_index
