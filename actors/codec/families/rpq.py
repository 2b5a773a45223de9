"""Residual PQ (Chen, Guan & Wang 2010): `residual.depth` more product quantisers, each trained on what
those before it left over.

state  codebook_0 (k, d) float16, codebook_1 ... of `residual.centroids`; unit, rotation as in pq
codes  codes_0 (n, M) uint8 | uint16, codes_1 ...
"""

import numpy as np
from numpy.typing import NDArray

from actors.codec import books
from actors.codec.base import Arrays
from actors.codec.families import pq
from actors.codec.halves import to_halves
from schemas.codec import CodecParams

charge = books.charge


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    depth = books.stages(params)
    first = dict(pq.fit(rows, params, rng))
    codebook = first.pop("codebook")
    left = pq.turn({**first, "codebook": codebook}, books.checked(rows), params)
    state: dict[str, NDArray[np.generic]] = {**first, "codebook_0": codebook}
    for stage, k in enumerate(depth):
        if stage > 0:
            trained, _ = pq.train(left, books.subspaces(params, left.shape[1]), k, rng)
            state[f"codebook_{stage}"] = to_halves(trained, pq.ONE, "centroid")
        book = state[f"codebook_{stage}"].astype(np.float32)
        left = left - pq.look_up(book, pq.assign(left, book, params), params)
    return state


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    left = pq.turn(_first(state), books.checked(rows), params)
    codes: dict[str, NDArray[np.generic]] = {}
    for stage in range(len(books.stages(params))):
        book = state[f"codebook_{stage}"].astype(np.float32)
        chosen = pq.assign(left, book, params)
        left = left - pq.look_up(book, chosen, params)
        codes[f"codes_{stage}"] = chosen
    return codes


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    turned = np.zeros(1, dtype=np.float32)
    for stage in range(len(books.stages(params))):
        book = state[f"codebook_{stage}"].astype(np.float32)
        turned = turned + pq.look_up(book, codes[f"codes_{stage}"], params)
    return pq.turn_back(state, turned, params)


def _first(state: Arrays) -> Arrays:
    return {**state, "codebook": state["codebook_0"]}
