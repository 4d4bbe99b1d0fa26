"""A picture of samples: one row a sample, one column for each way in which it is shown."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_SMALLEST_SIDE, _LARGEST_SIDE = 128, 224
_MARGIN, _GAP, _GAP_AFTER_FIRST = 20, 8, 18
_WIDEST_TITLE = 156
_LINE = 18
_PAPER, _INK, _MUTED, _RULE = (255, 255, 255), (28, 30, 33), (110, 115, 122), (214, 217, 221)

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True, slots=True)
class Cell:
    """An image, uint8 ``(H, W, 3)``, and a few words in each line beneath it."""

    pixels: NDArray[np.uint8]
    caption: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A sample: its title, a second line in grey, and a cell for each column (``None``: not shown there)."""

    title: str
    subtitle: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the cells lie, in pixels: left and top edges, (height, width) of each, and room for titles at the left."""

    title_width: int
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    size: tuple[int, int]

    @property
    def end(self) -> tuple[int, int]:
        """Right and bottom edge of the last cell."""
        return self.lefts[-1] + self.size[1], self.tops[-1] + self.size[0]


def draw_samples(title: str, subtitle: str, columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """The picture as PNG: title above, names of the columns, then the rows; the first column stands apart.

    All cells are as large as the first one. Small images are enlarged by a whole number, so that every pixel is seen
    as a square, and large ones are reduced.
    """
    grid = layout(columns, rows)
    num_lines = _caption_lines(rows)
    right, bottom = grid.end
    picture = Image.new("RGB", (right + _MARGIN, bottom + num_lines * _LINE + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(picture)
    _write(pen, (_MARGIN, _MARGIN), title, 19, right - _MARGIN, bold=True)
    _write(pen, (_MARGIN, _MARGIN + 27), subtitle, 13, right - _MARGIN, colour=_MUTED)
    for left, name in zip(grid.lefts, columns, strict=True):
        _write(pen, (left, grid.tops[0] - 22), name, 13, grid.size[1], colour=_MUTED)
    for top, row in zip(grid.tops, rows, strict=True):
        _title(pen, top, grid, row)
        for left, cell in zip(grid.lefts, row.cells, strict=True):
            _cell(picture, pen, (left, top), grid.size, cell)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def layout(columns: Sequence[str], rows: Sequence[Row]) -> Grid:
    """The places of the cells."""
    first = next(cell for row in rows for cell in row.cells if cell is not None)
    height, width = shown_size((first.pixels.shape[0], first.pixels.shape[1]))
    titles = [typeface(14, bold=True).getlength(_plain(row.title)) for row in rows]
    subtitles = [typeface(12).getlength(_plain(row.subtitle)) for row in rows]
    title_width = min(_WIDEST_TITLE, math.ceil(max(*titles, *subtitles)))
    start = _MARGIN + title_width + 2 * _GAP
    lefts = [start + index * (width + _GAP) + (_GAP_AFTER_FIRST if index else 0) for index in range(len(columns))]
    step = height + _GAP + _caption_lines(rows) * _LINE
    tops = [_MARGIN + 82 + index * step for index in range(len(rows))]
    return Grid(title_width, tuple(lefts), tuple(tops), (height, width))


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which an image of that size is shown.

    >>> shown_size((8, 8)), shown_size((32, 32)), shown_size((224, 224)), shown_size((384, 384))
    ((128, 128), (128, 128), (224, 224), (224, 224))
    """
    longer = max(size)
    if longer <= _LARGEST_SIDE:
        factor = max(1, _SMALLEST_SIDE // longer)
        return size[0] * factor, size[1] * factor
    share = _LARGEST_SIDE / longer
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _cell(
    picture: Image.Image, pen: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], cell: Cell | None
) -> None:
    height, width = size
    if cell is None:
        pen.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), outline=_RULE)
        _write(pen, (corner[0] + 8, corner[1] + 6), "not shown", 12, width - 16, colour=_MUTED)
        return
    image = Image.fromarray(cell.pixels)
    enlarged = height >= image.height
    picture.paste(
        image.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS), corner
    )
    for number, line in enumerate(cell.caption):
        place = (corner[0], corner[1] + height + 2 + number * _LINE)
        _write(pen, place, line, 12, width, colour=_INK if number == 0 else _MUTED)


def _title(pen: ImageDraw.ImageDraw, top: int, grid: Grid, row: Row) -> None:
    lines = _wrapped(row.title, typeface(14, bold=True), grid.title_width, most=3)
    start = top + max(0, (grid.size[0] - len(lines) * 19 - _LINE) // 2)
    for number, line in enumerate(lines):
        _write(pen, (_MARGIN, start + number * 19), line, 14, grid.title_width, bold=True)
    _write(pen, (_MARGIN, start + len(lines) * 19 + 2), row.subtitle, 12, grid.title_width, colour=_MUTED)


def _caption_lines(rows: Sequence[Row]) -> int:
    return max((len(cell.caption) for row in rows for cell in row.cells if cell is not None), default=0)


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    width: int,
    *,
    colour: tuple[int, int, int] = _INK,
    bold: bool = False,
) -> None:
    font = typeface(size, bold=bold)
    pen.text(corner, _cut_off(text, font, width), fill=colour, font=font)


def _cut_off(text: str, font: Font, width: int) -> str:
    """The text on one line, with an ellipsis where it is too long."""
    text = _plain(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _plain(text: str) -> str:
    """The text on one line, without signs that cannot be drawn."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _wrapped(text: str, font: Font, width: int, *, most: int) -> list[str]:
    """Lines that end after a space, underscore, hyphen or slash; what does not fit into the last one is cut off."""
    lines = [""]
    for part in re.split(r"(?<=[\s_/-])", _plain(text)):
        if lines[-1] and len(lines) < most and font.getlength((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [_cut_off(line, font, width) for line in lines]


@lru_cache
def typeface(size: int, *, bold: bool = False) -> Font:
    """The typeface that matplotlib brings, which knows most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
