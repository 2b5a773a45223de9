"""Promotion: which configuration is current for an index, what was before, and why."""

from typing import Any

import msgspec

from schemas.config import IndexConfig
from schemas.documents.promotion import PromotionEntry
from schemas.events.base import Event, Query, Reply, Request
from schemas.names import IndexName, MessageId, Timestamp, TrialId


class ConfigPromoted(Event, tag="promotion.promoted"):
    """The head moved: `entry` is current, the one before is history."""

    index: IndexName
    entry: PromotionEntry
    previous: IndexConfig | None
    rolled_back: bool = False


class PromotionCleared(Event, tag="promotion.cleared"):
    """A rollback found no history: nothing is promoted, the index's own configuration holds."""

    index: IndexName
    config: IndexConfig  # what holds now
    reason: str


class Promote(Request[ConfigPromoted], tag="promotion.promote"):
    """Make a trial's configuration current. Refused when the trial is unknown or held no
    recall (unless `force`), when another promotion of the index won the race, or when there was
    a rollback that whoever decided didn't know of."""

    index: IndexName
    trial: TrialId
    ef_search: int | None = None  # a measured point of an HNSW trial; default its chosen point
    nprobes: int | None = None  # of a Lance trial: what of these is given names the measured point
    refine_factor: int | None = None
    ef: int | None = None
    promoted_by: str = "user"
    note: str = ""
    force: bool = False
    rollback_known: str | None = None  # id of the newest rollback; "": there was none; None: unchecked


class Rollback(Request[ConfigPromoted | PromotionCleared], tag="promotion.rollback"):
    """Back to the configuration before. An empty history clears current."""

    index: IndexName
    reason: str = ""
    promoted_by: str = "user"
    generation: int | None = None  # only if this generation is still current; else refused


class PromotionState(Reply, tag="promotion.state"):
    index: IndexName
    current: PromotionEntry | None
    history: list[PromotionEntry]  # newest first, at most 50
    rolled_back: list[PromotionEntry] = []  # newest first: what was taken back, and why


class GetPromoted(Query[PromotionState], tag="promotion.get"):
    index: IndexName


class WhyLink(msgspec.Struct, frozen=True):
    """One link of the chain from the live configuration back to the data that caused it."""

    what: str  # "generation", "promotion", "trial", "proposal", "trigger", "index", "commit", "file"
    id: str
    time: Timestamp
    text: str  # one sentence
    facts: dict[str, Any] = {}
    cause: MessageId | None = None


class WhyChain(Reply, tag="why.chain"):
    """Newest link first."""

    index: IndexName
    links: list[WhyLink]


class Why(Query[WhyChain], tag="why.index"):
    index: IndexName
