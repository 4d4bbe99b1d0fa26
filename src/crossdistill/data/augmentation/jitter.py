"""Colour jitter: brightness, contrast, saturation and hue change by random amounts, in random order.

Source: the amounts and orders of torchvision's ``ColorJitter``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.augmentation import colour
from crossdistill.data.placing import placed

NUM_JITTER_DRAWS = 4
NUM_HUE_JITTER_DRAWS = 5

_CHANGES = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
_UNCHANGED = (1.0, 1.0, 1.0, 0.0)

_MOST_VALUES = 3 * 64 * 64
"""Images of more values are changed one by one on the CPU, which keeps them in its cache. For smaller ones the cost of
a call counts for more: measured on one core, changing them together is 6 times as fast at 32 px, half as fast at 160.
"""


def draw_jitter(largest: float, draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Factors ``(B, 3)`` of brightness, contrast and saturation, and the order ``(B, 3)`` of these.

    Args:
        largest: factors are uniform from 1 - largest to 1 + largest.
        draws: uniform ``(B, 4)``.
    """
    return draw_changes((largest,) * 3, draws)


def draw_changes(largest: Sequence[float], draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Amounts ``(B, N)`` of the first N of brightness, contrast, saturation and hue, and the order ``(B, N)`` of these.

    Args:
        largest: N numbers; amounts are uniform up to this below and above what changes nothing (1, and 0 for hue).
        draws: uniform ``(B, N + 1)``.
    """
    count = len(largest)
    amounts = np.array(_UNCHANGED[:count]) + np.array(largest) * (2 * draws[:, :count] - 1)
    orders = _orders(count)
    return amounts, orders[(draws[:, count] * len(orders)).astype(np.int64)]


def jitter(images: Tensor, factors: NDArray[np.float64], orders: NDArray[np.int64]) -> Tensor:
    """Change uint8 images ``(B, C, H, W)`` in place: large ones on the CPU one by one, else all whose turn it is."""
    one_by_one = images.device.type == "cpu" and images.shape[1:].numel() > _MOST_VALUES
    for group, changes in _groups(orders, one_by_one=one_by_one):
        index = placed(group, images.device)
        for change in changes:
            images[index] = _CHANGES[change](images[index], placed(factors[group, change], images.device))
    return images


@cache
def _orders(count: int) -> NDArray[np.int64]:
    """All orders of so many changes."""
    return np.array(list(permutations(range(count))))


def _groups(orders: NDArray[np.int64], *, one_by_one: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of images, and which changes are made of them one after the other."""
    if one_by_one:
        yield from ((np.array([index]), order) for index, order in enumerate(orders))
        return
    for turn in orders.T:
        for change in range(orders.shape[1]):
            yield np.flatnonzero(turn == change), np.array([change])
