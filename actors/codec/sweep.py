"""A sweep's step, in the worker process: one group of points measured on one matrix."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from actors.codec.base import CodecError, Phase
from actors.codec.checkpoints.source import Item, Source, open_source
from actors.codec.core import Route
from actors.codec.core_sweep import Group, Kind, Point, as_measured, plan
from actors.codec.core_trial import PointMeasured, PointSkipped
from actors.codec.family import FAMILIES
from actors.codec.fitting import Fitting
from actors.codec.params import Overfitted, check
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.stored import byte_chunks, read_matrix
from schemas.codec import CodecParams
from schemas.events.codec import SweepCodec
from schemas.names import Sha256


@dataclass(frozen=True)
class GroupOrder:
    source: Path
    order: SweepCodec
    kind: Kind
    group: int  # of `groups`
    activations: Path | None = None  # safetensors: (m, columns) by the tensors' names


def groups(source: Source, order: SweepCodec, kind: Kind) -> list[Group]:
    """All steps of a job, from headers alone. Raises CodecError for an order that can't be right."""
    return plan(order, [(item.number, item.route) for item in source.items if item.route is not None], kind)


def measure_group(order: GroupOrder) -> Iterator[Phase | PointMeasured | PointSkipped]:
    """One of the two for every point of the group. Raises CodecError where there is no such group."""
    source = open_source(order.source)
    planned = groups(source, order.order, order.kind)
    if not 0 <= order.group < len(planned):
        raise CodecError(f"group {order.group} of {len(planned)}: the target isn't the one that the sweep began with")
    group = planned[order.group]
    try:
        bench = _Bench(source.items[group.item], group.matrix, order)
    except CodecError as error:  # its data can't be used; other tensors are unharmed
        for point in group.points:
            yield PointSkipped(point.number, group.tensor, point.asked, str(error))
        return
    for done, point in enumerate(group.points):
        yield Phase("measure", done, len(group.points), "points")
        yield bench.measure(point)


class _Bench:
    """A tensor's matrix, on which points are measured."""

    def __init__(self, item: Item, matrix: int, order: GroupOrder) -> None:
        assert item.route is not None
        self._matrix = matrix
        self._route: Route = item.route
        self._order = order
        self._sha256 = _sha256(item, matrix)
        self._fitting = Fitting(item.matrix(matrix), _activations(order.activations, item.name))

    def measure(self, point: Point) -> PointMeasured | PointSkipped:
        if point.params is None:
            return self._skipped(point, point.reason)
        params = as_measured(point.params, self._route, self._order.kind)
        try:
            refused = self._objection(params)
            if refused and not self._order.order.controls:
                return self._skipped(point, refused)
            return self._measured(point, params, refused)
        except CodecError as error:
            return self._skipped(point, str(error))

    def _objection(self, params: CodecParams) -> str:
        """Why calibration would refuse what can be measured all the same. Raises CodecError for what can't be."""
        activations = self._fitting.activations
        try:
            check(params, self._fitting.matrix.shape, None if activations is None else activations.shape)
        except Overfitted as error:
            return str(error)
        return ""

    def _measured(self, point: Point, params: CodecParams, refused: str) -> PointMeasured:
        family, fitting = FAMILIES[params.family], self._fitting
        fit = fitting.fit(params)
        codes = fitting.encode(params)
        began = perf_counter()
        decoded = family.decode(fit.arrays, codes.arrays, params)
        decode_s = perf_counter() - began
        return PointMeasured(
            point=point.number,
            tensor=self._route.name,
            matrix=self._matrix,
            rows=self._route.rows,
            columns=self._route.columns,
            sha256=self._sha256,
            params=params,
            charge=family.charge(fit.arrays, codes.arrays, params),
            measured=fitting.measured(params, decoded),
            refused=refused,
            fit_s=fit.seconds,
            fit_shared=fit.shared,
            encode_s=codes.alone,
            decode_s=decode_s,
        )

    def _skipped(self, point: Point, reason: str) -> PointSkipped:
        return PointSkipped(point.number, self._route.name, point.asked, reason)


def _sha256(item: Item, matrix: int) -> Sha256:
    """Of the stored bytes of the matrix that is measured."""
    if item.stored is None:
        return sha256(np.ascontiguousarray(item.matrix()).data).hexdigest()
    assert item.route is not None
    size = item.stored.bytes // item.route.matrices
    digest = sha256()
    for chunk in byte_chunks(replace(item.stored, offset=item.stored.offset + matrix * size, bytes=size)):
        digest.update(chunk)
    return digest.hexdigest()


def _activations(path: Path | None, tensor: str) -> NDArray[np.float32] | None:
    found = open_checkpoint(path).tensors.get(tensor) if path is not None else None
    return read_matrix(found) if found is not None else None
