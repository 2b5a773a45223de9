"""Reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009): a row's score is the sum over the
rankings that have it of 1 / (60 + rank), rank from 1. It needs no scale that distances and BM25 share.
"""

from collections.abc import Sequence

RANK_OFFSET = 60
"""The paper's k: how little the first places count over those after them."""
DEPTH = 100
"""Rows that each ranking gives, or k if that is more."""


def fused(rankings: Sequence[Sequence[int]], k: int) -> list[tuple[int, float]]:
    """The k best rows and their scores, descending; of equal scores the one that an earlier ranking has first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0.0) + 1.0 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]
