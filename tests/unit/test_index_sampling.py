"""Recall of one sampled query, against answers whose recall is known."""

import numpy as np
import pytest

from actors.index.sampling import K, Sample, recall_of, truths_of
from actors.index.vectors import VectorSet


def line(n: int) -> VectorSet:
    """Rows at 0, 1, 2 … on a line; squared distances from 0 are 0, 1, 4 …"""
    return VectorSet(1, np.arange(n), np.arange(n, dtype=np.float32)[:, None], "l2")


def sample(n: int, answered: list[float]) -> Sample:
    return Sample(1, np.zeros(1, np.float32), np.array(answered, np.float32), line(n))


@pytest.mark.parametrize(
    ("n", "answered", "recall"),
    [
        (50, [i**2 for i in range(K)], 1.0),
        (50, [i**2 for i in range(3, K + 3)], 0.7),
        (50, [0, 1, 4], 0.3),  # found too few
        (50, [], 0.0),
        (4, [0, 1, 4, 9], 1.0),  # there are no more
        (4, [0, 1], 0.5),
    ],
)
def test_recall_counts_what_is_as_near_as_the_kth(n: int, answered: list[float], recall: float) -> None:
    one = sample(n, answered)
    assert recall_of(one, truths_of([one])[0]) == pytest.approx(recall)
