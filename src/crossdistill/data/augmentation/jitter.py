"""Colour jitter: brightness, contrast and saturation change by random factors, in random order.

Source: the factors and orders of torchvision's ``ColorJitter``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.augmentation import colour
from crossdistill.data.placing import placed

NUM_JITTER_DRAWS = 4

_CHANGES = (colour.brightness, colour.contrast, colour.saturation)
_ORDERS = np.array(list(permutations(range(len(_CHANGES)))))


def draw_jitter(largest: float, draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Factors ``(B, 3)`` of brightness, contrast and saturation, and the order ``(B, 3)`` of these.

    Args:
        largest: factors are uniform from 1 - largest to 1 + largest.
        draws: uniform ``(B, 4)``.
    """
    factors = 1 + largest * (2 * draws[:, :3] - 1)
    return factors, _ORDERS[(draws[:, 3] * len(_ORDERS)).astype(np.int64)]


def jitter(images: Tensor, factors: NDArray[np.float64], orders: NDArray[np.int64]) -> Tensor:
    """Change uint8 images ``(B, C, H, W)`` in place: on the CPU one by one, else all whose turn it is for a change."""
    for group, changes in _groups(orders, one_by_one=images.device.type == "cpu"):
        index = placed(group, images.device)
        for change in changes:
            images[index] = _CHANGES[change](images[index], placed(factors[group, change], images.device))
    return images


def _groups(orders: NDArray[np.int64], *, one_by_one: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of images, and which changes are made of them one after the other."""
    if one_by_one:
        yield from ((np.array([index]), order) for index, order in enumerate(orders))
        return
    for turn in orders.T:
        for change in range(len(_CHANGES)):
            yield np.flatnonzero(turn == change), np.array([change])
