"""What points of a sweep share on one matrix: the split of its rows, what is learnt, the codes of residual stages, and
the original's side of the measures.

A point is measured exactly as it would be alone: what is shared is what is the same, and nothing is shared with a
Generator's state in it. Only what the next points may want is kept: the codes of one encoding at a time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.families import rpq
from actors.codec.family import FAMILIES
from actors.codec.kernels import books
from actors.codec.measures import EVERY, Original, Selection, compared
from actors.codec.params import learnt, split_rows
from schemas.codec import CodecParams, Measured
from schemas.names import Seconds

T = TypeVar("T")


class Made(NamedTuple):
    """Arrays, and what they took."""

    arrays: Arrays
    seconds: Seconds  # now
    alone: Seconds  # for all of their stages, now or for another point
    shared: bool  # some of it was at hand


class Stages:
    """Arrays that are made one stage after the other, each when it is first asked for."""

    def __init__(self, stages: Iterator[Arrays]) -> None:
        self.so_far: dict[str, NDArray[np.generic]] = {}
        self._stages = stages
        self._made: list[tuple[Arrays, Seconds]] = []
        self._failed: CodecError | None = None

    def first(self, count: int) -> Made:
        """Those of the first `count` stages. Raises CodecError, again if it has to."""
        at_hand = len(self._made)
        while len(self._made) < count:
            self._next()
        made = self._made[:count]
        arrays = {name: array for stage, _ in made for name, array in stage.items()}
        return Made(arrays, sum(s for _, s in made[at_hand:]), sum(s for _, s in made), at_hand > 0)

    def _next(self) -> None:
        if self._failed is not None:
            raise self._failed
        began = perf_counter()
        try:
            stage = next(self._stages)
        except CodecError as error:
            self._failed = error
            raise
        self._made.append((stage, perf_counter() - began))
        self.so_far.update(stage)


class Kept(Generic[T]):
    """The newest `most` of what was made, by what it depends on."""

    def __init__(self, most: int) -> None:
        self.hits = self.misses = 0
        self._most = most
        self._kept: dict[str, T] = {}

    def get(self, key: str, make: Callable[[], T]) -> T:
        if key in self._kept:
            self.hits += 1
            self._kept[key] = self._kept.pop(key)
        else:
            self.misses += 1
            self._kept[key] = make()
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]


class Fitting:
    """matrix: (n, d) float32. activations: (m, d), what comes into the layer, for gptq."""

    def __init__(self, matrix: NDArray[np.float32], activations: NDArray[np.float32] | None = None) -> None:
        self.matrix = matrix
        self.activations = activations
        self.fits: Kept[Stages] = Kept(8)
        self.codings: Kept[Stages] = Kept(1)
        self.originals: Kept[Original] = Kept(4)

    def fit(self, params: CodecParams) -> Made:
        return self._fits_of(params).first(_stages(params))

    def encode(self, params: CodecParams) -> Made:
        """The codes of all rows. `fit` is done if it wasn't."""
        state = self.fit(params).arrays
        if params.family != "rpq":
            return Stages(_once(partial(FAMILIES[params.family].encode, state, self.matrix, params))).first(1)
        books_so_far = self._fits_of(params).so_far
        residual = params.residual and replace(params.residual, depth=1)
        same = replace(params, residual=residual, measurement_rows=0)
        key = f"{id(books_so_far)} {same}"  # with the books that it reads
        coding = self.codings.get(key, lambda: Stages(rpq.encoding(books_so_far, self.matrix, params)))
        return coding.first(_stages(params))

    def measured(self, params: CodecParams, decoded: NDArray[np.float32]) -> Measured:
        key = f"{params.seed} {params.calibration_rows} {params.measurement_rows}"
        return compared(self.originals.get(key, lambda: self._original(params)), decoded)

    def _original(self, params: CodecParams) -> Original:
        parts: list[Selection] = [*split_rows(len(self.matrix), params), EVERY]
        return Original(self.matrix, parts, np.random.default_rng(params.seed))

    def _fits_of(self, params: CodecParams) -> Stages:
        return self.fits.get(learnt(params), lambda: Stages(self._learning(params)))

    def _learning(self, params: CodecParams) -> Iterator[Arrays]:
        rng = np.random.default_rng(params.seed)
        if params.family == "gptq":
            if self.activations is None:
                raise CodecError("gptq needs calibration activations")
            rows = self.activations
        else:
            rows = self.matrix[split_rows(len(self.matrix), params)[0]]
        if params.family == "rpq":
            yield from rpq.training(rows, params, rng)
        else:
            yield FAMILIES[params.family].fit(rows, params, rng)


def _stages(params: CodecParams) -> int:
    """Of what is made bit by bit: residual PQ's, each of which a deeper one has as well."""
    return len(books.stages(params)) if params.family == "rpq" else 1


def _once(make: Callable[[], Arrays]) -> Iterator[Arrays]:
    yield make()
