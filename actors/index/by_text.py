"""Search by words, and by words and vector together. The words are looked up in Lance's inverted index
(BM25) in the index's store, whatever backend serves its vectors: an index that HNSW serves has a store
of its texts alone. DuckDB has a full-text index too, but as an extension that must be downloaded, and
one that isn't updated when rows come; Lance's scans what isn't indexed yet.
"""

import anyio.to_thread
import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.backends.lance import LanceBackend
from actors.errors import CorruptState
from actors.index.answer import Near, Stopwatch
from actors.index.filters import Matching
from actors.index.fitness import unfit
from actors.index.fusion import DEPTH, fused
from actors.index.heads import StoreHeads
from actors.index.lance_served import LanceServed, StoreVectors
from actors.index.live import THREADS
from actors.index.served import ServedIndex
from actors.index.vectors import VectorSet
from actors.ports import Buckets
from schemas.documents.index import IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.base import Refusal
from schemas.events.index import Hit, Search
from schemas.names import IndexName

Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]
"""(m,) rows and (m,) BM25 scores, descending."""


class TextSearch:
    """Keeps the stores that it has opened, one an index, at the version that their heads name."""

    def __init__(self, heads: StoreHeads, buckets: Buckets, full_text: bool) -> None:
        """full_text: indexes of text columns get one without being asked."""
        self._heads = heads
        self._buckets = buckets
        self._full_text = full_text
        self._opened: dict[IndexName, tuple[tuple[str, str, int], LanceBackend]] = {}

    def forget(self, index: IndexName) -> None:
        self._opened.pop(index, None)

    async def search(
        self,
        index: ServedIndex | LanceServed,
        vectors: VectorSet | StoreVectors,  # that `matching` was found for
        queries: NDArray[np.float32],  # (1, d), or (0, d) by text alone
        query: Search,
        matching: Matching | None,
        columns: list[str],
        watch: Stopwatch,
    ) -> tuple[Near, list[list[Hit]]] | Refusal:
        depth = query.k if query.mode == "text" else max(query.k, DEPTH)
        ranked = await self._ranked(index, query.text or "", depth, matching)
        if isinstance(ranked, Refusal):
            return ranked
        watch.step("text", "%d rows", len(ranked[0]))
        if query.mode == "text":
            scores = list(zip(ranked[0].tolist(), ranked[1].tolist(), strict=True))
            near = Near((ranked[0][None], np.full((1, len(scores)), np.nan, np.float32)), "text", vectors, None)
            return near, [await _hits(index, scores, {}, columns)]
        wide = msgspec.structs.replace(query, k=depth)
        near = await index.neighbours(vectors, queries, depth, wide, matching, [], watch)
        distances = dict(zip(near.found[0][0].tolist(), near.found[1][0].tolist(), strict=True))
        best = fused([list(distances), ranked[0].tolist()], query.k)
        watch.step("fuse", "%d by vector, %d by text", len(distances), len(ranked[0]))
        return near, [await _hits(index, best, distances, columns)]

    async def _ranked(
        self, index: ServedIndex | LanceServed, words: str, k: int, matching: Matching | None
    ) -> Ranked | Refusal:
        document = index.document
        column = document.text_column
        if column is None:
            hint = "an index over a text column has one, and one made with text_column"
            return Refusal("invalid", f"index {document.index!r} has no text to search", hint)
        wrong = await unfit(document.dataset, [index.columns.id_column, column], document.bucket, self._buckets)
        if wrong is not None:
            return wrong

        def ask(backend: LanceBackend) -> Ranked:
            allowed = None if matching is None else backend.allowed(matching.rows)
            rows, scores, _ = backend.texts(words, column, k, allowed)
            return rows, scores

        async def read(store: StoreDocument | None) -> Ranked | Refusal:
            if store is None or store.text_column != column:
                return self._missing(document.index, store)
            return await anyio.to_thread.run_sync(ask, await self._backend(document, store), limiter=THREADS)

        try:
            return await self._heads.reading(document.index, read)
        except (CorruptState, FileNotFoundError) as error:
            self.forget(document.index)
            if isinstance(index, LanceServed):  # the searcher has the store that serves built anew
                raise
            hint = f"have it made anew: lakehouse lance drop {document.index}"
            return Refusal("unavailable", f"the full-text index of {document.index!r} can't be read: {error}", hint)

    async def _backend(self, document: IndexDocument, store: StoreDocument) -> LanceBackend:
        """Opened at the version that the head names. Raises FileNotFoundError, CorruptState."""
        version = (document.bucket, store.key, store.lance_version)
        known = self._opened.get(document.index)
        if known is None or known[0] != version:
            place = await self._buckets.lance_place(document.bucket, store.key, store.lance_version)
            opened = await anyio.to_thread.run_sync(LanceBackend.load, place, document.metric)
            known = self._opened[document.index] = (version, opened)
        return known[1]

    def _missing(self, name: IndexName, store: StoreDocument | None) -> Refusal:
        if store is None and not self._full_text:
            hint = f"set [index] full_text = true, or only here: lakehouse lance migrate {name}"
            return Refusal("invalid", f"index {name!r} has no full-text index", hint)
        reason = f"the full-text index of {name!r} isn't there yet"
        return Refusal("unavailable", reason, "try again in a moment", retry_after_s=2.0)


async def _hits(
    index: ServedIndex | LanceServed, best: list[tuple[int, float]], distances: dict[int, float], columns: list[str]
) -> list[Hit]:
    """In the order of `best`; a row that was deleted meanwhile is left out."""
    rows = np.array([row for row, _ in best], np.int64)
    if not len(rows):
        return []
    there, values = await index.values(rows, [index.columns.id_column, *columns])
    by_row = dict(zip(there, zip(*values, strict=True), strict=True))
    return [
        Hit(by_row[row][0], distances.get(row), dict(zip(columns, by_row[row][1:], strict=True)), score)
        for row, score in best
        if row in by_row
    ]
