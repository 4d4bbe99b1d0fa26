"""Changes of colour: uint8 images ``(B, C, H, W)``, each with an amount ``(B,)`` of its own, as Pillow makes them.

Hue is the exception: Pillow rounds hue and saturation to 8 bits, while here neither is rounded, as in torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.data.placing import constant

# ITU-R 601-2 luma in 16-bit integers, as Pillow's conversion to grey.
_LUMA = (19595, 38470, 7471)

# What is added to a hue, in sixths of the circle, to tell how far red, green and blue are from it.
_PLACES = (5.0, 3.0, 1.0)


def grey(images: Tensor) -> Tensor:
    """Luma as int32 ``(B, 1, H, W)``; of a grey image the image itself."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = (images[:, channel : channel + 1].int() for channel in range(3))
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16


def greyscale(images: Tensor) -> Tensor:
    """The grey of each image in as many channels as it has."""
    return grey(images).byte().expand_as(images)


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """0 is black, 1 the image, more is brighter."""
    return _blend(torch.zeros((), device=images.device), images, amount)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """0 is the mean grey, 1 the image, more is harder."""
    mean = grey(images).double().mean(dim=(1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor().float(), images, amount)


def saturation(images: Tensor, amount: Tensor) -> Tensor:
    """0 is grey, 1 the image, more is more colourful."""
    return _blend(grey(images).float(), images, amount)


def hue(images: Tensor, amount: Tensor) -> Tensor:
    """Turn hues by this share of the colour circle (-0.5 to 0.5), from red towards green; grey stays as it is.

    Source: hue, saturation and value of A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978.
    """
    if images.shape[1] == 1:
        return images
    values = images.float()
    highest = values.amax(dim=1, keepdim=True)
    span = highest - values.amin(dim=1, keepdim=True)
    turned = _hue_in_sixths(values, highest, span) + 6 * amount.float()[:, None, None, None]
    distance = (turned + constant(_PLACES, images.device)[:, None, None]) % 6
    share = torch.minimum(distance, 4 - distance).clamp_(0, 1)
    return (highest - span * share + 0.5).floor_().byte()


def _hue_in_sixths(values: Tensor, highest: Tensor, span: Tensor) -> Tensor:
    """Hue ``(B, 1, H, W)`` of colours from 0 (red) over 2 (green) and 4 (blue), up to whole turns of 6."""
    red, green, blue = (values[:, channel : channel + 1] for channel in range(3))
    divisor = span.clamp(min=1)  # of whole numbers; where all are equal there is no hue, and any will do
    after_green = torch.where(highest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    return torch.where(highest == red, (green - blue) / divisor, after_green)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """0 is blurred by a 3 x 3 window, 1 the image, more is sharper; the outermost pixels stay as they are."""
    if min(images.shape[-2:]) < 3:
        return images
    channels = images.shape[1]
    window = torch.ones(3, 3, device=images.device)
    window[1, 1] = 5
    kernel = (window / window.sum()).expand(channels, 1, 3, 3)
    blurred = images.float()
    blurred[..., 1:-1, 1:-1] = (F.conv2d(images.float(), kernel, groups=channels) + 0.5).floor()
    return _blend(blurred, images, amount)


def posterise(images: Tensor, amount: Tensor) -> Tensor:
    """Keep the highest ``amount`` bits of each value (0 to 8)."""
    return images & (256 - 2 ** (8 - amount.long())).byte()[:, None, None, None]


def solarise(images: Tensor, amount: Tensor) -> Tensor:
    """Invert values from the threshold ``amount`` on (0 to 256)."""
    return torch.where(images.short() < amount.short()[:, None, None, None], images, 255 - images)


def solarise_add(images: Tensor, amount: Tensor) -> Tensor:
    """Add ``amount`` (0 to 128) to values below 128."""
    brighter = (images.short() + amount.short()[:, None, None, None]).clamp(max=255).byte()
    return torch.where(images < 128, brighter, images)


def _blend(base: Tensor, images: Tensor, amount: Tensor) -> Tensor:
    """From ``base`` (amount 0) over the image (1) onwards; fractions are cut off, as Pillow does."""
    factor = amount.float()[:, None, None, None]
    return (base + factor * (images.float() - base)).clamp_(0, 255).byte()
