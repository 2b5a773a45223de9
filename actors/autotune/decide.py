"""What measurements mean: which point is better, when a challenger is promoted, when a graph has
to be built again, when a campaign is over. Rules on values; every verdict says why, in figures.

"Holds" is always the one-sided 95 % lower bound on mean recall against the target, and "faster"
the upper end of the interval of the interleaved latency ratio: both err on the side of the
configuration that serves now.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import msgspec

from schemas.config import Effort, HnswEffort
from schemas.documents.trial import TrialPoint
from schemas.names import Objective, Rows

REBUILD_GROWTH = 2.0
"""A graph that took in as many rows as it was built with has lost touch with its build."""
REBUILD_DELETED = 0.2
"""Marked rows are still walked through: beyond this share they cost more than a build."""


def holds(point: TrialPoint, target: float) -> bool:
    return point.recall_lower >= target


def chosen_points(points: Iterable[TrialPoint]) -> list[TrialPoint]:
    """One a trial: what the trial stands for."""
    return [point for point in points if point.chosen]


class Recalled(Protocol):
    """A point of a sweep, in the journal or on its way there."""

    @property
    def effort(self) -> Effort: ...
    @property
    def recall_lower(self) -> float: ...
    @property
    def p50_us(self) -> float: ...


def choose(points: Sequence[Recalled], target: float) -> Effort:
    """The effort that a trial stands for. On one graph the lowest ef that holds is the cheapest; on Lance two
    numbers trade against each other, and the fastest that holds is, of those that no other undercuts in every
    number, whatever a busy machine measured. When none holds, the one nearest to it."""
    feasible = [point for point in points if point.recall_lower >= target]
    if feasible:
        least = [one for one in feasible if not any(_undercuts(other.effort, one.effort) for other in feasible)]
        return min(least, key=_cost).effort
    return min(points, key=lambda p: (-p.recall_lower, _cost(p))).effort


def _undercuts(effort: Effort, other: Effort) -> bool:
    """Whether a build does less work at `effort`, in any number, and more in none."""
    pairs = zip(msgspec.structs.astuple(effort), msgspec.structs.astuple(other), strict=True)
    return effort != other and all(less <= more for less, more in pairs)


def _cost(point: Recalled) -> tuple[float, Effort]:
    """Sorts the points of one build by what they cost."""
    effort = point.effort
    return (float(effort.ef_search) if isinstance(effort, HnswEffort) else point.p50_us), effort


def better(point: TrialPoint, than: TrialPoint, target: float) -> bool:
    """Whether the search should go on from `point`. Latencies of different moments don't
    compare on a shared machine, so ratios against the same champion decide where there are any."""
    if holds(point, target) != holds(than, target):
        return holds(point, target)
    if not holds(point, target):
        return point.recall_lower > than.recall_lower
    if point.champion_trial is None or point.champion_ratio_high is None:
        return point.cpu_us < than.cpu_us
    if point.champion_trial == than.trial:
        return point.champion_ratio_high < 1
    if point.champion_trial == than.champion_trial and than.champion_ratio is not None:
        return point.champion_ratio_high < than.champion_ratio
    return False


def rebuild_reason(built_rows: Rows, added: Rows, deleted: Rows) -> str:
    """Why the live graph or Lance index, built over `built_rows` and kept up to date since, has to be
    built again; empty when it hasn't."""
    if built_rows and built_rows + added >= REBUILD_GROWTH * built_rows:
        return f"{added} rows came to the {built_rows} that it was built with: they doubled"
    if built_rows and deleted > REBUILD_DELETED * built_rows:
        return f"{deleted} of the {built_rows} rows that it was built with are deleted: more than {REBUILD_DELETED:.0%}"
    return ""


class Verdict(msgspec.Struct, frozen=True):
    """What came of a campaign, or of its first trial."""

    outcome: Literal["promoted", "kept", "infeasible"]
    reason: str
    winner: TrialPoint | None = None  # what to promote
    best: TrialPoint | None = None  # the cheapest that holds, or the nearest to it


