import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from timm.data.random_erasing import RandomErasing

from crossdistill.data.augmentation import erase as erasing
from crossdistill.data.augmentation.erase import NUM_ERASE_DRAWS, draw_erasures, erase
from crossdistill.data.philox import uniform
from oracles.augment import erased_box


def draws(count, seed=0):
    return uniform(seed, 0, np.arange(count), 0, NUM_ERASE_DRAWS)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**30))
def test_boxes_equal_those_of_a_loop_over_tries(height, width, seed):
    own = draws(8, seed)
    boxes, _ = draw_erasures(1.0, (height, width), own)
    for box, row in zip(boxes.tolist(), own, strict=True):
        assert box == list(erased_box((height, width), row) or (0, 0, 0, 0))


def test_boxes_are_distributed_as_those_of_timm():
    count, side = 8_000, 96
    boxes, _ = draw_erasures(0.25, (side, side), draws(count))
    random.seed(0)
    theirs, transform = [], RandomErasing(probability=0.25, mode="const", device="cpu")
    for _ in range(count):
        image = transform(torch.ones(1, side, side))[0] == 0
        if image.any():
            rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
            theirs.append((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    ours = boxes[boxes[:, 2] > 0]
    assert stats.binomtest(len(ours), count, 0.25).pvalue > 1e-4
    for own, other in zip(ours.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(own, other).pvalue > 1e-4
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], np.array(theirs)[:, 2:].prod(1)).pvalue > 1e-4


def test_only_the_box_becomes_standard_normal_noise():
    images = torch.full((400, 3, 40, 40), 7.0)
    boxes, starts = draw_erasures(0.5, (40, 40), draws(400))
    erased = erase(images.clone(), boxes, starts, seed=3)
    values = []
    for image, (top, left, height, width) in zip(erased, boxes.tolist(), strict=True):
        inside = torch.zeros(40, 40, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert (image[:, ~inside] == 7).all()
        values.append(image[:, inside].flatten())
    noise = torch.cat(values)
    assert len(noise) > 50_000
    assert (noise.mean().abs(), (noise.std() - 1).abs()) < (0.02, 0.02)
    assert stats.kstest(noise[::50].numpy(), "norm").pvalue > 1e-4


def test_noise_is_a_function_of_the_seed_and_of_where_it_starts():
    boxes, starts = np.array([[1, 2, 5, 6]] * 3), np.array([9, 9, 2**20 - 4])  # the last runs over the table's end
    first, again = (erase(torch.zeros(3, 2, 10, 10), boxes, starts, seed=1) for _ in range(2))
    other = erase(torch.zeros(3, 2, 10, 10), boxes, starts, seed=2)
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(probability):
    boxes, _ = draw_erasures(probability, (64, 64), draws(200))
    assert (boxes[:, 2] > 0).mean() == probability


@pytest.mark.parametrize("size", [(40, 40), (9, 30)])
@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_boxes_are_filled_on_an_accelerator_as_one_by_one(size, probability):
    images = torch.randn(60, 3, *size)
    boxes, starts = draw_erasures(probability, size, draws(60))
    starts[::2] = 2**20 - 7  # the noise runs over the table's end
    noise, erased = erasing._noise(0, images.device), np.flatnonzero(boxes[:, 2])
    together = erasing._erase_together(images.clone(), erased, boxes, starts, noise)
    assert torch.equal(together, erasing._erase_in_turn(images.clone(), erased, boxes, starts, noise))
    assert torch.equal(together, images) == (probability == 0)
