"""What can be said against a codec's parameters for a tensor before any work is done on it, and which of its rows are
calibrated on and which are measured.

The rules of a family are a table, at the head. Every CodecError names the field, the numbers, and what would be right.
"""

from dataclasses import dataclass, replace

import msgspec
import numpy as np
from msgspec.structs import replace as with_fields
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.families.additive import MOST_CENTROIDS
from actors.codec.kernels import books, rotation
from actors.codec.measures import PAIRED_ROWS
from schemas.codec import CodecParams, Family, LaneWidth, Rotation


class Overfitted(CodecError):
    """There are no more calibration points than centroids, so each would be learnt by heart. Nothing else is wrong: a
    sweep may measure such parameters as a negative control."""


CODEBOOK = ("centroids", "distance", "dsub", "subspaces")
GRID = ("bits", "clip", "group", "zero_point")
MEASURABLE = 3
"""Rows that a measure can be taken of at all."""

OPTIONAL = frozenset({"bits", "centroids", "clip", "distance", "dsub", "group", "residual", "subspaces", "zero_point"})
"""Fields that belong to some families and not to others. The rest belong to all."""


@dataclass(frozen=True)
class Rules:
    takes: frozenset[str]
    needs: frozenset[str] = frozenset()
    rotations: tuple[Rotation, ...] = ("identity",)
    lanes: tuple[LaneWidth, ...] = ("f32x16",)
    learns: bool = True  # from calibration rows, so that it has to be measured on others


_PQ = Rules(
    takes=frozenset(CODEBOOK),
    rotations=("identity", "hadamard", "opq"),
    lanes=("f32x16", "u8x64", "f64x8", "bf16x32"),
)
_VQ = replace(_PQ, rotations=("identity", "hadamard"))
_TURNED = Rules(
    takes=frozenset({"bits"}),
    needs=frozenset({"bits"}),
    rotations=("hadamard",),
    lanes=("f32x16", "f64x8", "bf16x32"),  # 8 bits can't rotate
    learns=False,
)
_AS_IS = Rules(takes=frozenset(), learns=False)

RULES: dict[Family, Rules] = {
    "pq": _PQ,
    "rpq": replace(_PQ, takes=_PQ.takes | {"residual"}, needs=frozenset({"residual"})),
    "vq": _VQ,
    "additive": replace(_VQ, takes=_VQ.takes | {"residual"}, needs=frozenset({"residual"})),
    "scalar": Rules(takes=frozenset(GRID), needs=frozenset({"bits"}), learns=False),
    "gptq": Rules(takes=frozenset(GRID), needs=frozenset({"bits"}), learns=False),  # from activations, not from rows
    "rotated": _TURNED,
    "rabitq": replace(_TURNED, takes=frozenset(), needs=frozenset(), learns=True),
    "bf16": _AS_IS,
    "f32": _AS_IS,
}


def check(params: CodecParams, shape: tuple[int, ...], activations: tuple[int, ...] | None = None) -> None:
    """Raises CodecError for parameters that can't be right for a tensor of this shape; for gptq, with calibration
    activations of that one."""
    if len(shape) != 2 or min(shape) < 1:
        raise CodecError(f"a codec takes a matrix (n, d) with n, d >= 1, got shape {shape}")
    n, columns = shape
    rules = RULES[params.family]
    _check_fields(params, rules)
    _check_codes(params, columns)
    if params.rotation not in rules.rotations:
        raise CodecError(_must_be(params, "rotation", params.rotation, rules.rotations))
    rotation.check(params, params.calibration_rows, columns)
    if params.lane_width not in rules.lanes:
        raise CodecError(_must_be(params, "lane_width", params.lane_width, rules.lanes))
    _check_activations(params, columns, activations)
    _check_rows(params, n, columns)


def measured_rows(params: CodecParams) -> int:
    """The fewest held-out rows that a measure of this codec is worth something on: those with 4,096 pairs, or, of a
    codec that learns nothing from rows, those that a measure can be taken of."""
    return PAIRED_ROWS if RULES[params.family].learns else MEASURABLE


