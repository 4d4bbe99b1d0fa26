import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crossdistill.data.augmentation.patches import NUM_PATCH_DRAWS, NUM_WINDOWS, Grid
from crossdistill.data.philox import uniform
from oracles import views

PUBLISHED = Grid.of(base=256, patch=96)


def draws(count, seed=0):
    return uniform(seed, 0, np.arange(count), 0, NUM_PATCH_DRAWS)


def constant(shift, count=1):
    """Draws of one value for all shifts, and of windows in their order."""
    keys = np.arange(NUM_WINDOWS) / NUM_WINDOWS
    return np.tile(np.concatenate([np.full(2 * NUM_WINDOWS, shift), keys]), (count, 1))


def sizes():
    return st.integers(1, 600).flatmap(lambda base: st.tuples(st.just(base), st.integers(1, base)))


def test_the_published_grid():
    assert (PUBLISHED.shift, PUBLISHED.stride) == (24, 68)
    first, last = (PUBLISHED.windows(9, constant(shift))[0] for shift in (0.0, 1 - 2**-32))
    assert first[:, :2].tolist() == [[row, column] for row in (0, 68, 136) for column in (0, 68, 136)]
    assert last[:, :2].tolist() == [[row, column] for row in (24, 92, 160) for column in (24, 92, 160)]
    assert last[-1].tolist() == [160, 160, 96, 96]
    assert 160 + 96 == 256  # the last window ends where its image does


def test_shifts_are_uniform_and_take_in_both_ends():
    corners = PUBLISHED.windows(9, draws(2000))[..., :2].reshape(-1, 2)
    for axis in (0, 1):
        _, counts = np.unique(corners[:, axis] % 68, return_counts=True)
        assert len(counts) == 25
        assert stats.chisquare(counts).pvalue > 1e-4
    assert (corners.min(), corners.max()) == (0, 160)
    assert abs(np.corrcoef(corners.T % 68)[0, 1]) < 5 / len(corners) ** 0.5


@given(sizes(), st.integers(1, 9), st.integers(0, 2**16))
def test_windows_lie_inside_and_none_comes_twice(size, count, seed):
    base, patch = size
    grid = Grid.of(base=base, patch=patch)
    assert 0 <= grid.shift <= base - patch
    assert base - patch - grid.shift - 2 * grid.stride in (0, 1)  # no more is left than halving leaves
    boxes = grid.windows(count, draws(3, seed))
    assert boxes.shape == (3, count, 4)
    assert (boxes[..., 2:] == patch).all()
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., :2] + patch <= base).all()


@given(sizes(), st.integers(1, 9), st.integers(0, 2**16))
def test_windows_are_those_of_the_loop(size, count, seed):
    base, patch = size
    image = torch.arange(base)[:, None] * 1000 + torch.arange(base)
    (row,) = draws(1, seed)
    expected = views.patches(image[None], patch, count, row)[:, 0, 0, 0].tolist()
    corners = Grid.of(base=base, patch=patch).windows(count, row[None])[0, :, :2]
    assert [1000 * top + left for top, left in corners.tolist()] == expected


@pytest.mark.parametrize("count", range(1, 10))
def test_windows_are_kept_without_replacement_and_equally_often(count):
    boxes = PUBLISHED.windows(count, draws(900))[..., :2] // 68
    places = 3 * boxes[..., 0] + boxes[..., 1]
    assert all(len(set(own)) == count for own in places.tolist())
    kept = np.bincount(places.reshape(-1), minlength=9)
    assert (abs(kept - 100 * count) <= 5 * (100 * count * (1 - count / 9)) ** 0.5).all()
    if count == 9:
        assert len({tuple(own) for own in places.tolist()}) > 850  # of 362,880 orders


def test_more_patches_leave_the_first_ones_as_they_are():
    whole = PUBLISHED.windows(9, draws(5))
    assert np.array_equal(PUBLISHED.windows(4, draws(5)), whole[:, :4])


@pytest.mark.parametrize(("base", "patch", "shift", "stride"), [(37, 14, 3, 10), (10, 10, 0, 0), (100, 95, 5, 0)])
def test_other_sizes(base, patch, shift, stride):
    assert Grid.of(base=base, patch=patch) == Grid(base, patch, shift, stride)
