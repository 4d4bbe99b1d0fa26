"""Work on uint8 pixels: cutting, resizing, channels, normalisation; an image and a batch come out the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from crossdistill.contracts import InputSpec
from crossdistill.data.boxes import Boxes
from crossdistill.data.held import Images
from crossdistill.data.source import TINY_SIDE
from crossdistill.errors import InputError


def cut(images: Images, boxes: Boxes, size: tuple[int, int], interpolation: str) -> Tensor:
    """Cut a box out of each image and resize it: uint8 ``(B, C, *size)``; zero outside the image.

    Boxes of one extent on images of one shape are cut and resized all at once, with the same result.
    """
    mode = InterpolationMode(interpolation)
    if isinstance(images, Tensor) and (boxes[:, 2:] == boxes[0, 2:]).all():
        equal: Tensor = F.resize(_cut_equal(images, boxes), list(size), mode, antialias=True)
        return equal
    return torch.stack(
        [
            F.resized_crop(image, *box, list(size), mode, antialias=True)
            for image, box in zip(images, boxes.tolist(), strict=True)
        ]
    )


def _cut_equal(images: Tensor, boxes: Boxes) -> Tensor:
    """Cut boxes of one extent: ``(B, C, h, w)``."""
    if (boxes == boxes[0]).all():
        same: Tensor = F.crop(images, *boxes[0].tolist())
        return same
    (height, width), (limit_height, limit_width) = boxes[0, 2:], images.shape[-2:]
    rows = torch.from_numpy(boxes[:, 0, None] + np.arange(height))
    columns = torch.from_numpy(boxes[:, 1, None] + np.arange(width))
    inside = ((rows >= 0) & (rows < limit_height))[:, :, None] & ((columns >= 0) & (columns < limit_width))[:, None]
    picked = images[
        torch.arange(len(images))[:, None, None, None],
        torch.arange(images.shape[1])[:, None, None],
        rows.clamp(0, limit_height - 1)[:, None, :, None],
        columns.clamp(0, limit_width - 1)[:, None, None],
    ]
    return picked * inside[:, None]


def mirror(images: Tensor, where: Tensor) -> Tensor:
    """Flip those images of ``(B, C, H, W)`` left to right that the mask ``(B,)`` marks."""
    return torch.where(where[:, None, None, None], images.flip(-1), images) if bool(where.any()) else images


def centre_view(images: Tensor, spec: InputSpec) -> Tensor:
    """The view for evaluation: resize to size / crop_pct, keeping the aspect ratio, and crop the centre.

    Tiny images (up to 64 pixels) are shown whole: the margin that crop_pct cuts off is that of photographs, while
    images this small were cropped to their object when the set was made, and models are trained on all of them.

    Args:
        images: uint8 ``(..., C, H, W)``.

    Source: timm's evaluation transform, crop mode "center".
    """
    old_size = images.shape[-2:]
    crop_pct = 1.0 if max(old_size) <= TINY_SIDE else spec.crop_pct
    covered = [math.floor(side / crop_pct) for side in spec.image_size]
    new_size = _covering_size((old_size[0], old_size[1]), (covered[0], covered[1]))
    resized = F.resize(images, new_size, InterpolationMode(spec.interpolation), antialias=True)
    centre: Tensor = F.center_crop(resized, list(spec.image_size))
    return centre


def _covering_size(old: tuple[int, int], target: tuple[int, int]) -> list[int]:
    """The size, in the old aspect ratio, that just covers the target."""
    if old[0] * target[1] <= old[1] * target[0]:
        return [target[0], max(target[1], int(target[0] * old[1] / old[0]))]
    return [max(target[0], int(target[1] * old[0] / old[1])), target[1]]


def centre_views(images: Images, spec: InputSpec) -> Tensor:
    """:func:`centre_view` of every image: ``(B, C, h, w)``."""
    if isinstance(images, Tensor):
        return centre_view(images, spec)
    return torch.stack([centre_view(image, spec) for image in images])


def normalise(images: Tensor, spec: InputSpec) -> Tensor:
    """uint8 ``(..., C, H, W)`` -> float32 with the model's channels: 0..1, minus mean, by standard deviation.

    One grey channel is repeated for models of three.
    """
    shares = F.to_dtype(images, torch.float32, scale=True)
    normalised: Tensor = F.normalize(shares, list(spec.mean), list(spec.std))  # broadcasts one channel to three
    return normalised


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
