"""k-means against brute force and closed forms: the oracle is float64 broadcasting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.kernels.kmeans import Clusters, Seeding, lloyd, nearest, nearest_few, plusplus, sample

SEEDINGS: list[Seeding] = ["sample", "plusplus"]


def blobs(n: int, d: int, k: int, seed: int = 0, spread: float = 0.05) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """n points about k centres on the corners of a wide grid, and the centre of each."""
    rng = np.random.default_rng(seed)
    centres = rng.permutation(np.stack(np.meshgrid(*[np.arange(3)] * d), axis=-1).reshape(-1, d))[:k]
    label = np.arange(n) % k
    return (centres[label] + spread * rng.standard_normal((n, d))).astype(np.float32), label


def brute_force(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, k) squared distances."""
    return np.square(points[:, None].astype(np.float64) - centroids[None].astype(np.float64)).sum(axis=2)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (700, 3, 5), (3000, 256, 2), (50, 300, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_is_the_nearest(n: int, k: int, d: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(n)
    points, centroids = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((k, d)).astype(dtype)
    codes, scores = nearest(points, centroids)
    squares = brute_force(points, centroids)
    least = squares.min(axis=1)
    assert np.allclose(squares[np.arange(n), codes], least, atol=1e-5)  # ties in float32 may go either way
    assert np.allclose(scores + np.square(points).sum(axis=1), least, atol=1e-5)
    assert scores.dtype == dtype


def test_the_nearest_few_are_in_order_and_none_is_nearer() -> None:
    rng = np.random.default_rng(0)
    points, centroids = rng.standard_normal((3000, 3)), rng.standard_normal((300, 3))  # several blocks
    codes, scores = nearest_few(points, centroids, 7)
    squares = np.square(points[:, None] - centroids[None]).sum(axis=2)
    assert np.array_equal(codes.T, np.argsort(squares, axis=1)[:, :7])
    assert np.allclose(scores.T + np.square(points).sum(axis=1)[:, None], np.sort(squares, axis=1)[:, :7])


@pytest.mark.parametrize("seeding", SEEDINGS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_the_objective_never_rises(seeding: Seeding, n: int, k: int, d: int, seed: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, d)).astype(np.float32)
    if coarse:  # many points of one place, so that clusters run empty
        points = np.rint(points)
    clusters = lloyd(points, k, rng, seeding=seeding)
    noise = 1e-5 * float(np.square(points).sum(axis=1).mean()) + 1e-12
    assert (np.diff(clusters.objective) <= noise).all()
    squares = brute_force(points, clusters.centroids)
    assert clusters.objective[-1] == pytest.approx(squares.min(axis=1).mean(), abs=noise)
    assert np.isfinite(clusters.centroids).all()


def test_centroids_are_the_means_of_their_points() -> None:
    points, _ = blobs(900, 3, 9)
    clusters = lloyd(points, 9, np.random.default_rng(1), iterations=100)
    for i in range(9):
        mine = points[clusters.codes == i].astype(np.float64)
        assert np.allclose(clusters.centroids[i], mine.mean(axis=0), atol=1e-5)


def test_plusplus_and_lloyd_find_blobs_that_are_far_apart() -> None:
    points, label = blobs(900, 3, 9)
    best = min((lloyd(points, 9, np.random.default_rng(s), seeding="plusplus") for s in range(4)), key=objective)
    pairs = set(zip(label.tolist(), best.codes.tolist(), strict=True))
    assert len(pairs) == 9  # one cluster a blob, and the other way round
    assert objective(best) == pytest.approx(3 * 0.05**2, rel=0.1)  # the variance within: d * spread^2


def objective(clusters: Clusters) -> float:
    return clusters.objective[-1]


def test_one_dimension_reaches_lloyd_max_of_a_gaussian() -> None:
    """Max 1960, table I: 4 levels of a unit Gaussian leave 0.1175 of its variance."""
    points = np.random.default_rng(0).standard_normal((40_000, 1)).astype(np.float32)
    clusters = lloyd(points, 4, np.random.default_rng(1), iterations=200)
    assert clusters.objective[-1] == pytest.approx(0.1175, rel=0.03)
    assert np.allclose(np.sort(clusters.centroids[:, 0]), [-1.510, -0.4528, 0.4528, 1.510], atol=0.05)


def test_empty_clusters_move_to_where_the_error_is() -> None:
    """All centroids start on one place: without re-seeding, one would serve all points for ever."""
    points, _ = blobs(400, 2, 8)
    clusters = lloyd(points, 8, np.random.default_rng(0), start=np.full((8, 2), 50, np.float32), iterations=50)
    assert len(np.unique(clusters.codes)) == 8
    assert clusters.objective[-1] < 0.5


def test_fewer_points_than_centroids_are_memorised() -> None:
    points = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    clusters = lloyd(points, 256, np.random.default_rng(1))
    assert clusters.objective[-1] < 1e-4
    assert np.allclose(clusters.centroids[clusters.codes], points, atol=1e-6)


@pytest.mark.parametrize("seeding", SEEDINGS)
def test_the_generator_decides_everything(seeding: Seeding) -> None:
    points, _ = blobs(500, 2, 7, spread=0.5)
    one, same, other = (lloyd(points, 7, np.random.default_rng(s), seeding=seeding) for s in (3, 3, 4))
    assert np.array_equal(one.centroids, same.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_plusplus_prefers_far_points() -> None:
    """Two places with 999 and 1 points: the second centroid is at the other place, always."""
    points = np.zeros((1000, 1), np.float32)
    points[17] = 1
    for seed in range(20):
        assert set(plusplus(points, 2, np.random.default_rng(seed))[:, 0]) == {0, 1}


def test_sample_takes_distinct_points() -> None:
    points = np.arange(50, dtype=np.float32)[:, None]
    assert len(np.unique(sample(points, 50, np.random.default_rng(0)))) == 50


@pytest.mark.parametrize(
    ("points", "k"), [(np.zeros((0, 3)), 2), (np.zeros((3, 0)), 2), (np.zeros(3), 1), (np.zeros((3, 3)), 0)]
)
def test_shapes_without_sense_are_refused(points: NDArray[np.float32], k: int) -> None:
    with pytest.raises(CodecError, match=r"k-means needs points \(n, d\)"):
        lloyd(points.astype(np.float32), k, np.random.default_rng(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_points_that_are_no_numbers_are_refused(value: float) -> None:
    points = np.zeros((5, 2), np.float32)
    points[3, 1] = value
    with pytest.raises(CodecError, match="finite"):
        lloyd(points, 2, np.random.default_rng(0))
