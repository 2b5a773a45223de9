"""The port VectorBackend: the same suite over a graph in memory, a Lance store on disk, and one on S3."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors import hnsw
from actors.backends import lance_store
from actors.backends.hnsw import HnswBackend
from actors.backends.lance import LanceBackend
from actors.backends.lance_rules import first_effort, resolve
from actors.backends.lance_store import Place
from actors.errors import Transient
from actors.vector_backend import NOWHERE, VectorBackend
from daemon.storage.store_options import s3_options
from schemas.config import Effort, GraphConfig, HnswEffort, LanceBuild, LanceEffort
from schemas.names import Metric
from tests.s3_server import BUCKET, s3_api

N, DIM = 600, 16
HIGH: dict[str, Effort] = {"hnsw": HnswEffort(200), "lance": LanceEffort(64, 8, 200)}

Make = Callable[..., VectorBackend]


def vectors_of(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM), dtype=np.float32)
    return hnsw.normalise(vectors)


def made(work: Iterator[Any]) -> Any:
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def graph(vectors: np.ndarray, rows: np.ndarray, metric: Metric) -> HnswBackend:
    backend: HnswBackend = made(HnswBackend.build(vectors, rows, metric, GraphConfig()))
    return backend


def store(
    place: Place, vectors: np.ndarray, rows: np.ndarray, metric: Metric, build: LanceBuild | None = None
) -> LanceBackend:
    columns = pa.schema([("id", pa.string())])
    schema = lance_store.schema_of(columns, vectors.shape[1])
    lance_store.create(place, schema)
    ids = {"id": pa.array([f"r{row}" for row in rows])}
    lance_store.append(place, schema, [lance_store.batch_of(schema, rows, vectors, ids)])
    lance_store.index_columns(place, "id", None)
    made(lance_store.build_index(place, metric, build or resolve(len(rows), vectors.shape[1]), "v0"))
    return LanceBackend.load(place, metric, "v0")


@pytest.fixture(params=["hnsw", "lance", "lance-s3"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a backend of vectors, rows and a metric."""
    if request.param == "hnsw":
        yield lambda vectors, rows, metric="cosine": graph(vectors, rows, metric)
    elif request.param == "lance":
        yield lambda vectors, rows, metric="cosine": store(Place(str(tmp_path / "store")), vectors, rows, metric)
    else:
        with s3_api() as api:
            place = Place(f"s3://{BUCKET}/indexes/docs/lance/1", s3_options(api.options))
            yield lambda vectors, rows, metric="cosine": store(place, vectors, rows, metric)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_finds_the_exact_nearest_with_their_distances(make: Make, metric: Metric) -> None:
    vectors, rows = vectors_of(N), np.arange(N) * 3 + 5
    vectors[7] = 0  # a zero vector is found like any other
    if metric != "cosine":
        vectors *= np.linspace(0.5, 2, N, dtype=np.float32)[:, None]
    backend = make(vectors, rows, metric)
    queries = vectors_of(20, seed=1)
    found, distances = backend.search(queries, 10, HIGH[backend.capabilities.backend])
    positions, wanted = hnsw.exact_topk(queries, vectors, 10, metric)
    assert (found == rows[positions]).mean() >= 0.99
    assert np.allclose(distances, wanted, atol=1e-4)
    zero, far = backend.search(np.zeros((1, DIM), np.float32), 3, HIGH[backend.capabilities.backend])
    assert (zero != NOWHERE).all()
    assert np.isfinite(far).all()


