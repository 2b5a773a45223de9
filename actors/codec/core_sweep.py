"""What a sweep is made of: its points, counted before any is made, on which tensors, in which groups.

A group is one step of the job: points on one tensor that share what is learnt from it, so that it is learnt once. The
same order over the same tensors always gives the same groups; a step names its own by number.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby, product
from math import prod
from typing import Any, Literal

import msgspec

from actors.codec.base import CodecError
from actors.codec.core import Route
from actors.codec.params import RULES, capped, learnt
from schemas.codec import CodecParams, Residual
from schemas.events.codec import MOST_POINTS, ProbeRowcount, SweepCodec

Kind = Literal["sweep", "probe"]

MOST_IN_GROUP = 16
"""A killed worker loses no more points than these, and whoever watches waits for no more of them."""

STACKED = re.compile(r"(?P<glob>.+)#(?P<matrix>\d+|\*)")
"""How `tensors` names experts of a stack: `*.down_proj#3`, `*.down_proj#*`. Without a number it is the first, which
stands for the others."""

FIELDS = CodecParams.__struct_fields__


class TooManyPoints(CodecError):
    """A sweep is refused before any of its points is made."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the sweep has {count:,} points and at most {MOST_POINTS:,} are measured: leave some out")
        self.count = count


class UnknownField(CodecError):
    """An axis, the base or a point names what is no parameter."""

    def __init__(self, place: str, names: Iterable[str], allowed: Sequence[str]) -> None:
        named = ", ".join(sorted(names))
        super().__init__(f"{place}: no such parameter: {named}; it may be {', '.join(allowed)}")


class Point(msgspec.Struct, frozen=True):
    number: int  # of the sweep, from 0
    asked: dict[str, Any]
    params: CodecParams | None
    reason: str = ""  # why it is none


class Group(msgspec.Struct, frozen=True):
    tensor: str
    item: int  # the tensor's number in the source
    matrix: int  # of the tensor: an expert's number
    points: tuple[Point, ...]


def count(order: SweepCodec) -> int:
    """How many points a sweep has. Raises TooManyPoints, UnknownField, CodecError for one that has none or names a
    parameter twice."""
    _check_names("base", order.base)
    _check_names("axes", order.axes)
    for field, values in order.axes.items():
        _check_residuals(f"axes.{field}", field, values)
        if not values:
            raise CodecError(f"axes.{field} has no values, so there is no point")
        if field in order.base:
            raise CodecError(f"{field} is both in base and in axes: leave one out")
    for number, point in enumerate(order.points[: MOST_POINTS + 1]):
        _check_names(f"points[{number}]", point)
    of_grid = prod(map(len, order.axes.values())) if order.axes or order.base else 0
    total = of_grid + len(order.points)
    if total == 0:
        raise CodecError(f"a sweep of no points: give axes (over {', '.join(FIELDS)}), a base or points")
    if total > MOST_POINTS:
        raise TooManyPoints(total)
    return total


def points(order: SweepCodec) -> list[Point]:
    """The grid's, the last axis fastest, then those given one by one. Raises as `count`."""
    count(order)
    return [_point(number, asked) for number, asked in enumerate(_asked(order))]


def as_sweep(probe: ProbeRowcount) -> SweepCodec:
    """The same codec on more and more rows; those that would be refused as overfitted are the point of it."""
    base = msgspec.to_builtins(probe.params)
    del base["calibration_rows"]
    tensors = [re.sub(r"([*?[])", r"[\1]", probe.tensor)] if probe.tensor is not None else []
    axes: dict[str, list[Any]] = {"calibration_rows": list(probe.rows)}
    return SweepCodec(probe.target, tensors, base, axes, controls=True, asked_by=probe.asked_by)


def plan(order: SweepCodec, routes: Sequence[tuple[int, Route]], kind: Kind = "sweep") -> list[Group]:
    """Every group of a job. routes: with the tensors' numbers. Raises as `count`, and for a glob that matches nothing
    that is quantised."""
    everything = points(order)
    first, *rest = _chosen(order, routes, kind)
    groups = [Group(*first, part) for part in _shared(everything)]
    sound = list(_shared([point for point in everything if point.params is not None]))  # the others are told of once
    return groups + [Group(*other, part) for other in rest for part in sound]


