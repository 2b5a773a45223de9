"""Tuning: eval sets, trials, and the agent that decides between them.

The agent (control) queues indexes and proposes one configuration after another; the lab (work)
runs each as a trial, one at a time; the agent compares, promotes or goes on.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.config import (
    EF_CONSTRUCTION_BOUNDS,
    EF_SEARCH_BOUNDS,
    M_BOUNDS,
    PARTITION_BOUNDS,
    Effort,
    IndexConfig,
    LanceType,
)
from schemas.documents.trial import Proposer, TrialPoint
from schemas.events.base import Command, Event, Query, Reply, Request
from schemas.names import (
    CampaignId,
    HarnessName,
    IndexName,
    MessageId,
    Objective,
    Rows,
    Seconds,
    Share,
    Timestamp,
    TrialId,
)

# --- eval sets ---------------------------------------------------------------------------------


class HarnessInfo(Reply, tag="harness.info"):
    harness: HarnessName
    index: IndexName
    queries: int
    k: int  # neighbours that recall is scored on
    source: str
    version: int
    rows: Rows
    depth: int = 0  # nearest rows kept per query, more than k: deleted ones don't cost a new search


class HarnessBuilt(Event, tag="harness.built"):
    """An eval set with exact ground truth is durable."""

    harness: HarnessName
    index: IndexName
    queries: int
    source: str
    version: int


class BuildHarness(Request[HarnessInfo], tag="autotune.harness"):
    """Make an eval set. `rows`: sampled stored rows, each left out of its own truth."""

    index: IndexName
    harness: HarnessName | None = None  # default: the index's name
    queries: Annotated[int, Meta(ge=10, le=10_000)] = 500
    source: Literal["rows", "logged", "given"] = "rows"
    vectors: list[list[float]] | None = None  # of "given"
    texts: list[str] | None = None  # of "given", for indexes with an embedder
    seed: int = 42


class HarnessList(Reply, tag="harness.list"):
    harnesses: list[HarnessInfo]


class ListHarnesses(Query[HarnessList], tag="autotune.harnesses"):
    index: IndexName | None = None


# --- proposals and trials ----------------------------------------------------------------------


class Proposal(msgspec.Struct, frozen=True):
    """A configuration to try, and how it was arrived at. Its effort is the one the proposer
    named; the sweep finds the cheapest sufficient one around it."""

    config: IndexConfig
    proposer: Proposer
    rule: str
    draw: float | None = None
    journal_rows: int = 0
    policy: str = ""  # JSON: the settings of the rule that proposed it
    extra: list[Effort] = []  # further points to measure (a grid's)
    reuse_live: bool = False  # sweep on what is live, brought up to date; build nothing


class RunTrial(Command, tag="autotune.trial"):
    """One build and its sweep. Owned by the lab; carries all it needs."""

    trial: TrialId
    campaign: CampaignId
    index: IndexName
    proposal: Proposal
    target_recall: Share
    harness: HarnessName | None
    asked_by: str
    trigger: MessageId
    trigger_tag: str
    champion_trial: TrialId | None = None
    trigger_time: Timestamp | None = None


class TrialCompleted(Event, tag="trial.completed"):
    """A trial's points are in the journal. `best` is the cheapest point that holds the target,
    or the one nearest to it."""

    trial: TrialId
    campaign: CampaignId
    index: IndexName
    best: TrialPoint
    holds_target: bool
    points: int


class TrialFailed(Event, tag="trial.failed"):
    """A trial came to nothing. The agent goes on to the next."""

    trial: TrialId
    campaign: CampaignId
    index: IndexName
    reason: str


class ListTrials(Query["TrialList"], tag="autotune.trials"):
    index: IndexName
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100


class TrialList(Reply, tag="trial.list"):
    index: IndexName
    points: list[TrialPoint]  # newest first
    total: int


# --- the agent ---------------------------------------------------------------------------------


class QueuedTuning(msgspec.Struct, frozen=True):
    """A place in the queue: one per index."""

    index: IndexName
    reason: str
    asked_by: str
    trigger: MessageId
    trigger_tag: str
    time: Timestamp  # when the trigger came
    version: int = -1  # waits until the index's vectors cover this dataset version
    recalibrate: bool = False  # sweep efforts on what is live; build only if a rule says so
    after: int = 0  # of a drift: waits until this generation's promotion is taken back


class TuningQueued(Event, tag="autotune.queued"):
    """An index waits for its turn. An index that waits already keeps its place."""

    index: IndexName
    reason: str


class EnqueueTuning(Request[TuningQueued], tag="autotune.enqueue"):
    """Tune an index when its turn comes: `nats pub lakehouse.cmd.autotune.enqueue '{"index":"docs"}'`."""

    index: IndexName
    reason: str = "asked"
    asked_by: str = "bus"


class GridPoint(msgspec.Struct, frozen=True):
    """One point of an explicit grid."""

    ef_construction: Annotated[int, Meta(ge=EF_CONSTRUCTION_BOUNDS[0], le=EF_CONSTRUCTION_BOUNDS[1])]
    ef_search: Annotated[int, Meta(ge=EF_SEARCH_BOUNDS[0], le=EF_SEARCH_BOUNDS[1])]
    M: Annotated[int, Meta(ge=M_BOUNDS[0], le=M_BOUNDS[1])] = 16


class LancePoint(msgspec.Struct, frozen=True):
    """One build of an explicit grid on Lance; its nprobes, refine_factor and ef are swept."""

    index_type: LanceType
    partitions: Annotated[int, Meta(ge=PARTITION_BOUNDS[0], le=PARTITION_BOUNDS[1])] | None = None  # default by rule
    sub_vectors: Annotated[int, Meta(ge=1, le=4096)] | None = None  # of IVF_PQ; default by rule


DEFAULT_GRID = [GridPoint(20, 30), GridPoint(40, 30), GridPoint(80, 30), GridPoint(80, 60), GridPoint(160, 30)]


class AutotuneStarted(Reply, tag="autotune.started"):
    campaign: CampaignId
    index: IndexName
    trials: int  # builds it will make; 0 when the agent decides as it goes


class StartAutotune(Request[AutotuneStarted], tag="autotune.start"):
    """Tune now, out of turn: refused as busy when the index is being tuned."""

    index: IndexName
    harness: HarnessName | None = None
    min_recall: Annotated[float, Meta(gt=0, lt=1)] | None = None  # default the index's target
    grid: list[GridPoint] | None = None  # default DEFAULT_GRID, for an index that HNSW serves
    lance: list[LancePoint] | None = None  # default one of each type, for an index that Lance serves
    objective: Objective = "cost_first"
    agent: bool = False  # let the ε-greedy rule propose instead of a grid
    asked_by: str = "http"


class TuningFinished(Event, tag="autotune.finished"):
    """A campaign is decided. `promoted` names the trial whose configuration won, if any."""

    campaign: CampaignId
    index: IndexName
    outcome: Literal["promoted", "kept", "infeasible", "failed", "cancelled"]
    reason: str  # with the figures
    trials: int
    promoted: TrialId | None = None
    best: TrialPoint | None = None
    champion: TrialPoint | None = None


class Decision(msgspec.Struct, frozen=True):
    """Something the agent decided, and why."""

    index: IndexName
    time: Timestamp
    action: str  # queued, skipped, started, proposed, measured, promoted, restarted, kept, infeasible, failed
    reason: str
    campaign: CampaignId | None = None
    trial: TrialId | None = None


class RunningTrial(msgspec.Struct, frozen=True):
    trial: TrialId
    campaign: CampaignId
    index: IndexName
    proposal: Proposal
    since: Timestamp
    phase: str
    done: int
    total: int | None


class AgentStatus(Reply, tag="agent.status"):
    enabled: bool
    queue: list[QueuedTuning]
    running: list[RunningTrial]
    trials_this_hour: int  # that the agent started by itself
    max_trials_per_hour: int
    cooldown_until: dict[IndexName, Timestamp]
    decisions: list[Decision]
    budget_left: int = 0  # trials that it may still start by itself in this hour


class GetAgentStatus(Query[AgentStatus], tag="autotune.status"):
    pass


class Replayed(msgspec.Struct, frozen=True):
    """One proposal made again from the journal as it was then."""

    trial: TrialId
    journal_rows: int
    proposed: IndexConfig  # what the journal says was tried
    replayed: IndexConfig  # what the rule proposes from the same journal
    same: bool


class ReplayReport(Reply, tag="autotune.replayed"):
    index: IndexName
    proposals: list[Replayed]
    next: Proposal | None  # what the rule would propose now
    seconds: Seconds = 0.0


class Replay(Query[ReplayReport], tag="autotune.replay"):
    """Prove from the journal alone that the agent's proposals follow from it."""

    index: IndexName
