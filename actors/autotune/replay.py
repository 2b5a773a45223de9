"""Proves from the journal alone that the agent's proposals follow from it: every row says how
many rows there were when its proposal was made and under which policy, so the rule is run again
on that many rows and must give the same build."""

from collections.abc import Sequence

import msgspec

from actors.autotune.decide import chosen_points
from actors.autotune.proposer import propose
from actors.autotune.spaces import Policy
from schemas.config import with_effort
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import Replayed, ReplayReport
from schemas.names import IndexName


def replay(index: IndexName, points: Sequence[TrialPoint], policy: Policy) -> ReplayReport:
    """`points`: all of the index's rows, in the order written. `policy` is today's, for what the
    rule would propose next; the past is replayed under the policy of its time."""
    proposals = []
    for point in chosen_points(points):
        if point.proposer not in ("explore", "exploit"):
            continue
        then = msgspec.json.decode(point.policy, type=Policy)
        again = propose(index, points[: point.journal_rows], then)
        proposed = point.config
        replayed = again.config if again else None
        if replayed is not None and replayed.backend == point.backend:
            replayed = with_effort(replayed, point.effort)  # the sweep's finding, no part of what was proposed
        same = again is not None and replayed == proposed and (again.rule, again.draw) == (point.rule, point.draw)
        proposals.append(Replayed(point.trial, point.journal_rows, proposed, replayed or proposed, same))
    return ReplayReport(index=index, proposals=proposals, next=propose(index, points, policy))
