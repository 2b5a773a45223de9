"""Which files a commit rewrites: those that hold rows to remove, and runs of small ones. Pure.

Appends of a few rows would leave a file each, and reads would crawl. So a commit also merges the
newest files when ten of one size class have gathered, like an LSM tree with size tiers (factor
10): every row is rewritten at most once per tier, and at most nine files of a tier remain.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.storage.data_files import ROTATE_BYTES, DataFile

FANOUT = 10
SMALLEST = 64 << 10
TIERS = 4  # below 64 KiB, 640 KiB, 6.4 MiB, 64 MiB; larger files are left alone


def touched(files: Sequence[DataFile], rows: NDArray[np.int64]) -> list[DataFile]:
    """The files that may hold one of `rows` (ascending)."""
    return [
        file
        for file in files
        if np.searchsorted(rows, file.min_row) < np.searchsorted(rows, file.max_row, side="right")
    ]


def to_merge(files: Sequence[DataFile]) -> list[DataFile]:
    """The newest files that should become one; empty when none should. files: in ascending _row."""
    best = 0
    for tier in range(TIERS):
        run = 0
        while run < len(files) and _tier(files[-1 - run]) <= tier:
            run += 1
        if sum(_tier(file) == tier for file in files[len(files) - run :]) >= FANOUT:
            best = run
    return list(files[len(files) - best :]) if best else []


def _tier(file: DataFile) -> int:
    if file.bytes >= ROTATE_BYTES // 2:
        return TIERS
    tier = 0
    while tier < TIERS - 1 and file.bytes >= SMALLEST * FANOUT**tier:
        tier += 1
    return tier
