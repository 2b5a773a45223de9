"""What the families with codebooks share: how a row is cut into subspaces, how codes and codebooks
are stored, what they cost.

A codebook is float16 over one float32 unit (`halves`). Codes are uint8, above 256 centroids uint16;
a code is charged as it is stored.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import Arrays, CodecError
from schemas.codec import Charge, CodecParams


def checked(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as every family takes them: (n, d) float32 in C order, finite, some."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise CodecError(f"a codec takes rows (n, d) with n, d >= 1, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise CodecError(f"{int((~np.isfinite(rows)).sum())} of {rows.size} values are not finite")
    return np.ascontiguousarray(rows, dtype=np.float32)


def subspaces(params: CodecParams, d: int) -> list[slice]:
    """Runs of columns that a code stands for. `subspaces` that don't divide d make the first ones
    one column wider; `dsub` has to divide it."""
    _check_one_given(params)
    count = params.subspaces or d // group_width(params, d)
    if count > d:
        raise CodecError(f"subspaces = {count} is more than the {d} columns")
    edges = [i * (d // count) + min(i, d % count) for i in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


def group_width(params: CodecParams, d: int) -> int:
    """Values that share a code, where all groups are of one width."""
    _check_one_given(params)
    width = params.dsub or d // (params.subspaces or d)
    if width < 1 or d % width or (params.subspaces or d // width) * width != d:
        divisors = [i for i in range(1, min(d, 64) + 1) if d % i == 0]
        raise CodecError(
            f"{params.family} needs groups of one width: dsub = {params.dsub}, subspaces = {params.subspaces} "
            f"do not divide {d} columns. dsub may be {', '.join(map(str, divisors))}"
        )
    return width


def stages(params: CodecParams) -> list[int]:
    """Centroids of each stage: the first, then those of the residual's."""
    if params.residual is None:
        raise CodecError(f"{params.family} needs residual: its depth and centroids")
    return [params.centroids] + [params.residual.centroids] * params.residual.depth


def rms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) root mean square of each row."""
    squares: NDArray[np.float64] = np.mean(np.square(rows, dtype=np.float64), axis=1)
    return np.sqrt(squares).astype(np.float32)


def as_codes(codes: NDArray[np.intp], centroids: int) -> NDArray[np.unsignedinteger]:
    return codes.astype(np.uint8 if centroids <= 256 else np.uint16)


def charge(state: Arrays, codes: Arrays, params: CodecParams) -> Charge:  # noqa: ARG001, a family's signature
    """Every array that is kept, by what its name says it is."""
    kept = {**state, **codes}
    size = {name: array.nbytes for name, array in kept.items()}
    return Charge(
        codes=sum(size[name] for name in size if name.startswith("codes")),
        codebooks=sum(size[name] for name in size if name.startswith("codebook")),
        scales=sum(size[name] for name in size if name in ("scales", "unit")),
        rotation=size.get("rotation", 0),
    )


def _check_one_given(params: CodecParams) -> None:
    if (params.subspaces is None) == (params.dsub is None):
        raise CodecError(f"{params.family} takes one of subspaces and dsub, got {params.subspaces} and {params.dsub}")
