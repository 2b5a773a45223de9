"""One tensor of a target into an artifact's file: copied as it is, or quantised matrix by matrix and measured. Runs in
the worker process; knows local files only.

In memory at once are a matrix as float32, its decoded self and its codes: rows are encoded and decoded in chunks. One
tensor that can't be used harms no other: its row says why. One that the parameters can't be right for (a width without
a Hadamard order, say) is copied, and its row says that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from actors.codec import artifact
from actors.codec.base import ENCODER, Arrays, CodecError, Phase
from actors.codec.checkpoints.source import Item, open_source
from actors.codec.family import FAMILIES
from actors.codec.measures import measured
from actors.codec.params import capped, check, split_rows
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.dtypes import BITS
from actors.tensors.header import CheckpointError, Planned
from actors.tensors.shard_writer import write_shard
from actors.tensors.stored import StoredTensor, byte_chunks, read_matrix
from schemas.codec import Charge, CodecParams, Measured, Override, StoredFile, TensorRow

CHUNK_FLOATS = 1 << 22
"""Encoded at a time: 16 MiB."""


@dataclass(frozen=True)
class TensorOrder:
    source: Path  # for open_source
    number: int
    params: CodecParams
    overrides: Sequence[Override]
    activations: Path | None  # safetensors: (m, columns) of what comes into a layer, by its tensor's name
    out: Path  # the file to write


def calibrate_tensor(order: TensorOrder) -> Iterator[Phase | TensorRow]:
    """Its progress, then its row, whose file has no key yet. Raises CodecError for a target that isn't the one that
    the calibration began with."""
    items = open_source(order.source, order.overrides).items
    if order.number >= len(items):
        raise CodecError(f"tensor {order.number} of {len(items)}: the target has changed under the calibration")
    item = items[order.number]
    row = _row(item)
    if item.route is None:
        yield replace(row, problem=item.problem)
        return
    try:
        row = replace(row, sha256=item.sha256())
        if item.route.kind != "quantise":
            yield _copied(item, row, order)
        elif objection := _objection(item, order):
            yield _kept(item, row, order, objection)
        else:
            try:
                yield from _quantised(item, row, order)
            except CheckpointError:
                raise
            except CodecError as error:  # its values can't be coded: some rows are far larger than the others, say
                yield _kept(item, row, order, error)
    except CheckpointError as error:
        order.out.unlink(missing_ok=True)
        yield replace(row, problem=error.problem)


def _row(item: Item) -> TensorRow:
    route = item.route
    return TensorRow(
        number=item.number,
        name=item.name,
        shard=item.shard,
        shape=route.shape if route else (),
        dtype=item.dtype,
        route=route.kind if route else "skip",
        rule=route.rule if route else "unusable",
        reason=route.reason if route else "it can't be read",
        transposed=bool(route and route.transposed),
    )


# --- copied -------------------------------------------------------------------------------------


def _copied(item: Item, row: TensorRow, order: TensorOrder) -> TensorRow:
    stored = item.stored
    if stored is None:
        raise CodecError(f"{item.name}: {row.reason}")  # vectors that can't be quantised are no artifact
    written = write_shard(order.out, [Planned(stored.name, stored.dtype, stored.shape)], lambda _: byte_chunks(stored))
    return replace(row, file=StoredFile("", written.sha256, written.bytes), bits_per_weight=float(BITS[stored.dtype]))


def _kept(item: Item, row: TensorRow, order: TensorOrder, why: object) -> TensorRow:
    """Copied, though it should have been quantised."""
    reason = f"{order.params.family} can't be had for it: {why}"
    return _copied(item, replace(row, route="passthrough", rule="parameters", reason=reason), order)


# --- quantised ----------------------------------------------------------------------------------


def _objection(item: Item, order: TensorOrder) -> str:
    """Why the parameters can't be right for a tensor; empty when they can."""
    assert item.route is not None
    try:
        activations = _activations(item, order)
        shape = (item.route.rows, item.route.columns)
        check(capped(order.params, shape[0]), shape, None if activations is None else activations.shape)
    except CodecError as error:
        return str(error)
    return ""


def _activations(item: Item, order: TensorOrder) -> StoredTensor | None:
    """Raises CheckpointError where there is a file of them and none for this tensor."""
    if order.params.family != "gptq" or order.activations is None:
        return None
    return open_checkpoint(order.activations).tensor(item.name)


@dataclass
class _Coded:
    state: Arrays
    codes: Arrays
    charge: Charge
    measured: Measured
    fit_s: float
    encode_s: float


def _quantised(item: Item, row: TensorRow, order: TensorOrder) -> Iterator[Phase | TensorRow]:
    assert item.route is not None
    params = capped(order.params, item.route.rows)
    given = _activations(item, order)
    activations = read_matrix(given) if given is not None else None
    done: list[_Coded] = []
    for number in range(item.route.matrices):
        yield Phase("quantise", number, item.route.matrices, "matrices")
        done.append(_matrix(item.matrix(number), params, activations))
    written = artifact.write_matrices(order.out, [(coded.state, coded.codes) for coded in done])
    charge = Charge(*(sum(getattr(c.charge, field) for c in done) for field in Charge.__struct_fields__))
    weights = item.route.matrices * item.route.rows * item.route.columns
    yield replace(
        row,
        file=StoredFile("", written.sha256, written.bytes),
        matrices=item.route.matrices,
        params=params,
        charge=charge,
        bits_per_weight=charge.bits_per_weight(weights),
        measured=[coded.measured for coded in done],
        fit_s=sum(coded.fit_s for coded in done),
        encode_s=sum(coded.encode_s for coded in done),
    )


def _matrix(
    matrix: NDArray[np.float32],  # (n, d)
    params: CodecParams,
    activations: NDArray[np.float32] | None,  # (m, d)
) -> _Coded:
    family = FAMILIES[params.family]
    rng = np.random.default_rng(params.seed)
    calibration, held_out = split_rows(len(matrix), params)
    began = perf_counter()
    state = family.fit(np.ascontiguousarray(matrix[calibration]) if activations is None else activations, params, rng)
    fit_s = perf_counter() - began
    began = perf_counter()
    codes = _encoded(matrix, state, params)
    encode_s = perf_counter() - began
    decoded = _decoded(matrix.shape, state, codes, params)
    return _Coded(
        {name: array for name, array in state.items() if not name.startswith(ENCODER)},
        codes,
        family.charge(state, codes, params),
        measured(matrix, decoded, calibration, held_out, np.random.default_rng(params.seed)),
        fit_s,
        encode_s,
    )


def _decoded(shape: tuple[int, ...], state: Arrays, codes: Arrays, params: CodecParams) -> NDArray[np.float32]:
    if params.family == "f32":  # its codes are the rows; another copy would be one too many
        return codes["codes"].astype(np.float32, copy=False)
    decoded = np.empty(shape, np.float32)
    for first, rows in artifact.decoded(state, codes, params):
        decoded[first : first + len(rows)] = rows
    return decoded


def _encoded(matrix: NDArray[np.float32], state: Arrays, params: CodecParams) -> Arrays:
    """Codes of all rows: no family's encoding of a row depends on the others."""
    family = FAMILIES[params.family]
    step = max(1, CHUNK_FLOATS // max(1, matrix.shape[1]))
    kept: dict[str, NDArray[np.generic]] = {}
    for first in range(0, len(matrix), step):
        for name, array in family.encode(state, matrix[first : first + step], params).items():
            if name not in kept:
                kept[name] = np.empty((len(matrix), *array.shape[1:]), array.dtype)
            kept[name][first : first + step] = array
    return kept
