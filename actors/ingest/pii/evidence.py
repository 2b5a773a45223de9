"""How sure we are that a column holds a kind: Bayes over what passed and what failed its check.

A check digit alone proves little: one number in ten passes it by chance. So each check has its
`chance`, the probability that a value of the right shape passes although it is none, and a
column's confidence is the posterior of "the column holds this kind" over its distinct values.
Values of a column aren't independent of each other (numbers in a row share a prefix), so that no
more than EVIDENCE of them count: a thousand weak ones don't add up to certainty.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.ingest.pii.hints import Hint
from schemas.events.dataset import PiiKind

EVIDENCE = 12
"""Distinct values that count at most."""
LOOKED_AT = 400
"""Distinct values of the right shape that are checked at most."""
GENUINE = 0.97
"""Share of a real column's values that pass: the rest are typing errors."""
PRIOR: dict[Hint, float] = {"for": 0.85, "none": 0.03, "against": 0.001}
"""Probability that a column holds a kind, by what its name says, before its values are seen."""


class Asked(msgspec.Struct, frozen=True):
    """A column whose values are looked at."""

    column: str  # its name
    values: Sequence[str]  # (k,) distinct
    integers: bool  # they were stored as numbers: without plus, separators and leading zeros

    def mask(self, which: Sequence[int]) -> NDArray[np.bool_]:
        """(k,) true at the indices."""
        mask = np.zeros(len(self.values), dtype=bool)
        mask[list(which)] = True
        return mask


class Evidence(msgspec.Struct, frozen=True):
    """What speaks for a kind in a column."""

    kind: PiiKind
    confidence: float
    matched: NDArray[np.bool_]  # (k,) of the distinct values
    detail: str = ""  # which national id, which country's phone numbers


def posterior(hint: Hint, passed: float, shaped: float, chance: float) -> float:
    """Probability that the column holds the kind, when `passed` of `shaped` distinct values of its
    shape passed a check that others pass with probability `chance`, 0 < chance < 1."""
    if not shaped:
        return 0.0
    prior = PRIOR[hint]
    weight = min(1.0, EVIDENCE / shaped)
    odds = math.log(prior / (1 - prior)) + weight * (
        passed * math.log(GENUINE / chance) + (shaped - passed) * math.log((1 - GENUINE) / (1 - chance))
    )
    return 1 / (1 + math.exp(-min(max(odds, -700.0), 700.0)))
