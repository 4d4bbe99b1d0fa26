import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.data.philox import Purpose, philox4x32, random_order, random_words, uniform, uniform_where
from oracles.philox import philox4x32 as oracle

WORDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, expected):
    assert tuple(philox4x32(np.array(counter, dtype=np.uint32), key).tolist()) == expected


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=5), st.tuples(WORDS, WORDS))
def test_equals_the_slow_generator(counters, key):
    expected = [oracle(counter, key) for counter in counters]
    assert philox4x32(np.array(counters, dtype=np.uint32), key).tolist() == [list(words) for words in expected]


def test_every_part_of_the_address_changes_the_draws():
    base = {"seed": 1, "epoch": 2, "sample_id": np.array([3]), "view": 0, "num_draws": 4, "purpose": Purpose.AUGMENT}
    changes = [
        {},
        {"seed": 2},
        {"seed": 1 + 2**32},
        {"epoch": 3},
        {"sample_id": np.array([4])},
        {"sample_id": np.array([3 + 2**32])},
        {"view": 1},
        {"purpose": Purpose.SPLIT},
    ]
    draws = {tuple(random_words(**base | change)[0].tolist()) for change in changes}
    assert len(draws) == len(changes)


def test_a_sample_draws_the_same_in_any_batch_and_with_more_draws():
    few = uniform(7, 1, np.array([5, 9]), 0, 3)
    many = uniform(7, 1, np.array([9, 2, 5]), 0, 44)
    np.testing.assert_array_equal(few[0], many[2, :3])
    np.testing.assert_array_equal(few[1], many[0, :3])


def test_draws_are_uniform():
    draws = uniform(0, 0, np.arange(20_000), 0, 5)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    # Each of 10 bins holds 10,000 of 100,000 draws, with a standard deviation of 95.
    assert np.abs(np.histogram(draws, bins=10, range=(0, 1))[0] - 10_000).max() < 5 * 95
    # Correlations of independent columns have a standard deviation of 0.007.
    assert np.abs(np.corrcoef(draws, rowvar=False) - np.eye(5)).max() < 5 * 0.007


def test_random_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [random_order(500, seed=s, epoch=e, purpose=Purpose.PERMUTATION) for s in (0, 1) for e in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("wanted", [[0], [5, 6], [2, 3, 4, 90], [], list(range(91))])
def test_draws_that_are_wanted_alone_are_those_of_all(wanted):
    mask = np.zeros(91, dtype=bool)
    mask[wanted] = True
    ids, view = np.array([3, 2**40, 0]), np.array([0, 7, 1])
    some, every = uniform_where(5, 2, ids, view, mask), uniform(5, 2, ids, view, 91)
    assert some.shape == every.shape
    np.testing.assert_array_equal(some[:, mask], every[:, mask])
    assert np.isnan(some).any() == (len(wanted) < 88)
