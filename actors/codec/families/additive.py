"""Additive quantisation (Babenko & Lempitsky 2014): a group of `dsub` values is the sum of one centroid
of each of 1 + `residual.depth` codebooks, which all groups share as in vq. Begun as residual VQ, then
refined together: codebooks by least squares for the codes, codes for the codebooks by a search from
several starts with iterated conditional modes (ICM, Besag 1986). Neither step raises the error.

state  codebook_0 (k, dsub) float16, codebook_1 ... of `residual.centroids`; unit (1,) float32
codes  codes_0 (n, d / dsub) uint8 | uint16, codes_1 ...; scales (n,) float16
"""

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from actors.codec.families import pq, vq
from actors.codec.kernels import books, kmeans, lanes
from actors.codec.kernels.halves import to_halves
from schemas.codec import CodecParams

charge = books.charge

MOST_CENTROIDS = 4096
"""Over all stages: least squares solves a system of this order."""

ROUNDS = 4
"""Of least squares and search while training."""

STARTS = 8
"""First-stage centroids that a search begins with. On a MiniLM layer, 2 stages of 256 for 4 values, it
leaves a fifth less squared error than one start does."""

SWEEPS = 4
"""Of ICM at most in a search."""

Books = list[NDArray[np.float32]]  # one (k, dsub) a stage
Codes = list[NDArray[np.intp]]  # one (N,) a stage


def fit(rows: NDArray[np.float32], params: CodecParams, rng: np.random.Generator) -> Arrays:
    sizes = books.stages(params)
    if sum(sizes) > MOST_CENTROIDS:
        raise CodecError(f"additive refines at most {MOST_CENTROIDS} centroids together, got {sum(sizes)}")
    unit, groups = vq.training_groups(rows, params, rng, max(sizes))
    codebooks: Books = []
    left = groups
    for k in sizes:
        clusters = kmeans.lloyd(left, k, rng, seeding="plusplus")
        codebooks.append(clusters.centroids)
        left = left - clusters.centroids[clusters.codes]
    codebooks, _ = refined(groups, codebooks)
    return {"unit": unit, **{f"codebook_{i}": to_halves(book, pq.ONE, "centroid") for i, book in enumerate(codebooks)}}


def encode(state: Arrays, rows: NDArray[np.float32], params: CodecParams) -> Arrays:
    groups, scales = vq.grouped(rows, state, params)
    codebooks = _books(state, params)
    codes = search(groups, codebooks, params)
    shape = (len(rows), -1)
    return {
        "scales": scales,
        **{f"codes_{i}": books.as_codes(codes[i].reshape(shape), len(book)) for i, book in enumerate(codebooks)},
    }


