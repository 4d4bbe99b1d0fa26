import io

import numpy as np
import pytest
from PIL import Image

from crossdistill.report.samples import Cell, Row, draw_samples, layout, shown_size


def noise(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def grid_of(size, *, num_rows=3, num_columns=4, caption=()):
    columns = ["as evaluated", *(f"epoch {number}" for number in range(1, num_columns))]
    rows = [
        Row(
            f"class {row}",
            f"image {row}",
            tuple(Cell(noise(10 * row + at, size), caption) for at in range(num_columns)),
        )
        for row in range(num_rows)
    ]
    return columns, rows


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def cut(picture, grid, row, column):
    top, left = grid.tops[row], grid.lefts[column]
    return picture[top : top + grid.size[0], left : left + grid.size[1]]


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (20, 40), (150, 130), (224, 224)])
def test_every_pixel_of_every_cell_is_in_the_picture(size):
    columns, rows = grid_of(size)
    picture, grid = decoded(draw_samples("title", "facts", columns, rows)), layout(columns, rows)
    assert (len(grid.tops), len(grid.lefts)) == (3, 4)
    factor = grid.size[0] // size[0]
    assert grid.size == (size[0] * factor, size[1] * factor)
    for row in range(3):
        for column in range(4):
            expected = rows[row].cells[column].pixels.repeat(factor, axis=0).repeat(factor, axis=1)
            assert (cut(picture, grid, row, column) == expected).all()


def test_large_images_are_reduced_and_keep_their_shape():
    assert shown_size((448, 896)) == (112, 224)
    assert shown_size((4, 4000)) == (1, 224)
    columns, rows = grid_of((300, 400), num_rows=1, num_columns=2)
    picture, grid = decoded(draw_samples("title", "facts", columns, rows)), layout(columns, rows)
    assert grid.size == (168, 224)
    assert abs(cut(picture, grid, 0, 1).mean() - rows[0].cells[1].pixels.mean()) < 2


def test_cells_do_not_touch_and_nothing_is_drawn_over_them():
    columns, rows = grid_of((8, 8), caption=("60 % of something with a very long name indeed", "40 % of another"))
    picture, grid = decoded(draw_samples("title " * 80, "facts " * 80, columns, rows)), layout(columns, rows)
    rest = picture.astype(int).copy()
    for row in range(3):
        for column in range(4):
            assert (cut(picture, grid, row, column)[::16, ::16] == rows[row].cells[column].pixels).all()
            cut(rest, grid, row, column)[:] = 255
    edge = np.concatenate([rest[:, :8], rest[:, -8:]], axis=1)
    assert (edge == 255).all(), "the margins stay free"
    for top in grid.tops:
        beneath = rest[top + grid.size[0] : top + grid.size[0] + 30, grid.lefts[1] :]
        assert (beneath < 128).any(), "a caption is written beneath each row"
    assert (rest.max(axis=2) - rest.min(axis=2)).max() < 20, "colours of the images are in their cells only"


def test_captions_take_room_only_where_there_are_some():
    without, with_one = (layout(*grid_of((8, 8), caption=caption)) for caption in ((), ("60 % cat",)))
    assert with_one.tops[1] - with_one.tops[0] > without.tops[1] - without.tops[0]
    assert with_one.lefts == without.lefts


def test_a_missing_cell_is_a_frame_that_says_so():
    columns, rows = grid_of((8, 8), num_rows=1)
    rows = [Row("a", "b", (rows[0].cells[0], None, *rows[0].cells[2:]))]
    picture, grid = decoded(draw_samples("title", "facts", columns, rows)), layout(columns, rows)
    empty = cut(picture, grid, 0, 1)
    assert 0.9 < (empty[1:-1, 1:-1] == 255).mean() < 1
    assert (empty[0] < 255).all()


@pytest.mark.parametrize(
    "title",
    [
        "x",
        "a_class_name_of_many_words_that_has_no_end",
        "Ünïcödé Ωμέγα",
        "x" * 300,
        "",
        "two  words\nand a line",
        "$x_1$",
    ],
)
def test_any_class_name_fits_beside_its_row(title):
    columns, rows = grid_of((8, 8), num_rows=1, num_columns=1)
    rows = [Row(title, "image 123456789", rows[0].cells)]
    picture, grid = decoded(draw_samples("title", "facts", columns, rows)), layout(columns, rows)
    assert grid.title_width <= 156
    beside = picture[grid.tops[0] :, : grid.lefts[0]]
    assert (beside[:, -12:] == 255).all(), "the title ends before the first cell"
    assert (beside < 200).any()


def test_the_same_rows_give_the_same_bytes():
    first, second = (draw_samples("title", "facts", *grid_of((16, 16))) for _ in range(2))
    assert first == second
