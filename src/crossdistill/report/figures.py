"""Figures as inline SVG: text stays text, and colours are the page's own, so dark mode and print reach them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from crossdistill.report.history import Axis, Curve

NUM_SERIES_COLOURS = 6
INK, MUTED, RULE = "#000001", "#000002", "#000003"
_TEACHER = "#000010"
_SERIES = tuple(f"#0000{16 + index:02d}" for index in range(NUM_SERIES_COLOURS))
# Colours never meant to be seen: each is replaced by a variable of the page's style sheet.
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", _TEACHER: "--teacher"} | {
    colour: f"--series-{index}" for index, colour in enumerate(_SERIES)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crossdistill",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Series:
    """The curves of one row of the comparison, one per seed; ``colour`` is -1 for the teacher."""

    name: str
    colour: int
    curves: tuple[Curve, ...]

    @property
    def mean(self) -> Curve:
        """Mean over seeds, at the points that all of them have."""
        by_x = [dict(curve) for curve in self.curves]
        shared = sorted(set.intersection(*(set(points) for points in by_x))) if by_x else []
        return tuple((x, sum(points[x] for points in by_x) / len(by_x)) for x in shared)


@dataclass(frozen=True, slots=True)
class Dots:
    """The accuracies of one row of the comparison, one dot per seed."""

    name: str
    colour: int
    values: tuple[float, ...]
    mean: float


def line_chart(
    series: Sequence[Series], *, axis: Axis, percent: bool, size: tuple[float, float], identifier: str, label: str
) -> Markup:
    """Mean curves, with those of single seeds faint behind them. ``label`` says in words what is seen."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(size)
        for one in series:
            _draw(axes, one)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
        axes.grid(axis="x", visible=False)
        return as_svg(figure, identifier, label)


def dot_plot(rows: Sequence[Dots], *, identifier: str, label: str) -> Markup:
    """Every seed's accuracy as a dot and the mean as a bar, one line per row."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure((5.2, 0.72 * len(rows) + 0.45))
        beside = axes.get_yaxis_transform()
        for index, row in enumerate(rows):
            colour = series_colour(row.colour)
            axes.plot(row.values, [index] * len(row.values), "o", color=colour, alpha=0.65, markersize=7, mew=0)
            axes.plot([row.mean, row.mean], [index - 0.2, index + 0.2], color=colour, linewidth=2.5)
            axes.text(0, index - 0.42, row.name, transform=beside, va="center")
            axes.text(1, index - 0.42, f"{100 * row.mean:.1f} %", transform=beside, ha="right", va="center")
        axes.set_ylim(len(rows) - 0.6, -0.7)
        axes.set_yticks([])
        axes.margins(x=0.05)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
        return as_svg(figure, identifier, label)


def css_colour(colour: int) -> str:
    """The style sheet's colour of a series, for legends."""
    return f"var({_VARIABLES[series_colour(colour)]})"


def is_dashed(colour: int) -> bool:
    """Whether a series shares its colour with an earlier one and is told apart by dashes."""
    return colour >= NUM_SERIES_COLOURS


def series_colour(colour: int) -> str:
    """The placeholder that a series' number is drawn in; below 0 is the teacher's."""
    return _TEACHER if colour < 0 else _SERIES[colour % NUM_SERIES_COLOURS]


def _draw(axes: Axes, series: Series) -> None:
    colour, style = series_colour(series.colour), "--" if is_dashed(series.colour) else "-"
    mean = series.mean
    several = len(series.curves) > 1
    for curve in series.curves:
        faint = several and len(mean) > 0
        axes.plot(*_columns(curve), style, color=colour, linewidth=0.9 if faint else 1.8, alpha=0.4 if faint else 1)
    if several:
        axes.plot(*_columns(mean), style, color=colour, linewidth=1.9)
    for curve in (mean, *series.curves)[: 1 if mean else None]:
        axes.plot(*_columns(curve[-1:]), "o", color=colour, markersize=4)


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]


def new_figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty figure of that width and height in inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def as_svg(figure: Figure, identifier: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element: no fixed size, no outside names, ids that no other figure of the page has."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    inner = drawing[drawing.index(">") + 1 :]
    view = re.search(r'viewBox="([^"]+)"', drawing)
    assert view is not None
    inner = re.sub(r'\bid="', f'id="{identifier}-', inner)
    inner = re.sub(r'(?:xlink:)?href="#', f'href="#{identifier}-', inner)
    inner = inner.replace("url(#", f"url(#{identifier}-")
    for colour, variable in _VARIABLES.items():
        inner = re.sub(rf"\b(fill|stroke): {colour}\b", rf"\1: var({variable})", inner)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(view[1], label)
    return opening + Markup(inner)
