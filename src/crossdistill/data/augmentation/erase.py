"""Random erasing: a rectangle of a normalised image is replaced by normal noise.

Source: Zhong, Zheng, Kang, Li, Yang, "Random erasing data augmentation", 2017, arXiv:1708.04896; areas, tries and
noise as in timm's ``RandomErasing`` (mode "pixel").
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from crossdistill.data.augmentation.boxes import Boxes
from crossdistill.data.philox import Purpose, uniform
from crossdistill.data.placing import placed

Ids = NDArray[np.int64]

_NUM_TRIES = 10
NUM_ERASE_DRAWS = 2 + 4 * _NUM_TRIES

_SMALLEST_AREA, _LARGEST_AREA = 0.02, 1 / 3
_LOG_ASPECT = math.log(0.3), -math.log(0.3)
_NUM_NOISE = 2**20


def draw_erasures(probability: float, size: tuple[int, int], draws: NDArray[np.float64]) -> tuple[Boxes, Ids]:
    """Boxes ``(B, 4)`` to erase in images of this (height, width), empty where nothing is, and where noise starts.

    Args:
        draws: uniform ``(B, 42)``: whether, start of the noise, and area, aspect ratio, top, left of each of ten tries,
            of which the first that fits counts.
    """
    tries = draws[:, 2:].reshape(len(draws), _NUM_TRIES, 4)
    area = size[0] * size[1] * (_SMALLEST_AREA + (_LARGEST_AREA - _SMALLEST_AREA) * tries[..., 0])
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * tries[..., 1])
    extents = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=-1))).astype(np.int64)
    fits = (extents > 0).all(axis=-1) & (extents[..., 0] < size[0]) & (extents[..., 1] < size[1])
    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    extent = extents[rows, first]
    corner = np.floor(tries[rows, first, 2:] * (np.array(size) - extent + 1)).astype(np.int64)
    erased = (draws[:, 0] < probability) & fits[rows, first]
    boxes = np.where(erased[:, None], np.concatenate([corner, extent], axis=1), 0)
    return boxes, np.floor(draws[:, 1] * _NUM_NOISE).astype(np.int64)


def erase(images: Tensor, boxes: Boxes, noise_start: Ids, seed: int) -> Tensor:
    """Fill the boxes of normalised images ``(B, C, H, W)`` with standard normal noise, in place.

    Noise is read from one table of 2^20 values that the seed makes, from a place that is drawn for each image: so it
    is the same on every device.
    """
    noise, erased = _noise(seed, images.device), np.flatnonzero(boxes[:, 2])
    if images.device.type == "cpu":
        return _erase_in_turn(images, erased, boxes, noise_start, noise)
    return _erase_together(images, erased, boxes, noise_start, noise)


def _erase_in_turn(images: Tensor, erased: Ids, boxes: Boxes, noise_start: Ids, noise: Tensor) -> Tensor:
    for index in erased:
        top, left, height, width = boxes[index].tolist()
        count = images.shape[1] * height * width
        values = torch.arange(noise_start[index], noise_start[index] + count) % _NUM_NOISE
        images[index, :, top : top + height, left : left + width] = noise[values].view(-1, height, width)
    return images


def _erase_together(images: Tensor, erased: Ids, boxes: Boxes, noise_start: Ids, noise: Tensor) -> Tensor:
    """The same without a step for each image: what lies in a box is told by a mask."""
    if not len(erased):
        return images
    index = placed(erased, images.device)
    top, left, height, width = placed(boxes[erased], images.device)[:, :, None].unbind(1)
    start = placed(noise_start[erased], images.device)[:, None, None, None]
    rows = torch.arange(images.shape[-2], device=images.device) - top
    columns = torch.arange(images.shape[-1], device=images.device) - left
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None] * (height * width)[:, :, None, None]
    place = start + channel + (rows * width)[:, None, :, None] + columns[:, None, None]
    # Outside the box the remainder only keeps the place within the table.
    images[index] = torch.where(inside[:, None], noise[place % _NUM_NOISE], images[index])
    return images


@cache
def _noise(seed: int, device: torch.device) -> Tensor:
    """Standard normal values ``(2^20,)``."""
    draws = uniform(seed, 0, np.arange(_NUM_NOISE // 4), 0, 4, purpose=Purpose.NOISE).reshape(-1)
    return torch.from_numpy(ndtri(draws + 2.0**-33)).to(device, torch.float32)
