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
from crossdistill.report.samples import typeface
from crossdistill.selfsup.compose import Parts

NUM_IMAGES, NUM_WORDS, NUM_PATCHES = 2000, 12, 8
CELLS = 3
"""Cells of the map a side that a patch shows around its location."""

MOST_LOCATIONS = 16_000_000
"""Locations of a level that are kept at once: of very fine maps fewer images are looked at."""

_SIDE, _LARGEST_SIDE, _GAP, _TEXT, _MARGIN, _LINE = 72, 96, 4, 112, 12, 18
_BATCH_SIZE = 64
_PAPER, _INK, _MUTED = (255, 255, 255), (28, 30, 33), (95, 100, 107)


@dataclass(frozen=True, slots=True)
class Word:
    """A word: its number, the share of locations that chose it, and places (row of the images, location) near to it."""

    number: int
    share: float
    places: tuple[tuple[int, int], ...]


def draw_words(parts: Parts, folder: Path, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Draw ``words-levelN.png`` into a run folder, one a level, from up to 2,000 training images.

    The main process does it, by the teacher and the words as they are at the end.

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
    ids, looks = _looked_up(parts, levels, _chosen(parts.train_loader.ids, levels), accelerator)
    used = {number: most_used(*one) for number, one in looks.items()}
    rows = sorted({row for words in used.values() for word in words for row, _ in word.places})
    images = _pixels(parts, ids[rows])
    found = []
    for number, words in used.items():
        name = f"words-level{number}.png"
        patches = [
            [patch_of(images[int(ids[row])], place, levels[number]) for row, place in word.places] for word in words
        ]
        with writing(folder):
            write_bytes(folder / name, mosaic(words, patches))
        shown = [
            {"word": word.number, "share": word.share, "images": [int(ids[row]) for row, _ in word.places]}
            for word in words
        ]
        found.append({"level": int(number), "file": name, "num_images": len(ids), "words": shown})
    return found


def _chosen(ids: NDArray[np.int64], levels: Mapping[str, Level]) -> NDArray[np.int64]:
    """The same random images in every run."""
    finest = max(level.stage.grid[0] * level.stage.grid[1] for level in levels.values())
    most = max(1, min(NUM_IMAGES, MOST_LOCATIONS // finest))
    return np.sort(ids[random_order(len(ids), seed=0, purpose=Purpose.PICTURE)[:most]])


def _looked_up(
    parts: Parts, levels: Mapping[str, Level], ids: NDArray[np.int64], accelerator: Accelerator
) -> tuple[NDArray[np.int64], dict[str, tuple[Tensor, Tensor]]]:
    """Ids of the images that could be read; by level, each location's distance to its word, and the word ``(N, L)``."""
    teacher = parts.teacher
    seen: list[Tensor] = []
    found: dict[str, list[tuple[Tensor, Tensor]]] = {number: [] for number in levels}
    teacher.model.to(accelerator.device)
    with torch.no_grad(), eval_mode(teacher.model):
        for batch in _loader(parts, ids):
            seen.append(batch.sample_id)
            stages = teacher.model(batch.images[teacher.view].to(accelerator.device)).require_stages()
            for number, level in levels.items():
                distances, words = level.vocabulary.nearest(as_map(stages[int(number) - 1], level.stage))
                found[number].append((distances.float().cpu(), words.int().cpu()))
    columns = {number: tuple(zip(*each, strict=True)) for number, each in found.items()}
    return torch.cat(seen).numpy(), {number: (torch.cat(one[0]), torch.cat(one[1])) for number, one in columns.items()}


def _loader(parts: Parts, ids: NDArray[np.int64]) -> EvalLoader:
    """Whole images as the teacher wants them; unreadable ones, which training has put up with, are left out."""
    views = {parts.teacher.view: parts.teacher.spec.input}
    crop_pct = parts.settings.data.eval_crop_pct
    return EvalLoader(
        parts.splits.train,
        views,
        ids=ids,
        batch_size=_BATCH_SIZE,
        workers=0,
        max_corrupt_share=1.0,
        crop_pct=crop_pct,
    )


def most_used(
    distances: Tensor, words: Tensor, *, num_words: int = NUM_WORDS, num_patches: int = NUM_PATCHES
) -> list[Word]:
    """The words that most locations chose, each with the nearest of these locations, at most one an image.

    Of equals the one of lower number comes first.

    Args:
        distances: of each location to its nearest word ``(N, L)``.
        words: the number of that word ``(N, L)``.
        num_words: how many words, at most.
        num_patches: places of each, at most.
    """
    counts = words.flatten().bincount()
    order = counts.argsort(descending=True, stable=True)[:num_words]
    shares = {int(number): int(counts[number]) / words.numel() for number in order if counts[number]}
    return [Word(number, share, _places(distances, words == number, num_patches)) for number, share in shares.items()]


def _places(distances: Tensor, chosen: Tensor, most: int) -> tuple[tuple[int, int], ...]:
    """The nearest of the chosen locations, one an image: (row, location)."""
    nearest = torch.where(chosen, distances, torch.inf).min(dim=1)
    rows = nearest.values.argsort(stable=True)[:most]
    rows = rows[nearest.values[rows].isfinite()]
    return tuple((int(row), int(nearest.indices[row])) for row in rows)


def _pixels(parts: Parts, ids: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
    """Images as the teacher sees them, uint8 ``(H, W, 3)``, by id."""
    spec, view = parts.teacher.spec.input, parts.teacher.view
    return {
        int(identity): pixels_of(image, spec)
        for batch in _loader(parts, ids)
        for identity, image in zip(batch.sample_id, batch.images[view], strict=True)
    }


def pixels_of(image: Tensor, spec: InputSpec) -> NDArray[np.uint8]:
    """An image that was prepared for a network ``(C, H, W)`` as uint8 ``(H, W, 3)``; grey ones are repeated."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    pixels = (image * std + mean).mul(255).round().clamp(0, 255).byte().expand(3, -1, -1)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return array


def patch_of(pixels: NDArray[np.uint8], place: int, level: Level) -> NDArray[np.uint8]:
    """The cell of a location with the cells around it; at an edge of the image it is moved inwards, not cut.

    Args:
        pixels: ``(H, W, 3)``.
        place: number of the location inside the border, row by row.
        level: its grid and border.
    """
    border, (rows, columns) = level.vocabulary.border, level.stage.grid
    row, column = divmod(place, columns - 2 * border)
    height, width = pixels.shape[:2]
    return pixels[_span(row + border, rows, height), _span(column + border, columns, width)]


def _span(index: int, count: int, length: int) -> slice:
    """Pixels of the cells around one of ``count`` that share ``length`` pixels."""
    side = min(length, max(1, round(CELLS * length / count)))
    start = round((index + 0.5) * length / count - side / 2)
    start = min(max(start, 0), length - side)
    return slice(start, start + side)


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which a patch is shown: enlarged by a whole number, or reduced if it is large.

    >>> shown_size((6, 6)), shown_size((24, 24)), shown_size((48, 32)), shown_size((224, 224))
    ((72, 72), (72, 72), (96, 64), (96, 96))
    """
    longer = max(size)
    factor = max(1, round(_SIDE / longer)) if longer <= _LARGEST_SIDE else _LARGEST_SIDE / longer
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def mosaic(words: Sequence[Word], patches: Sequence[Sequence[NDArray[np.uint8]]]) -> bytes:
    """A PNG with a row for each word: its number, the share of locations that chose it, and its patches."""
    height, width = shown_size(next(patch for row in patches for patch in row).shape[:2])
    across = max(len(row) for row in patches) * (width + _GAP) - _GAP
    down = len(words) * (height + _GAP) - _GAP
    picture = Image.new("RGB", (_TEXT + across + 2 * _MARGIN, down + 2 * _MARGIN), _PAPER)
    pen = ImageDraw.Draw(picture)
    for index, (word, row) in enumerate(zip(words, patches, strict=True)):
        top = _MARGIN + index * (height + _GAP)
        middle = top + height // 2
        pen.text((_MARGIN, middle - _LINE), f"word {word.number}", fill=_INK, font=typeface(14, bold=True))
        pen.text((_MARGIN, middle + 1), f"{100 * word.share:.2f} %", fill=_MUTED, font=typeface(13))
        for place, patch in enumerate(row):
            picture.paste(_resized(patch, (height, width)), (_MARGIN + _TEXT + place * (width + _GAP), top))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _resized(patch: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(patch))
    enlarged = size[0] >= image.height
    return image.resize((size[1], size[0]), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
