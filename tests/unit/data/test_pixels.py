from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms.v2 import functional as F

from crossdistill.data import pixels
from crossdistill.errors import InputError
from oracles.crops import cut_with_zeros


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(8, 8), (20, 20), (12, 17)])
@pytest.mark.parametrize("kind", ["shifted", "same", "mixed"])
def test_a_batch_is_cut_as_its_images_one_by_one(interpolation, size, kind):
    images = noise(5, 3, 12, 12)
    generator = np.random.default_rng(1)
    boxes = np.array([[0, 0, 12, 12]] * 5)
    if kind == "shifted":
        boxes[:, :2] = generator.integers(-3, 4, (5, 2))
    if kind == "mixed":
        boxes = np.concatenate([generator.integers(0, 5, (5, 2)), generator.integers(1, 8, (5, 2))], axis=1)
    together = pixels.cut(images, boxes, size, np.full(5, interpolation))
    one_by_one = pixels.cut(list(images), boxes, size, np.full(5, interpolation))
    assert together.dtype == torch.uint8
    assert together.shape == (5, 3, *size)
    assert torch.equal(together, one_by_one)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(-7, 7), st.integers(-9, 9)), min_size=1, max_size=4))
def test_pixels_outside_the_image_are_zero(corners):
    images = noise(len(corners), 2, 7, 9) // 2 + 1
    boxes = np.array([[top, left, 7, 9] for top, left in corners])
    expected = torch.stack([cut_with_zeros(image, box) for image, box in zip(images, boxes.tolist(), strict=True)])
    assert torch.equal(pixels.cut(images, boxes, (7, 9), np.full(len(corners), "bilinear")), expected)


def test_cut_equals_torchvisions_resized_crop():
    image = noise(3, 40, 50)
    ours = pixels.cut([image], np.array([[3, 5, 20, 31]]), (24, 24), np.array(["bicubic"]))[0]
    theirs = F.resized_crop(image, 3, 5, 20, 31, [24, 24], F.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 2), (3, 9_999)])
def test_very_long_images_lose_their_ends_before_they_are_resized(spec, shape):
    image = noise(3, *shape)
    ramp = torch.arange(max(shape)).mul(255).div(max(shape)).byte()
    image[0] = ramp.view(1, -1) if shape[1] > shape[0] else ramp.view(-1, 1)
    view = pixels.centre_view(image, spec(224))
    assert view.shape == (3, 224, 224)
    assert abs(view[0].float().mean() - 127) < 2  # its centre is the image's


def test_images_of_usual_shapes_keep_their_ends():
    image = noise(3, 10, 300)
    assert torch.equal(pixels._without_ends(image, (224, 224)), image)


def test_mirror_flips_the_marked_images_only():
    images = noise(3, 1, 4, 5)
    flipped = pixels.mirror(images, np.array([True, False, True]))
    assert torch.equal(flipped[1], images[1])
    assert torch.equal(flipped[[0, 2]], F.horizontal_flip(images[[0, 2]]))
    assert torch.equal(pixels.mirror(images, np.zeros(3, dtype=bool)), images)


@pytest.mark.parametrize("old_size", [(80, 100), (131, 97), (300, 90), (96, 96)])
@pytest.mark.parametrize(("size", "crop_pct"), [((48, 48), 0.875), ((48, 48), 1.0), ((56, 56), 0.95)])
def test_evaluation_view_is_timms(spec, old_size, size, crop_pct):
    steep = 7 * np.add.outer(np.arange(old_size[0]), np.arange(old_size[1])) % 256
    array = np.stack([steep, steep[::-1], steep[:, ::-1]], axis=-1).astype(np.uint8)
    ours = pixels.centre_view(torch.from_numpy(array).permute(2, 0, 1), spec(size, crop_pct=crop_pct))
    transform = create_transform((3, *size), crop_pct=crop_pct, interpolation="bicubic", normalize=False)
    theirs = transform(Image.fromarray(array))
    # Both round after each of two passes, of which the second scales the first's half level by at most 1.5.
    assert (ours.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize(("side", "whole"), [(32, True), (64, True), (65, False)])
def test_tiny_images_are_shown_whole(spec, side, whole):
    image = noise(1, side, side)
    view = pixels.centre_view(image, spec(80, num_channels=1, crop_pct=0.5))
    everything = F.resize(image, [80, 80], F.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(view, everything) == whole


def test_wide_targets_are_covered(spec):
    assert pixels.centre_view(noise(3, 90, 70), spec((32, 64))).shape == (3, 32, 64)


def test_a_batch_is_viewed_as_its_images_one_by_one(spec):
    images = noise(4, 3, 70, 81)
    assert torch.equal(pixels.centre_views(images, spec(32)), pixels.centre_views(list(images), spec(32)))


def test_normalise_is_its_formula(spec):
    images = noise(2, 3, 5, 5)
    wanted = replace(spec(5), mean=(0.1, 0.4, 0.7), std=(0.2, 0.25, 0.3))
    found = pixels.normalise(images, wanted)
    assert found.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(wanted.mean, wanted.std, strict=True)):
        expected = (images[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_normalise_repeats_grey_for_models_of_three_channels(spec):
    grey = noise(2, 1, 5, 5)
    assert torch.equal(pixels.normalise(grey, spec(5)), pixels.normalise(grey.expand(-1, 3, -1, -1), spec(5)))
    assert pixels.normalise(grey, spec(5, num_channels=1)).shape == (2, 1, 5, 5)


def test_grey_among_colour_becomes_three_channels(spec):
    matched = pixels.match_channels([noise(1, 4, 4), noise(3, 6, 6)], [spec()], str)
    assert [image.shape[0] for image in matched] == [3, 3]
    assert torch.equal(matched[0][2], noise(1, 4, 4)[0])


@pytest.mark.parametrize("images", [noise(2, 3, 4, 4), [noise(1, 4, 4), noise(3, 5, 5)]])
def test_colour_is_refused_by_models_of_one_channel(spec, images):
    with pytest.raises(InputError, match=r"picture-\d.*three channels.*built for 1"):
        pixels.match_channels(images, [spec(), spec(num_channels=1)], lambda position: f"picture-{position}")


def test_other_channel_counts_are_refused(spec):
    with pytest.raises(InputError, match="built for 4"):
        pixels.check_channels(1, spec(num_channels=4), "x.png")


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (12, 20)])
def test_boxes_of_one_extent_are_cut_on_an_accelerator_as_one_by_one(size):
    images = noise(30, 3, 7, 9)
    corners = np.random.default_rng(0).integers(-15, 15, (30, 2))
    boxes = np.concatenate([corners, np.tile(size, (30, 1))], axis=1)
    assert torch.equal(pixels._cut_together(images, boxes), pixels._cut_in_turn(images, boxes))
