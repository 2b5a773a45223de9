"""What the planner's events, documents and answers share."""

from typing import Literal

import msgspec

from schemas.names import Micros, Share

PlannerMode = Literal["off", "shadow", "on"]
Decided = Literal["PatternApplied", "DefaultWithAdaptation", "Default"]
Verdict = Literal["helps", "harms", "unclear"]


class Block(msgspec.Struct, frozen=True):
    """An array, little-endian, C order."""

    dtype: Literal["f2", "f4", "f8"]
    shape: list[int]
    data: bytes


class Criticality(msgspec.Struct, frozen=True):
    """One operator of a query plan: by how much it could be slower without the query being slower."""

    operator: str
    us: Micros
    slack_us: Micros
    criticality: Share  # 1: on the critical path


class PlannerExplanation(msgspec.Struct, frozen=True):
    """What the planner chose for a query, and what would have been without it."""

    mode: PlannerMode
    acted: bool
    decided: Decided
    effort: int  # ef_search, or the nprobes of a Lance index
    default_effort: int
    strategy: str
    default_strategy: str
    pattern: int | None  # number of the pattern applied
    similarity: float  # to the pattern that was applied, or else the nearest; 0 without one
    confidence: Share  # of that pattern
    own_us: Micros  # that choosing and remembering took
    operators: list[Criticality] = []


class Estimate(msgspec.Struct, frozen=True):
    """With its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class PlannerGain(msgspec.Struct, frozen=True):
    """Of sampled queries run again: with the planner against without, pair by pair, its own time charged to it."""

    pairs: int
    speed: Estimate  # mean time without / with
    recall: Estimate  # mean recall with - without
    missed: Estimate  # share of queries under target, with - without
    verdict: Verdict