def decode(state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    chosen = [codes[f"codes_{i}"].astype(np.intp) for i in range(len(books.stages(params)))]
    return vq.ungrouped(summed(_books(state, params), chosen), codes["scales"], state, params)


def refined(groups: NDArray[np.float32], codebooks: Books) -> tuple[Books, list[float]]:
    """Codebooks after ROUNDS of least squares and search, and the mean squared error of a group before
    and after each."""
    codes = search(groups, codebooks)
    errors = [float(np.mean(_errors(groups, codebooks, codes)))]
    for _ in range(ROUNDS):
        codebooks = least_squares(groups, codes, codebooks)
        codes, left = _better(groups, codebooks, codes, search(groups, codebooks))
        errors.append(float(np.mean(left)))
    return codebooks, errors


def least_squares(groups: NDArray[np.float32], codes: Codes, codebooks: Books) -> Books:
    """argmin over C of |groups - B C|^2 for the (N, sum k) 0/1 matrix B of the codes, in float64. Of
    the many solutions (stages may trade a constant) the one nearest to where the codebooks were."""
    sizes = [len(book) for book in codebooks]
    first = np.concatenate(([0], np.cumsum(sizes)))
    gram = np.zeros((first[-1], first[-1]))  # B^T B: how often two centroids meet
    pull = np.zeros((first[-1], groups.shape[1]))  # B^T (groups - B C)
    left = (groups - summed(codebooks, codes)).astype(np.float64)
    for i, size in enumerate(sizes):
        rows = slice(first[i], first[i + 1])
        for column in range(groups.shape[1]):
            pull[rows, column] = np.bincount(codes[i], weights=left[:, column], minlength=size)
        for j, other in enumerate(sizes):
            met = np.bincount(codes[i] * other + codes[j], minlength=size * other)
            gram[rows, first[j] : first[j + 1]] = met.reshape(size, other)
    gram[np.diag_indices_from(gram)] += 1e-6 * len(groups) / first[-1]  # damps moves that change nothing
    moves = np.linalg.solve(gram, pull)
    return [book + moves[first[i] : first[i + 1]].astype(np.float32) for i, book in enumerate(codebooks)]


def search(
    groups: NDArray[np.float32],
    codebooks: Books,
    params: CodecParams | None = None,
    starts: int = STARTS,
    sweeps: int = SWEEPS,
) -> Codes:
    """Codes from the best of several starts: the nearest centroids of the first stage, each with the
    nearest of every later stage on what is left. Then ICM sweeps until nothing changes."""
    firsts = _nearest(groups, codebooks[0], params, min(starts, len(codebooks[0])))  # (starts, n)
    codes = _greedy(groups, codebooks, params, firsts[0])
    for first in firsts[1:]:
        codes, _ = _better(groups, codebooks, codes, _greedy(groups, codebooks, params, first))
    for _ in range(sweeps):
        before, codes = codes, _icm_sweep(groups, codebooks, codes, params)
        if all(np.array_equal(old, new) for old, new in zip(before, codes, strict=True)):
            break
    return codes


def summed(codebooks: Books, codes: Codes) -> NDArray[np.float32]:
    total = codebooks[0][codes[0]]
    for book, code in zip(codebooks[1:], codes[1:], strict=True):
        total = total + book[code]
    return total


def _greedy(
    groups: NDArray[np.float32], codebooks: Books, params: CodecParams | None, first: NDArray[np.intp]
) -> Codes:
    codes, left = [first], groups - codebooks[0][first]
    for book in codebooks[1:]:
        codes.append(_nearest(left, book, params)[0])
        left = left - book[codes[-1]]
    return codes


def _icm_sweep(groups: NDArray[np.float32], codebooks: Books, codes: Codes, params: CodecParams | None) -> Codes:
    """Each stage in turn takes its best centroid while the others are held."""
    codes = list(codes)
    left = groups - summed(codebooks, codes)
    for i, book in enumerate(codebooks):
        wanted = left + book[codes[i]]
        codes[i] = _nearest(wanted, book, params)[0]
        left = wanted - book[codes[i]]
    return codes


def _better(
    groups: NDArray[np.float32], codebooks: Books, one: Codes, other: Codes
) -> tuple[Codes, NDArray[np.float32]]:
    """Of two codings, for each group the one that leaves less, and the squared error that it leaves."""
    left, right = _errors(groups, codebooks, one), _errors(groups, codebooks, other)
    return [np.where(right < left, b, a) for a, b in zip(one, other, strict=True)], np.minimum(left, right)


def _errors(groups: NDArray[np.float32], codebooks: Books, codes: Codes) -> NDArray[np.float32]:
    left = groups - summed(codebooks, codes)
    squares: NDArray[np.float32] = np.einsum("nd,nd->n", left, left)
    return squares


def _nearest(
    groups: NDArray[np.float32], book: NDArray[np.float32], params: CodecParams | None, count: int = 1
) -> NDArray[np.intp]:
    """(count, n), in the lanes' arithmetic when encoding, in float32 while training (no params)."""
    if params is None:
        return kmeans.nearest_few(groups, book, count)[0]
    return kmeans.nearest_few(*lanes.operands(groups, book, params.lane_width, params.distance), count)[0]


def _books(state: Arrays, params: CodecParams) -> Books:
    return [state[f"codebook_{i}"].astype(np.float32) for i in range(len(books.stages(params)))]
