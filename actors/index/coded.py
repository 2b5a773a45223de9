"""Search over a codec's codes: candidates from decoded rows, block by block, and their exact distances from the vectors
on disk. In memory are the codes, what the codec learnt, and the row numbers. Immutable: a new version is a new value.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import structlog
from numpy.typing import NDArray

from actors import hnsw
from actors.codec_ports import CodedRows, VectorCodec
from actors.index.vectors import VectorSet
from actors.vector_backend import Neighbours
from schemas.codec import ArtifactName

Codes = Mapping[str, NDArray[np.generic]]

BLOCK_FLOATS = 1 << 20
"""Decoded at a time, or distances of all queries to what was: 4 MiB, which stays in cache until it is multiplied."""

CHECKED_ROWS = 64
"""Rows whose codes are compared with those that their vectors have, before the stored ones are believed."""

ROUNDED = 0.005
"""Codes that may differ of vectors that are the same: other processors sum in another order."""

log = structlog.get_logger(__name__)


class CodedVectors:
    """rows are those of `vectors`; codes in their order."""

    def __init__(
        self,
        codec: VectorCodec,
        vectors: VectorSet,
        codes: Codes,
        oversample: int,
        least: int = 0,
        squares: NDArray[np.float32] | None = None,
    ) -> None:
        """oversample: candidates per hit that are rescored; least: so many in any case."""
        self.codec = codec
        self.vectors = vectors
        self._codes = codes
        self._oversample = oversample
        self._least = least
        self._squares = squares  # (n,) lengths of decoded rows, where the metric is l2

    @classmethod
    def of(cls, coded: CodedRows, vectors: VectorSet, oversample: int, least: int = 0) -> "CodedVectors":
        """An artifact's codes for today's vectors: stored ones where there are, made anew for rows that came since.
        Where the artifact is of other vectors (its index was made anew, say), all are made anew."""
        stored_for = VectorSet(-1, coded.rows, vectors.vectors[:0], vectors.metric)
        made = cls(coded.codec, stored_for, coded.codes, oversample, least)
        made._squares = made._measured()
        common = np.intersect1d(coded.rows, vectors.rows)[:: max(1, len(coded.rows) // CHECKED_ROWS)]
        again = made.codec.encode(_gathered(vectors, vectors.positions(common))) if len(common) else {}
        stored = made._sliced(np.searchsorted(coded.rows, common))
        differing = sum(np.count_nonzero(array != stored[name]) for name, array in again.items())
        if differing > ROUNDED * sum(array.size for array in again.values()):
            log.warning("an artifact's codes are of other vectors, and made anew", codec=coded.codec.artifact)
            made.vectors = VectorSet(-1, coded.rows[:0], vectors.vectors[:0], vectors.metric)
            made._codes = {name: array[:0] for name, array in coded.codes.items()}
            made._squares = made._measured()
        return made.at(vectors)

    @property
    def artifact(self) -> ArtifactName:
        return self.codec.artifact

    @property
    def bytes(self) -> int:
        squares = 0 if self._squares is None else self._squares.nbytes
        return self.codec.bytes + sum(array.nbytes for array in self._codes.values()) + squares

    def at(self, vectors: VectorSet) -> "CodedVectors":
        """The same codec at another version: rows that are gone are left out, those that came are encoded."""
        kept = np.isin(vectors.rows, self.vectors.rows, assume_unique=True)  # (n,)
        old = np.searchsorted(self.vectors.rows, vectors.rows[kept])
        new = np.flatnonzero(~kept)
        codes: dict[str, NDArray[np.generic]] = {}
        for name, array in self._codes.items():
            codes[name] = np.empty((len(vectors), *array.shape[1:]), array.dtype)
            codes[name][kept] = array[old]
        squares = None
        if self._squares is not None:
            squares = np.empty(len(vectors), np.float32)
            squares[kept] = self._squares[old]
        for some in _blocks(new, vectors.dim):
            coded = self.codec.encode(_gathered(vectors, some))
            for name, array in coded.items():
                codes[name][some] = array
            if squares is not None:
                squares[some] = self.codec.squares(coded)
        return CodedVectors(self.codec, vectors, codes, self._oversample, self._least, squares)

    def search(self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Neighbours:
        """The k nearest rows, among those at the given positions if any are given; distances are exact."""
        queries = hnsw.normalise(queries) if self.vectors.metric == "cosine" else queries
        positions = self._candidates(queries, max(k * self._oversample, self._least), among)  # (q, c)
        count = min(k, positions.shape[1])
        rows, distances = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
        for line, some in enumerate(positions):
            some = np.sort(some)
            near, apart = hnsw.exact_topk(
                queries[line : line + 1], _gathered(self.vectors, some), count, self.vectors.metric
            )
            rows[line], distances[line] = self.vectors.rows[some[near[0]]], apart[0]
        return rows, distances

    def _candidates(
        self, queries: NDArray[np.float32], count: int, among: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """(q, <= count) positions that look nearest by their codes, in no order."""
        towards = self.codec.turn(-queries)
        best = np.empty((len(queries), 0), np.float32)
        kept = np.empty((len(queries), 0), np.int64)
        everything = np.arange(len(self.vectors)) if among is None else among
        for some in _blocks(everything, max(self.vectors.dim, len(queries))):
            rows = slice(some[0], some[-1] + 1) if among is None else some
            apart = self.codec.products(towards, self._sliced(rows))  # (q, b)
            if self._squares is not None:
                apart = 2 * apart + self._squares[rows]
            best = np.concatenate([best, apart], axis=1)
            kept = np.concatenate([kept, np.broadcast_to(some, apart.shape)], axis=1)
            if best.shape[1] > count:
                first = np.argpartition(best, count - 1, axis=1)[:, :count]
                best, kept = np.take_along_axis(best, first, axis=1), np.take_along_axis(kept, first, axis=1)
        return kept

    def _measured(self) -> NDArray[np.float32] | None:
        if self.vectors.metric != "l2":
            return None
        blocks = _blocks(np.arange(len(self.vectors)), self.vectors.dim)
        parts = [self.codec.squares(self._sliced(slice(some[0], some[-1] + 1))) for some in blocks]
        return np.concatenate([np.empty(0, np.float32), *parts])

    def _sliced(self, rows: slice | NDArray[np.int64]) -> Codes:
        return {name: array[rows] for name, array in self._codes.items()}


def _blocks(positions: NDArray[np.int64], floats: int) -> Iterator[NDArray[np.int64]]:
    """floats: that a row takes."""
    step = max(1, BLOCK_FLOATS // max(1, floats))
    for start in range(0, len(positions), step):
        yield positions[start : start + step]


def _gathered(vectors: VectorSet, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.vectors[positions], np.float32)
