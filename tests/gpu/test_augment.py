"""Augmentation on a GPU: the same parameters as on the CPU, and pixels within the stated tolerance."""

import numpy as np
import pytest
import torch

from crossdistill.contracts import InputSpec
from crossdistill.data.augmentation.multi_view import MultiViewTransform
from crossdistill.data.augmentation.transform import TrainTransform
from crossdistill.settings import AugmentSettings, ViewSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CHANGES = {
    "crop and flip": AugmentSettings(crop="resized", flip=0.5, interpolation="random"),
    "padding": AugmentSettings(crop="pad", flip=0.5),
    "jitter": AugmentSettings(crop="none", flip=0.0, color_jitter=0.4),
    "RandAugment": AugmentSettings(crop="none", flip=0.5, rand_augment="rand-m9-mstd0.5-inc1-p1"),
    "erasing": AugmentSettings(crop="none", flip=0.0, erase=0.5),
}


def scene(count):
    """Smooth images with edges, ``(B, 3, 48, 48)``."""
    rows, columns = np.mgrid[:48, :48]
    images = [
        np.stack([np.sin(rows / (4 + k)) * np.cos(columns / (6 + index % 5)) + (columns > 9 * k) for k in range(3)])
        for index in range(count)
    ]
    return torch.from_numpy((np.stack(images) * 55 + 90).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", CHANGES)
def test_pixels_equal_those_of_the_cpu_up_to_rounding(name):
    images, ids = scene(96), np.arange(96)
    spec = InputSpec((48, 48), 3, (0.0,) * 3, (1 / 255,) * 3)  # steps of 255
    transform = TrainTransform({"student": spec}, CHANGES[name], seed=0)
    there = transform(images.cuda(), ids, 1)["student"].cpu()
    here = transform(images, ids, 1)["student"]
    difference = (there - here).abs()
    # Two passes of resampling, or three changes of colour, may each round to the other side.
    assert (difference > 2).float().mean() <= 0.01
    if name != "RandAugment":  # there a step less may become a whole level, once it is posterised
        assert difference.max() <= 4
    assert difference.mean() < 0.3


def test_views_for_pretraining_equal_those_of_the_cpu_up_to_rounding():
    images, ids = scene(96), np.arange(96)
    spec = InputSpec((48, 48), 3, (0.0,) * 3, (1 / 255,) * 3)
    looks = ViewSettings(crop_size=34, patch_size=20, patch_base=54, flip=0.5)
    transform = MultiViewTransform(spec, spec, looks, seed=0)
    there, here = transform(images.cuda(), ids, 1), transform(images, ids, 1)
    for view, expected in here.items():
        difference = (there[view].cpu() - expected).abs()
        # Two passes of resampling and four changes of colour may each round to the other side.
        assert (difference > 2).float().mean() <= 0.01
        assert difference.mean() < 0.3
    cuts, draws = transform.cut(images, transform.draw(ids, 1)), transform.draw(ids, 1)
    moved = transform.render({key: one.cuda() for key, one in cuts.items()}, draws)
    for view, expected in transform.render(cuts, draws).items():
        assert torch.equal(moved[view].round().cpu(), expected.round())  # but for resizing, pixels are the same
