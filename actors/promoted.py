"""The read side of promotion: which configuration holds for an index now, for every actor that
must know. Who may change it, and its history, is actors/promotion's.
"""

import msgspec

from actors.ports import Registry
from schemas.config import HnswConfig
from schemas.documents.promotion import PromotionDocument
from schemas.names import IndexName, TrialId


class Holds(msgspec.Struct, frozen=True):
    """A configuration, and why it holds."""

    config: HnswConfig
    trial: TrialId | None = None  # that was promoted; None: nothing is


async def config_or(registry: Registry, index: IndexName, default: HnswConfig) -> Holds:
    """The promoted configuration of an index, or `default` when nothing is promoted."""
    found = await registry.load(PromotionDocument, index)
    if found is None or found[0].current is None:
        return Holds(default)
    return Holds(found[0].current.config, found[0].current.trial)
