"""Pictures of words: which words, which places, and what of an image is cut out."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from crossdistill.bridges.dynamic_head import DynamicHead
from crossdistill.bridges.vocabulary import Vocabulary
from crossdistill.contracts import InputSpec, ModelSpec, Outputs, StageSpec
from crossdistill.data import open_source
from crossdistill.engine import connect
from crossdistill.methods.bow import BagOfWords, Level
from crossdistill.selfsup.pictures import (
    NUM_PATCHES,
    Word,
    draw_words,
    mosaic,
    most_used,
    patch_of,
    pixels_of,
    shown_size,
)
from crossdistill.settings import DataSettings
from samples.pretraining import settings_of, textures, train


def test_the_most_used_words_and_their_nearest_places_one_an_image():
    words = torch.tensor([[7, 7, 2], [7, 2, 2], [7, 7, 7], [5, 2, 7]])
    distances = torch.tensor([[0.5, 0.1, 0.3], [0.4, 0.9, 0.2], [0.8, 0.6, 0.7], [0.0, 0.05, 0.3]])
    first, second = most_used(distances, words, num_words=2, num_patches=3)
    assert (first.number, second.number) == (7, 2)
    assert first.share == 7 / 12
    assert first.places == ((0, 1), (3, 2), (1, 0))
    assert second.places == ((3, 1), (1, 2), (0, 2))
    (only,) = most_used(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64), num_words=4)
    assert only.places == ((0, 0),)


def level(grid, border):
    stage = StageSpec(channels=2, stride=4, layout="NCHW", num_prefix_tokens=0, grid=grid)
    return Level(stage, Vocabulary(4, 2, inverse_delta=1.0, border=border), DynamicHead(2, 2, kappa=1.0))


@pytest.mark.parametrize(
    ("grid", "border", "place", "rows", "columns"),
    [
        ((8, 8), 1, 0, (0, 12), (0, 12)),  # the first location inside the border is cell (1, 1): cells 0 to 2
        ((8, 8), 1, 7, (4, 16), (4, 16)),  # row 1, column 1 of the inside: cell (2, 2)
        ((8, 8), 1, 35, (20, 32), (20, 32)),  # the last: cell (6, 6)
        ((8, 8), 0, 0, (0, 12), (0, 12)),  # at the corner the patch stays inside the image
        ((2, 2), 0, 3, (0, 32), (0, 32)),  # three cells are more than there are
        ((8, 4), 0, 5, (0, 12), (0, 24)),  # grids need not be square: cell (1, 1)
    ],
)
def test_patches_are_cut_around_their_location(grid, border, place, rows, columns):
    pixels = np.arange(32 * 32 * 3).reshape(32, 32, 3)
    expected = pixels[rows[0] : rows[1], columns[0] : columns[1]]
    np.testing.assert_array_equal(patch_of(pixels, place, level(grid, border)), expected)


def test_the_mosaic_has_a_row_a_word():
    red = np.full((5, 5, 3), (255, 0, 0), dtype=np.uint8)
    words = [Word(3, 0.5, ((0, 0),)), Word(1, 0.25, ())]
    pixels = np.asarray(Image.open(io.BytesIO(mosaic(words, [[red], []]))))
    side = shown_size((5, 5))[0]
    assert side % 5 == 0, "small patches are enlarged by a whole number"
    is_red = (pixels == (255, 0, 0)).all(axis=2)
    assert is_red.sum() == side * side
    rows, columns = np.nonzero(is_red)
    assert (np.ptp(rows), np.ptp(columns)) == (side - 1, side - 1)
    beneath = pixels[rows.max() + 1 :]
    assert (beneath[:, : columns.min()] < 128).any(), "a word without patches is named as well"
    assert (beneath[:, columns.min() :] == 255).all()


def test_large_patches_are_reduced_and_keep_their_shape():
    assert shown_size((300, 150)) == (96, 48)
    patch = np.zeros((300, 150, 3), dtype=np.uint8)
    pixels = np.asarray(Image.open(io.BytesIO(mosaic([Word(0, 1.0, ((0, 0),))], [[patch]]))))
    assert (pixels[:, -60:] == 0).all(axis=2).sum() == 96 * 48


def test_a_run_draws_a_picture_a_level(tmp_path):
    """Stripes, dots and noise: the patches of a word come from images that look alike."""
    data = textures(tmp_path / "data")
    parts, _ = train(settings_of(data, "train.epochs=4"), examine=False)
    facts = draw_words(parts, tmp_path, connect("cpu"))
    assert [one["level"] for one in facts] == [3, 4]
    for one in facts:
        assert (tmp_path / one["file"]).is_file()
        assert one["num_images"] == 72
        shares = [word["share"] for word in one["words"]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1
        assert all(len(set(word["images"])) == len(word["images"]) <= NUM_PATCHES for word in one["words"])
    assert facts == draw_words(parts, tmp_path, connect("cpu"))
    classes = [[index // 24 for index in word["images"]] for word in facts[0]["words"]]
    largest = np.mean([max(np.bincount(one)) / len(one) for one in classes if len(one) > 2])
    assert largest > 0.6, "by chance most patches of a word would be of no class in particular"


SEEN = InputSpec(
    image_size=(32, 32), num_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), interpolation="bilinear"
)
CELL, GRID = 4, (8, 8)
BLACK, RED, GREEN, BLUE = range(4)
PLACES = {0: (1, 1), 1: (6, 6), 3: (3, 5), 4: (0, 4), 5: (4, 2)}
"""Image -> its red cell; that of image 4 lies in the border, and image 2 cannot be read."""


class MeansOfCells(torch.nn.Module):
    """A teacher whose one stage says how a cell of 4 x 4 pixels looks on average, as a map or as tokens."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def forward(self, images):
        mean, std = (torch.tensor(one)[:, None, None] for one in (SEEN.mean, SEEN.std))
        cells = torch.nn.functional.avg_pool2d(images * std + mean, CELL)
        if self.layout == "NCHW":
            return Outputs(stages=(cells,))
        return Outputs(stages=(torch.cat([torch.ones(len(cells), 1, 3), cells.flatten(2).transpose(1, 2)], dim=1),))


