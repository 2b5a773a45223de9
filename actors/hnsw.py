"""HNSW graphs and exact search, as plain functions on arrays: what the index and autotune
actors both need of hnswlib. Nothing here knows an index name, a bucket or an event.

Distances are hnswlib's own: cosine 1 - <q, v> of unit vectors, ip 1 - <q, v>, l2 squared.
A graph's labels are the rows' `_row` numbers. Graph: Malkov & Yashunin 2016, arXiv:1603.09320.

Notation: n rows, q queries, d dimensions, k neighbours.
"""

import hashlib
import os
import tempfile
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from actors.errors import CorruptState
from schemas.config import GraphConfig
from schemas.names import Metric, Sha256

Graph = Any
"""An `hnswlib.Index`. The binding carries no types."""

BUILD_STEP = 500
"""Rows added between two progress reports; some 50 ms of work."""

BLOCK_FLOATS = 1 << 23
"""Size of a block of distances in exact search: 32 MB of float32."""

SPARE = 16
"""Candidates kept beyond k before the float64 rerank, so that rounding in BLAS can't push a
true neighbour, or the lower of two equal rows, out of the first k."""


def _library() -> str:
    """Files of hnswlib and chroma-hnswlib share a name and not a format; speed depends on
    -march=native, which leaves its AVX kernels' symbols in the binary."""
    try:
        name, number = "hnswlib", version("hnswlib")
    except PackageNotFoundError:
        name, number = "chroma-hnswlib", version("chroma-hnswlib")
    native = b"SIMD16ExtAVX" in Path(hnswlib.__file__).read_bytes()
    return f"{name} {number} {'native' if native else 'portable'}"


LIBRARY = _library()
"""The build that made and can read a graph file, e.g. "hnswlib 0.8.0 native"."""


def build(
    vectors: NDArray[np.float32],  # (n, d), may be memory-mapped
    rows: NDArray[np.int64],  # (n,) labels
    metric: Metric,
    config: GraphConfig,
    threads: int = 1,
) -> Generator[int, None, Graph]:
    """Builds a graph: `graph = yield from build(...)`; yields the number of rows added so far.

    One thread gives the same graph for the same input every time; more don't.
    """
    n, d = vectors.shape
    if rows.shape != (n,):
        raise ValueError(f"{n} vectors but {rows.shape} labels")
    graph = empty(d, metric, config, n)
    for start in range(0, n, BUILD_STEP):
        stop = min(start + BUILD_STEP, n)
        graph.add_items(np.asarray(vectors[start:stop]), rows[start:stop], num_threads=threads)
        yield stop
    return graph


def empty(dim: int, metric: Metric, config: GraphConfig, capacity: int) -> Graph:
    """A graph of no rows."""
    graph = hnswlib.Index(space=metric, dim=dim)
    graph.init_index(
        max_elements=max(capacity, 1), M=config.M, ef_construction=config.ef_construction, random_seed=config.seed
    )
    return graph


def save(graph: Graph, path: Path) -> Sha256:
    """Writes the graph durably and all at once; returns the file's sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".graph-")
    os.close(descriptor)
    try:
        graph.save_index(name)
        digest = sha256_of(Path(name))
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return digest


def load(path: Path, dim: int, metric: Metric, sha256: Sha256 | None = None, capacity: int = 0) -> Graph:
    """Reads a graph with room for `capacity` rows (never less than it holds). Raises
    CorruptState when the file isn't the one that was saved."""
    if sha256 is not None and sha256_of(path) != sha256:
        raise CorruptState(f"graph file {path} fails its checksum")
    graph = hnswlib.Index(space=metric, dim=dim)
    try:
        graph.load_index(str(path), max_elements=capacity)
    except RuntimeError as error:
        raise CorruptState(f"graph file {path} can't be read: {error}") from error
    return graph


