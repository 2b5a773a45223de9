"""What the agent must still know after a kill: its queue, its running campaigns, its decisions,
and what it last answered to whom. Budget and cooldown are read from the times kept here."""

import msgspec

from schemas.config import IndexConfig
from schemas.documents.base import Document
from schemas.events.autotune import (
    AutotuneStarted,
    Decision,
    Proposal,
    QueuedTuning,
    RunTrial,
    TuningFinished,
    TuningQueued,
)
from schemas.events.base import Refusal
from schemas.events.index import RebuildIndex
from schemas.events.promotion import Promote
from schemas.names import (
    Backend,
    CampaignId,
    HarnessName,
    IndexName,
    MessageId,
    Objective,
    Rows,
    Share,
    Timestamp,
    TrialId,
)

Emitted = RunTrial | Promote | RebuildIndex | TuningQueued | TuningFinished | AutotuneStarted | Refusal


class Basis(msgspec.Struct, frozen=True):
    """What served and what was promoted when a campaign measured its champion."""

    live: IndexConfig
    promoted: IndexConfig | None  # None: nothing was


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """One tuning run of one index: trials proposed one after another until it is decided."""

    campaign: CampaignId
    index: IndexName
    reason: str
    asked_by: str
    trigger: MessageId
    trigger_tag: str
    trigger_time: Timestamp | None = None
    started: Timestamp
    target_recall: Share
    objective: Objective
    harness: HarnessName | None = None
    manual: bool = False  # someone asked: neither the hourly budget nor a cooldown holds it up
    recalibrate: bool = False  # done once an effort holds the target on the live build, unless `rebuild`
    grid: list[Proposal] = []  # of a grid campaign: what is still to run, in order
    measured_grid: list[Proposal] = []  # and what has run
    grid_given: bool = False  # a grid campaign; otherwise the ε-greedy rule proposes
    running: TrialId | None = None
    running_since: Timestamp | None = None
    running_proposal: Proposal | None = None
    attempts: int = 0  # failures of the running trial
    failed: int = 0  # trials given up
    given_up: list[Backend] = []  # whose trial was, beside the one that serves
    trials: list[TrialId] = []  # done
    champion_trial: TrialId | None = None  # what is live, at its best effort: challengers are measured against it
    promoted: TrialId | None = None  # promoted already, before the end of the campaign
    rebuild: str = ""  # why what is live has to be built again; empty when it hasn't
    without_gain: int = 0  # trials in a row that changed nothing
    basis: Basis | None = None  # another promotion or rollback makes its trials void
    restarted: Timestamp | None = None  # when that last happened
    void: int = 0  # trials that it made void


class Answered(msgspec.Struct, frozen=True):
    """What a message was answered with. Saved together with the state that it changed, so that
    a redelivery decides nothing twice and a crash before publishing loses nothing."""

    cause: MessageId
    messages: list[Emitted]


class AgentDocument(Document, frozen=True, kw_only=True, tag="agent"):
    """Registry name: "agent". One document, changed by compare-and-set."""

    queue: list[QueuedTuning] = []
    campaigns: list[Campaign] = []  # at most one per index; the first in the list is next
    trial_times: list[Timestamp] = []  # starts within the last hour
    cooldown_until: dict[IndexName, Timestamp] = {}
    changed: dict[IndexName, Rows] = {}  # rows added and deleted since the index was last tuned
    tuned: dict[IndexName, Timestamp] = {}  # when the index's last campaign ended
    begun: dict[IndexName, Timestamp] = {}  # when it began
    covered: dict[IndexName, int] = {}  # dataset version that its vectors cover, as last heard
    decisions: list[Decision] = []  # newest first, the last 50
    verdicts: list[TuningFinished] = []  # told once the promotion that they speak of is durable
    answered: list[Answered] = []  # newest first, the last 50