def test_what_is_added_is_found_and_what_is_deleted_is_not(make: Make) -> None:
    backend = make(vectors_of(N), np.arange(N))
    effort = HIGH[backend.capabilities.backend]
    more = vectors_of(5, seed=2)
    backend.add(np.arange(N, N + 5), more, {"id": [f"r{N + i}" for i in range(5)]})
    assert backend.search(more, 1, effort)[0][:, 0].tolist() == list(range(N, N + 5))
    assert backend.stats().rows == N + 5
    backend.delete(np.array([N + 1, 3, 99_999]))
    assert N + 1 not in backend.search(more[1:2], 10, effort)[0]
    assert 3 not in backend.search(vectors_of(N)[3:4], 10, effort)[0]
    stats = backend.stats()
    assert (stats.rows, stats.deleted) == (N + 3, 2)
    backend.delete(np.array([3]))  # gone already
    assert backend.stats().rows == N + 3


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_length_is_of_no_account_to_a_cosine_and_the_same_to_old_rows_and_new(make: Make, metric: Metric) -> None:
    backend = make(vectors_of(N), np.arange(N), metric)
    more, queries = 3 * vectors_of(5, seed=2), 7 * vectors_of(5, seed=2)
    backend.add(np.arange(N, N + 5), more, {"id": [f"r{N + i}" for i in range(5)]})
    stored = np.concatenate([vectors_of(N), hnsw.normalise(more) if metric == "cosine" else more])
    found, distances = backend.search(queries, 10, HIGH[backend.capabilities.backend])
    positions, wanted = hnsw.exact_topk(queries, stored, 10, metric)
    assert found[:, 0].tolist() == positions[:, 0].tolist()
    assert np.allclose(distances, wanted, atol=1e-3)
    assert np.allclose(backend.fetch(np.array([N]))[1], stored[N], atol=1e-6)


def test_only_the_rows_that_are_allowed_count(make: Make) -> None:
    vectors = vectors_of(N)
    backend = make(vectors, np.arange(N))
    backend.add(np.arange(N, N + 10), vectors_of(10, seed=3), {"id": [f"r{N + i}" for i in range(10)]})
    everything = np.concatenate([vectors, vectors_of(10, seed=3)])
    among = np.arange(0, N + 10, 5)
    queries = vectors_of(10, seed=4)
    found, _ = backend.search(queries, 10, HIGH[backend.capabilities.backend], among)
    wanted = among[hnsw.exact_topk(queries, everything[among], 10, "cosine")[0]]
    assert np.isin(found, among).all()
    assert np.mean([len(set(f) & set(w)) / 10 for f, w in zip(found, wanted, strict=True)]) >= 0.95
    few, distances = backend.search(queries, 10, HIGH[backend.capabilities.backend], np.array([4, 9]))
    assert sorted(few[0].tolist()) == sorted([4, 9] + 8 * [NOWHERE])
    assert np.isinf(distances[few == NOWHERE]).all()
    none, _ = backend.search(queries, 3, HIGH[backend.capabilities.backend], np.array([], np.int64))
    assert (none == NOWHERE).all()


def test_fetches_vectors_by_row_in_the_order_asked_for(make: Make) -> None:
    vectors = vectors_of(N)
    backend = make(vectors, np.arange(N) + 100)
    there, found = backend.fetch(np.array([350, 100, 5, 120]))
    assert there.tolist() == [350, 100, 120]
    assert np.allclose(found, vectors[[250, 0, 20]], atol=1e-6)
    there, found = backend.fetch(np.array([1]))
    assert (len(there), found.shape) == (0, (0, DIM))


def test_more_than_there_are_is_padded(make: Make) -> None:
    backend = make(vectors_of(300), np.arange(300))
    backend.delete(np.arange(5, 300))
    found, _ = backend.search(vectors_of(2, seed=5), 10, HIGH[backend.capabilities.backend])
    assert [sorted(line[line != NOWHERE].tolist()) for line in found] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("rows", "vectors", "said"),
    [
        ([1000], np.zeros((1, DIM + 1), np.float32), "dimensions"),
        ([1000, 1001], np.zeros((1, DIM), np.float32), "2 rows"),
        ([1000], np.full((1, DIM), np.nan, np.float32), "finite"),
        ([1000], np.full((1, DIM), np.inf, np.float32), "finite"),
    ],
)
def test_bad_vectors_are_refused_and_nothing_is_added(make: Make, rows: Any, vectors: np.ndarray, said: str) -> None:
    backend = make(vectors_of(N), np.arange(N))
    with pytest.raises(ValueError, match=said):
        backend.add(np.array(rows), vectors)
    assert backend.stats().rows == N


def test_a_query_of_another_dimension_or_another_backends_effort_is_refused(make: Make) -> None:
    backend = make(vectors_of(N), np.arange(N))
    mine = backend.capabilities.backend
    with pytest.raises(ValueError, match="dimensions"):
        backend.search(np.zeros((1, DIM + 1), np.float32), 3, HIGH[mine])
    with pytest.raises(ValueError, match="can't be searched with"):
        backend.search(np.zeros((1, DIM), np.float32), 3, HIGH["lance" if mine == "hnsw" else "hnsw"])