def recalibrated(point: TrialPoint, target: float, min_gain: float) -> Verdict:
    """The champion's own trial: `point` is its build at the best effort, compared with the effort that
    is live. Changing that costs no build, so it is promoted at once."""
    if not holds(point, target):
        return Verdict("infeasible", _miss([point], target), best=point)
    held = f"{point.effort} holds {target:g} (lower bound {point.recall_lower:.4f})"
    if point.champion_ratio_high is None:
        return Verdict("promoted", f"{held}; nothing was live", point, point)
    if (point.champion_recall_lower or 0.0) < target:
        return Verdict("promoted", f"{held}; the live one misses it ({point.champion_recall_lower:.4f})", point, point)
    if point.champion_ratio_high < 1 - min_gain:
        return Verdict("promoted", f"{held} and is {_faster(point)} than the live one", point, point)
    return Verdict("kept", f"{held}; {_slower(point, min_gain)}", best=point)


def verdict(
    points: Sequence[TrialPoint],
    target: float,
    objective: Objective,
    min_gain: float,
    champion: TrialPoint | None = None,
) -> Verdict:
    """The end of a campaign: `points` are all that its challengers' trials measured, `champion`
    the point that they were measured against, when it has a trial in this campaign."""
    feasible = [point for point in points if holds(point, target)]
    if not feasible:
        if not points and champion is None:
            return Verdict("infeasible", "nothing was measured")
        if champion is not None and holds(champion, target):
            why = _miss(points, target) if points else "there was none"
            return Verdict("kept", f"no challenger holds {target:g}: {why}", best=champion)
        measured = [*points, *([champion] if champion else [])]
        return Verdict("infeasible", _miss(measured, target), best=max(measured, key=lambda p: p.recall_lower))
    cost = relative_costs(points)
    if objective == "recall_first":
        best = max(feasible, key=lambda p: (p.recall, -cost[id(p)]))
    else:  # only chosen points were compared with the champion, and on its build each is the cheapest
        best = min(chosen_points(feasible), key=lambda p: cost[id(p)])
    compared = [p.champion_recall_lower for p in points if p.champion_recall_lower is not None]
    held_lower = max(compared, default=champion.recall_lower if champion else None)
    what = f"{best.config}: lower bound {best.recall_lower:.4f}"
    if held_lower is None:
        return Verdict("promoted", f"{what}; nothing was live to compare with", best, best)
    if held_lower < target:
        return Verdict("promoted", f"{what}; the champion misses {target:g} ({held_lower:.4f})", best, best)
    if objective == "recall_first":
        if best.recall_lower > held_lower:
            return Verdict("promoted", f"{what}, the champion's is {held_lower:.4f}", best, best)
        return Verdict("kept", f"{what}, the champion's is no lower: {held_lower:.4f}", best=best)
    if best.champion_ratio_high is not None and best.champion_ratio_high < 1 - min_gain:
        return Verdict("promoted", f"{what}, {_faster(best)} than the champion", best, best)
    return Verdict("kept", f"{what}; {_slower(best, min_gain)}", best=best)


def relative_costs(points: Sequence[TrialPoint]) -> dict[int, float]:
    """Cost of each point by `id`: its ratio to the champion when that was measured, else
    estimated from its trial's chosen point, which was: both ran in the same minute. Without a
    champion it is p50."""
    chosen = {point.trial: point for point in chosen_points(points)}
    costs = {}
    for point in points:
        of_trial = chosen.get(point.trial, point)
        if point.champion_ratio is not None:
            costs[id(point)] = point.champion_ratio
        elif of_trial.champion_ratio is not None:
            costs[id(point)] = of_trial.champion_ratio * point.p50_us / of_trial.p50_us
        else:
            costs[id(point)] = point.p50_us
    return costs


def _miss(points: Sequence[TrialPoint], target: float) -> str:
    nearest = max(points, key=lambda p: p.recall_lower)
    return (
        f"best reached {nearest.recall_lower:.4f} (lower bound; mean {nearest.recall:.4f}) of target {target:g} "
        f"at {nearest.effort} with {nearest.config.build}"
    )


def _faster(point: TrialPoint) -> str:
    ratio, low, high = point.champion_ratio or 1, point.champion_ratio_low or 0, point.champion_ratio_high or 1
    return f"{1 - ratio:.1%} faster ({1 - high:.1%} to {1 - low:.1%} with 95 % confidence)"


def _slower(point: TrialPoint, min_gain: float) -> str:
    if point.champion_ratio is None:
        return "not compared with the champion"
    return (
        f"latency is {point.champion_ratio:.3f} of the champion's ({point.champion_ratio_low:.3f} to "
        f"{point.champion_ratio_high:.3f} with 95 % confidence), a gain of {min_gain:.0%} isn't certain"
    )
