"""Residual PQ (Chen, Guan & Wang 2010): `residual.depth` more product quantisers, each trained on what
those before it left over. So the stages of a shallower one are the first stages of a deeper one, in training
and in encoding, and both are made stage by stage.

state  codebook_0 (k, d) float16, codebook_1 ... of `residual.centroids`; unit, rotation as in pq
codes  codes_0 (n, M) uint8 | uint16, codes_1 ...
"""

from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays
from actors.codec.families import pq
from actors.codec.kernels import books, lanes
from actors.codec.kernels.halves import to_halves
from schemas.codec import CodecParams

charge = books.charge


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    return _taken(training(rows, params, rng), params)


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    return _taken(encoding(state, rows, params), params)


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    turned = np.zeros(1, dtype=np.float32)
    for stage in range(len(books.stages(params))):
        turned = turned + pq.look_up(_book(state, stage), codes[f"codes_{stage}"], params)
    return pq.turn_back(state, turned, params)


def training(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Iterator[Arrays]:
    """What each stage learns, the first with unit and rotation; for ever."""
    k = books.stages(params)[1]
    state = dict(pq.fit(rows, params, rng))
    state["codebook_0"] = state.pop("codebook")
    yield state
    trained_as = lanes.training(params)
    left = pq.turn(_first(state), books.checked(rows), trained_as)
    for stage in count(1):
        book = _book(state, stage - 1)
        left = left - pq.look_up(book, pq.assign(left, book, trained_as), trained_as)
        codebook, _ = pq.train(left, books.subspaces(params, left.shape[1]), k, rng)
        state = {f"codebook_{stage}": to_halves(codebook, pq.ONE, "centroid")}
        yield state


def encoding(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Iterator[Arrays]:
    """The codes of each stage; as many as the state has when they are asked for."""
    left = pq.turn(_first(state), books.checked(rows), params)
    for stage in count():
        chosen = pq.assign(left, _book(state, stage), params)
        yield {f"codes_{stage}": chosen}
        left = left - pq.look_up(_book(state, stage), chosen, params)


def _taken(stages: Iterator[Arrays], params: CodecParams) -> Arrays:
    taken: dict[str, NDArray[np.generic]] = {}
    for stage in islice(stages, len(books.stages(params))):
        taken.update(stage)
    return taken


def _book(state: Arrays, stage: int) -> NDArray[np.float32]:
    return state[f"codebook_{stage}"].astype(np.float32)


def _first(state: Arrays) -> Arrays:
    return {**state, "codebook": state["codebook_0"]}
