"""What panels of a federated run are made of: curves by round, heat maps, bars, legends, tables, words for numbers."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from crossdistill.analysis.compare import summarise
from crossdistill.federated.records import shortened
from crossdistill.report.figures import (
    INK,
    MUTED,
    RULE,
    STYLE,
    as_svg,
    css_colour,
    is_dashed,
    new_figure,
    series_colour,
)
from crossdistill.report.history import Curve
from crossdistill.report.table import grouped, magnitude, unbroken

Array = NDArray[np.float64]

CELL_COLOUR = (63, 127, 232)
"""Pixels cannot follow the page's colours: a blue that shows on light and dark paper, the stronger the more opaque."""

ABSENT = "–"
"""Stands where a figure is not known."""

MAX_ROWS = 500
"""Longer tables end here."""

MOST_TICKS = 24
"""As many rows or columns have a name each; of more, some have."""

_MOST_OPAQUE = 0.8  # numbers in the cells stay legible
_LEAST_OPAQUE = 0.02  # what is not nought is seen, if barely
_PIXELS = 400
_EVEN = 0.25  # of full colour
_MOST_NUMBERED = 12
_MOST_GAPS = 32
_LONGEST_TICK = 14
_LONGEST_LINE = 16
_SQUARE, _LETTER = 4.4, 6.3  # inches; points of a letter
_LOG_RATIO = 100.0
_ENDING_ZEROS = re.compile(r"(?:(\.\d*[1-9])|\.)0+(?!\d)")
_MOST_OPEN_ROWS = 20

Cell = str | Markup


@dataclass(frozen=True, slots=True)
class Lines:
    """A bold curve with faint ones behind it."""

    colour: int
    bold: Curve
    faint: tuple[Curve, ...] = ()


@contextmanager
def _styled() -> Iterator[None]:
    """The style of the page's figures; the reader's browser has glyphs that matplotlib's font lacks."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield


def rounds_chart(
    lines: Sequence[Lines],
    *,
    size: tuple[float, float],
    identifier: str,
    label: str,
    limits: tuple[float, float] | None = None,
    percent: bool = True,
) -> Markup:
    """Curves by round, of shares in percent or of bytes. ``limits`` make charts comparable."""
    with _styled():
        figure, axes = new_figure(size)
        for one in lines:
            _draw(axes, one)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="x", visible=False)
        if percent:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
        else:
            _scale_bytes(axes, lines)
        if limits is not None:
            axes.set_ylim(*limits)
        return as_svg(figure, identifier, label)


def _draw(axes: Axes, lines: Lines) -> None:
    colour, style = series_colour(lines.colour), "--" if is_dashed(lines.colour) else "-"
    alpha = min(0.4, max(0.06, 4 / max(1, len(lines.faint))))
    for curve in lines.faint:
        axes.plot(*_columns(curve), style, color=colour, linewidth=0.9, alpha=alpha)
        axes.plot(*_columns(curve[-1:]), "o", color=colour, markersize=2, alpha=alpha, mew=0)
    if lines.bold:
        axes.plot(*_columns(lines.bold), style, color=colour, linewidth=2.2)
        axes.plot(*_columns(lines.bold[-1:]), "o", color=colour, markersize=4)


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]


def _scale_bytes(axes: Axes, lines: Sequence[Lines]) -> None:
    """From zero; by powers of ten where one strategy sends weights and another one only answers."""
    sizes = [y for one in lines for _, y in one.bold if y > 0]
    if sizes and max(sizes) / min(sizes) > _LOG_RATIO:
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(min(sizes) / 3, max(sizes) * 3)
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.15 * max(sizes, default=1.0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: _ENDING_ZEROS.sub(r"\1", bytes_text(size))))


def bytes_text(size: float) -> str:
    """Such as ``5.74 kB``.

    >>> bytes_text(950), bytes_text(5740), bytes_text(44.7e6), bytes_text(0)
    ('950\\xa0B', '5.74\\xa0kB', '44.7\\xa0MB', '0\\xa0B')
    """
    number = magnitude(round(size))
    return f"{number}B" if size >= 1000 else unbroken(f"{number} B")


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers ``(R, C)`` from 0 with a name for each row and column; ``full`` has full colour.

    The smaller ``power``, the better can small numbers be told apart.
    """

    values: Array
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    full: float
    power: float = 0.5
    square: bool = False
    row_label: str = ""
    column_label: str = ""
    beside: tuple[str, ...] = ()
    """What stands at the right end of each row, where there is room."""


