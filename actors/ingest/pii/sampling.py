"""A uniform sample of each column's values over a whole input, whatever its length, in bounded
memory: each value gets a random priority, the lowest priorities stay (Efraimidis & Spirakis 2006,
with equal weights). Nulls are no values, so that a sparse column has as good a sample.

The seed comes from the ingest's id: a second delivery of the same command finds the same.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MOST = 4096
"""Values kept of a column …"""
ALTOGETHER = 49_152
"""… and of all columns; but of each at least LEAST."""
LEAST = 64
LONGEST = 1024
"""Characters kept of a text: nothing that is looked for is longer, but JSON may be."""
NESTED = 256
"""Values kept of a nested column, which have no length to cut them at."""


class Sampler:
    """Sees batches, keeps a sample. Memory: LONGEST characters a value kept, twice over; for text
    of any length 100 MB in all."""

    def __init__(self, ingest: str, columns: Sequence[str]) -> None:
        self._rng = np.random.default_rng(int.from_bytes(blake2b(ingest.encode(), digest_size=8).digest(), "big"))
        most = max(LEAST, min(MOST, ALTOGETHER // max(1, len(columns))))
        self._reservoirs = {name: _Reservoir(most) for name in columns}

    def see(self, arrays: Mapping[str, pa.Array], rows: int) -> None:
        """A batch: each column (rows,). Columns that it lacks are as good as null."""
        priorities = self._rng.random(rows)
        for name, reservoir in self._reservoirs.items():
            if name in arrays:
                reservoir.see(arrays[name], priorities)

    def sample(self, name: str) -> pa.Array:
        """The sample of a column, in random order."""
        return self._reservoirs[name].values()

    @property
    def columns(self) -> list[str]:
        return list(self._reservoirs)


class _Reservoir:
    def __init__(self, most: int) -> None:
        self._most = most
        self._below = np.inf  # a value with a higher priority can't stay
        self._parts: list[pa.Array] = []
        self._priorities: list[NDArray[np.float64]] = []
        self._held = 0

    def see(self, values: pa.Array, priorities: NDArray[np.float64]) -> None:
        if pa.types.is_nested(values.type):
            self._most = min(self._most, NESTED)
        chosen = np.flatnonzero(priorities < self._below)
        if values.null_count:
            chosen = chosen[values.is_valid().to_numpy(zero_copy_only=False)[chosen]]
        if len(chosen) > self._most:
            chosen = chosen[np.argpartition(priorities[chosen], self._most)[: self._most]]
        if not len(chosen):
            return
        self._parts.append(_short(values.take(pa.array(chosen))))
        self._priorities.append(priorities[chosen])
        self._held += len(chosen)
        if self._held >= 2 * self._most:
            self._settle()

    def values(self) -> pa.Array:
        self._settle()
        return self._parts[0] if self._parts else pa.nulls(0)

    def _settle(self) -> None:
        if not self._parts:
            return
        priorities = np.concatenate(self._priorities)
        order = np.argsort(priorities)[: self._most]
        self._parts = [pa.concat_arrays(self._parts).take(pa.array(order))]
        self._priorities = [priorities[order]]
        self._held = len(order)
        if self._held == self._most:
            self._below = float(priorities[order[-1]])


def _short(values: pa.Array) -> pa.Array:
    return pc.utf8_slice_codeunits(values, 0, LONGEST) if pa.types.is_string(values.type) else values
