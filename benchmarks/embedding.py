"""Does the lexical embedder find things? 500 functions of this machine's Python documentation are
looked for by their docstring's first sentence, their own name removed, among all rows by exact
search: share found in the top 10 (and first), and milliseconds per document on one thread.

Peers beside it: the same features with fewer kinds, without IDF, with one component per feature
(plain feature hashing), with a dense Gaussian projection, and without any loss to 384 dimensions.

    python -m benchmarks.embedding [--rows 30000] [--queries 500] [--seed 7]
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.docstrings import BATCH, fitted, looked_for
from daemon.embedding import lexical
from daemon.embedding.lexical import KINDS, LexicalModel

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


def variant(model: LexicalModel, kinds: Sequence[int], *, s: int = 4, dim: int = 384, idf: bool = True) -> Embed:
    """Features of some kinds, each added to `s` of `dim` components with hashed signs."""

    def embed(texts: Sequence[str]) -> Vectors:
        row, feature, weight = _weighted(model, texts, kinds, idf)
        bits = lexical.mix(feature + np.uint64(0x9E3779B97F4A7C15))
        sums = np.zeros(len(texts) * dim)
        for i in range(s):
            part = lexical.mix(bits + np.uint64(i))
            place = i * (dim // s) + (part >> np.uint64(1)) % np.uint64(dim // s)
            sign = np.where(part & np.uint64(1), 1.0, -1.0)
            sums += np.bincount((row * dim + place.astype(np.int64)), sign * weight, len(sums))
        return _unit(sums.reshape(len(texts), dim))

    return embed


def gaussian(model: LexicalModel, dim: int = 384, buckets: int = 1 << 17) -> Embed:
    """All kinds through a dense Gaussian matrix, (buckets, dim) float32: 200 MB."""
    matrix = np.random.default_rng(0).standard_normal((buckets, dim), np.float32)

    def embed(texts: Sequence[str]) -> Vectors:
        row, feature, weight = _weighted(model, texts, range(KINDS), True)
        out = np.zeros((len(texts), dim), np.float32)
        places = (lexical.mix(feature) % np.uint64(buckets)).astype(np.int64)
        starts = np.searchsorted(row, np.arange(len(texts) + 1))
        for i, (start, end) in enumerate(pairwise(starts)):
            out[i] = weight[start:end].astype(np.float32) @ matrix[places[start:end]]
        return _unit(out)

    return embed


def _weighted(
    model: LexicalModel, texts: Sequence[str], kinds: Sequence[int], idf: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64]]:
    """Text, feature and weight of everything that occurs, text by text."""
    keys, counts = lexical.features(texts)
    kind = (keys >> np.uint64(32)) % np.uint64(KINDS)
    kept = np.isin(kind, list(kinds))
    keys, counts, kind = keys[kept], counts[kept], kind[kept]
    weight = np.sqrt(counts) * (model.idf[lexical.buckets_of(keys)] if idf else 1.0)
    row = ((keys >> np.uint64(32)) // np.uint64(KINDS)).astype(np.int64)
    return row, kind << np.uint64(32) | keys & np.uint64(0xFFFFFFFF), weight


def _unit(vectors: NDArray[np.floating]) -> Vectors:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def measured(embed: Embed, texts: Sequence[str], wanted: Sequence[int], queries: Sequence[str]) -> list[str]:
    """Share in the top 10, share first, milliseconds of CPU time per document, and per query."""
    started = time.process_time()
    vectors = np.vstack([embed(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])
    per_document = (time.process_time() - started) / len(texts) * 1e3
    started = time.process_time()
    asked = np.vstack([embed([query]) for query in queries])
    per_query = (time.process_time() - started) / len(queries) * 1e3
    scores = asked @ vectors.T
    rank = (scores > scores[np.arange(len(wanted)), wanted][:, None]).sum(axis=1)
    return [f"{(rank < 10).mean():.1%}", f"{(rank < 1).mean():.1%}", f"{per_document:.3f}", f"{per_query:.3f}"]


def main() -> None:
    texts, wanted, queries = looked_for(__doc__)
    started = time.process_time()
    model = fitted(texts)
    fit_ms = (time.process_time() - started) / len(texts) * 1e3
    peers: dict[str, Embed] = {
        "lakehouse: words, pairs, 4-grams; IDF; 4 components": model.embed,
        "the same into 32 components each": variant(model, range(KINDS), s=32),
        "the same, dense Gaussian projection (200 MB)": gaussian(model),
        "the same into 1 component (feature hashing)": variant(model, range(KINDS), s=1),
        "the same without IDF": variant(model, range(KINDS), idf=False),
        "words and pairs": variant(model, (0, 1)),
        "words, 1 component (hashing TF-IDF)": variant(model, (0,), s=1),
        "words, 1 component, without IDF (hashing TF)": variant(model, (0,), s=1, idf=False),
        "upper bound: the same in 8192 dimensions": variant(model, range(KINDS), dim=8192),
    }
    table = Table(title=f"{len(texts):,} documents, {len(queries)} functions looked for", title_justify="left")
    table.add_column("embedder")
    for column in ("top 10", "first", "ms/document", "ms/query"):
        table.add_column(column, justify="right")
    for name, embed in peers.items():
        table.add_row(name, *measured(embed, texts, wanted, queries))
    console = Console(width=120)
    console.print(table)
    console.print(f"fitting: {fit_ms:.3f} ms/document; model {len(model.dump()) / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
