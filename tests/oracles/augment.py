"""Augmentations one image at a time, with the libraries' own operations on Pillow images."""

import math

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

PILLOW_NAMES = {
    "AUTO_CONTRAST": "AutoContrast",
    "EQUALISE": "Equalize",
    "INVERT": "Invert",
    "ROTATE": "Rotate",
    "POSTERISE": "Posterize",
    "SOLARISE": "Solarize",
    "SOLARISE_ADD": "SolarizeAdd",
    "SATURATION": "Color",
    "CONTRAST": "Contrast",
    "BRIGHTNESS": "Brightness",
    "SHARPNESS": "Sharpness",
    "SHEAR_X": "ShearX",
    "SHEAR_Y": "ShearY",
    "TRANSLATE_X": "TranslateXRel",
    "TRANSLATE_Y": "TranslateYRel",
}


def to_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def operation(image, name, amount, *, bicubic, fill):
    """One of timm's operations on uint8 ``(3, H, W)``."""
    arguments = () if name in ("AUTO_CONTRAST", "EQUALISE", "INVERT") else (amount,)
    if name in ("POSTERISE", "SOLARISE", "SOLARISE_ADD"):
        arguments = (int(amount),)
    kernel = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    keywords = {"resample": kernel, "fillcolor": fill} if name[:5] in ("ROTAT", "SHEAR", "TRANS") else {}
    return from_pillow(NAME_TO_OP[PILLOW_NAMES[name]](to_pillow(image), *arguments, **keywords))


def erased_box(size, draws):
    """Box of one image (height, width), or None, from its 42 draws: whether, noise, and ten tries of four."""
    height, width = size
    for attempt in range(10):
        area_draw, aspect_draw, top_draw, left_draw = draws[2 + 4 * attempt : 6 + 4 * attempt]
        area = (0.02 + (1 / 3 - 0.02) * area_draw) * height * width
        aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * aspect_draw)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            return math.floor(top_draw * (height - h + 1)), math.floor(left_draw * (width - w + 1)), h, w
    return None


def mixed(images, targets, places, cut, share, centre, num_classes):
    """Pairs mixed pixel by pixel: images ``(B, C, H, W)`` and class probabilities ``(B, K)``, as lists of rows."""
    out = images.clone()
    soft = torch.zeros(len(images), num_classes)
    for row, target in enumerate(targets):
        if target >= 0:
            soft[row, target] = 1
    before = soft.clone()
    height, width = images.shape[-2:]
    for pair, (first, second) in enumerate(places):
        keeps = torch.full((height, width), float(share[pair]))
        if cut[pair]:
            keeps = torch.ones(height, width)
            half_h = int(height * math.sqrt(1 - share[pair])) // 2
            half_w = int(width * math.sqrt(1 - share[pair])) // 2
            y, x = int(centre[pair][0] * height), int(centre[pair][1] * width)
            for i in range(height):
                for j in range(width):
                    if y - half_h <= i < y + half_h and x - half_w <= j < x + half_w:
                        keeps[i, j] = 0
        for one, other in ((first, second), (second, first)):
            out[one] = keeps * images[one] + (1 - keeps) * images[other]
            soft[one] = keeps.mean() * before[one] + (1 - keeps.mean()) * before[other]
            if targets[one] < 0 or targets[other] < 0:
                soft[one] = 0
    return out, soft
