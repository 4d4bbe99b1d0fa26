"""What the words of a vocabulary look like: for the most used ones, the image patches that are nearest to them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from crossdistill.bridges.layout import as_map
from crossdistill.contracts import InputSpec
from crossdistill.data import EvalLoader
from crossdistill.data.philox import Purpose, random_order
from crossdistill.engine import on_main
from crossdistill.engine.evaluate import eval_mode
from crossdistill.files import write_bytes, writing
from crossdistill.methods.bow import BagOfWords, Level
from crossdistill.selfsup.compose import Parts

NUM_IMAGES, NUM_WORDS, NUM_PATCHES = 2000, 12, 8
CELLS = 3
"""Cells of the map a side that a patch shows around its location."""

_SIDE, _GAP, _TEXT, _MARGIN = 64, 4, 92, 8
_BATCH_SIZE = 64
_PAPER, _INK = (255, 255, 255), (60, 62, 66)


@dataclass(frozen=True, slots=True)
class Word:
    """A word: its number, the share of locations that chose it, and places (row of the images, location) near to it."""

    number: int
    share: float
    places: tuple[tuple[int, int], ...]


def draw_words(parts: Parts, folder: Path, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Draw ``words-levelN.png`` into a run folder, one a level, from up to 2,000 training images.

    Returns:
        What each shows, as plain data; nothing for methods without vocabularies.

    Raises:
        InputError: the folder cannot be written.
    """
    if not isinstance(parts.method, BagOfWords):
        return []
    levels = dict(parts.method.numbered())
    return on_main(lambda: _draw_all(parts, levels, folder, accelerator))


def _draw_all(
    parts: Parts, levels: Mapping[str, Level], folder: Path, accelerator: Accelerator
) -> list[dict[str, Any]]:
    ids = parts.train_loader.ids
    ids = np.sort(ids[random_order(len(ids), seed=0, purpose=Purpose.PICTURE)[:NUM_IMAGES]])
    found = []
    for number, (distances, words) in _looked_up(parts, levels, ids, accelerator).items():
        level = levels[number]
        shown = most_used(distances, words)
        rows = sorted({row for word in shown for row, _ in word.places})
        pixels = dict(zip(rows, _pixels(parts, ids[rows]), strict=True)) if rows else {}
        patches = [[patch_of(pixels[row], place, level) for row, place in word.places] for word in shown]
        name = f"words-level{number}.png"
        with writing(folder):
            write_bytes(folder / name, mosaic(shown, patches))
        entries = [
            {"word": one.number, "share": one.share, "images": [int(ids[r]) for r, _ in one.places]} for one in shown
        ]
        found.append({"level": int(number), "file": name, "num_images": len(ids), "words": entries})
    return found


def _looked_up(
    parts: Parts, levels: Mapping[str, Level], ids: NDArray[np.int64], accelerator: Accelerator
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """By level, each location's distance to its nearest word and that word's number ``(N, L)``."""
    teacher = parts.teacher
    found: dict[str, list[tuple[Tensor, Tensor]]] = {number: [] for number in levels}
    teacher.model.to(accelerator.device)
    with torch.no_grad(), eval_mode(teacher.model):
        for batch in _loader(parts, ids):
            stages = teacher.model(batch.images[teacher.view].to(accelerator.device)).require_stages()
            for number, level in levels.items():
                nearest = level.vocabulary.nearest(as_map(stages[int(number) - 1], level.stage))
                found[number].append((nearest[0].cpu(), nearest[1].cpu()))
    columns = {number: list(zip(*looks, strict=True)) for number, looks in found.items()}
    return {number: (torch.cat(one[0]), torch.cat(one[1])) for number, one in columns.items()}


def _loader(parts: Parts, ids: NDArray[np.int64]) -> EvalLoader:
    views = {parts.teacher.view: parts.teacher.spec.input}
    share = parts.settings.data.max_corrupt_share
    return EvalLoader(parts.splits.train, views, ids=ids, batch_size=_BATCH_SIZE, workers=0, max_corrupt_share=share)


def most_used(
    distances: Tensor, words: Tensor, *, num_words: int = NUM_WORDS, num_patches: int = NUM_PATCHES
) -> list[Word]:
    """The words that most locations chose, each with the nearest locations, at most one an image.

    Args:
        distances: of each location to its word ``(N, L)``.
        words: the word's number ``(N, L)``.
        num_words: how many.
        num_patches: places of each.
    """
    counts = words.flatten().bincount()
    order = counts.argsort(descending=True, stable=True)[:num_words]
    chosen = [int(number) for number in order if counts[number]]
    return [_word(number, int(counts[number]) / words.numel(), distances, words, num_patches) for number in chosen]


def _word(number: int, share: float, distances: Tensor, words: Tensor, num_patches: int) -> Word:
    own = torch.where(words == number, distances, torch.inf)
    nearest = own.min(dim=1)
    rows = nearest.values.argsort(stable=True)[:num_patches]
    rows = rows[nearest.values[rows].isfinite()]
    return Word(number, share, tuple((int(row), int(nearest.indices[row])) for row in rows))


def _pixels(parts: Parts, ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """The images as the teacher sees them, uint8 ``(H, W, 3)``."""
    spec = parts.teacher.spec.input
    return [_shown(image, spec) for batch in _loader(parts, ids) for image in batch.images[parts.teacher.view]]


def _shown(image: Tensor, spec: InputSpec) -> NDArray[np.uint8]:
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    pixels = (image * std + mean).mul(255).round().clamp(0, 255).byte().expand(3, -1, -1)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return array


def patch_of(pixels: NDArray[np.uint8], place: int, level: Level) -> NDArray[np.uint8]:
    """The cells around a location: its own, and the next ones in each direction where the image has them.

    Args:
        pixels: ``(H, W, 3)``.
        place: number of the location inside the border, row by row.
        level: its grid and border.
    """
    border, (rows, columns) = level.vocabulary.border, level.stage.grid
    row, column = divmod(place, columns - 2 * border)
    spans = []
    for index, count, length in ((row + border, rows, pixels.shape[0]), (column + border, columns, pixels.shape[1])):
        side = min(length, max(1, round(CELLS * length / count)))
        start = round((index + 0.5) * length / count - side / 2)
        start = min(max(start, 0), length - side)
        spans.append(slice(start, start + side))
    return pixels[spans[0], spans[1]]


def mosaic(words: Sequence[Word], patches: Sequence[Sequence[NDArray[np.uint8]]]) -> bytes:
    """A PNG with a row for each word: how many locations chose it, and its patches."""
    width = _TEXT + NUM_PATCHES * (_SIDE + _GAP) + 2 * _MARGIN
    height = max(1, len(words)) * (_SIDE + _GAP) + 2 * _MARGIN
    picture = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(picture)
    for index, (word, row) in enumerate(zip(words, patches, strict=True)):
        top = _MARGIN + index * (_SIDE + _GAP)
        pen.text((_MARGIN, top + _SIDE // 2 - 14), f"word {word.number}", fill=_INK)
        pen.text((_MARGIN, top + _SIDE // 2 + 2), f"{100 * word.share:.2f} %", fill=_INK)
        for place, patch in enumerate(row):
            shown = Image.fromarray(np.ascontiguousarray(patch)).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            picture.paste(shown, (_MARGIN + _TEXT + place * (_SIDE + _GAP), top))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