def coloured(folder):
    """Black images: image i has a cell whose red is the fainter the larger i, and number 0 two blue ones."""
    folder.mkdir()
    for index in range(6):
        pixels = np.zeros((32, 32, 3), dtype=np.uint8)
        if index in PLACES:
            row, column = PLACES[index]
            pixels[CELL * row :, CELL * column :][:CELL, :CELL, 0] = 250 - 10 * index
        if index == 0:
            pixels[4:8, 20:28, 2] = 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no image")
    return folder


def parts_of(folder, layout, **options):
    """What :func:`draw_words` asks of a run, with the words black, red, green and blue."""
    prefix = int(layout == "NLC")
    stage = StageSpec(channels=3, stride=CELL, layout=layout, num_prefix_tokens=prefix, grid=GRID)
    spec = ModelSpec("cells", "cnn", 2, 3, (stage,), SEEN, 0)
    method = BagOfWords.build(spec, spec, num_classes=2, levels=[1], num_words=4, **options)
    words = torch.eye(4)[:, 1:]  # nothing, red, green and blue
    method.levels["1"].vocabulary.words.copy_(words + 0.05 * (words.sum(dim=1, keepdim=True) == 0))
    source = DataSettings(source=f"folder:{folder}", unlabelled=True)
    return SimpleNamespace(
        method=method,
        teacher=SimpleNamespace(model=MeansOfCells(layout), view="teacher0", spec=spec),
        splits=open_source(source),
        train_loader=SimpleNamespace(ids=np.arange(6)),
        settings=SimpleNamespace(data=source),
    )


@pytest.mark.parametrize("layout", ["NCHW", "NLC"])
def test_known_words_are_found_where_they_are(tmp_path, layout):
    parts = parts_of(coloured(tmp_path / "images"), layout, border=1)
    (facts,) = draw_words(parts, tmp_path, connect("cpu"))
    assert (facts["level"], facts["file"], facts["num_images"]) == (1, "words-level1.png", 5)
    black, red, blue = facts["words"]
    assert [one["word"] for one in (black, red, blue)] == [BLACK, RED, BLUE], "no location is green"
    assert red == {"word": RED, "share": 4 / (5 * 36), "images": [0, 1, 3, 5]}, "the reddest first, none of the border"
    assert blue == {"word": BLUE, "share": 2 / (5 * 36), "images": [0]}, "one patch an image"
    assert black["share"] == pytest.approx(1 - 6 / (5 * 36))
    cut_out_of_it = np.asarray(Image.open(tmp_path / "words-level1.png"))
    patches = cut(cut_out_of_it, rows=3, columns=5)
    for column, image in enumerate(red["images"]):
        expected = np.zeros((12, 12, 3), dtype=np.uint8)
        expected[CELL : 2 * CELL, CELL : 2 * CELL, 0] = 250 - 10 * image  # its cell in the middle of 3 x 3
        np.testing.assert_array_equal(patches[1][column], expected)
    assert (patches[1][4] == 255).all(), "paper: there is no fifth image with it"


def cut(mosaic_, *, rows, columns):
    """The patches of a mosaic, in their own pixels."""
    side, gap, margin = 72, 4, 12
    left = mosaic_.shape[1] - margin - columns * (side + gap) + gap
    tops = [margin + index * (side + gap) for index in range(rows)]
    lefts = [left + index * (side + gap) for index in range(columns)]
    return [[mosaic_[top : top + side : 6, start : start + side : 6] for start in lefts] for top in tops]


def test_directions_count_where_words_are_compared_by_cosine(tmp_path):
    """Faint red is as red as strong red: the first images by number come first, and nothing but black is black."""
    parts = parts_of(coloured(tmp_path / "images"), "NCHW", border=0, cosine=True)
    (facts,) = draw_words(parts, tmp_path, connect("cpu"))
    red = next(one for one in facts["words"] if one["word"] == RED)
    assert sorted(red["images"]) == [0, 1, 3, 4, 5]
    assert red["share"] == 5 / (5 * 64)


def test_very_fine_maps_are_looked_at_in_fewer_images(tmp_path, monkeypatch):
    monkeypatch.setattr("crossdistill.selfsup.pictures.MOST_LOCATIONS", 3 * 64)
    (facts,) = draw_words(parts_of(coloured(tmp_path / "images"), "NCHW", border=0), tmp_path, connect("cpu"))
    assert facts["num_images"] in (2, 3)  # one cannot be read


def test_images_are_shown_as_they_were_before_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mean, std = (torch.tensor(one)[:, None, None] for one in (SEEN.mean, SEEN.std))
    image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    np.testing.assert_array_equal(pixels_of(image, SEEN), pixels)
    grey = pixels_of(torch.zeros(1, 4, 4), InputSpec(image_size=(4, 4), num_channels=1, mean=(0.2,), std=(1.0,)))
    assert grey.shape == (4, 4, 3)
    assert (grey == 51).all()


def test_other_methods_have_no_words(tmp_path):
    assert draw_words(SimpleNamespace(method=object()), tmp_path, connect("cpu")) == []
    assert list(tmp_path.iterdir()) == []
