"""Crops one image at a time: the box of a random resized crop by its loop of tries, and padding by a larger canvas."""

import math

import torch


def resized_box(height, width, scale, ratio, draws):
    """Box of one image from its 40 draws (area, aspect ratio, top, left of each of ten tries)."""
    for attempt in range(10):
        area_draw, aspect_draw, top_draw, left_draw = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspect_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(top_draw * (height - h + 1)), math.floor(left_draw * (width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w, h = max(1, round(height * ratio[1])), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def cut_with_zeros(image, box):
    """The part of ``(C, H, W)`` that a box covers, zero where it reaches outside, pixel by pixel."""
    top, left, height, width = box
    part = torch.zeros(image.shape[0], height, width, dtype=image.dtype)
    for row in range(height):
        for column in range(width):
            if 0 <= top + row < image.shape[1] and 0 <= left + column < image.shape[2]:
                part[:, row, column] = image[:, top + row, left + column]
    return part