def opacity(value: float, full: float, power: float) -> float:
    """How opaque a cell is, from 0 to ``_MOST_OPAQUE``.

    >>> [round(opacity(value, 1.0, 0.5), 2) for value in (0.0, 0.01, 0.25, 1.0)]
    [0.0, 0.08, 0.4, 0.8]
    """
    return _MOST_OPAQUE * (min(max(value, 0.0), full) / full) ** power if full > 0 else 0.0


def even_power(num_clients: int) -> float:
    """The power that gives the even weight ``1 / num_clients`` the same colour, however many clients there are.

    >>> [round(opacity(1 / number, 1.0, even_power(number)), 2) for number in (2, 10, 100)]
    [0.2, 0.2, 0.2]
    """
    return math.log(_EVEN) / math.log(1 / max(2, num_clients))


def heat_map(grid: Grid, *, identifier: str, label: str, percent: bool) -> Markup:
    """Cells the more opaque the larger their numbers; these are written into them where there is room."""
    with _styled():
        figure, axes = new_figure(_size(grid))
        num_rows, num_columns = grid.values.shape
        axes.imshow(
            _pixels(grid),
            interpolation="none",
            extent=(-0.5, num_columns - 0.5, num_rows - 0.5, -0.5),
            aspect="equal" if grid.square else "auto",
        )
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=True, edgecolor=RULE)
        _name(axes, grid)
        if max(num_rows, num_columns) <= _MOST_NUMBERED:
            _number(axes, grid.values, percent=percent)
        return as_svg(figure, identifier, label)


def _size(grid: Grid) -> tuple[float, float]:
    """Inches; of a square map so high that names below and beside it leave no gap."""
    num_rows, _ = grid.values.shape
    if not grid.square:
        return 5.2, min(0.3 * num_rows, 6.0) + 1.2
    beside, below = _longest(grid.rows), _longest(grid.columns) if _upright(grid) else 0.17
    return _SQUARE, _SQUARE - beside - 0.42 + below + 0.45


def _longest(names: Sequence[str]) -> float:
    """Inches that the longest of the names that are written takes, about."""
    return max(len(_tick(names[index])) for index in _ticks(len(names))) * _LETTER / 72


def _upright(grid: Grid) -> bool:
    """Whether names of columns have no room side by side."""
    room = (_SQUARE if grid.square else 5.2) - 1.2
    return _longest(grid.columns) > room / len(_ticks(len(grid.columns)))


