"""Search over codes on small arrays, beside brute force."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from actors import hnsw
from actors.codec.artifact import CodedColumn
from actors.codec.family import FAMILIES
from actors.codec_ports import CodedRows
from actors.index import coded as module
from actors.index.coded import CodedVectors
from actors.index.vectors import VectorSet
from daemon.codes import ColumnCodec
from schemas.codec import CodecParams

ROWS, DIM = 300, 32
FAMILY_PARAMS = [
    CodecParams(family="rotated", bits=4, rotation="hadamard"),
    CodecParams(family="scalar", bits=4, group=16),
    CodecParams(family="rotated", bits=3, rotation="hadamard"),
    CodecParams(family="rabitq", rotation="hadamard"),
    CodecParams(family="pq", dsub=4, centroids=16),
]


def vectors(metric: Any, rows: int = ROWS, seed: int = 0) -> VectorSet:
    """Row numbers with gaps; lengths differ where the metric sees them."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((rows, DIM), dtype=np.float32)
    made = hnsw.normalise(made) if metric == "cosine" else made * rng.uniform(0.5, 2, (rows, 1)).astype(np.float32)
    return VectorSet(1, np.arange(rows) * 3, made, metric)


def artifact(params: CodecParams, of: VectorSet) -> CodedRows:
    family = FAMILIES[params.family]
    state = family.fit(of.vectors[::2].copy(), params, np.random.default_rng(1))
    column = CodedColumn(params, state, family.encode(state, of.vectors, params))
    return CodedRows(ColumnCodec("small", column), of.rows, column.codes)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_FLOATS", 50 * DIM)  # several blocks, the last one short


@pytest.mark.parametrize("params", FAMILY_PARAMS, ids=lambda params: f"{params.family}-{params.bits}")
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_candidates_are_those_nearest_by_decoded_vectors_and_told_exactly(metric: Any, params: CodecParams) -> None:
    stored, k, oversample = vectors(metric), 5, 4
    made = artifact(params, stored)
    index = CodedVectors.of(made, stored, oversample)
    queries = np.random.default_rng(2).standard_normal((7, DIM), dtype=np.float32)
    some = np.arange(1, ROWS, 2)
    decoded = FAMILIES[params.family].decode(made.codec.state, made.codes, params)  # type: ignore[attr-defined]
    for among in (None, some):
        positions = np.arange(ROWS) if among is None else among
        rows, distances = index.search(queries, k, among)
        for line, query in enumerate(queries):
            asked = hnsw.normalise(query) if metric == "cosine" else query
            apart = -decoded[positions] @ asked
            if metric == "l2":
                apart = ((decoded[positions] - asked) ** 2).sum(axis=1)
            candidates = np.sort(positions[np.argsort(apart)[: k * oversample]])
            near, told = hnsw.exact_topk(query[None], stored.vectors[candidates], k, metric)
            np.testing.assert_array_equal(rows[line], stored.rows[candidates[near[0]]])
            np.testing.assert_allclose(distances[line], told[0], rtol=1e-6)


def test_fewer_hits_come_from_as_many_candidates_as_were_certified() -> None:
    stored = vectors("cosine")
    made = artifact(CodecParams(family="rabitq", rotation="hadamard"), stored)
    queries = np.random.default_rng(2).standard_normal((50, DIM), dtype=np.float32)
    truth = stored.exact(queries, 1)[0]
    found = CodedVectors.of(made, stored, 1, 100).search(queries, 1)[0]
    fewer = CodedVectors.of(made, stored, 1).search(queries, 1)[0]
    assert np.mean(found == truth) > 0.95 > np.mean(fewer == truth)
    later = VectorSet(2, stored.rows[1:], stored.vectors[1:], "cosine")
    again = CodedVectors.of(made, stored, 1, 100).at(later).search(queries, 1)[0]
    assert np.mean(again == later.exact(queries, 1)[0]) > 0.95


