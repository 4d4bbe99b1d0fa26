"""The views of pretraining one image at a time: Pillow's colours, colorsys for hue, scipy for blur, loops for patches.

What each draw is for is written down here once more, by its place.
"""

import colorsys
import math
from itertools import permutations

import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter1d
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from oracles.augment import from_pillow, to_pillow
from oracles.crops import resized_box


def hue(image, amount):
    """``(3, H, W)`` with every pixel's hue turned by a share of the circle, not yet rounded."""
    out = torch.empty(image.shape, dtype=torch.float64)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, row, column].double() / 255).tolist())
            out[:, row, column] = 255 * torch.tensor(colorsys.hsv_to_rgb((h + amount) % 1, s, v), dtype=torch.float64)
    return out


def blur(image, sigma, radius):
    """``(C, H, W)`` through scipy's filters in double precision, not yet rounded."""
    values = image.double().numpy()
    for axis in (2, 1):
        values = gaussian_filter1d(values, sigma, axis=axis, mode="mirror", radius=min(radius, image.shape[axis] - 1))
    return torch.from_numpy(values)


def rounded(values):
    return (values + 0.5).floor().byte()


def jitter(image, largest, draws):
    """Brightness, contrast, saturation and hue in random order, from five draws."""
    order = list(permutations(range(4)))[math.floor(24 * draws[4])]
    for change in order:
        offset = largest[change] * (2 * draws[change] - 1)
        if change == 3:
            image = rounded(hue(image, offset))
        else:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            image = from_pillow(kind(to_pillow(image)).enhance(1 + offset))
    return image


def look(image, size, scale, draws, looks, interpolation, *, blurs):
    """A crop with its changes of colour, blur and flip, from the 50 draws of its look."""
    box = resized_box(*image.shape[1:], scale, (3 / 4, 4 / 3), draws[:40])
    image = F.resized_crop(image, *box, [size, size], InterpolationMode(interpolation), antialias=True)
    if draws[45] < looks.jitter_probability:
        image = jitter(image, looks.color_jitter, draws[40:45])
    if draws[46] < looks.grey_probability:
        image = from_pillow(Image.merge("RGB", [to_pillow(image).convert("L")] * 3))
    if blurs and draws[47] < looks.blur_probability:
        low, high = looks.blur_sigma
        sigma, radius = (low + (high - low) * draws[48]) * size / 160, max(1, math.ceil(4 * high * size / 160))
        image = rounded(blur(image, sigma, radius))
    return image.flip(-1) if draws[49] < looks.flip else image


def patches(base, size, count, draws):
    """Windows of a base of ``(C, S, S)``, from 27 draws: shift down and right of each of nine, then their order."""
    shift = min(round(24 / 256 * base.shape[1]), base.shape[1] - size)
    stride = (base.shape[1] - size - shift) // 2
    windows = []
    for place in range(9):
        top = place // 3 * stride + math.floor(draws[2 * place] * (shift + 1))
        left = place % 3 * stride + math.floor(draws[2 * place + 1] * (shift + 1))
        windows.append(base[:, top : top + size, left : left + size])
    order = sorted(range(9), key=lambda place: draws[18 + place])
    return torch.stack([windows[place] for place in order[:count]])


def student_views(image, looks, draws, interpolation):
    """Crops ``(N, 3, s, s)`` and patches ``(M, 3, p, p)`` of a colour image, uint8."""
    crops = [
        look(
            image,
            looks.crop_size,
            looks.crop_scale,
            draws[88 + 56 * number : 144 + 56 * number],
            looks,
            interpolation,
            blurs=True,
        )
        for number in range(looks.crops)
    ]
    base = look(image, looks.patch_base, looks.patch_scale, draws[32:88], looks, interpolation, blurs=False)
    return torch.stack(crops), patches(base, looks.patch_size, looks.patches, draws[4:31])
