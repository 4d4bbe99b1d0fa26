"""Gaussian blur of uint8 images, each with a width of its own."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from crossdistill.data.placing import placed

_WIDTHS = 4
"""The kernel ends after so many standard deviations; what is left out is less than a step of 255."""

_MOST_VALUES = 2**17
"""So many values are blurred at once on the CPU, to stay in its cache."""


def radius_of(largest_sigma: float) -> int:
    """Pixels on either side that the kernel for this standard deviation, and for any below, takes in; at least one."""
    return max(1, math.ceil(_WIDTHS * largest_sigma))


def blur(images: Tensor, sigma: NDArray[np.float64], radius: int) -> Tensor:
    """Blur images ``(B, C, H, W)``, along rows and then along columns; edges are mirrored.

    The result for an image does not depend on the others, and a mirrored image becomes the mirrored result, bit for
    bit: products and sums are taken one by one and in a fixed order.

    Args:
        sigma: standard deviation ``(B,)`` in pixels, above 0.
        radius: of the kernel, from :func:`radius_of`; a pixel less than the side of small images.
    """
    kernels = [placed(_weights(sigma, min(radius, extent - 1)), images.device) for extent in images.shape[-2:]]
    size = len(images)
    if images.device.type == "cpu":
        size = max(1, _MOST_VALUES // images.shape[1:].numel())
    parts = zip(*(torch.split(tensor, size) for tensor in (images, *kernels)), strict=True)
    return torch.cat([_blurred(*part) for part in parts])


def _blurred(images: Tensor, down: Tensor, along: Tensor) -> Tensor:
    values = _summed(_summed(images.float(), along, -1), down, -2)
    return values.add_(0.5).floor_().clamp_(0, 255).byte()


def _summed(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Weighted sums of neighbours along an axis; ``weights`` ``(B, R + 1)`` are those at each distance."""
    extent, radius = values.shape[axis], weights.shape[1] - 1
    padding = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
    padded = F.pad(values, padding, mode="reflect")
    by_distance = weights[:, :, None, None, None].unbind(1)
    total = values * by_distance[0]
    for distance in range(1, radius + 1):
        before = padded.narrow(axis, radius - distance, extent)
        total += (before + padded.narrow(axis, radius + distance, extent)) * by_distance[distance]
    return total


def _weights(sigma: NDArray[np.float64], radius: int) -> NDArray[np.float32]:
    """Weight of a pixel at each distance from 0 on ``(B, radius + 1)``; those of both sides add up to one."""
    one_side = np.exp(-0.5 * (np.arange(radius + 1) / sigma[:, None]) ** 2)
    total = 2 * one_side.sum(axis=1, keepdims=True) - one_side[:, :1]
    weights: NDArray[np.float32] = (one_side / total).astype(np.float32)
    return weights