@pytest.mark.parametrize("columns", [32, 33, 40])
@pytest.mark.parametrize(
    "params",
    [CodecParams(family="rotated", bits=bits) for bits in range(1, 9)] + [CodecParams(family="rabitq")],
    ids=lambda params: f"{params.family}-{params.bits}",
)
def test_products_without_decoding_are_those_of_decoded_rows(params: CodecParams, columns: int) -> None:
    rng = np.random.default_rng(4)
    params = replace(params, rotation="identity" if columns == 33 else "hadamard")
    rows, queries = rng.standard_normal((200, columns), np.float32) + 1, rng.standard_normal((3, columns), np.float32)
    family = FAMILIES[params.family]
    state = family.fit(rows[:100], params, rng)
    codes = family.encode(state, rows, params)
    column, decoded = CodedColumn(params, state, codes), family.decode(state, codes, params)
    np.testing.assert_allclose(column.products(column.turn(queries), codes), queries @ decoded.T, atol=1e-4)
    np.testing.assert_allclose(column.squares(codes), np.square(decoded).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_with_every_row_a_candidate_it_is_exact_search(metric: Any) -> None:
    stored = vectors(metric)
    index = CodedVectors.of(artifact(FAMILY_PARAMS[0], stored), stored, 100)
    queries = np.random.default_rng(2).standard_normal((9, DIM), dtype=np.float32)
    for k, among in ((10, None), (10, np.arange(0, ROWS, 7)), (50, np.arange(20))):
        rows, distances = index.search(queries, k, among)
        exact_rows, exact_distances = stored.exact(queries, k, among)
        np.testing.assert_array_equal(rows, exact_rows)
        np.testing.assert_allclose(distances, exact_distances, rtol=1e-6)


@pytest.mark.parametrize("params", FAMILY_PARAMS, ids=lambda params: f"{params.family}-{params.bits}")
def test_codes_follow_rows_that_come_and_go(params: CodecParams) -> None:
    stored = vectors("l2", ROWS + 100)
    first = VectorSet(1, stored.rows[:ROWS], stored.vectors[:ROWS], "l2")
    made = artifact(params, first)
    left = np.flatnonzero(np.arange(ROWS + 100) % 5)
    later = VectorSet(2, stored.rows[left], stored.vectors[left], "l2")
    anew = FAMILIES[params.family].encode(made.codec.state, later.vectors, params)  # type: ignore[attr-defined]
    for index in (CodedVectors.of(made, first, 10).at(later), CodedVectors.of(made, later, 10)):
        assert index.vectors is later
        for name, array in anew.items():
            np.testing.assert_array_equal(index._codes[name], array)
        decoded = FAMILIES[params.family].decode(made.codec.state, anew, params)  # type: ignore[attr-defined]
        np.testing.assert_allclose(index._squares, np.square(decoded).sum(axis=1), rtol=1e-5)
        assert index.bytes == made.codec.bytes + sum(array.nbytes for array in anew.values()) + 4 * len(left)
    nothing = CodedVectors.of(made, first, 10).at(VectorSet(3, stored.rows[:0], stored.vectors[:0], "l2"))
    assert nothing.search(stored.vectors[:2], 5)[0].shape == (2, 0)
    assert CodedVectors.at(nothing, later).search(later.vectors[:1], 1)[0].tolist() == [[int(later.rows[0])]]


@pytest.mark.slow
def test_many_queries_at_once_take_no_more_memory_than_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_FLOATS", 1 << 16)
    stored = vectors("cosine", 4000)
    index = CodedVectors.of(artifact(FAMILY_PARAMS[0], stored), stored, 2)
    queries = np.tile(stored.vectors[:500], (4, 1))
    tracemalloc.start()
    rows, _ = index.search(queries, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(rows[:, 0], np.tile(stored.rows[:500], 4))
    assert peak < 8 << 20  # all distances: 32 MB


def test_stored_codes_are_believed_when_they_differ_by_a_rounding_and_not_by_a_row() -> None:
    stored = vectors("l2")
    made = artifact(FAMILY_PARAMS[0], stored)
    rounded = {name: array.copy() for name, array in made.codes.items()}
    rounded["codes"][0, 0] ^= 1
    assert CodedVectors.of(replace(made, codes=rounded), stored, 10)._codes["codes"][0, 0] == rounded["codes"][0, 0]
    other = {name: array.copy() for name, array in made.codes.items()}
    other["codes"][0] = 255 - other["codes"][0]
    np.testing.assert_array_equal(
        CodedVectors.of(replace(made, codes=other), stored, 10)._codes["codes"], made.codes["codes"]
    )


@pytest.mark.parametrize("params", FAMILY_PARAMS, ids=lambda params: f"{params.family}-{params.bits}")
def test_the_codec_keeps_none_of_the_codes_in_memory(params: CodecParams) -> None:
    stored = vectors("l2")
    column = CodedColumn(params, *_learnt(params, stored))
    for array in ColumnCodec("small", column).codes.values():
        assert array.base is None
        assert len(array) == 1


def _learnt(params: CodecParams, of: VectorSet) -> Any:
    family = FAMILIES[params.family]
    state = family.fit(of.vectors, params, np.random.default_rng(1))
    return state, family.encode(state, of.vectors, params)
