"""Targets that are destroyed on purpose: a measurement that passes one of them can't tell, and certifies nothing.

row_rescaling      every row by a factor of its own, 1/4 to 4: ICC over cosines of row pairs stays 1.0000
global_rotation    every row turned by the same rotation: cosines, norms and ICC stay as they are
overfit_128_rows   product quantisation, 6 x 256, fitted on 128 rows and applied to all: the origin's 0.9998
noise              normal numbers of the same size
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import log
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.checkpoints.source import Item, Source
from actors.codec.families import pq
from actors.codec.kernels import rotation
from actors.codec.restore import INDEX, METADATA, SINGLE, stored_order
from actors.tensors.dtypes import from_float32
from actors.tensors.header import Planned
from actors.tensors.shard_writer import Chunks, write_index, write_shard
from actors.tensors.stored import byte_chunks
from schemas.codec import CodecParams

Name = Literal["row_rescaling", "global_rotation", "overfit_128_rows", "noise"]
NAMES: tuple[Name, ...] = get_args(Name)

FACTOR = 4.0
OVERFIT_ROWS = 128

Damage = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""(n, d) and a seed to (n, d)."""


def row_rescaling(matrix: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    factors = np.exp(np.random.default_rng(seed).uniform(-log(FACTOR), log(FACTOR), size=(len(matrix), 1)))
    return (matrix * factors).astype(np.float32)


def global_rotation(matrix: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The same for every matrix of a width: a randomised Hadamard where there is one, else columns that change places
    and signs."""
    try:
        return rotation.hadamard(np.ascontiguousarray(matrix), seed)
    except CodecError:
        d = matrix.shape[1]
        order = np.random.default_rng(seed).permutation(d)
        return matrix[:, order] * rotation.signs(d, seed)


def overfit(matrix: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    n, d = matrix.shape
    params = CodecParams(family="pq", subspaces=min(6, d), seed=seed)
    few = np.sort(rng.choice(n, min(OVERFIT_ROWS, n), replace=False))
    state = pq.fit(np.ascontiguousarray(matrix[few]), params, rng)
    return pq.decode(state, pq.encode(state, np.ascontiguousarray(matrix), params), params)


def noise(matrix: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal(matrix.shape, np.float32)
    return drawn * np.float32(np.sqrt(np.mean(np.square(matrix, dtype=np.float64))))


DAMAGES: dict[Name, Damage] = {
    "row_rescaling": row_rescaling,
    "global_rotation": global_rotation,
    "overfit_128_rows": overfit,
    "noise": noise,
}


def write_damaged(source: Source, out: Path, name: Name, seed: int) -> None:
    """A checkpoint in which every tensor that would be quantised is destroyed, and the others are as they were."""
    by_shard: dict[str, list[Item]] = {}
    for item in source.items:
        by_shard.setdefault(item.shard, []).append(item)
    planned = {shard: [_planned(item) for item in items] for shard, items in by_shard.items()}
    for shard, items in by_shard.items():
        by_name = {item.name: item for item in items}
        write_shard(out / shard, planned[shard], partial(_chunks, by_name, DAMAGES[name], seed), METADATA)
    if set(planned) != {SINGLE}:
        write_index(out / INDEX, planned)


def _planned(item: Item) -> Planned:
    if item.stored is None:
        raise CodecError(f"{item.name} can't be used: {item.problem}")
    return Planned(item.name, item.stored.dtype, item.stored.shape)


def _chunks(items: dict[str, Item], damage: Damage, seed: int, tensor: Planned) -> Chunks:
    item = items[tensor.name]
    assert item.stored is not None
    assert item.route is not None
    if item.route.kind != "quantise":
        yield from byte_chunks(item.stored)
        return
    for number in range(item.route.matrices):
        whole = iter([(0, damage(item.matrix(number), seed))])
        for values in stored_order(whole, item.route.shape) if item.route.transposed else _values(whole):
            yield from_float32(np.clip(values, -6e4, 6e4), tensor.dtype)


def _values(rows: Iterator[tuple[int, NDArray[np.float32]]]) -> Iterator[NDArray[np.float32]]:
    for _, values in rows:
        yield values
