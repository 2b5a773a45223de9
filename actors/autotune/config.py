"""[agent] of lakehouse.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.config import EF_CONSTRUCTION_BOUNDS, EF_SEARCH_BOUNDS, M_BOUNDS

Pair = tuple[int, int]


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = True
    """False: nothing is tuned unless it is asked for."""
    epsilon: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """Share of proposals drawn at random from the bounds; the rest step from the champion."""
    target_recall: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    """Recall@10 that a new index holds unless it says otherwise."""
    min_gain: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    """A challenger must be faster than the champion by this share, with confidence."""
    max_trials_per_hour: Annotated[int, Meta(ge=0)] = 20
    """Trials that the agent starts by itself, over all indexes."""
    max_trials_per_campaign: Annotated[int, Meta(ge=1)] = 6
    """Builds that one campaign may take."""
    patience: Annotated[int, Meta(ge=1)] = 3
    """A campaign ends after so many trials in a row without gain."""
    cooldown_s: Annotated[float, Meta(ge=0)] = 300.0
    """Time between two campaigns of one index."""
    min_new_rows: Annotated[int, Meta(ge=1)] = 1000
    """Appends smaller than this (since the last tuning) don't set off a campaign."""
    wake_s: Annotated[float, Meta(ge=1)] = 60.0
    """How often the agent looks for waiting work without being told."""
    harness_queries: Annotated[int, Meta(ge=10, le=10_000)] = 500
    """Queries of an eval set that is made for an index that has none."""
    m_bounds: Pair = M_BOUNDS
    """Lowest and highest M that is proposed."""
    ef_construction_bounds: Pair = EF_CONSTRUCTION_BOUNDS
    """Lowest and highest ef_construction that is proposed."""
    ef_search_bounds: Pair = EF_SEARCH_BOUNDS
    """Lowest and highest ef_search that is measured."""

    def __post_init__(self) -> None:
        """Raises ValueError, which begins with the key, for bounds that no configuration has."""
        for key, (low, high), (least, most) in (
            ("m_bounds", self.m_bounds, M_BOUNDS),
            ("ef_construction_bounds", self.ef_construction_bounds, EF_CONSTRUCTION_BOUNDS),
            ("ef_search_bounds", self.ef_search_bounds, EF_SEARCH_BOUNDS),
        ):
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{key} must be two numbers from {least} to {most}, the lower first: not {[low, high]}"
                )
