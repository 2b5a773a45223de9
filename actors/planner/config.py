"""[planner] of lakehouse.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.planner import PlannerMode

MOST_BYTES = 1 << 30
"""That the trajectories of an index may take, and a cycle's distances to the clusters."""


class PlannerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = True
    """Whether queries are looked at by the planner at all."""
    mode: PlannerMode = "shadow"
    """Of an index that nobody has said otherwise of. In shadow it decides and measures and changes nothing, and turns
    itself on once its own measurement says that this helps, and back."""
    shadow_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """In shadow it looks at so many of the queries, beside those that are run again: a look takes 30 to 120 us."""
    hidden_dim: Annotated[int, Meta(ge=16, le=4096)] = 256
    """Numbers that a query plan is embedded into."""
    micro_lora_rank: Annotated[int, Meta(ge=1, le=64)] = 2
    """Rank of the adapter that learns from each label at once."""
    micro_lora_lr: Annotated[float, Meta(gt=0, le=1)] = 0.002
    """Its learning rate."""
    base_lora_rank: Annotated[int, Meta(ge=1, le=64)] = 8
    """Rank of the adapter that learns in the background."""
    base_lora_lr: Annotated[float, Meta(gt=0, le=1)] = 0.001
    """Its learning rate."""
    max_trajectories: Annotated[int, Meta(ge=100, le=1_000_000)] = 10_000
    """Queries remembered per index; newer ones take the place of the oldest."""
    min_trajectories: Annotated[int, Meta(ge=10, le=1_000_000)] = 100
    """A background cycle waits for so many."""
    pattern_clusters: Annotated[int, Meta(ge=1, le=10_000)] = 100
    """Clusters that a cycle looks for, and patterns that are kept."""
    quality_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.3
    """Queries of less quality teach nothing: 0.5/(1+ms) + 0.3/(1+MB) + 0.2 x cache hits; 0 below target recall."""
    pattern_confidence_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Patterns of less confidence are not kept."""
    consolidation_threshold: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Patterns that are more alike than this become one."""
    ewc_lambda: Annotated[float, Meta(ge=100, le=1e9)] = 2000.0
    """How hard the adapter holds on to what earlier tasks taught it."""
    ewc_max_lambda: Annotated[float, Meta(ge=100, le=1e9)] = 15_000.0
    """The most that this may become when a task was forgotten; 100 is the least."""
    ewc_boundary_threshold: Annotated[float, Meta(gt=0)] = 2.0
    """Queries have shifted when their mean has by more than this z."""
    background_interval_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 3600.0
    """A cycle each so often; `lakehouse planner learn` runs one now."""
    kmeans_max_iterations: Annotated[int, Meta(ge=1, le=10_000)] = 100
    """Of the clustering."""
    kmeans_convergence: Annotated[float, Meta(gt=0)] = 0.001
    """It ends once no centroid moves further."""
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] = 42
    """Of everything that is drawn at random."""

    def __post_init__(self) -> None:
        """Raises ValueError, which begins with the key, for values that don't go together."""
        if self.min_trajectories > self.max_trajectories:
            raise ValueError(
                f"min_trajectories must be no more than max_trajectories, {self.max_trajectories}, or a cycle never "
                f"begins: not {self.min_trajectories}"
            )
        if self.ewc_lambda > self.ewc_max_lambda:
            raise ValueError(f"ewc_lambda must be no more than ewc_max_lambda, {self.ewc_max_lambda:g}")
        for key, width in (("hidden_dim", self.hidden_dim), ("pattern_clusters", self.pattern_clusters)):
            if 4 * width * self.max_trajectories > MOST_BYTES:
                most = MOST_BYTES // (4 * self.max_trajectories)
                raise ValueError(f"{key} must be at most {most} with {self.max_trajectories} max_trajectories: memory")
