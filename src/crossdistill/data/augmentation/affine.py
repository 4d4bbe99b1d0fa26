"""Affine warps of uint8 images, each with a matrix of its own, as Pillow's ``transform`` and ``rotate`` define them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from crossdistill.data.placing import constant, placed

_ROUNDING = 1e-3

Matrices = NDArray[np.float64]
"""``(B, 2, 3)``: where an output point (x, y, 1), in pixels from the image's corner, is read in the input."""


def shear(x: NDArray[np.float64], y: NDArray[np.float64]) -> Matrices:
    """Input x grows by ``x`` a row, input y by ``y`` a column, from the upper left corner: ``(B, 2, 3)``."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([np.stack([one, x, zero], -1), np.stack([y, one, zero], -1)], axis=1)


def translation(x: NDArray[np.float64], y: NDArray[np.float64]) -> Matrices:
    """Read ``x`` pixels to the right and ``y`` pixels below: ``(B, 2, 3)``."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([np.stack([one, zero, x], -1), np.stack([zero, one, y], -1)], axis=1)


def rotation(degrees: NDArray[np.float64], size: tuple[int, int]) -> Matrices:
    """Turn counter-clockwise about the centre of images of this (height, width): ``(B, 2, 3)``."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    centre_y, centre_x = size[0] / 2, size[1] / 2
    offset_x = centre_x - cosine * centre_x + sine * centre_y
    offset_y = centre_y - sine * centre_x - cosine * centre_y
    return np.stack([np.stack([cosine, -sine, offset_x], -1), np.stack([sine, cosine, offset_y], -1)], axis=1)


def warp(images: Tensor, matrices: Matrices, *, bicubic: bool, fill: Sequence[float]) -> Tensor:
    """Read each image ``(B, C, H, W)`` at the places that its matrix says; ``fill`` (C values, 0..255) lies outside.

    Between pixels it is bilinear, or bicubic with PyTorch's kernel (a = -0.75; Pillow's has -0.5).
    """
    x, y = _places(matrices, (images.shape[-2], images.shape[-1]), images.device)
    mode = "bicubic" if bicubic else "bilinear"
    grid = torch.stack([x, y], dim=-1)
    values = F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    inside = (torch.maximum(x.abs_(), y.abs_()) < 1)[:, None]
    outside = constant(tuple(fill), images.device)[:, None, None]
    # Fractions are cut off, as Pillow does, but whole values that float32 just misses are kept.
    return values.sub_(outside).mul_(inside).add_(outside + _ROUNDING).clamp_(0, 255).byte()


def _places(matrices: Matrices, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each output pixel is read, x and y ``(B, H, W)``, in units in which the image runs from -1 to 1."""
    height, width = size
    of_x, of_y, shift = placed(matrices, device).to(torch.float32).unbind(-1)
    columns = torch.arange(width, device=device) + 0.5
    rows = torch.arange(height, device=device) + 0.5

    def place(axis: int, extent: int) -> Tensor:
        along = of_x[:, axis, None] * columns + shift[:, axis, None]
        down = of_y[:, axis, None] * rows
        return (along * (2 / extent) - 1)[:, None] + (down * (2 / extent))[:, :, None]

    return place(0, width), place(1, height)
