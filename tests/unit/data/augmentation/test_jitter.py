import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2 import functional as F

from crossdistill.data.augmentation import jitter as jittering
from crossdistill.data.augmentation.jitter import (
    NUM_HUE_JITTER_DRAWS,
    NUM_JITTER_DRAWS,
    draw_changes,
    draw_jitter,
    jitter,
)
from crossdistill.data.philox import uniform


def draws(count, num_draws=NUM_JITTER_DRAWS):
    return uniform(0, 0, np.arange(count), 0, num_draws)


def test_factors_and_orders_are_distributed_as_torchvisions():
    factors, orders = draw_jitter(0.4, draws(6000))
    torch.manual_seed(0)
    theirs = [ColorJitter.get_params([0.6, 1.4], [0.6, 1.4], [0.6, 1.4], None) for _ in range(6000)]
    for own, other in zip(factors.T, list(zip(*theirs, strict=True))[1:4], strict=True):
        assert stats.ks_2samp(own, np.array(other, dtype=float)).pvalue > 1e-4
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_changes_come_in_the_drawn_order():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 3, 9, 7), dtype=np.uint8))
    factors, orders = draw_jitter(0.4, draws(24))
    found = jitter(images.clone(), factors, orders)
    kernels = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for image, own, factor, order in zip(images, found, factors, orders, strict=True):
        for change in order:
            image = kernels[change](image, float(factor[change]))
        # torchvision's grey is a float, ours Pillow's whole number; three changes add up to a few steps.
        assert (image.int() - own.int()).abs().max() <= 4
        assert (image.int() - own.int()).float().abs().mean() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_no_change_with_factors_of_one(channels):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, channels, 9, 7), dtype=np.uint8))
    factors, orders = draw_jitter(0.0, draws(4))
    assert torch.equal(jitter(images.clone(), factors, orders), images)


@pytest.mark.parametrize("largest", [(0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.1)])
def test_images_that_are_changed_together_become_what_they_become_one_by_one(monkeypatch, largest):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 9, 7), dtype=np.uint8))
    drawn, ways, groups = draw_changes(largest, draws(40, len(largest) + 1)), [], jittering._groups
    monkeypatch.setattr(
        jittering, "_groups", lambda orders, **way: ways.append(way["one_by_one"]) or groups(orders, **way)
    )
    found = []
    for most_values in (0, 10**9):
        monkeypatch.setattr(jittering, "_MOST_VALUES", most_values)
        found.append(jitter(images.clone(), *drawn))
    assert ways == [True, False]
    assert torch.equal(*found)


def test_hue_and_its_place_are_distributed_as_torchvisions():
    largest = (0.4, 0.3, 0.2, 0.1)
    amounts, orders = draw_changes(largest, draws(6000, NUM_HUE_JITTER_DRAWS))
    torch.manual_seed(0)
    ranges = [[1 - one, 1 + one] for one in largest[:3]]
    theirs = [ColorJitter.get_params(*ranges, [-0.1, 0.1]) for _ in range(6000)]
    for own, other in zip(amounts.T, list(zip(*theirs, strict=True))[1:], strict=True):
        assert stats.ks_2samp(own, np.array(other, dtype=float)).pvalue > 1e-4
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


def test_hue_leaves_the_draws_of_the_others_where_they_are():
    drawn = draws(50, NUM_HUE_JITTER_DRAWS)
    both = draw_changes((0.4, 0.4, 0.4, 0.1), drawn)[0], draw_jitter(0.4, drawn[:, :NUM_JITTER_DRAWS])[0]
    assert np.array_equal(both[0][:, :3], both[1])
