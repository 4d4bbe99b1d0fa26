"""Crop boxes in source pixels, for a whole batch at once, from uniform draws.

A box array is int64 ``(B, 4)``: top, left, height, width. Boxes may reach over an edge, where pixels are zero.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.int64]
Sizes = NDArray[np.int64]
"""``(B, 2)``: height and width of each image."""

_NUM_TRIES = 10
NUM_RESIZED_DRAWS = 4 * _NUM_TRIES


def centred(sizes: Sizes, target_size: tuple[int, int]) -> Boxes:
    """The largest centred boxes of the target's aspect ratio: for square images and targets, the whole image."""
    height, width = target_size
    box_heights = np.minimum(sizes[:, 0], np.rint(sizes[:, 1] * (height / width)).astype(np.int64)).clip(min=1)
    box_widths = np.minimum(sizes[:, 1], np.rint(sizes[:, 0] * (width / height)).astype(np.int64)).clip(min=1)
    return _centre(sizes, box_heights, box_widths)


def shifted(sizes: Sizes, target_size: tuple[int, int], *, padding: float, draws: NDArray[np.float64]) -> Boxes:
    """Centred boxes shifted by up to ``padding`` of each side, in whole pixels: padding followed by a random crop.

    Args:
        draws: uniform ``(B, 2)``: vertical and horizontal shift.
    """
    boxes = centred(sizes, target_size)
    largest = np.rint(padding * boxes[:, 2:]).astype(np.int64)
    boxes[:, :2] += np.floor(draws * (2 * largest + 1)).astype(np.int64) - largest
    return boxes


def resized(
    sizes: Sizes, *, scale: tuple[float, float], ratio: tuple[float, float], draws: NDArray[np.float64]
) -> Boxes:
    """Boxes of random area and log-uniform aspect ratio: the first of ten tries that fits, else a central box.

    Args:
        scale: range of the area, as a share of the image.
        ratio: range of width / height.
        draws: uniform ``(B, 40)``: area, aspect ratio, top, left of each try.

    Source: Szegedy et al., "Going deeper with convolutions", 2014, arXiv:1409.4842, section 6; tries and fallback
    as in torchvision's ``RandomResizedCrop``.
    """
    tries = draws.reshape(len(draws), _NUM_TRIES, 4)
    areas = sizes.prod(axis=1)[:, None] * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspects = np.exp(low + (high - low) * tries[..., 1])
    extents = np.rint(np.sqrt(np.stack([areas / aspects, areas * aspects], axis=-1))).astype(np.int64)
    fits = ((extents > 0) & (extents <= sizes[:, None])).all(axis=-1)
    first = fits.argmax(axis=1)
    rows = np.arange(len(sizes))
    extent = extents[rows, first]
    corners = np.floor(tries[rows, first, 2:] * (sizes - extent + 1)).astype(np.int64)
    boxes = np.concatenate([corners, extent], axis=1)
    return np.where(fits.any(axis=1)[:, None], boxes, _fallback(sizes, ratio))


def _fallback(sizes: Sizes, ratio: tuple[float, float]) -> Boxes:
    heights, widths = sizes[:, 0], sizes[:, 1]
    aspects = widths / heights
    box_heights = np.where(aspects < ratio[0], np.rint(widths / ratio[0]).astype(np.int64), heights)
    box_widths = np.where(aspects > ratio[1], np.rint(heights * ratio[1]).astype(np.int64), widths)
    return _centre(sizes, box_heights.clip(min=1), box_widths.clip(min=1))


def _centre(sizes: Sizes, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> Boxes:
    tops, lefts = (sizes[:, 0] - heights) // 2, (sizes[:, 1] - widths) // 2
    return np.stack([tops, lefts, heights, widths], axis=1)