def knn(
    graph: Graph, queries: NDArray[np.float32], k: int, ef: int, threads: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(q, k) labels and distances, ascending. Raises RuntimeError when the graph finds fewer
    than k. Sets the graph's ef: not to be called while another query with another ef runs."""
    graph.set_ef(max(ef, k))
    labels, distances = graph.knn_query(queries, k=k, num_threads=threads)
    return labels.view(np.int64), distances


def sha256_of(path: Path) -> Sha256:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit length along the last axis; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit


def exact_topk(
    queries: NDArray[np.float32],  # (q, d)
    vectors: NDArray[np.float32],  # (n, d), may be memory-mapped
    k: int,
    metric: Metric,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact nearest neighbours: (q, min(k, n)) positions in `vectors` and distances, ascending,
    equal distances by lower position. cosine normalises the queries and takes the vectors to
    be of unit length.

    Candidates come from blocks of float32 matrix products; the few that remain are measured
    again in float64, so results don't depend on how the blocks fall.
    """
    (q, d), n = queries.shape, len(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != d:
        raise ValueError(f"queries have {d} dimensions, vectors are {vectors.shape}")
    k = min(k, n)
    if k == 0 or q == 0:
        return np.empty((q, k), np.int64), np.empty((q, k), np.float32)
    queries = normalise(queries) if metric == "cosine" else np.asarray(queries, np.float32)
    kept = min(k + SPARE, n)
    best = np.empty((q, 0), np.uint64)  # (q, <= kept) keys, see _keys
    step = max(kept, BLOCK_FLOATS // max(q, d))
    for start in range(0, n, step):
        block = np.asarray(vectors[start : start + step], np.float32)  # (b, d)
        keys = _keys(_distances(queries, block, metric), start)  # (q, b)
        best = _smallest(np.concatenate([best, _smallest(keys, kept)], axis=1), kept)
    positions = (best & np.uint64(0xFFFFFFFF)).astype(np.int64)  # (q, kept)
    return _rerank(queries, vectors, positions, k, metric)


def pair_distances(
    queries: NDArray[np.float32],  # (q, d)
    vectors: NDArray[np.float32],  # (q, c, d)
    metric: Metric,
) -> NDArray[np.float32]:
    """(q, c) distances of each query to its own c vectors, summed in float64. cosine takes
    both sides to be of unit length (or zero)."""
    wide = vectors.astype(np.float64)
    if metric == "l2":
        wide -= queries[:, None, :]
        return np.asarray(np.einsum("qcd,qcd->qc", wide, wide), np.float32)
    dots = np.einsum("qd,qcd->qc", queries.astype(np.float64), wide)
    return np.asarray(1.0 - dots, np.float32)


def _distances(
    queries: NDArray[np.float32], block: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:  # (q, b)
    dots = queries @ block.T
    if metric != "l2":
        return np.asarray(1 - dots, np.float32)
    squares = np.einsum("bd,bd->b", block, block)
    return np.asarray(np.einsum("qd,qd->q", queries, queries)[:, None] - 2 * dots + squares, np.float32)


def _keys(distances: NDArray[np.float32], start: int) -> NDArray[np.uint64]:
    """(distance, position) as one sortable integer: IEEE-754 bits, sign-corrected so that
    their unsigned order is the floats' order, above 32 bits of position."""
    bits = np.ascontiguousarray(distances + np.float32(0)).view(np.uint32)  # + 0: no -0.0
    ordered = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    positions = np.arange(start, start + distances.shape[1], dtype=np.uint64)
    return (ordered.astype(np.uint64) << np.uint64(32)) | positions


def _smallest(keys: NDArray[np.uint64], k: int) -> NDArray[np.uint64]:
    return keys if keys.shape[1] <= k else np.partition(keys, k - 1, axis=1)[:, :k]


def _rerank(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    positions: NDArray[np.int64],  # (q, c)
    k: int,
    metric: Metric,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    out_positions = np.empty((len(queries), k), np.int64)
    out_distances = np.empty((len(queries), k), np.float32)
    step = max(1, BLOCK_FLOATS // (4 * positions.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        distances = pair_distances(queries[some], np.asarray(vectors[positions[some]]), metric)
        order = np.lexsort((positions[some], distances), axis=1)[:, :k]
        out_positions[some] = np.take_along_axis(positions[some], order, axis=1)
        out_distances[some] = np.take_along_axis(distances, order, axis=1)
    return out_positions, out_distances
