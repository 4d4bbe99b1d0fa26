import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from crossdistill.data.augmentation import colour
from oracles import views
from oracles.augment import from_pillow, to_pillow

AMOUNTS = [-0.5, -0.31, -0.1, 0.0, 0.04, 0.25, 0.5]


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def plain(*rgb):
    return torch.tensor(rgb, dtype=torch.uint8)[None, :, None, None]


def turned(images, amount):
    return colour.hue(images, torch.full((len(images),), amount, dtype=torch.float64))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_hue_is_that_of_colorsys_and_of_torchvision(amount):
    images = noise(1, 3, 24, 24)
    images[0, :, :4] = images[0, :1, :4]  # some grey, and some equal channels
    images[0, 1, 4:8] = images[0, 0, 4:8]
    found = turned(images, amount)[0]
    # Half a step for rounding, and what float32 loses of 255.
    assert (views.hue(images[0], amount) - found).abs().max() <= 0.5 + 1e-3
    # torchvision cuts off what is below 1/1000 of a step short of the next one, instead of rounding.
    assert (F.adjust_hue(images[0], amount).int() - found.int()).abs().max() <= 1


@pytest.mark.parametrize("amount", AMOUNTS)
def test_hue_is_pillows_but_for_its_rounding_to_8_bits(amount):
    images = noise(1, 3, 50, 40)
    pillow = F.adjust_hue(to_pillow(images[0]), amount)
    difference = (from_pillow(pillow).int() - turned(images, amount)[0].int()).abs().float()
    # Pillow cuts hue and turn off to steps of 1/255, each 6 steps of a colour, and rounds saturation and result.
    assert difference.max() <= 18
    assert difference.mean() < 2


def test_known_hues():
    red = plain(200, 20, 20)
    for amount, expected in ((1 / 3, (20, 200, 20)), (-1 / 3, (20, 20, 200)), (0.5, (20, 200, 200))):
        assert torch.equal(turned(red, amount), plain(*expected))
        assert torch.equal(turned(turned(red, amount), -amount), red)


def test_no_turn_and_grey_change_nothing():
    images = noise(4, 3, 32, 32)
    assert torch.equal(turned(images, 0.0), images)
    grey = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 2, 2)
    assert torch.equal(turned(grey, 0.3), grey)


def test_every_image_has_its_own_amount():
    images, amounts = noise(7, 3, 9, 11), torch.tensor(AMOUNTS, dtype=torch.float64)
    together = colour.hue(images, amounts)
    for image, amount, found in zip(images, AMOUNTS, together, strict=True):
        assert torch.equal(turned(image[None], amount)[0], found)


def test_one_channel_has_neither_hue_nor_saturation():
    images, amount = noise(4, 1, 8, 8), torch.full((4,), 0.4)
    assert torch.equal(colour.hue(images, amount), images)
    assert torch.equal(colour.saturation(images, amount), images)
    assert torch.equal(colour.greyscale(images), images)


def test_greyscale_is_pillows():
    images = noise(1, 3, 64, 64)
    expected = Image.merge("RGB", [to_pillow(images[0]).convert("L")] * 3)
    assert torch.equal(colour.greyscale(images)[0], from_pillow(expected))
