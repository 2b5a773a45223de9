"""The read side of promotion: which configuration holds for an index now."""

from actors.ports import Registry
from schemas.config import HnswConfig
from schemas.documents.promotion import PromotionDocument
from schemas.names import IndexName


async def config_or(registry: Registry, index: IndexName, default: HnswConfig) -> HnswConfig:
    """The promoted configuration of an index, or `default` when nothing is promoted."""
    found = await registry.load(PromotionDocument, index)
    if found is None or found[0].current is None:
        return default
    return found[0].current.config
