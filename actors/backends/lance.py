"""The backend `lance`: one vector index of a Lance store, on disk or S3. How a store is made, indexed
and kept small is lance_store.py's.

A search reads the cells of the index nearest to the query, and beside them the rows that came since the
index was built: those are kept in memory while they are few, and scanned by Lance otherwise. cosine
and ip are both Lance's `dot`: vectors of a cosine index are of unit length, and a zero vector stays
findable, which Lance's own cosine loses.

Notation: n rows, q queries, d dimensions, k neighbours, f rows outside the index.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors import hnsw
from actors.backends.lance_store import (
    METRICS,
    ROW,
    VECTOR,
    Place,
    batch_of,
    bytes_of,
    delete_from,
    explained,
    numbered,
    opened,
    quoted,
)
from actors.vector_backend import NOWHERE, BackendStats, Capabilities, Neighbours, Values
from schemas.config import Effort, LanceEffort
from schemas.names import Metric, Rows

CAPABILITIES = Capabilities(backend="lance", in_memory=False, shared=True, columns=True, versions=True)

FRESH_BYTES = 64 << 20
"""Vectors outside the index that are kept in memory: numpy scans them ten times faster than Lance."""

TAKE_ROWS = 8192
"""Rows read at a time where they are picked by number."""

Found = tuple[NDArray[np.int64], NDArray[np.float32], dict[str, list[Any]]]
"""(m,) rows, (m,) distances or scores, and m values of every column asked for."""


class LanceBackend:
    """Searches may run beside each other; `add` and `delete` one at a time, and not beside a search
    through the same object: it sees the change half way. `columns` are the store's but vector and row."""

    capabilities = CAPABILITIES

    def __init__(self, place: Place, metric: Metric, index: str, unindexed: bool) -> None:
        self.place = place
        self.metric = metric
        self.index = index
        self._unindexed = unindexed
        self._take(opened(place))

    @classmethod
    def load(cls, place: Place, metric: Metric, index: str = "", *, unindexed: bool = True) -> "LanceBackend":
        """index: the name of one in the store; "": there is none, every row is scanned. unindexed: rows that the
        index doesn't cover are found too. Raises FileNotFoundError for a store, a version or an index that isn't
        there, CorruptState for one that can't be read, Transient when the bucket is away."""
        return cls(place, metric, index, unindexed)

    def _take(self, dataset: Any) -> None:
        self._dataset = dataset
        self._rowids: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._fresh: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self.columns = [name for name in dataset.schema.names if name not in (ROW, VECTOR)]
        with explained(self.place):
            self.rows: Rows = dataset.count_rows()
            described = dataset.describe_indices() if self.index else []
            segments = [segment for one in described if one.name == self.index for segment in one.segments]
            if self.index and not segments:
                raise FileNotFoundError(f"the store {dataset.uri} has no vector index {self.index}")
            covered = {number for segment in segments for number in segment.fragment_ids}
            outside = [fragment for fragment in dataset.get_fragments() if fragment.fragment_id not in covered]
            self.unindexed_rows: Rows = sum(fragment.count_rows() for fragment in outside)
        self._segments = [segment.uuid for segment in segments]
        self._outside = outside if self._unindexed else []

    @property
    def dim(self) -> int:
        return int(self._dataset.schema.field(VECTOR).type.list_size)

    @property
    def lance_version(self) -> int:
        return int(self._dataset.version)

    # --- the port --------------------------------------------------------------------------------

    def add(self, rows: NDArray[np.int64], vectors: NDArray[np.float32], values: Values | None = None) -> None:
        if vectors.ndim != 2 or vectors.shape != (len(rows), self.dim):
            raise ValueError(f"{len(rows)} rows of {self.dim} dimensions, but vectors are {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector holds a number that isn't finite")
        vectors = hnsw.normalise(vectors) if self.metric == "cosine" else vectors
        columns = {name: pa.array(column) for name, column in (values or {}).items()}
        batch = batch_of(self._dataset.schema, rows, vectors, columns)
        with explained(self.place):
            self._dataset.insert(pa.Table.from_batches([batch]))
        self._take(self._dataset)

    def delete(self, rows: NDArray[np.int64]) -> None:
        with explained(self.place):
            delete_from(self._dataset, rows)
        self._take(self._dataset)

    def search(
        self, queries: NDArray[np.float32], k: int, effort: Effort, among: NDArray[np.int64] | None = None
    ) -> Neighbours:
        out = np.full((len(queries), k), NOWHERE, np.int64), np.full((len(queries), k), np.inf, np.float32)
        allowed = None if among is None else self.allowed(among)
        most = min(k, self.rows if among is None else len(among))
        for line, query in enumerate(queries):
            rows, distances, _ = self.near(query, k, effort, allowed)
            if len(rows) < most:  # deleted rows, or others that don't count, were in the way
                near, apart = self.exact(query[None], k, among)
                rows, distances = near[0], apart[0]
            out[0][line, : len(rows)], out[1][line, : len(rows)] = rows, distances
        return out

    def fetch(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        there = self._numbers(rows)
        parts = [self._vectors(self._rows_of(some, [VECTOR])) for some in _parts(there[1])]
        return there[0], np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def stats(self) -> BackendStats:
        with explained(self.place):
            total = sum(int(fragment.physical_rows) for fragment in self._dataset.get_fragments())
            return BackendStats(self.rows, self.unindexed_rows, total - self.rows, bytes_of(self._dataset))

    # --- what a searcher asks beyond it ----------------------------------------------------------

    def allowed(self, rows: NDArray[np.int64]) -> "Allowed":
        """rows (m,) ascending, as Lance takes them. Worth keeping: 100,000 rows take it 6 ms."""
        from lance.dataset import serialize_row_addrs

        return Allowed(rows, serialize_row_addrs(self._numbers(rows)[1].tolist()))

    def near(
        self,
        query: NDArray[np.float32],  # (d,)
        k: int,
        effort: Effort,
        allowed: "Allowed | None" = None,
        columns: Sequence[str] = (),
    ) -> Found:
        """At most k rows, ascending by distance, with their columns."""
        if not isinstance(effort, LanceEffort):
            raise ValueError(f"a Lance index can't be searched with {effort}")
        if query.shape != (self.dim,):
            raise ValueError(f"a query has {query.shape[-1]} dimensions, the store {self.dim}")
        query = hnsw.normalise(query) if self.metric == "cosine" else query  # else it has no cosine's distances
        parts: list[Found] = []
        if self._segments:
            nearest = {"q": query, "k": k, "nprobes": effort.nprobes, "refine_factor": effort.refine_factor}
            if effort.ef:
                nearest["ef"] = max(effort.ef, k * effort.refine_factor)  # Lance refuses less than it rescores
            parts.append(self._scan(nearest, allowed, columns, index_segments=self._segments))
        if not self._outside:
            return parts[0] if parts else (np.empty(0, np.int64), np.empty(0, np.float32), {c: [] for c in columns})
        if self.unindexed_rows * self.dim * 4 <= FRESH_BYTES:
            parts.append(self._near_fresh(query, k, allowed, columns))
        else:
            flat = {"q": query, "k": k, "use_index": False, "metric": METRICS[self.metric]}
            parts.append(self._scan(flat, allowed, columns, fragments=self._outside))
        return _merged(parts, k, columns)

    def texts(
        self,
        words: str,
        column: str,
        k: int,
        allowed: "Allowed | None" = None,
        columns: Sequence[str] = (),
    ) -> Found:
        """At most k rows in which a word occurs, by descending BM25 score (Robertson & Zaragoza 2009)."""
        from lance.query import MatchQuery

        table = self._table(
            columns=[ROW, "_score", *dict.fromkeys(columns)],
            full_text_query=MatchQuery(words, column),
            limit=k,
            disable_scoring_autoprojection=True,
            row_addr_allowlist=allowed.mask if allowed else None,
        )
        scores = np.asarray(table["_score"].to_numpy(), np.float32)
        order = np.lexsort((table[ROW].to_numpy(), -scores))
        return _found(table.take(pa.array(order)), "_score", columns)

    def exact(self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Neighbours:
        """Exact nearest rows, (q, <= k): of all, by reading every vector, or of `among`."""
        best = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        for rows, vectors in self._blocks(among):
            positions, distances = hnsw.exact_topk(queries, vectors, k, self.metric)
            both = np.concatenate([best[0], rows[positions]], axis=1), np.concatenate([best[1], distances], axis=1)
            order = np.lexsort(both, axis=1)[:, :k]
            best = np.take_along_axis(both[0], order, axis=1), np.take_along_axis(both[1], order, axis=1)
        return best

    def values(self, rows: NDArray[np.int64], columns: Sequence[str]) -> tuple[list[int], list[list[Any]]]:
        """Those of `rows` that are there, in the order asked for, and per column their values."""
        there, numbers = self._numbers(rows)
        if not len(numbers):
            return [], [[] for _ in columns]
        table = self._rows_of(numbers.tolist(), list(columns))
        return there.tolist(), [table[name].to_pylist() for name in columns]

    def document(self, column: str, id: str | int) -> dict[str, Any] | None:
        """The row whose id column is `id`, with all its columns and its vector; None when there is none."""
        field = self._dataset.schema.field(column)
        try:
            wanted = pa.scalar(id, pa.string()).cast(field.type).as_py()
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return None
        literal = "'" + wanted.replace("'", "''") + "'" if isinstance(wanted, str) else str(wanted)
        found = self._table(filter=f"{quoted(column)} = {literal}").to_pylist()
        return found[0] if found else None

    @property
    def fragments(self) -> int:
        return len(self._dataset.get_fragments())

    def versions(self) -> set[int]:
        """Of the store, that can be read. Raises FileNotFoundError when this one no longer can."""
        with explained(self.place):
            there = {int(one["version"]) for one in self._dataset.versions()}
        if self.lance_version not in there:
            raise FileNotFoundError(f"version {self.lance_version} of the store {self._dataset.uri} is gone")
        return there

    def indexed_rows(self) -> dict[str, Rows]:
        """By vector index of the store, how many rows it covers."""
        with explained(self.place):
            described = self._dataset.describe_indices()
        return {one.name: int(one.num_rows_indexed) for one in described if VECTOR in one.field_names}

    # --- its own ---------------------------------------------------------------------------------

    def _table(self, **scan: Any) -> Any:
        with explained(self.place):
            return self._dataset.scanner(**scan).to_table()

    def _rows_of(self, numbers: list[int], columns: list[str]) -> Any:
        with explained(self.place):
            return self._dataset._take_rows(numbers, columns=list(dict.fromkeys(columns)))

    def _scan(self, nearest: dict[str, Any], allowed: "Allowed | None", columns: Sequence[str], **where: Any) -> Found:
        table = self._table(
            columns=[ROW, "_distance", *dict.fromkeys(columns)],
            nearest={"column": VECTOR, **nearest},
            prefilter=True,
            disable_scoring_autoprojection=True,
            row_addr_allowlist=allowed.mask if allowed else None,
            **where,
        )
        return _found(table, "_distance", columns)

    def _near_fresh(
        self, query: NDArray[np.float32], k: int, allowed: "Allowed | None", columns: Sequence[str]
    ) -> Found:
        rows, vectors = self._fresh_rows()
        if allowed is not None:
            kept = np.isin(rows, allowed.rows, assume_unique=True)
            rows, vectors = rows[kept], vectors[kept]
        positions, distances = hnsw.exact_topk(query[None], vectors, k, self.metric)
        near = rows[positions[0]]
        there, values = self.values(near, columns) if columns else (near.tolist(), [])
        return np.array(there, np.int64), distances[0], dict(zip(columns, values, strict=True))

    def _fresh_rows(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(f,) and (f, d): what the index doesn't cover, read once."""
        if self._fresh is None:
            tables = [self._table(columns=[ROW, VECTOR], fragments=self._outside)]
            rows = [np.asarray(table[ROW].to_numpy(), np.int64) for table in tables]
            vectors = [self._vectors(table) for table in tables]
            self._fresh = (np.concatenate(rows), np.concatenate(vectors))
        return self._fresh

    def _blocks(self, among: NDArray[np.int64] | None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        if among is None:
            with explained(self.place):
                for batch in self._dataset.to_batches(columns=[ROW, VECTOR], batch_size=TAKE_ROWS):
                    table = pa.Table.from_batches([batch])
                    yield np.asarray(table[ROW].to_numpy(), np.int64), self._vectors(table)
            return
        for some in _parts(self._numbers(among)[1]):
            table = self._rows_of(some, [ROW, VECTOR])
            yield np.asarray(table[ROW].to_numpy(), np.int64), self._vectors(table)

    def _vectors(self, table: Any) -> NDArray[np.float32]:
        flat = pa.concat_arrays([chunk.flatten() for chunk in table[VECTOR].chunks] or [pa.array([], pa.float32())])
        vectors: NDArray[np.float32] = flat.to_numpy().reshape(-1, self.dim)
        return vectors

    def _numbers(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of `rows` that are there, in the order given, and the numbers that Lance knows them by."""
        if self._rowids is None:
            self._rowids = numbered(self._table(columns=[ROW], with_row_id=True))
        known, numbers = self._rowids
        if not len(known):
            return rows[:0], rows[:0]
        at = np.searchsorted(known, rows).clip(max=len(known) - 1)
        there = known[at] == rows
        return rows[there], numbers[at[there]]


class Allowed(msgspec.Struct, frozen=True):
    """The only rows that count in a search, of one version of one store."""

    rows: NDArray[np.int64]  # (m,) ascending
    mask: bytes


def _found(table: Any, measure: str, columns: Sequence[str]) -> Found:
    rows = np.asarray(table[ROW].to_numpy(), np.int64)
    return rows, np.asarray(table[measure].to_numpy(), np.float32), {name: table[name].to_pylist() for name in columns}


def _merged(parts: list[Found], k: int, columns: Sequence[str]) -> Found:
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part[0] for part in parts])
    distances = np.concatenate([part[1] for part in parts])
    order = np.lexsort((rows, distances))[:k]
    values = {name: [value for part in parts for value in part[2][name]] for name in columns}
    return rows[order], distances[order], {name: [values[name][at] for at in order] for name in columns}


def _parts(numbers: NDArray[np.int64]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), TAKE_ROWS):
        yield numbers[start : start + TAKE_ROWS].tolist()