def _pixels(grid: Grid) -> NDArray[np.uint8]:
    """RGBA ``(H, W, 4)``: a pixel for each cell, or where there are few a square of them with a gap to the next."""
    values = grid.values
    opaque = np.vectorize(lambda value: opacity(value, grid.full, grid.power), otypes=[np.float64])(values)
    opaque = np.where(values > 0, np.maximum(opaque, _LEAST_OPAQUE), 0.0)
    if max(values.shape) <= _MOST_GAPS:
        cell = np.zeros((_PIXELS // max(values.shape),) * 2)
        cell[1:-1, 1:-1] = 1
        opaque = np.kron(opaque, cell)
    pixels = np.empty((*opaque.shape, 4), dtype=np.uint8)
    pixels[..., :3] = CELL_COLOUR
    pixels[..., 3] = np.rint(255 * opaque)
    return pixels


def _name(axes: Axes, grid: Grid) -> None:
    """Names at the edges, of every row and column or of as many as there is room for."""
    rows, columns = _ticks(len(grid.rows)), _ticks(len(grid.columns))
    axes.set_yticks(rows, [_tick(grid.rows[index]) for index in rows])
    names = [_tick(grid.columns[index]) for index in columns]
    axes.set_xticks(columns, names, rotation=90 if _upright(grid) else 0)
    small = {"labelsize": 9} if max(len(rows), len(columns)) > 12 else {}
    axes.tick_params(axis="both", **small)
    axes.set_xlabel(grid.column_label)
    axes.set_ylabel(grid.row_label)
    if grid.beside and len(rows) == len(grid.rows):
        for index, text in enumerate(grid.beside):
            place = axes.get_yaxis_transform()
            axes.text(1.02, index, text, transform=place, va="center", color=MUTED, fontsize=9)


def _tick(name: str) -> str:
    """A name that fits beside its row; ideographs are twice as wide as letters.

    >>> _tick("Saint Elsewhere Hospital"), _tick("東京大学医学部附属病院")
    ('Saint Elsewhe…', '東京大学医学…')
    """
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in name[:_LONGEST_TICK])
    return shortened(name, _LONGEST_TICK - min(wide, _LONGEST_TICK // 2))


def _ticks(number: int) -> list[int]:
    """All places where they are few; otherwise every second, fifth, tenth, ….

    >>> _ticks(3), _ticks(100)
    ([0, 1, 2], [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95])
    """
    step = next(
        factor * 10**power for power in range(9) for factor in (1, 2, 5) if number <= MOST_TICKS * factor * 10**power
    )
    return list(range(0, number, step))


def _number(axes: Axes, values: Array, *, percent: bool) -> None:
    """Whole numbers or whole percent; what rounds to 0 is left out."""
    size = 9.5 if max(values.shape) > 6 else 10.5
    for (row, column), value in np.ndenumerate(100 * values if percent else values):
        if value >= 0.5:
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=INK, fontsize=size)


def stacked_bars(grid: Grid, *, identifier: str, label: str) -> Markup:
    """A bar for each row, in it the numbers of the columns one after the other, each in a colour of its own."""
    with _styled():
        num_rows, num_columns = grid.values.shape
        figure, axes = new_figure(_size(grid))
        starts = np.zeros(num_rows)
        for column in range(num_columns):
            widths = grid.values[:, column]
            axes.barh(range(num_rows), widths, left=starts, height=0.8, color=series_colour(column), linewidth=0)
            starts += widths
        axes.set_ylim(num_rows - 0.4, -0.6)
        axes.margins(x=0.02)
        rows = _ticks(num_rows)
        axes.set_yticks(rows, [_tick(grid.rows[index]) for index in rows])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(grid.column_label)
        return as_svg(figure, identifier, label)


def legend(names: Sequence[str], *, several_seeds: bool) -> Markup:
    """What each colour of a chart stands for, in the order of the series' colours."""
    items = Markup("").join(
        Markup('<li><span class="swatch{}" style="border-color: {}"></span>{}</li>').format(
            " dashed" if is_dashed(index) else "", css_colour(index), name
        )
        for index, name in enumerate(names)
    )
    note = Markup('<li class="note">strong: mean over seeds; faint: single seeds</li>') if several_seeds else Markup("")
    return Markup('<ul class="legend">{}{}</ul>').format(items, note)


def squares(colours: Iterable[tuple[str, str]]) -> Markup:
    """A legend of areas: names with their colours in the words of a style sheet."""
    items = Markup("").join(
        Markup('<li><span class="square" style="background: {}"></span>{}</li>').format(colour, name)
        for name, colour in colours
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, kind: str, caption: str = "") -> Markup:
    """A table of this CSS class, in a box that scrolls; every cell carries its column's name, for narrow screens."""
    head = Markup("").join(Markup('<th scope="col" role="columnheader">{}</th>').format(name) for name in columns)
    body = Markup("\n").join(Markup('<tr role="row">{}</tr>').format(_cells(columns, cells)) for cells in rows)
    told = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    return Markup(
        '<div class="wide" tabindex="0" role="region" aria-label="Table: {}"><table class="{}" role="table">{}'
        '<thead role="rowgroup"><tr role="row">{}</tr></thead>\n<tbody role="rowgroup">\n{}</tbody></table></div>\n'
    ).format(", ".join(columns), kind, told, head, body)


def _cells(columns: Sequence[str], cells: Sequence[Cell]) -> Markup:
    name = cells[0] if isinstance(cells[0], Markup) else wrapping(cells[0])
    first = Markup('<th scope="row" role="rowheader">{}</th>').format(name)
    rest = (
        Markup('<td role="cell" data-label="{}">{}</td>').format(column, cell)
        for column, cell in zip(columns[1:], cells[1:], strict=True)
    )
    return first + Markup("").join(rest)


def isolated(name: str) -> Markup:
    """A name amid other words, whatever the direction in which it is written."""
    return Markup("<bdi>{}</bdi>").format(name)


def wrapping(name: str) -> Markup:
    """The name of a row, which may take several lines where it is long: the style sheet keeps it on one."""
    if len(name) <= _LONGEST_LINE:
        return Markup("{}").format(name)
    style = "display: inline-block; min-width: 9rem; white-space: normal; overflow-wrap: anywhere"
    return Markup('<span style="{}">{}</span>').format(style, name)


def long_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    num_rows: int,
    *,
    kind: str = "comparison",
    what: str = "clients",
) -> Markup:
    """A table that is folded away where it is long; ``num_rows`` is how many there are, shown or not."""
    html = table(columns, rows, kind=kind)
    left = num_rows - len(rows)
    if left:
        html += Markup('<p class="note">{} more are in results.json.</p>').format(grouped(left))
    return html if len(rows) <= _MOST_OPEN_ROWS else _fold(f"All {grouped(len(rows))} {what}", html, is_open=False)


def folded(parts: Sequence[tuple[str, Markup]], *, first_open: bool = True) -> Markup:
    """Titled parts that open on a click, the first of them open; a single part that is open stands as it is."""
    if len(parts) == 1 and first_open:
        return parts[0][1]
    folds = (_fold(title, html, is_open=first_open and index == 0) for index, (title, html) in enumerate(parts))
    return Markup("").join(folds)


def _fold(title: str, html: Markup, *, is_open: bool) -> Markup:
    return Markup('<details{} style="margin-top: 1rem"><summary>{}</summary>{}</details>\n').format(
        Markup(" open") if is_open else "", title, block(html)
    )


def pair(figures: Iterable[Markup]) -> Markup:
    """Figures side by side, or below one another where the page is narrow."""
    return Markup('<div class="pair">{}</div>').format(Markup("").join(figures))


def block(html: Markup) -> Markup:
    """A part that stands apart from what is above it."""
    return Markup('<div style="margin-top: 1.25rem">{}</div>').format(html)


def share_text(values: Iterable[float | None]) -> str:
    """Mean and spread of the shares that are known, such as ``93.1 ± 0.4 %``."""
    known = [value for value in values if value is not None]
    if not known:
        return ABSENT
    found = summarise(known)
    spread = "" if found.sd is None else f" ± {100 * found.sd:.1f}"
    return unbroken(f"{100 * found.mean:.1f}{spread} %")


def percent_text(weight: float) -> str:
    """A weight in whole percent."""
    return unbroken(f"{100 * weight:.0f} %" if weight >= 0.005 else "<1 %")


def span(ordered: Sequence[float], tell: Callable[[int], str]) -> str:
    """From the first to the last of ordered numbers, or the one that all of them are."""
    low, high = (tell(round(ordered[end])) for end in (0, -1))
    return low if low == high else f"{low} to {high}"