# --- what only a store has -----------------------------------------------------------------------


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "disk":
        yield Place(str(tmp_path / "store"))
        return
    with s3_api() as api:
        yield Place(f"s3://{BUCKET}/indexes/docs/lance/1", s3_options(api.options))


@pytest.mark.parametrize("index_type", ["IVF_RQ", "IVF_FLAT", "IVF_PQ", "IVF_HNSW_SQ"])
def test_every_type_holds_its_own_recall(place: Place, index_type: Any) -> None:
    vectors = vectors_of(2000)
    build = resolve(2000, DIM, index_type, 4 if index_type != "IVF_HNSW_SQ" else 1)
    backend = store(place, vectors, np.arange(2000), "cosine", build)
    queries = vectors_of(30, seed=6)
    found, _ = backend.search(queries, 10, first_effort(build))
    wanted = hnsw.exact_topk(queries, vectors, 10, "cosine")[0]
    least = 0.85 if index_type == "IVF_PQ" else 0.95  # two bytes a vector: what no gate would let serve
    assert np.mean([len(set(f) & set(w)) / 10 for f, w in zip(found, wanted, strict=True)]) >= least
    assert (backend.exact(queries, 10)[0] == wanted).mean() >= 0.999
    many, _ = backend.search(queries[:2], 500, first_effort(build))  # more than the effort's ef
    assert (many != NOWHERE).all()


def test_an_older_version_is_as_it_was_and_optimising_changes_no_answer(place: Place) -> None:
    backend = store(place, vectors_of(N), np.arange(N), "cosine")
    then = backend.lance_version
    more = vectors_of(300, seed=7)
    backend.add(np.arange(N, N + 300), more, {"id": [f"r{N + i}" for i in range(300)]})
    backend.delete(np.array([0]))
    effort = LanceEffort(64, 8)
    before = backend.search(more[:20], 5, effort)[0]
    assert backend.stats().unindexed_rows == 300
    version = lance_store.optimise(place, ["v0"], ["v0"], False, 3600.0)
    after = LanceBackend.load(place, "cosine", "v0")
    assert (after.lance_version, after.stats().unindexed_rows, after.stats().rows) == (version, 0, N + 299)
    assert (after.search(more[:20], 5, effort)[0] == before).mean() >= 0.98
    old = LanceBackend.load(Place(place.uri, place.options, then), "cosine", "v0")
    assert (old.rows, 0 in old.search(vectors_of(N)[:1], 1, effort)[0]) == (N, True)


def test_a_commit_that_another_came_before_is_to_come_again_and_no_damage(place: Place) -> None:
    from lance.optimize import Compaction

    backend = store(place, vectors_of(N), np.arange(N), "cosine")
    for row in (N, N + 1):  # two files that no index covers, to be made one
        backend.add(np.array([row]), vectors_of(1, seed=row), {"id": [f"r{row}"]})
    ours = lance_store.opened(place)
    plan = Compaction.plan(ours, {"target_rows_per_fragment": 1 << 20})
    done = [task.execute(ours) for task in plan.tasks]
    lance_store.optimise(place, ["v0"], ["v0"], False, 3600.0)
    with pytest.raises(Transient, match="at the same time"), lance_store.explained(place):
        Compaction.commit(ours, done)


def test_what_is_missing_is_said_so(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        LanceBackend.load(place, "cosine", "v0")
    store(place, vectors_of(N), np.arange(N), "cosine")
    with pytest.raises(FileNotFoundError, match="no vector index v9"):
        LanceBackend.load(place, "cosine", "v9")
    with pytest.raises(FileNotFoundError):
        LanceBackend.load(Place(place.uri, place.options, 999), "cosine", "v0")
    with pytest.raises(FileExistsError):
        lance_store.create(place, lance_store.schema_of(pa.schema([("id", pa.string())]), DIM))


def test_a_store_that_is_deleted_under_a_reader_is_missing(tmp_path: Path) -> None:
    backend = store(Place(str(tmp_path / "store")), vectors_of(N), np.arange(N), "cosine")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="store"):
        backend.versions()


def test_a_place_prints_no_secret() -> None:
    shown = f"{Place('s3://b/k', s3_options({'secret_access_key': 'hush'}))!r}"
    assert "hush" not in shown
