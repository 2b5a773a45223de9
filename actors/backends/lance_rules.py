"""What a Lance index is built with where nobody says: by rule, from rows and dimensions. Pure.

Measured on 100k x 768 (benchmarks/lance.py): a search costs about 2.5 ms whatever it reads, and on
top of that the cells that it looks into. So cells are large, and few are looked into.
"""

import math
from typing import Literal

from schemas.config import LanceBuild, LanceConfig, LanceEffort, LanceType
from schemas.names import Rows

ROWS_PER_PARTITION = 1600
"""Of a default build: 64 partitions for 100,000 rows."""
HNSW_ROWS_PER_PARTITION = 100_000
"""Of IVF_HNSW_SQ: a graph finds its way through many rows, and a search has to look into every graph."""
MIN_ROWS = {"IVF_PQ": 256, "IVF_RQ": 256, "IVF_FLAT": 1, "IVF_HNSW_SQ": 1}
"""A codebook of 256 centroids takes as many rows."""
SUB_VECTOR_DIMS = 8
"""Dimensions per sub-vector of a default IVF_PQ."""


def resolve(
    rows: Rows,
    dim: int,
    wanted: LanceType | Literal["auto"] = "auto",
    partitions: int | None = None,
    sub_vectors: int | None = None,
) -> LanceBuild:
    """What to build. Raises ValueError, with the numbers, for what the dimensions or the rows don't allow."""
    index_type = auto_type(rows, dim) if wanted == "auto" else wanted
    subs = sub_vectors or (default_sub_vectors(dim) if index_type == "IVF_PQ" else 0)
    build = LanceBuild(index_type, partitions or default_partitions(rows, index_type), subs)
    check_dim(build, dim)
    check_rows(build, rows)
    return build


def check_dim(build: LanceBuild, dim: int) -> None:
    """Raises ValueError for what the dimensions don't allow."""
    subs = build.sub_vectors
    if build.index_type != "IVF_PQ" and subs:
        raise ValueError(f"sub_vectors is of IVF_PQ; {build.index_type} has none")
    if build.index_type == "IVF_PQ" and (not subs or dim % subs):
        raise ValueError(f"{dim} dimensions don't divide into {subs} sub-vectors; try {default_sub_vectors(dim)}")
    if build.index_type == "IVF_RQ" and dim % 8:
        raise ValueError(f"IVF_RQ packs 8 dimensions into a byte: {dim} dimensions are no multiple of 8")


def check_rows(build: LanceBuild, rows: Rows) -> None:
    """Raises ValueError for what so few rows can't teach."""
    least = MIN_ROWS[build.index_type]
    if rows < least:
        raise ValueError(f"{build.index_type} needs {least} rows at least, there are {rows}: try IVF_FLAT")
    if build.partitions > rows:
        raise ValueError(f"{build.partitions} partitions of {rows} rows: give as many rows at least, or leave it out")


def auto_type(rows: Rows, dim: int) -> LanceType:
    """RaBitQ: the cheapest to build that holds recall once its candidates are rescored, where the dimensions
    allow it and there is enough to learn from."""
    return "IVF_RQ" if dim % 8 == 0 and rows >= 4 * MIN_ROWS["IVF_RQ"] else "IVF_FLAT"


def default_partitions(rows: Rows, index_type: LanceType) -> int:
    per = HNSW_ROWS_PER_PARTITION if index_type == "IVF_HNSW_SQ" else ROWS_PER_PARTITION
    return max(1, min(round(rows / per), math.isqrt(rows)))


def default_sub_vectors(dim: int) -> int:
    """The number nearest to dim / SUB_VECTOR_DIMS that divides dim."""
    wanted = max(1, dim // SUB_VECTOR_DIMS)
    return min((n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: (abs(n - wanted), n))


def first_effort(build: LanceBuild) -> LanceEffort:
    """What an index is searched with until it is measured: rather too much than too little."""
    nprobes = max(1, min(build.partitions, max(20, build.partitions // 4)))
    refine = {"IVF_FLAT": 1, "IVF_HNSW_SQ": 2, "IVF_RQ": 4, "IVF_PQ": 10}[build.index_type]
    return LanceEffort(nprobes, refine, 64 if build.index_type == "IVF_HNSW_SQ" else 0)


def first_config(build: LanceBuild) -> LanceConfig:
    return LanceConfig.of(build, first_effort(build))
