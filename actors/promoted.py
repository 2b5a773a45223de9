"""The read side of promotion: which configuration holds for an index now, for every actor that
must know. Who may change it, and its history, is actors/promotion's.
"""

import msgspec

from actors.backends.lance_rules import first_config, resolve
from actors.ports import Registry
from schemas.config import IndexConfig
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.names import Backend, IndexName, Rows, TrialId


class Holds(msgspec.Struct, frozen=True):
    """A configuration, and why it holds."""

    config: IndexConfig
    trial: TrialId | None = None  # that was promoted; None: nothing is


async def config_or(
    registry: Registry, index: IndexName, default: IndexConfig, backend: Backend | None = None
) -> Holds:
    """The promoted configuration of an index, or `default` when nothing is promoted. `backend`: the newest one that
    is of it, current or before, whatever else was promoted since."""
    found = await registry.load(PromotionDocument, index)
    entry = newest_of(found[0] if found else None, backend)
    return Holds(entry.config, entry.trial) if entry else Holds(default)


def newest_of(promotion: PromotionDocument | None, backend: Backend | None) -> PromotionEntry | None:
    """What is current; with `backend`, the newest of that one, current or before."""
    if promotion is None or promotion.current is None:
        return None  # a rollback that cleared it left no history
    entries = [promotion.current, *promotion.history]
    return next((entry for entry in entries if backend in (None, entry.config.backend)), None)


def own_config(index: IndexDocument, live: GenerationDocument | None) -> IndexConfig:
    """What holds when nothing is promoted, on the backend that is wanted; of `auto` on the one that serves."""
    serving: Backend = live.config.backend if live else "hnsw"
    return own_on(index, serving if index.backend == "auto" else index.backend, live.rows if live else 0)


def own_on(index: IndexDocument, backend: Backend, rows: Rows) -> IndexConfig:
    """What holds on a backend when nothing is promoted there; of Lance as given, else by rule from the rows."""
    if backend == "hnsw":
        return index.config
    return index.lance or first_config(resolve(max(1, rows), index.dim))
