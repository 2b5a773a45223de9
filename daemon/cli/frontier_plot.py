"""The frontier as a picture: bits per weight against a measure, what nothing beats joined and named. Where the names
go is in plot_names."""

from collections.abc import Mapping
from math import log10
from pathlib import Path
from typing import Any

from daemon.cli.codec_words import short
from daemon.cli.plot_names import Name, write_names

WORDS = {
    "icc_3_1": "ICC(3,1) on unseen rows",
    "icc_1_1": "ICC(1,1) on unseen rows",
    "relative_l2": "relative L2 error on unseen rows",
    "row_cosine": "mean cosine of rows, unseen",
    "norm_error": "mean error of row norms, unseen",
}

BLUE, GREY, ORANGE = "#1f5fa8", "#b4b8bd", "#d9730d"
BITS = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128]
LOWER_IS_BETTER = ("relative_l2", "norm_error")

FEW = 6
"""Points that are memorised have names when there are no more of them: a cloud needs none."""


def draw(answer: Mapping[str, Any], file: Path) -> None:
    """answer: of GET /codec/frontier, with a point at least. PNG or SVG by the file's name. Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    measure = answer["measure"]
    best = [point for point in answer["points"] if point["frontier"]]
    beaten = [point for point in answer["points"] if not point["frontier"]]
    learnt = [point for point in answer["points"] if point["memorised"]]
    figure, axes = pyplot.subplots(figsize=(12, 8), dpi=100)
    axes.set_xscale("log", base=2)
    lost = _lost(measure)
    axes.set_yscale("log")
    if beaten:
        others = "beaten in both, or measured on fewer tensors"
        axes.scatter(*_places(beaten, lost), s=34, color=GREY, label=others, zorder=2)
    axes.plot(*_places(best, lost), "-o", color=BLUE, label="frontier", zorder=3)
    if learnt:
        axes.scatter(
            *_places(learnt, lost), s=120, facecolors="none", edgecolors=ORANGE, linewidths=1.8,
            label="knows its calibration rows by heart", zorder=4,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(BITS)
    axes.set_xlim(*_span([point["bits_per_weight"] for point in answer["points"]]))
    losses = _places(answer["points"], lost)[1]
    decades = log10(max(losses) / min(losses))
    # Within a decade there may be no power of ten to write a figure at.
    axes.yaxis.set_major_locator(
        MaxNLocator(6) if decades < 0.5 else LogLocator(subs=(1, 2, 5) if decades < 2 else (1,))
    )
    axes.minorticks_off()
    if measure not in LOWER_IS_BETTER:
        axes.invert_yaxis()
    shown = (lambda value, _: f"{value:g}") if measure in LOWER_IS_BETTER else (lambda value, _: f"{1 - value:.6g}")
    axes.yaxis.set_major_formatter(FuncFormatter(shown))
    axes.set_xlabel("bits per weight, codebooks and scales charged")
    axes.set_ylabel(WORDS[measure])
    axes.set_title(answer.get("target") or "all that was swept", loc="left", fontsize=11)
    axes.grid(True, which="major", color="#e8eaed", linewidth=0.8, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    legend = axes.legend(loc="upper left" if measure not in LOWER_IS_BETTER else "upper right", frameon=False)
    figure.tight_layout()
    named = [(point, BLUE) for point in best]
    if len(learnt) <= FEW:
        named += [(point, ORANGE) for point in learnt if not point["frontier"]]
    write_names(
        axes,
        [Name(*_place(point, lost), short(point["params"]), color) for point, color in named],
        others=[_place(point, lost) for point in beaten],
        taken=[legend.get_window_extent()],
    )
    figure.savefig(file, format=file.suffix.lower().removeprefix("."))
    pyplot.close(figure)


def _lost(measure: str) -> Any:
    """What a logarithmic axis shows: the error, or what is missing to 1."""
    least = 1e-6
    if measure in LOWER_IS_BETTER:
        return lambda value: max(value, least)
    return lambda value: max(1 - value, least)


def _place(point: Mapping[str, Any], lost: Any) -> tuple[float, float]:
    return point["bits_per_weight"], lost(point["value"])


def _places(points: list[dict[str, Any]], lost: Any) -> tuple[list[float], list[float]]:
    places = [_place(point, lost) for point in points]
    return [x for x, _ in places], [y for _, y in places]


def _span(values: list[float]) -> tuple[float, float]:
    """With room for names, more of it on the right."""
    return min(values) / 1.25, max(values) * 1.45
