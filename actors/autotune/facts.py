"""What a decision about an index is made from, and what follows from it alone. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.autotune.config import AgentConfig
from actors.autotune.spaces import Policy
from actors.backends.lance_rules import first_config, resolve
from actors.promoted import newest_of, own_config
from schemas.config import DEFAULT_CONFIG, HnswConfig, IndexConfig, LanceConfig
from schemas.documents.agent import Basis
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument
from schemas.documents.trial import TrialPoint
from schemas.names import Backend, Rows, Share

GROWTH = 2.0
"""The other backend is tried again once there are so many times the rows: each grows in its own way."""


@dataclass(frozen=True)
class Facts:
    target_recall: Share
    config: IndexConfig  # live, or as created while nothing is
    is_live: bool  # there is a generation
    points: Sequence[TrialPoint]  # the index's journal, in the order written
    promotion: PromotionDocument | None = None
    backends: Sequence[Backend] = ("hnsw",)  # that may be tried; what serves comes first
    own: HnswConfig = DEFAULT_CONFIG  # what holds on each backend when nothing is promoted there
    lance: LanceConfig | None = None  # None: by rule
    dim: int = 0
    rows: Rows = 0  # as last measured, or as last built

    @property
    def basis(self) -> Basis:
        current = self.promotion.current if self.promotion else None
        return Basis(self.config, current.config if current else None)


def facts_of(
    index: IndexDocument,
    live: GenerationDocument | None,
    promotion: PromotionDocument | None,
    points: Sequence[TrialPoint],
) -> Facts:
    rows = points[-1].rows if points else live.rows if live else 0
    return Facts(
        target_recall=index.target_recall,
        config=live.config if live else own_config(index, None),
        is_live=live is not None,
        points=points,
        promotion=promotion,
        backends=backends_of(index, live.config.backend if live else None),
        own=index.config,
        lance=index.lance,
        dim=index.dim,
        rows=max(rows, live.rows if live else 0),
    )


def backends_of(index: IndexDocument, serving: Backend | None) -> list[Backend]:
    """Which may be tried: what the user wants; of `auto` what serves, and the other one where it is kept ready,
    which tells that it can be had here."""
    if index.backend != "auto":
        return [index.backend]
    first = serving or "hnsw"
    return [first, *(other for other in index.companions if other != first)]


def serves_as_wanted(index: IndexDocument, live: GenerationDocument, promotion: PromotionDocument | None) -> bool:
    """Whether the live configuration is the one that should serve: the newest promoted of a backend that is
    wanted, else the index's own."""
    wanted = None if index.backend == "auto" else index.backend
    entry = newest_of(promotion, wanted)
    if entry is not None and (wanted or entry.config.backend == live.config.backend):
        return live.config == entry.config
    if entry is not None:  # `auto` may have another reason than the promotion: memory
        return index.building is None
    if wanted not in (None, live.config.backend):
        return False
    own = index.config if live.config.backend == "hnsw" else index.lance
    return own is None or live.config == own  # by rule, it is whatever was built


def other_backend(facts: Facts) -> Backend | None:
    """The backend that a trial is due on: it may serve this index, and was never tried on it, or not since the
    rows doubled."""
    for backend in facts.backends:
        if backend == facts.config.backend:
            continue
        then = max((p.rows for p in facts.points if p.chosen and p.backend == backend), default=0)
        if facts.rows >= GROWTH * then:
            return backend
    return None


def best_known(facts: Facts, backend: Backend) -> IndexConfig:
    """What to begin with on a backend: its newest promoted configuration, else the index's own, or the rule's."""
    entry = newest_of(facts.promotion, backend)
    if entry is not None:
        return entry.config
    if backend == "hnsw":
        return facts.own
    return facts.lance or first_config(resolve(max(1, facts.rows), facts.dim))


def policy(target: Share, config: AgentConfig, facts: Facts) -> Policy:
    return Policy(
        target,
        config.epsilon,
        config.m_bounds,
        config.ef_construction_bounds,
        config.ef_search_bounds,
        backends=tuple(facts.backends),
        dim=facts.dim,
        rows=facts.rows,
    )
