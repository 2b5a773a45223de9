"""The table `lineage`: a row a run event."""

import msgspec

from schemas.names import Timestamp


class LineageRow(msgspec.Struct, frozen=True):
    """One OpenLineage event, and what of it SQL wants to ask for."""

    run: str  # UUID
    state: str  # START, COMPLETE, FAIL
    kind: str  # ingest, build, campaign, promotion
    time: Timestamp
    job: str
    inputs: str  # JSON list of nodes: "dataset:docs", "index:docs", "source:file:/x.csv"
    outputs: str
    detail: str  # a sentence
    message: str  # id of the bus message that it tells of
    event: str  # the RunEvent, JSON
