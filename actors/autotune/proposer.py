"""What to build next: ε-greedy over the builds of a backend, from the journal alone. The spaces, and
what a step in them is: `spaces`.

The champion here is the journal's: the last configuration measured as champion, and since then
whatever beat it, of whichever backend; its backend is the one that is searched. Nothing else goes
in, so the journal proposes the same again (see `replay`).
"""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from actors.autotune.decide import better, chosen_points
from actors.autotune.spaces import LADDER, Ladder, Policy, Space, space_of
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import Proposal
from schemas.names import IndexName


def propose(index: IndexName, points: Sequence[TrialPoint], policy: Policy, ladder: Ladder = LADDER) -> Proposal | None:
    """The next build to try, from all rows of the index's journal; None when nothing untried is
    left within the bounds. A build counts as tried when it was on the journal's newest dataset
    version: a later version than that holds no trial at all."""
    champion, space = _searched(points, policy, ladder)
    tried = space.tried(_newest(points))
    rng = np.random.default_rng(_seed(index, len(points)))
    draw = float(rng.random())  # drawn first, always: the rest may not shift it
    untried = [build for build in space.builds() if build not in tried]
    if not untried:
        return None
    steps = [build for build in space.steps(champion) if build not in tried] if champion else []
    explore = draw < policy.epsilon or not steps
    pool = untried if explore or champion is None else space.likeliest(steps, points, champion)
    build = pool[int(rng.integers(len(pool)))]
    if not explore and champion:
        rule = f"exploit: {space.step_in_words(champion, build)}"
    elif draw < policy.epsilon:
        rule = f"explore: {space.draw_in_words(build)}, {draw:.3f} < ε {policy.epsilon:g}"
    else:
        rule = f"explore: {space.draw_in_words(build)}, every step from the champion is tried"
    return Proposal(
        config=space.config(build),
        proposer="explore" if explore else "exploit",
        rule=rule,
        draw=draw,
        journal_rows=len(points),
        policy=msgspec.json.encode(policy).decode(),
    )


def journal_champion(points: Sequence[TrialPoint], target: float) -> TrialPoint | None:
    """The champion that the journal's rows tell of. A champion's own trial sets it: that is the
    first of every campaign and tells what was live. A later point takes its place when better."""
    champion: TrialPoint | None = None
    for point in chosen_points(points):
        if champion is None or point.proposer == "champion" or better(point, champion, target):
            champion = point
    return champion


def exhausted(points: Sequence[TrialPoint], policy: Policy, ladder: Ladder = LADDER) -> bool:
    """Every step from the journal's champion is tried."""
    champion, space = _searched(points, policy, ladder)
    if champion is None:
        return False
    tried = space.tried(_newest(points))
    return all(build in tried for build in space.steps(champion))


def _searched(points: Sequence[TrialPoint], policy: Policy, ladder: Ladder) -> tuple[TrialPoint | None, Space]:
    """The journal's champion and the space of its backend. One of a backend that may not be proposed is no
    place to step from."""
    champion = journal_champion(points, policy.target_recall)
    if champion is not None and champion.backend not in policy.backends:
        champion = None
    return champion, space_of(champion.backend if champion else policy.backends[0], policy, champion, ladder)


def _newest(points: Sequence[TrialPoint]) -> list[TrialPoint]:
    newest = max((point.dataset_version for point in points), default=-1)
    return [point for point in points if point.dataset_version == newest]


def _seed(index: IndexName, journal_rows: int) -> list[int]:
    return [int.from_bytes(hashlib.sha256(index.encode()).digest()[:8], "big"), journal_rows]
