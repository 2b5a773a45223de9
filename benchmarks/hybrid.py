"""Do words and vectors together find more? 500 functions of this machine's Python documentation are looked
for by their docstring's first sentence, their own name removed: by vector (the lexical embedder, exactly),
by text (Lance's BM25), and by both, fused by reciprocal rank as a search with mode hybrid does it.

    python -m benchmarks.hybrid [--rows 30000] [--queries 500] [--seed 7]

Share found in the top 10, first, and the mean reciprocal rank with the paired 95 % bootstrap interval of its
gain over the vector alone.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors import hnsw
from actors.backends import lance_store
from actors.backends.lance import LanceBackend
from actors.backends.lance_store import Place
from actors.index.fusion import DEPTH, fused
from benchmarks.docstrings import embedded, fitted, looked_for


def reciprocal(rankings: list[list[int]], wanted: list[int]) -> NDArray[np.float64]:
    """(q,) 1 / rank of the wanted row; 0 where it isn't there."""
    return np.array([1 / (r.index(w) + 1) if w in r else 0.0 for r, w in zip(rankings, wanted, strict=True)])


def main() -> None:
    texts, wanted, queries = looked_for(__doc__)
    model = fitted(texts)
    vectors = embedded(model, texts)
    near = hnsw.exact_topk(np.vstack([model.embed([query]) for query in queries]), vectors, DEPTH, "cosine")[0].tolist()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(str(Path(folder) / "store"))
        schema = lance_store.schema_of(pa.schema([("id", pa.int64()), ("text", pa.string())]), None)
        lance_store.create(place, schema)
        numbers = np.arange(len(texts))
        columns = {"id": pa.array(numbers), "text": pa.array(texts)}
        lance_store.append(place, schema, [lance_store.batch_of(schema, numbers, None, columns)])
        lance_store.index_columns(place, None, "text")
        store = LanceBackend.load(place, "cosine")
        words = [store.texts(query, "text", DEPTH)[0].tolist() for query in queries]
    both = [[row for row, _ in fused([n, w], DEPTH)] for n, w in zip(near, words, strict=True)]
    base = reciprocal(near, wanted)
    table = Table("by", "in the top 10", "first", "mean reciprocal rank", "gain over vector (95 %)", box=None)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(wanted), (2000, len(wanted)))
    for name, ranking in (("vector", near), ("text (BM25)", words), ("hybrid (RRF)", both)):
        value = reciprocal(ranking, wanted)
        low, high = np.quantile((value - base)[draws].mean(axis=1), (0.025, 0.975))
        table.add_row(
            name, f"{(value >= 0.1).mean():.1%}", f"{(value == 1).mean():.1%}", f"{value.mean():.4f}",
            f"{(value - base).mean():+.4f} ({low:+.4f} to {high:+.4f})",
        )  # fmt: skip
    Console(width=120).print(f"{len(texts):,} rows, {len(queries)} questions", table)


if __name__ == "__main__":
    main()
