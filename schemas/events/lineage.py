"""Lineage: what came from what. Owned by the lineage actor."""

import msgspec

from schemas.events.base import Command, Query, Reply
from schemas.lineage import RunState
from schemas.names import Timestamp


class PostLineage(Command, tag="lineage.post"):
    """Send a stored run event to `[lineage] url`. Tried again while the endpoint is away, a dead
    letter in the end."""

    event: msgspec.Raw


class LineageRun(msgspec.Struct, frozen=True):
    """The newest event of a run."""

    run: str
    state: RunState
    kind: str
    time: Timestamp
    detail: str
    inputs: list[str]
    outputs: list[str]


class LineageGraph(Reply, tag="lineage.graph"):
    """What a dataset or index came from and what came of it: the runs that lead there, newest
    first, and the nodes on the way (`dataset:docs`, `index:docs`, `source:…`)."""

    roots: list[str]  # nodes of the name that was asked for
    up: list[LineageRun]
    down: list[LineageRun]


class GetLineage(Query[LineageGraph], tag="lineage.get"):
    name: str  # of a dataset or an index
    limit: int = 50  # runs each way
