"""Work on uint8 pixels: cutting, resizing, channels, normalisation; an image and a batch come out the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate, get_worker_info
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from crossdistill.contracts import InputSpec
from crossdistill.data.augmentation.boxes import Boxes
from crossdistill.data.augmentation.resample import resized_boxes
from crossdistill.data.held import Images
from crossdistill.data.placing import placed
from crossdistill.data.source import TINY_SIDE
from crossdistill.errors import InputError

_LONGEST = 32
"""Images of an aspect ratio beyond this times the view's are shortened before they are resized."""

Kernels = NDArray[np.str_]


def cut(images: Images, boxes: Boxes, size: tuple[int, int], kernels: Kernels) -> Tensor:
    """Cut a box out of each image and resize it: uint8 ``(B, C, *size)``; zero outside the image.

    Boxes of one extent on images of one shape are cut and resized all at once, with the same result. On an
    accelerator images of one shape go through matrices, whose pixels are those of the CPU up to rounding.

    Args:
        kernels: "bicubic", "bilinear" or "nearest" for each image ``(B,)``.
    """
    if isinstance(images, Tensor):
        if (boxes[:, 2:] == size).all():  # every kernel would leave the pixels as they are
            return _cut_equal(images, boxes)
        if images.device.type != "cpu" and (kernels != "nearest").all():
            return resized_boxes(images, boxes, size, bicubic=placed(kernels == "bicubic", images.device))
        if (boxes[:, 2:] == boxes[0, 2:]).all() and (kernels == kernels[0]).all():
            mode = InterpolationMode(kernels[0])
            equal: Tensor = F.resize(_cut_equal(images, boxes), list(size), mode, antialias=True)
            return equal
    return torch.stack(
        [
            F.resized_crop(image, *box, list(size), InterpolationMode(kernel), antialias=True)
            for image, box, kernel in zip(images, boxes.tolist(), kernels, strict=True)
        ]
    )


def _cut_equal(images: Tensor, boxes: Boxes) -> Tensor:
    """Cut boxes of one extent: ``(B, C, h, w)``."""
    if (boxes == boxes[0]).all():
        same: Tensor = F.crop(images, *boxes[0].tolist())
        return same
    return _cut_together(images, boxes) if images.device.type != "cpu" else _cut_in_turn(images, boxes)


def _cut_in_turn(images: Tensor, boxes: Boxes) -> Tensor:
    """Image by image, which on the CPU is much faster than picking pixels one by one."""
    top, left = (max(0, -int(boxes[:, axis].min())) for axis in (0, 1))
    ends = boxes[:, :2].max(axis=0) + boxes[0, 2:]
    bottom, right = (max(0, int(ends[axis]) - images.shape[axis - 2]) for axis in (0, 1))
    padded = nn.functional.pad(images, (left, right, top, bottom)).numpy()
    height, width = boxes[0, 2:].tolist()
    cuts = np.empty((*images.shape[:2], height, width), dtype=np.uint8)
    for index, (row, column) in enumerate((boxes[:, :2] + (top, left)).tolist()):
        cuts[index] = padded[index, :, row : row + height, column : column + width]
    return torch.from_numpy(cuts)


def _cut_together(images: Tensor, boxes: Boxes) -> Tensor:
    (height, width), (limit_height, limit_width) = boxes[0, 2:], images.shape[-2:]
    corners, device = placed(boxes[:, :2], images.device), images.device
    rows = corners[:, :1] + torch.arange(int(height), device=device)
    columns = corners[:, 1:] + torch.arange(int(width), device=device)
    inside = ((rows >= 0) & (rows < limit_height))[:, :, None] & ((columns >= 0) & (columns < limit_width))[:, None]
    picked = images[
        torch.arange(len(images), device=device)[:, None, None, None],
        torch.arange(images.shape[1], device=device)[:, None, None],
        rows.clamp(0, limit_height - 1)[:, None, :, None],
        columns.clamp(0, limit_width - 1)[:, None, None],
    ]
    return picked * inside[:, None]


def mirror(images: Tensor, where: NDArray[np.bool_]) -> Tensor:
    """Flip those images of ``(B, C, H, W)`` left to right that the mask ``(B,)`` marks; the others are copied."""
    if images.device.type != "cpu":
        return torch.where(placed(where, images.device)[:, None, None, None], images.flip(-1), images)
    mirrored = images.clone()
    for index in np.flatnonzero(where):  # one by one, which stays in the processor's cache
        mirrored[index] = images[index].flip(-1)
    return mirrored


