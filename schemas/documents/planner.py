"""What a planner has learnt of one index."""

import msgspec

from schemas.documents.base import Document
from schemas.names import Backend, IndexName, Seconds, Share, Timestamp
from schemas.planner import Block, PlannerMode


class ArmState(msgspec.Struct, frozen=True):
    """A strategy in one decade of selectivity. Weights, not counts, once they are discounted."""

    n: float
    log_us: float
    samples: float
    recall: float
    squares: float


class PlannerDocument(Document, frozen=True, kw_only=True, tag="planner"):
    """Registry name: the index's. Arrays by name, as actors/planner/state.py has them."""

    index: IndexName
    dim: int
    hidden_dim: int
    seed: int
    embedding: int = 1  # version of the plan embedding and the static features: another's numbers mean nothing
    mode: PlannerMode
    backend: Backend | None = None  # whose efforts it has learnt
    why: str = ""  # it has this mode
    target: Share
    arrays: dict[str, Block] = {}
    arms: dict[str, dict[str, ArmState]] = {}  # by decade of selectivity, then by strategy
    ewc_lambda: float
    queries: int = 0
    hits: int = 0
    dropped: int = 0
    latency_us: float = 0.0  # sum
    cycles: int = 0
    learned: Timestamp | None = None  # when the last cycle ended
    cycle_s: Seconds = 0.0
    looks: int = 0  # in shadow, at whether it helps, since the queries shifted last
