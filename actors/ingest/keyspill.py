"""Which of many ids were met before, in bounded memory: keys are spilled to disk by partition,
and each partition is joined on its own.

Memory: a partition (16 bytes a key, 200,000 keys or so), one byte a staged row for the result,
8 more when it has to be told why a row is dropped, and 8 for each stored row that is replaced.
Disk: 16 bytes a key.
"""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

_PER_PARTITION = 200_000
_MOST = 256
_PAIR = np.dtype([("key", np.uint64), ("value", np.int64)])


class Repeats(msgspec.Struct, frozen=True):
    """What to do about ids that occur more than once."""

    kept: NDArray[np.bool_]  # (n,) which staged rows are stored
    earlier: NDArray[np.int64] | None  # (n,) the staged row that is stored instead; -1: the stored row stays
    removed: NDArray[np.int64]  # (r,) _row of stored rows that staged ones replace, ascending

    @property
    def dropped(self) -> int:
        return len(self.kept) - int(np.count_nonzero(self.kept))


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


def repeats(staged: KeySpill, stored: KeySpill, rows: int, *, rewrite: bool, explain: bool = False) -> Repeats:
    """Join staged rows (key → ordinal, of `rows`) with stored ones (key → _row). With `rewrite`
    the last staged row of an id wins and takes the place of the stored one; otherwise the
    stored row stays, else the first staged one. `explain` fills `earlier`."""
    kept = np.ones(rows, dtype=bool)
    earlier = np.full(rows, -1, dtype=np.int64) if explain else None
    removed = [np.empty(0, np.int64)]
    for i in range(len(staged)):
        new, old = staged.partition(i), stored.partition(i)
        # Stable: within a key, ordinals ascend.
        new = new[np.argsort(new["key"], kind="stable")]
        starts = np.flatnonzero(np.r_[True, new["key"][1:] != new["key"][:-1]]) if len(new) else np.empty(0, np.int64)
        counts = np.diff(np.r_[starts, len(new)])
        winner = np.repeat(new["value"][starts + counts - 1 if rewrite else starts], counts)
        loses = new["value"] != winner
        if rewrite:
            removed.append(old["value"][np.isin(old["key"], new["key"])])
        else:
            known = np.isin(new["key"], old["key"])
            loses |= known
            winner = np.where(known, -1, winner)
        kept[new["value"][loses]] = False
        if earlier is not None:
            earlier[new["value"][loses]] = winner[loses]
    return Repeats(kept, earlier, np.sort(np.concatenate(removed)))