def centre_view(images: Tensor, spec: InputSpec, crop_pct: float | None = None) -> Tensor:
    """The view for evaluation: resize to size / crop_pct, keeping the aspect ratio, and crop the centre.

    Tiny images (up to 64 pixels) are shown whole: the margin that crop_pct cuts off is that of photographs, while
    images this small were cropped to their object when the set was made, and models are trained on all of them.

    Args:
        images: uint8 ``(..., C, H, W)``.
        crop_pct: the share of the side that is shown, instead of all this.

    Source: timm's evaluation transform, crop mode "center".
    """
    images = _without_ends(images, spec.image_size)
    old_size = images.shape[-2:]
    if crop_pct is None:
        crop_pct = 1.0 if max(old_size) <= TINY_SIDE else spec.crop_pct
    covered = [math.floor(side / crop_pct) for side in spec.image_size]
    new_size = _covering_size((old_size[0], old_size[1]), (covered[0], covered[1]))
    resized = F.resize(images, new_size, InterpolationMode(spec.interpolation), antialias=True)
    centre: Tensor = F.center_crop(resized, list(spec.image_size))
    return centre


def _without_ends(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Very long images without their ends, of which nothing would be left: resized whole they might not fit in memory.

    An even number of rows or columns is taken off, so that the centre stays where it is.
    """
    height, width = images.shape[-2:]
    longest = [math.ceil(_LONGEST * width * size[0] / size[1]), math.ceil(_LONGEST * height * size[1] / size[0])]
    top, left = max(0, (height - longest[0]) // 2), max(0, (width - longest[1]) // 2)
    return images[..., top : height - top, left : width - left]


def _covering_size(old: tuple[int, int], target: tuple[int, int]) -> list[int]:
    """The size, in the old aspect ratio, that just covers the target."""
    if old[0] * target[1] <= old[1] * target[0]:
        return [target[0], max(target[1], int(target[0] * old[1] / old[0]))]
    return [max(target[0], int(target[1] * old[0] / old[1])), target[1]]


def centre_views(images: Images, spec: InputSpec, crop_pct: float | None = None) -> Tensor:
    """:func:`centre_view` of every image: ``(B, C, h, w)``."""
    if isinstance(images, Tensor):
        return centre_view(images, spec, crop_pct)
    return torch.stack([centre_view(image, spec, crop_pct) for image in images])


def normalise(images: Tensor, spec: InputSpec) -> Tensor:
    """uint8 ``(..., C, H, W)`` -> float32 with the model's channels: 0..1, minus mean, by standard deviation.

    One grey channel is repeated for models of three.
    """
    factor, offset = _scale(spec.mean, spec.std, images.device)
    if get_worker_info() is not None and images.ndim == 4:
        # Image by image, and stacked by PyTorch straight into the memory that the batch travels in.
        batch: Tensor = default_collate([_scaled(image, factor, offset) for image in images])
        return batch
    return _scaled(images, factor, offset)


@cache
def _scale(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What values are multiplied by, and what is then added, ``(C, 1, 1)`` each."""
    means, stds = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    return (1 / (255 * stds)).to(device, torch.float32), (-means / stds).to(device, torch.float32)


def _scaled(images: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    values = images.float()
    # In place where that is possible, since fresh memory costs more than the arithmetic.
    scaled = values.mul_(factor) if values.shape[-3] == len(factor) else values * factor
    return scaled.add_(offset)


def match_channels(images: Images, specs: Iterable[InputSpec], where: Callable[[int], str]) -> Images:
    """Give all images of a batch the same channels, if the models can take them.

    Args:
        where: names the image at a position of the batch, for the message.

    Raises:
        InputError: a colour image for a model of another number of channels.
    """
    channels = [images.shape[1]] * len(images) if isinstance(images, Tensor) else [image.shape[0] for image in images]
    widest = max(channels)
    for spec in specs:
        check_channels(widest, spec, where(channels.index(widest)))
    if isinstance(images, Tensor):
        return images
    return [image.expand(widest, -1, -1) for image in images]


def check_channels(num_channels: int, spec: InputSpec, image: str) -> None:
    """Refuse an image that a model cannot take: grey fits models of one and three channels, colour those of three."""
    if spec.num_channels == 3 or spec.num_channels == num_channels == 1:
        return
    kind = "one channel (grey)" if num_channels == 1 else "three channels (colour)"
    remedy = "save the images as grey" if spec.num_channels == 1 else "use a model of one or three channels"
    raise InputError(
        f"image {image} has {kind}, the model was built for {spec.num_channels}",
        f"{spec.num_channels} channel(s)",
        f"{remedy}, or build the model for three channels",
    )
