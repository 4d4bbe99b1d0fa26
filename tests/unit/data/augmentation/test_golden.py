"""The pixels of every augmentation, as they were when its version was given."""

import numpy as np
import pytest
import torch

from crossdistill.contracts import InputSpec
from crossdistill.data.augmentation.mix import draw_mixing, mix_images, mixes
from crossdistill.data.augmentation.transform import AUGMENTATION_VERSION, TrainTransform
from crossdistill.settings import AugmentSettings

KINDS = {
    "nothing": {},
    "padded crop": {"crop": "pad", "padding": 0.25},
    "resized crop": {"crop": "resized"},
    "flip": {"flip": 0.5},
    "interpolation": {"crop": "resized", "interpolation": "random"},
    "RandAugment": {"rand_augment": "rand-m9-mstd0.5-inc1"},
    "colour jitter": {"color_jitter": 0.4},
    "erasing": {"erase": 1.0},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "all": {
        "crop": "resized",
        "flip": 0.5,
        "interpolation": "random",
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "color_jitter": 0.3,
        "erase": 0.5,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}

VERSION = 1
"""Of these means of 4 x 4 pixels, three channels of each of four images, between 0 and 255."""
SEEN = {
    "nothing": [114.8, 178.5, 84.0, 114.8, 178.5, 89.0, 114.8, 178.5, 94.0, 114.8, 178.5, 99.0],
    "padded crop": [72.0, 230.0, 35.7, 103.5, 133.5, 101.0, 90.4, 226.3, 58.4, 78.3, 214.5, 59.0],
    "resized crop": [126.4, 122.0, 115.5, 91.8, 182.0, 73.0, 66.4, 192.0, 59.0, 148.5, 176.3, 118.5],
    "flip": [162.3, 178.5, 108.0, 162.3, 178.5, 113.0, 162.3, 178.5, 118.0, 114.8, 178.5, 99.0],
    "interpolation": [127.0, 122.0, 115.5, 91.8, 182.0, 73.0, 66.4, 192.0, 59.0, 148.5, 176.3, 118.5],
    "RandAugment": [109.1, 162.8, 86.1, 100.5, 161.0, 93.3, 114.8, 178.5, 94.0, 140.3, 76.5, 156.0],
    "colour jitter": [99.2, 150.4, 74.6, 107.2, 154.4, 88.1, 79.6, 143.5, 58.6, 114.5, 151.1, 105.4],
    "erasing": [117.0, 146.6, 119.8, 114.8, 178.5, 89.0, 106.8, 156.7, 105.1, 116.1, 154.8, 145.1],
    "mixup": [114.8, 178.5, 86.7, 114.8, 178.5, 86.3, 114.8, 178.5, 95.4, 114.8, 178.5, 97.6],
    "cutmix": [114.8, 178.5, 85.3, 114.8, 178.5, 87.8, 114.8, 178.5, 94.0, 114.8, 178.5, 99.0],
    "all": [135.4, 107.4, 118.7, 125.6, 133.9, 113.4, 75.0, 141.5, 66.8, 87.4, 102.5, 96.3],
}
CHANGED = "these settings give other pixels than before: raise AUGMENTATION_VERSION, and record the new ones here"

SAMPLES = np.stack([np.array([3, 14, 15, 92]), np.array([0, 0, 1, 0])], axis=1)


def images():
    """Ramps and a chequerboard, so that a shift, a flip, a turn and another kernel all show."""
    y, x, n = torch.meshgrid(torch.arange(24), torch.arange(32), torch.arange(4), indexing="ij")
    t = 60 * ((x // 2 + y // 2) % 2)
    return torch.stack([t + 7 * x, 255 - 9 * y, 4 * (x + y) + 5 * n]).permute(3, 0, 1, 2).clamp(0, 255).byte()


def seen(kind):
    settings = AugmentSettings(**{"crop": "none", "flip": 0.0} | KINDS[kind])
    spec = InputSpec((16, 16), 3, (0.5,) * 3, (0.25,) * 3)
    shown = TrainTransform({"view": spec}, settings, seed=7)(images(), SAMPLES[:, 0], 2, SAMPLES[:, 1])["view"]
    if mixes(settings):
        shown = mix_images(shown, draw_mixing(settings, 7, 2, SAMPLES, np.arange(4)))
    return 63.75 * torch.nn.functional.avg_pool2d(shown, 4)[:, :, 1, 1] + 127.5


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_change_with_the_version_of_the_augmentation_only(kind):
    """Machines may round single pixels otherwise, which moves a mean of sixteen by a sixteenth of a step."""
    assert AUGMENTATION_VERSION == VERSION, CHANGED
    off = (seen(kind).flatten() - torch.tensor(SEEN[kind])).abs().max()
    assert off < 0.25, f"{kind}: {CHANGED}"


def test_every_setting_of_the_augmentation_is_among_them():
    described = {name for settings in KINDS.values() for name in settings}
    assert described | {"scale", "ratio", "mix_probability", "cutmix_share"} == set(AugmentSettings.model_fields)
