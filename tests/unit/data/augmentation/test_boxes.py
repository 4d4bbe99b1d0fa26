import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from crossdistill.data.augmentation import boxes
from oracles.crops import resized_box

SIZES = hnp.arrays(np.int64, st.tuples(st.integers(1, 5), st.just(2)), elements=st.integers(1, 300))
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def draws_for(sizes, num_draws, seed=0):
    return np.random.default_rng(seed).random((len(sizes), num_draws))


def inside(box, sizes):
    return (box[:, :2] >= 0).all() and (box[:, 2:] > 0).all() and (box[:, :2] + box[:, 2:] <= sizes).all()


@given(SIZES, st.integers(0, 2**16), st.sampled_from([SCALE, (0.5, 0.5), (1.0, 1.0)]), st.sampled_from([RATIO, (1, 1)]))
def test_resized_boxes_equal_the_loop_of_tries_and_lie_inside(sizes, seed, scale, ratio):
    draws = draws_for(sizes, boxes.NUM_RESIZED_DRAWS, seed)
    found = boxes.resized(sizes, scale=scale, ratio=ratio, draws=draws)
    expected = [resized_box(h, w, scale, ratio, row) for (h, w), row in zip(sizes.tolist(), draws, strict=True)]
    assert found.tolist() == [list(box) for box in expected]
    assert inside(found, sizes)


@pytest.mark.parametrize("size", [(100, 130), (40, 400), (300, 60)])
def test_resized_boxes_are_distributed_as_torchvisions(size):
    count = 3000
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)])
    sizes = np.array([size] * count)
    ours = boxes.resized(sizes, scale=SCALE, ratio=RATIO, draws=draws_for(sizes, boxes.NUM_RESIZED_DRAWS))
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_2samp(statistic(ours), statistic(theirs)).pvalue > 0.01


def test_resized_falls_back_to_the_centre_where_no_try_fits():
    sizes = np.array([[10, 1000], [1000, 10], [50, 50]])
    draws = np.full((3, boxes.NUM_RESIZED_DRAWS), 0.999)
    found = boxes.resized(sizes, scale=(1.0, 1.0), ratio=RATIO, draws=draws)
    assert found.tolist() == [[0, 493, 10, 13], [493, 0, 13, 10], [0, 0, 50, 50]]


@given(SIZES, st.sampled_from([(16, 16), (16, 32), (48, 16)]))
def test_centred_boxes_are_the_largest_of_the_targets_shape(sizes, target):
    found = boxes.centred(sizes, target)
    assert inside(found, sizes)
    assert ((found[:, 2:] == sizes).any(axis=1)).all()
    wanted = target[1] / target[0]
    for _, _, height, width in found.tolist():
        assert abs(width - height * wanted) <= max(1, wanted)
    margins = sizes - found[:, :2] - found[:, 2:]
    assert (np.abs(margins - found[:, :2]) <= 1).all()


def test_shifts_take_each_whole_number_of_pixels_equally_often():
    sizes = np.array([[32, 32]] * 9000)
    found = boxes.shifted(sizes, (16, 16), padding=0.125, draws=draws_for(sizes, 2))
    assert (found[:, 2:] == 32).all()
    for axis in (0, 1):
        shifts, counts = np.unique(found[:, axis], return_counts=True)
        assert shifts.tolist() == list(range(-4, 5))
        assert np.abs(counts - 1000).max() < 5 * 30  # standard deviation of a count: 30


def test_no_padding_is_no_shift():
    sizes = np.array([[32, 32], [10, 20]])
    found = boxes.shifted(sizes, (8, 8), padding=0.0, draws=draws_for(sizes, 2))
    np.testing.assert_array_equal(found, boxes.centred(sizes, (8, 8)))
