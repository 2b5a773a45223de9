"""The query planner: what it learnt, when its queries shifted, what it is told to do."""

from typing import Annotated

from msgspec import Meta

from schemas.events.base import Event, Query, Reply, Request
from schemas.names import IndexName, Micros, Seconds, Timestamp
from schemas.planner import PlannerGain, PlannerMode


class PatternShift(Event, tag="planner.shifted"):
    """The queries of an index come from elsewhere than they did: a two-sample test on their plans says so."""

    index: IndexName
    z: float
    p: float
    samples: int


class PlannerLearned(Event, tag="planner.learned"):
    """A background cycle is over; what it made is durable and in use."""

    index: IndexName
    trajectories: int
    labels: int
    clusters: int
    patterns: int  # in the bank
    took_s: Seconds
    process: str  # that learnt it; others take it from the registry


class PlannerModeChanged(Event, tag="planner.mode_changed"):
    """The planner begins or ends to act on an index."""

    index: IndexName
    mode: PlannerMode
    before: PlannerMode
    why: str
    process: str


class PlannerForgot(Event, tag="planner.forgot"):
    """Everything that was learnt of an index is gone, or replaced by what was imported."""

    index: IndexName
    imported: bool
    process: str


class PlannerStatus(Reply, tag="planner.status"):
    """Of one index in one process."""

    index: IndexName
    enabled: bool
    mode: PlannerMode
    why: str
    queries_processed: int
    pattern_hit_rate: float
    avg_latency_us: Micros
    planner_us: Micros  # mean time that choosing and remembering took
    background_cycles: int
    patterns_stored: int
    trajectories: int
    trajectories_dropped: int
    labels: int
    ewc_tasks: int
    learned: Timestamp | None = None
    cycle_s: Seconds = 0.0
    gain: PlannerGain | None = None  # None before the first sampled query


class GetPlanner(Query[PlannerStatus], tag="planner.get"):
    index: IndexName


class LearnPlanner(Request[PlannerLearned], tag="planner.learn"):
    """Run a background cycle now."""

    index: IndexName


class SetPlanner(Request[PlannerStatus], tag="planner.set"):
    """off, shadow (decides and measures, changes nothing), or on."""

    index: IndexName
    mode: PlannerMode


class ResetPlanner(Request[PlannerStatus], tag="planner.reset"):
    """Forget everything that was learnt of an index."""

    index: IndexName


class PlannerExport(Reply, tag="planner.export_reply"):
    """What was learnt, without trajectories: a compressed document, to be imported as it is."""

    index: IndexName
    state: bytes


class ExportPlanner(Query[PlannerExport], tag="planner.export"):
    index: IndexName


class ImportPlanner(Request[PlannerStatus], tag="planner.import"):
    """Take over what was exported, from an index of as many dimensions. It starts in shadow."""

    index: IndexName
    state: Annotated[bytes, Meta(max_length=8 << 20)]