def capped(params: CodecParams, n: int) -> CodecParams:
    """The same codec for a tensor of few rows: calibrated on half of them at most, and measured on the rest at most."""
    calibration = max(1, min(params.calibration_rows, n // 2))
    return with_fields(
        params, calibration_rows=calibration, measurement_rows=min(params.measurement_rows, max(0, n - calibration))
    )


def learnt(params: CodecParams) -> str:
    """What a fit depends on, as one word: parameters for which it is the same learn the same from the same matrix. Not
    on how codes are chosen or kept, nor on the depth of residual PQ, whose first stages are those of a deeper one."""
    defaults = CodecParams(family=params.family)
    kept = set(params.__struct_fields__) - {"bits", "group", "clip", "zero_point", "distance", "lane_width"}
    fields = {name: getattr(params if name in kept else defaults, name) for name in params.__struct_fields__}
    if params.family == "rpq" and params.residual is not None:
        fields["residual"] = with_fields(params.residual, depth=1)
    return msgspec.json.encode({**fields, "measurement_rows": 0}).decode()


def split_rows(n: int, params: CodecParams) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Numbers of the calibration rows and of the measurement rows, each ascending; the seed decides. No row is in
    both."""
    _check_disjoint(params, n)
    shuffled = np.random.default_rng(params.seed).permutation(n)
    calibration, rest = np.split(shuffled, [params.calibration_rows])
    return np.sort(calibration), np.sort(rest[: params.measurement_rows or None])


def _check_fields(params: CodecParams, rules: Rules) -> None:
    defaults = CodecParams(family=params.family)
    for field in sorted(OPTIONAL):
        given = getattr(params, field) != getattr(defaults, field)
        if given and field not in rules.takes:
            taken = ", ".join(sorted(rules.takes)) or "none"
            raise CodecError(
                f"{params.family} takes no {field}, got {getattr(params, field)}; of these fields it takes: {taken}"
            )
        if not given and field in rules.needs:
            raise CodecError(f"{params.family} needs {field}")


def _check_codes(params: CodecParams, columns: int) -> None:
    """Groups divide a row, and a grid has more than one point."""
    if params.family in ("pq", "rpq"):
        runs = books.subspaces(params, columns)
        if not runs:
            raise CodecError(f"dsub = {params.dsub} is more than the {columns} columns")
    elif params.family in ("vq", "additive"):
        books.subspaces(params, columns)
        books.group_width(params, columns)
    if params.family == "additive" and sum(books.stages(params)) > MOST_CENTROIDS:
        raise CodecError(f"additive refines at most {MOST_CENTROIDS} centroids, got {books.stages(params)}")
    if params.group is not None and columns % params.group:
        divisors = [i for i in range(2, columns + 1) if columns % i == 0]
        raise CodecError(f"group = {params.group} does not divide {columns} columns; it may be {divisors}")
    if params.family in ("scalar", "gptq") and params.bits == 1 and not params.zero_point:
        raise CodecError("bits = 1 without a zero point is a grid of 0 and one clipped value: give zero_point = true")


def _check_activations(params: CodecParams, columns: int, activations: tuple[int, ...] | None) -> None:
    if params.family != "gptq":
        return
    if activations is None:
        raise CodecError("gptq needs calibration activations: rows of what comes into the layer")
    if len(activations) != 2 or activations[0] < 1 or activations[1] != columns:
        raise CodecError(f"gptq needs calibration activations (m, {columns}) with m >= 1, got shape {activations}")


def _check_rows(params: CodecParams, n: int, columns: int) -> None:
    _check_disjoint(params, n)
    if "centroids" not in RULES[params.family].takes:
        return
    most = max(books.stages(params)) if params.residual else params.centroids
    shared = params.family in ("vq", "additive")
    groups = columns // books.group_width(params, columns) if shared else 1
    points = params.calibration_rows * groups
    if points <= most:
        raise Overfitted(
            f"centroids = {most} is {'as many as' if points == most else 'more than'} the {points} points of"
            f" {params.calibration_rows} calibration rows: each would be learnt by heart"
        )


def _check_disjoint(params: CodecParams, n: int) -> None:
    """Rows that a codec was fitted on say nothing about it, but for the gap to those that it wasn't fitted on."""
    if params.calibration_rows < MEASURABLE:
        raise CodecError(f"calibration_rows = {params.calibration_rows} is too few: give {MEASURABLE} or more")
    held_out = n - params.calibration_rows
    wanted = params.measurement_rows or measured_rows(params)
    if wanted < measured_rows(params):
        raise CodecError(f"measurement_rows = {wanted} is too few: give {measured_rows(params)} or more, or 0 for all")
    if held_out < wanted:
        most = n - wanted
        remedy = f"give calibration_rows <= {most}" if most > 0 else f"the tensor needs {wanted + 1} rows or more"
        raise CodecError(
            f"calibration_rows = {params.calibration_rows} of {n} rows leave {max(held_out, 0)} to measure on and"
            f" {wanted} are needed: {remedy}"
        )


def _must_be(params: CodecParams, field: str, got: str, may_be: tuple[str, ...]) -> str:
    return f"{params.family} takes {field} = {' or '.join(may_be)}, got {got}"