def as_measured(params: CodecParams, route: Route, kind: Kind) -> CodecParams:
    """A sweep caps rows for small tensors as a calibration does; a probe is about the rows."""
    return capped(params, route.rows) if kind == "sweep" else params


def _asked(order: SweepCodec) -> Iterator[dict[str, Any]]:
    if order.axes or order.base:
        for values in product(*order.axes.values()):
            yield {**order.base, **dict(zip(order.axes, values, strict=True))}
    yield from order.points


def _point(number: int, asked: dict[str, Any]) -> Point:
    try:
        return Point(number, asked, msgspec.convert(asked, CodecParams))
    except msgspec.ValidationError as error:
        return Point(number, asked, None, f"these are no parameters: {error}")


def _check_names(place: str, fields: Mapping[str, Any]) -> None:
    if unknown := set(fields) - set(FIELDS):
        raise UnknownField(place, unknown, FIELDS)
    if "residual" in fields:
        _check_residuals(f"{place}.residual", "residual", [fields["residual"]])


def _check_residuals(place: str, field: str, values: Sequence[Any]) -> None:
    """msgspec would pass over a misspelt `depth`."""
    if field != "residual":
        return
    for value in values:
        if isinstance(value, Mapping) and (unknown := set(value) - set(Residual.__struct_fields__)):
            raise UnknownField(place, unknown, Residual.__struct_fields__)


def _chosen(order: SweepCodec, routes: Sequence[tuple[int, Route]], kind: Kind) -> list[tuple[str, int, int]]:
    """Name, number and matrix of each."""
    quantised = [(number, route) for number, route in routes if route.kind == "quantise"]
    if not quantised:
        raise CodecError(f"none of the target's {len(routes)} tensors would be quantised")
    if not order.tensors:
        largest = [max(quantised, key=_size)] if kind == "probe" else quantised
        return [(route.name, number, 0) for number, route in largest]
    for pattern in order.tensors:
        if not any(_matrices(route, pattern) for _, route in quantised):
            raise CodecError(_matches_none(pattern, routes))
    return [
        (route.name, number, matrix)
        for number, route in quantised
        for matrix in sorted({m for pattern in order.tensors for m in _matrices(route, pattern)})
    ]


def _size(numbered: tuple[int, Route]) -> tuple[int, int]:
    """Of two equally large the one of more rows."""
    route = numbered[1]
    return route.rows * route.columns, route.rows


def _matrices(route: Route, pattern: str) -> Sequence[int]:
    """Those of a tensor that a pattern names."""
    stacked = STACKED.fullmatch(pattern)
    glob, which = (stacked["glob"], stacked["matrix"]) if stacked else (pattern, "0")
    if not fnmatchcase(route.name.lower(), glob.lower()):
        return ()
    return range(route.matrices) if which == "*" else [int(which)] if int(which) < route.matrices else ()


def _matches_none(pattern: str, routes: Sequence[tuple[int, Route]]) -> str:
    stacked = STACKED.fullmatch(pattern)
    glob = stacked["glob"] if stacked else pattern
    for _, route in routes:
        if fnmatchcase(route.name.lower(), glob.lower()):
            why = f"has {route.matrices} matrices" if route.matrices else f"isn't quantised: {route.reason}"
            return f"tensors: {pattern!r} matches {route.name}, which {why}"
    some = ", ".join(route.name for _, route in routes[:3])
    return f"tensors: {pattern!r} matches none of {len(routes)} tensors: {some} …"


def _shared(everything: Sequence[Point]) -> Iterator[tuple[Point, ...]]:
    """Points that learn the same in one part, in the order of what their codes share; what learns nothing in one."""
    places: dict[str, int] = {}

    def place(point: Point) -> int:
        return places.setdefault(_learns(point), len(places))

    ordered = sorted(everything, key=lambda point: (place(point), *_coding(point), point.number))
    for _, same in groupby(ordered, key=place):
        together = list(same)
        for first in range(0, len(together), MOST_IN_GROUP):
            yield tuple(together[first : first + MOST_IN_GROUP])


def _learns(point: Point) -> str:
    params = point.params
    return learnt(params) if params is not None and "centroids" in RULES[params.family].takes else ""


def _coding(point: Point) -> tuple[str, str, int]:
    params = point.params
    if params is None:
        return "", "", 0
    return params.lane_width, params.distance, params.residual.depth if params.residual else 0
