"""What the agent must still know after a kill: its queue, its running campaigns, its decisions.
Budget and cooldown are read from the times kept here."""

from typing import Any

import msgspec

from schemas.documents.base import Document
from schemas.events.autotune import Decision, Proposal, QueuedTuning
from schemas.names import CampaignId, HarnessName, IndexName, MessageId, Objective, Share, Timestamp, TrialId


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """One tuning run of one index: trials proposed one after another until it is decided."""

    campaign: CampaignId
    index: IndexName
    reason: str
    asked_by: str
    trigger: MessageId
    trigger_tag: str
    started: Timestamp
    target_recall: Share
    objective: Objective
    harness: HarnessName | None = None
    grid: list[Proposal] = []  # still to run, in order; empty: the ε-greedy rule proposes
    running: TrialId | None = None
    running_since: Timestamp | None = None
    running_proposal: Proposal | None = None
    attempts: int = 0  # deliveries of the running trial that failed
    trials: list[TrialId] = []  # done
    recalibrated: bool = False  # ef has been swept on the live graph
    without_gain: int = 0  # trials in a row that changed nothing
    facts: dict[str, Any] = {}


class AgentDocument(Document, frozen=True, kw_only=True, tag="agent"):
    """Registry name: "agent". One document, changed by compare-and-set."""

    queue: list[QueuedTuning] = []
    campaigns: list[Campaign] = []  # at most one per index
    trial_times: list[Timestamp] = []  # starts within the last hour
    cooldown_until: dict[IndexName, Timestamp] = {}
    tuned_rows: dict[IndexName, int] = {}  # rows of the index when last tuned
    decisions: list[Decision] = []  # newest first, the last 50
