import math

import numpy as np
import pytest
import torch

from crossdistill.data.augmentation import blur as blurring
from crossdistill.data.augmentation.blur import blur, radius_of
from oracles import views


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


SIGMAS = np.array([0.02, 0.1, 0.5, 1.0, 1.7, 2.0])


@pytest.mark.parametrize("shape", [(6, 3, 40, 31), (6, 1, 7, 12), (6, 3, 1, 5)])
def test_blur_is_scipys(shape):
    images, radius = noise(*shape), radius_of(2.0)
    found = blur(images, SIGMAS, radius)
    assert found.dtype == torch.uint8
    for image, sigma, own in zip(images, SIGMAS, found, strict=True):
        # Half a step for rounding, and what float32 loses of 255 in thirty sums.
        assert (views.blur(image, sigma, radius) - own).abs().max() <= 0.5 + 1e-4


def test_the_kernel_leaves_out_less_than_a_step():
    assert radius_of(2.0) == 8
    assert radius_of(0.01) == 1
    edge = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    edge[..., 32:] = 255
    for sigma in (0.5, 1.3, 2.0):
        found, expected = (blur(edge, np.array([sigma]), radius) for radius in (radius_of(sigma), 30))
        assert (found.int() - expected.int()).abs().max() <= 1  # as far as rounding may go


def test_a_narrow_blur_and_one_of_a_single_colour_change_nothing():
    images = noise(4, 3, 9, 9)
    assert torch.equal(blur(images, np.full(4, 0.05), 1), images)
    plain = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 1, 5, 6)
    assert torch.equal(blur(plain, np.linspace(0.1, 2, 256), 8), plain)


def test_more_blur_leaves_less_contrast():
    found = blur(noise(1, 3, 32, 32).expand(6, -1, -1, -1), SIGMAS, 8).float().std(dim=(1, 2, 3))
    assert (found[1:] <= found[:-1]).all()
    assert found[-1] < found[0] / 4


@pytest.mark.parametrize("most_values", [1, 3 * 17 * 14 * 2, math.inf])
def test_an_image_does_not_depend_on_the_others(most_values, monkeypatch):
    images, sigma = noise(6, 3, 17, 14), SIGMAS
    whole = blur(images, sigma, 8)
    monkeypatch.setattr(blurring, "_MOST_VALUES", most_values if most_values < math.inf else 10**9)
    for rows in ([5, 1], [2], [0, 1, 2, 3, 4, 5]):
        assert torch.equal(blur(images[rows], sigma[rows], 8), whole[rows])


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_mirrored_image_becomes_the_mirrored_result(axis):
    images = noise(6, 3, 17, 14)
    assert torch.equal(blur(images.flip(axis), SIGMAS, 8), blur(images, SIGMAS, 8).flip(axis))
