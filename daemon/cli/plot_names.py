"""Names beside the points of a picture: each where it covers no other name, no point and least of the line that joins
the points. One that has no such place isn't written: the table has it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
Spot = tuple[float, float]

SIZE = 9.5
POINT = 6.0
"""Half a point's width, in pixels, with some air."""

DISTANCES = (11.0, 26.0, 44.0)
"""From a point to its name, in pixels; a name that is further than the first has a thin line to its point."""

SIDES = ((1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1), (0, 1), (0, -1))
"""Of a point where its name may go; the earlier of two that are as good is taken."""


class Name(NamedTuple):
    x: float  # in the picture's own units
    y: float
    words: str
    color: str


def write_names(axes: Any, names: Sequence[Name], others: Sequence[Spot], taken: Sequence[Any]) -> None:
    """names: in the order in which a line joins those of one colour. others: points without a name. taken: window
    extents of what is there already."""
    renderer = axes.figure.canvas.get_renderer()
    axes.autoscale(False)  # lines to names move nothing
    points_a_pixel = 72 / axes.figure.dpi  # a picture is saved at other dpi, as SVG
    frame = _box(axes.get_window_extent())
    spots = [
        (float(x), float(y)) for x, y in axes.transData.transform([(name.x, name.y) for name in names] or [(1, 1)])
    ]
    points = spots + [(float(x), float(y)) for x, y in axes.transData.transform(list(others) or [(1, 1)])]
    line = [
        between(spots[n], spots[n + 1], step / 8)
        for n in range(len(names) - 1)
        if names[n].color == names[n + 1].color == names[0].color
        for step in range(9)
    ]
    full = [_box(extent) for extent in taken]
    for name, spot in zip(names, spots, strict=False):
        text = axes.annotate(
            name.words, (name.x, name.y), xytext=(0, 0), textcoords="offset points", fontsize=SIZE, color=name.color,
            ha="center", va="center", zorder=5,
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        found = place(spot, (extent.width, extent.height), frame, full, points, line)
        if found is None:
            text.remove()
            continue
        middle, box, far = found
        text.set_position(((middle[0] - spot[0]) * points_a_pixel, (middle[1] - spot[1]) * points_a_pixel))
        full.append(box)
        if far:
            end = axes.transData.inverted().transform(
                (min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3]))
            )
            axes.plot([name.x, end[0]], [name.y, end[1]], color=name.color, linewidth=0.6, alpha=0.6, zorder=2)


def place(
    spot: Spot, size: tuple[float, float], frame: Box, full: Sequence[Box], points: Sequence[Spot], line: Sequence[Spot]
) -> tuple[Spot, Box, bool] | None:
    """Where a name of that size goes: its middle, its box, whether that is far from its point. None: nowhere."""
    best: tuple[float, Spot, Box, bool] | None = None
    for near, distance in enumerate(DISTANCES):
        for right, up in SIDES:
            reach = distance * (0.7 if right and up else 1)
            middle = (spot[0] + right * (reach + size[0] / 2), spot[1] + up * (reach + size[1] / 2))
            box = (middle[0] - size[0] / 2, middle[1] - size[1] / 2, middle[0] + size[0] / 2, middle[1] + size[1] / 2)
            if not _within(box, frame) or any(_meet(box, other) for other in full):
                continue
            if any(_holds(box, point, POINT) for point in points):
                continue
            cost = near * 2.5 + sum(_holds(box, point, 1.0) for point in line)
            if best is None or cost < best[0]:
                best = cost, middle, box, near > 0
    return best[1:] if best else None


def between(a: Spot, b: Spot, share: float) -> Spot:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def _box(extent: Any) -> Box:
    return extent.x0, extent.y0, extent.x1, extent.y1


def _within(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _holds(box: Box, point: Spot, margin: float) -> bool:
    return box[0] - margin < point[0] < box[2] + margin and box[1] - margin < point[1] < box[3] + margin
