"""Colour jitter: brightness, contrast and saturation change by random factors, in random order.

Source: the factors and orders of torchvision's ``ColorJitter``.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.augmentation import colour

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
    """Change uint8 images ``(B, C, H, W)`` in place; those of one order together, but one by one on the CPU."""
    codes = orders @ np.array([9, 3, 1])
    groups = [np.array([index]) for index in range(len(images))]
    if images.device.type != "cpu":
        groups = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    for group in groups:
        index = torch.from_numpy(group).to(images.device)
        for change in orders[group[0]]:
            amount = torch.from_numpy(factors[group, change]).to(images.device)
            images[index] = _CHANGES[change](images[index], amount)
    return images
