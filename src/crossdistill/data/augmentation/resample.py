"""Cutting and resizing a whole batch with products of matrices, for accelerators, where one kernel an image is slow."""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.data.augmentation.boxes import Boxes
from crossdistill.data.placing import placed


def resized_boxes(images: Tensor, boxes: Boxes, size: tuple[int, int], *, bicubic: Tensor) -> Tensor:
    """Cut a box out of each image ``(B, C, H, W)`` and resize it, uint8 ``(B, C, *size)``; zero outside the image.

    Rows and columns are resampled apart, with the antialiased kernels of Pillow and torchvision (bicubic a = -0.5),
    so the pixels equal theirs up to rounding.

    Args:
        bicubic: mask ``(B,)``, on the images' device; bilinear for the others.
    """
    lines, outside = placed(boxes, images.device), [_outside(boxes, axis, images.shape[axis - 2]) for axis in (0, 1)]
    rows = _weights(lines[:, 0], lines[:, 2], images.shape[-2], size[0], bicubic, outside[0])
    columns = _weights(lines[:, 1], lines[:, 3], images.shape[-1], size[1], bicubic, outside[1])
    # Along rows, then along columns, and whole values in between: the kernels for uint8 images do so, too.
    wide = (images.float() @ columns[:, None].transpose(-1, -2)).round_().clamp_(0, 255)
    return (rows[:, None] @ wide).round_().clamp_(0, 255).byte()


def _outside(boxes: Boxes, axis: int, num_pixels: int) -> int:
    """How far the boxes reach over the ends of lines of so many pixels; reckoned on the host, which need not wait."""
    start, extent = boxes[:, axis], boxes[:, 2 + axis]
    return max(0, int(-start.min()), int((start + extent).max()) - num_pixels)


def _weights(start: Tensor, extent: Tensor, num_pixels: int, num_outputs: int, bicubic: Tensor, outside: int) -> Tensor:
    """What each pixel of a line gives to each output ``(B, num_outputs, num_pixels)``.

    Weights of one output add up to one over the box, also where part of the box lies up to ``outside`` pixels outside.
    """
    pixels = torch.arange(-outside, num_pixels + outside, device=start.device)
    scale = (extent / num_outputs)[:, None, None]
    centres = start[:, None, None] + (torch.arange(num_outputs, device=start.device)[:, None] + 0.5) * scale
    distance = (pixels + 0.5 - centres) / scale.clamp(min=1)
    weights = torch.where(bicubic[:, None, None], _cubic(distance), _linear(distance))
    within = (pixels >= start[:, None]) & (pixels < (start + extent)[:, None])
    weights = weights * within[:, None]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights[..., outside : outside + num_pixels]


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5."""
    x = distance.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
