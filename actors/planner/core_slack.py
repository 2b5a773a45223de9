"""How critical each operator of a query plan is: the critical path method (Kelley & Walker 1959) over the plan's DAG.

    embed ─┐
           ├→ plan → search → fetch
    filter ┘

Slack is the time by which an operator could be slower without the query being slower, were everything that may run at
the same time to do so. An operator without slack is critical.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SEARCHES = ("graph", "exact", "lance")
AFTER: Mapping[str, tuple[str, ...]] = {
    "embed": (),
    "read": (),
    "filter": (),
    "plan": ("embed", "read", "filter"),
    **dict.fromkeys(("graph", "lance"), ("embed", "read", "filter", "plan")),
    "exact": ("embed", "read", "filter", "plan", "graph", "lance"),
    "fetch": SEARCHES,
}
"""What an operator waits for, of those that are in a plan. Rescoring is part of Lance's search."""


class Slack(NamedTuple):
    operator: str
    us: float
    slack_us: float

    @property
    def criticality(self) -> float:
        """1 without slack, towards 0 the more there is."""
        return 1.0 if self.slack_us <= 0 else self.us / (self.us + self.slack_us)


def slacks(steps: Sequence[tuple[str, float]], after: Mapping[str, tuple[str, ...]] = AFTER) -> list[Slack]:
    """Of each step (operator, µs) in the order they ran. The same operator twice is one after the other; one that the
    table doesn't know waits for all before it."""
    names = [name for name, _ in steps]
    waits = []
    for place, name in enumerate(names):
        wanted = (*after.get(name, tuple(names[:place])), name)
        waits.append([i for i in range(place) if names[i] in wanted])
    earliest: list[float] = []  # when each can begin
    for place in range(len(steps)):
        earliest.append(max((earliest[i] + steps[i][1] for i in waits[place]), default=0.0))
    end = max((begin + us for begin, (_, us) in zip(earliest, steps, strict=True)), default=0.0)
    latest = [end - us for _, us in steps]
    for place in range(len(steps) - 1, -1, -1):
        for i in waits[place]:
            latest[i] = min(latest[i], latest[place] - steps[i][1])
    return [
        Slack(name, us, max(0.0, late - early)) for (name, us), early, late in zip(steps, earliest, latest, strict=True)
    ]
