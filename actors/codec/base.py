"""What every codec family is to the rest: four functions on arrays.

A family's state (codebooks, scales of the whole, rotation) and codes are plain dicts of arrays, so
that they are stored as safetensors as they are.

    fit     learns the state from calibration rows
    encode  rows to codes, in chunks if need be
    decode  codes to rows
    charge  what state and codes take, all of it

Shapes: X (n, d) float32, rows are what is quantised; codes are whatever the family says, first axis n.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.errors import Unfit
from schemas.codec import Charge, CodecParams

Arrays = Mapping[str, NDArray[np.generic]]

ENCODER = "encoder."
"""State under names that start so is needed to encode only: it isn't kept with an artifact, nor charged."""


CodecError = Unfit
"""What codecs say of what was asked; what can't be read of a checkpoint is one too."""


class FamilyCodec(Protocol):
    def fit(self, rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
        """rows: (n, d) calibration rows, C order; for gptq, what comes into the layer in place of rows of its weights.
        Raises CodecError for too few of them."""
        ...

    def encode(self, state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays: ...

    def decode(self, state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
        """(n, d) float32."""
        ...

    def charge(self, state: Arrays, codes: Arrays, params: CodecParams) -> Charge: ...


@dataclass(frozen=True)
class Phase:
    """How far a job in the worker process is."""

    phase: str
    done: int
    total: int | None
    unit: str
