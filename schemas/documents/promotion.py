"""The promotion head of an index: what is current, and what was."""

import msgspec

from schemas.config import IndexConfig
from schemas.documents.base import Document
from schemas.names import IndexName, MessageId, Micros, Share, Timestamp, TrialId

MAX_HISTORY = 50


class PromotionEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One promotion, with the figures it was decided on."""

    config: IndexConfig
    trial: TrialId
    recall: Share  # mean recall@10 of the trial's point
    recall_lower: Share
    p50_us: Micros
    promoted_by: str
    note: str
    time: Timestamp
    cause: MessageId  # the command that promoted it
    generation: int | None = None  # filled in when the index serves it
    ended: Timestamp | None = None  # when it stopped being current
    ended_reason: str = ""
    ended_by: MessageId | None = None  # the message that ended it


class PromotionDocument(Document, frozen=True, kw_only=True, tag="promotion"):
    """Registry name: the index's."""

    index: IndexName
    current: PromotionEntry | None = None
    history: list[PromotionEntry] = []  # newest first, at most MAX_HISTORY
    rolled_back: list[PromotionEntry] = []  # newest first, at most MAX_HISTORY: what was popped, and why
