"""Exact search against a plain sort, graphs against themselves, the cache against its rules."""

import itertools
import os

import hnswlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import hnsw
from actors.errors import CorruptState
from actors.graphs import GraphCache
from schemas.config import GraphConfig

METRICS = ["cosine", "ip", "l2"]


def made(generator):
    """A build's graph and its progress reports."""
    reports = []
    while True:
        try:
            reports.append(next(generator))
        except StopIteration as stop:
            return stop.value, reports


def oracle(queries, vectors, k, metric):
    """Distances in float64, sorted by (distance, position)."""
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        distances = ((queries[:, None, :] - vectors[None]) ** 2).sum(-1)
    else:
        if metric == "cosine":
            queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-300)
        distances = 1 - queries @ vectors.T
    distances = distances.astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 60), q=st.integers(0, 4), d=st.integers(1, 9), k=st.integers(1, 70), seed=st.integers(0, 9999))
def test_exact_search_is_a_sort_with_ties_by_position(metric, n, q, d, k, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (n, d)).astype(np.float32)  # few values: many exact ties
    queries = rng.integers(-2, 3, (q, d)).astype(np.float32)
    if metric == "cosine":
        vectors = hnsw.normalise(vectors)
    positions, distances = hnsw.exact_topk(queries, vectors, k, metric)
    expected, expected_distances = oracle(queries, vectors, k, metric)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-6)
    if metric != "cosine":  # unit vectors don't tie exactly
        np.testing.assert_array_equal(positions, expected)


def test_blocks_make_no_difference(monkeypatch):
    rng = np.random.default_rng(1)
    vectors = hnsw.normalise(rng.standard_normal((3000, 32), dtype=np.float32))
    vectors[2000:2100] = vectors[:100]  # duplicates far apart
    queries = vectors[50:80]
    whole = hnsw.exact_topk(queries, vectors, 10, "cosine")
    monkeypatch.setattr(hnsw, "BLOCK_FLOATS", 4096)
    parts = hnsw.exact_topk(queries, vectors, 10, "cosine")
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_array_equal(whole[0][:, :2], np.stack([np.arange(50, 80), np.arange(2050, 2080)], axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_exact_distances_are_hnswlib_distances(metric):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((500, 16), dtype=np.float32)
    if metric == "cosine":
        vectors = hnsw.normalise(vectors)
    queries = rng.standard_normal((20, 16), dtype=np.float32)
    brute = hnswlib.BFIndex(metric, 16)
    brute.init_index(500)
    brute.add_items(vectors, np.arange(500))
    # unlike hnswlib's graphs, its brute force doesn't normalise the query
    labels, distances = brute.knn_query(hnsw.normalise(queries) if metric == "cosine" else queries, k=10)
    positions, ours = hnsw.exact_topk(queries, vectors, 10, metric)
    np.testing.assert_array_equal(positions, labels.astype(np.int64))
    np.testing.assert_allclose(ours, distances, atol=1e-4)


def test_same_input_same_graph_and_it_survives_the_disk(tmp_path):
    rng = np.random.default_rng(3)
    vectors = hnsw.normalise(rng.standard_normal((1200, 24), dtype=np.float32))
    rows = np.arange(1200) * 3 + 7
    config = GraphConfig(8, 40, 42)
    digests = []
    for name in ("a.hnsw", "b.hnsw"):
        graph, reports = made(hnsw.build(vectors, rows, "cosine", config))
        digests.append(hnsw.save(graph, tmp_path / name))
    assert reports == [500, 1000, 1200]
    assert digests[0] == digests[1] == hnsw.sha256_of(tmp_path / "a.hnsw")
    loaded = hnsw.load(tmp_path / "a.hnsw", 24, "cosine", digests[0], capacity=2000)
    labels, _ = hnsw.knn(loaded, vectors[:50], 1, ef=50)
    np.testing.assert_array_equal(labels[:, 0], rows[:50])
    assert loaded.max_elements == 2000
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.hnsw", "b.hnsw"]


def test_a_changed_file_is_refused(tmp_path):
    graph, _ = made(hnsw.build(np.eye(4, dtype=np.float32), np.arange(4), "l2", GraphConfig()))
    digest = hnsw.save(graph, tmp_path / "g")
    data = bytearray((tmp_path / "g").read_bytes())
    data[-1] ^= 1
    (tmp_path / "g").write_bytes(data)
    with pytest.raises(CorruptState):
        hnsw.load(tmp_path / "g", 4, "l2", digest)
    (tmp_path / "g").write_bytes(data[:40])
    with pytest.raises(CorruptState):
        hnsw.load(tmp_path / "g", 4, "l2")


@pytest.fixture
def filled(tmp_path):
    """A cache with three graphs of 100 bytes each, used in order a, b, c."""
    cache = GraphCache(tmp_path, limit_bytes=300)
    clock = itertools.count(1_000_000)
    configs = [GraphConfig(4), GraphConfig(8), GraphConfig(16)]
    for config in configs:
        cache.path_for("docs", config, 5).write_bytes(b"x" * 100)
        cache.add("docs", config, 5, sha256="0" * 64, rows=9, build_s=1.5)
        os.utime(cache.path_for("docs", config, 5), (at := next(clock), at))
    return cache, configs


def test_cache_gives_back_what_was_added_for_that_version_only(filled):
    cache, (first, *_) = filled
    found = cache.find("docs", first, 5)
    assert (found.rows, found.build_s, found.version, found.library) == (9, 1.5, 5, hnsw.LIBRARY)
    assert cache.find("docs", first, 6) is None
    assert cache.find("other", first, 5) is None


def test_cache_evicts_the_least_recently_used(filled):
    cache, (first, second, third) = filled
    cache.find("docs", first, 5)
    new = GraphConfig(32)
    cache.path_for("docs", new, 5).write_bytes(b"x" * 100)
    cache.add("docs", new, 5, sha256="0" * 64, rows=9, build_s=1)
    assert [cache.find("docs", c, 5) is not None for c in (first, second, third, new)] == [True, False, True, True]


def test_cache_gives_out_no_graph_of_another_build_and_no_half_written_one(filled, monkeypatch):
    cache, (first, *_) = filled
    monkeypatch.setattr("actors.graphs.LIBRARY", "hnswlib 0.8.0 portable")
    assert cache.find("docs", first, 5) is None
    monkeypatch.undo()
    cache.path_for("docs", GraphConfig(5), 5).write_bytes(b"x")
    assert cache.find("docs", GraphConfig(5), 5) is None


def test_drop_forgets_an_index(filled):
    cache, (first, *_) = filled
    cache.drop("docs")
    cache.drop("docs")
    assert cache.find("docs", first, 5) is None
