"""Which of many ids were met before, in bounded memory: keys are spilled to disk by partition,
and each partition is joined on its own.

Memory: a partition (16 bytes a key, 500,000 keys or so) plus, in the result, 16 bytes for each
*repeated* row and 8 for each replaced one. Disk: 16 bytes a key.
"""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

_PER_PARTITION = 500_000
_MOST = 256
_PAIR = np.dtype([("key", np.uint64), ("value", np.int64)])


class Repeats(msgspec.Struct, frozen=True):
    """What to do about ids that occur more than once. `dropped` and `earlier` go together."""

    dropped: NDArray[np.int64]  # (m,) ordinals of staged rows that are not to be stored, ascending
    earlier: NDArray[np.int64]  # (m,) ordinal of the staged row that is stored instead; -1: the stored row stays
    removed: NDArray[np.int64]  # (r,) _row of stored rows that staged ones replace, ascending


class KeySpill:
    """(key, value) pairs on disk, split by key."""

    def __init__(self, folder: Path, name: str, partitions: int) -> None:
        self._files = [(folder / f"{name}-{i}.keys").open("w+b") for i in range(partitions)]

    def add(self, keys: NDArray[np.uint64], values: NDArray[np.int64]) -> None:
        """Keys (n,) and what they stand for (n,)."""
        pairs = np.empty(len(keys), dtype=_PAIR)
        pairs["key"], pairs["value"] = keys, values
        if len(self._files) == 1:
            self._files[0].write(pairs.tobytes())
            return
        owner = (keys % np.uint64(len(self._files))).astype(np.int64)
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(len(self._files)), side="right")
        for file, part in zip(self._files, np.split(pairs[order], ends[:-1]), strict=True):
            file.write(part.tobytes())

    def partition(self, i: int) -> NDArray[np.void]:
        """The pairs of a partition, in the order added."""
        self._files[i].seek(0)
        return np.frombuffer(self._files[i].read(), dtype=_PAIR)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __len__(self) -> int:
        return len(self._files)


def partitions_for(keys: int) -> int:
    return min(_MOST, 1 + keys // _PER_PARTITION)


def repeats(staged: KeySpill, stored: KeySpill, *, rewrite: bool) -> Repeats:
    """Join staged rows (key → ordinal) with stored ones (key → _row). With `rewrite` the last
    staged row of an id wins and takes the place of the stored one; otherwise the stored row
    stays, else the first staged one."""
    dropped, earlier, removed = [], [], []
    for i in range(len(staged)):
        new, old = staged.partition(i), stored.partition(i)
        # Stable: within a key, ordinals ascend.
        new = new[np.argsort(new["key"], kind="stable")]
        starts = np.flatnonzero(np.r_[True, new["key"][1:] != new["key"][:-1]]) if len(new) else np.empty(0, np.int64)
        counts = np.diff(np.r_[starts, len(new)])
        winner_at = starts + counts - 1 if rewrite else starts
        winner = np.repeat(new["value"][winner_at], counts)
        known = np.isin(new["key"], old["key"])
        loses = new["value"] != winner
        if rewrite:
            removed.append(old["value"][np.isin(old["key"], new["key"])])
        else:
            loses = loses | known
            winner = np.where(known, -1, winner)
        dropped.append(new["value"][loses])
        earlier.append(winner[loses])
    ordinals = np.concatenate(dropped)
    order = np.argsort(ordinals)
    gone = np.sort(np.concatenate(removed)) if removed else np.empty(0, np.int64)
    return Repeats(ordinals[order], np.concatenate(earlier)[order], gone)
