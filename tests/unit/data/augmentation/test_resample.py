import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from crossdistill.data.augmentation.resample import resized_boxes

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 20, 26), dtype=np.uint8))


@st.composite
def overlapping(draw):
    """Top, left, height and width of a box that shows some of the image, and whether it is resized bicubically."""
    height, width = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    return draw(st.integers(1 - height, 19)), draw(st.integers(1 - width, 25)), height, width, draw(st.booleans())


@settings(max_examples=40, deadline=None)
@given(st.lists(overlapping(), min_size=6, max_size=6), st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_matrices_give_the_pixels_of_torchvision_up_to_rounding(boxes, size):
    bicubic = torch.tensor([box[4] for box in boxes])
    found = resized_boxes(IMAGES, np.array([box[:4] for box in boxes]), size, bicubic=bicubic)
    for image, own, (top, left, height, width, cubic) in zip(IMAGES, found, boxes, strict=True):
        mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
        expected = F.resized_crop(image, top, left, height, width, list(size), mode, antialias=True)
        difference = (own.int() - expected.int()).abs()
        assert difference.max() <= 2  # torchvision's weights for uint8 are rounded, too
        assert (difference > 1).float().mean() <= 0.02


@pytest.mark.parametrize("bicubic", [False, True])
def test_a_box_in_its_own_size_is_cut_exactly(bicubic):
    boxes = np.array([[3, 4, 10, 12]] * 6)
    found = resized_boxes(IMAGES, boxes, (10, 12), bicubic=torch.full((6,), bicubic))
    assert torch.equal(found, IMAGES[:, :, 3:13, 4:16])
