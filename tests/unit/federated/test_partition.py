"""Dealing out images: nothing twice, nothing lost, as unequal as asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.federated.partition import (
    Draw,
    by_group,
    dirichlet,
    histogram,
    hold_private,
    shards,
    take_transfer,
)

TARGETS = np.random.default_rng(0).integers(0, 10, 2000)
IDS = np.arange(2000)


@given(
    num_clients=st.integers(1, 20),
    alpha=st.sampled_from([0.05, 0.1, 0.5, 5.0, 100.0]),
    samples=st.one_of(st.none(), st.integers(1, 100)),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_parts_are_of_equal_size_and_share_nothing(num_clients, alpha, samples, seed):
    parts = dirichlet(TARGETS, IDS, num_clients=num_clients, alpha=alpha, samples=samples, seed=seed)
    size = 2000 // num_clients if samples is None else samples
    assert [len(part) for part in parts] == [size] * num_clients
    everything = np.concatenate(parts)
    assert len(np.unique(everything)) == len(everything)
    assert set(everything) <= set(IDS)


def test_a_part_only_holds_what_may_be_dealt_out():
    ids = np.flatnonzero(IDS % 3 == 0)
    parts = dirichlet(TARGETS, ids, num_clients=4, alpha=0.1, samples=50, seed=1)
    assert set(np.concatenate(parts)) <= set(ids)


def test_the_seed_decides():
    how = {"num_clients": 5, "alpha": 0.5, "samples": 100}
    first, again, other = (dirichlet(TARGETS, IDS, seed=seed, **how) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def _classes_for_nine_tenths(parts):
    shares = np.stack([histogram(TARGETS, part, 10) / len(part) for part in parts])
    return float(np.mean([(np.cumsum(np.sort(row)[::-1]) < 0.9).sum() + 1 for row in shares]))


def test_a_small_alpha_gives_few_classes_and_a_large_one_all_alike():
    few, many = (dirichlet(TARGETS, IDS, num_clients=10, alpha=alpha, samples=100, seed=0) for alpha in (0.1, 100.0))
    assert _classes_for_nine_tenths(few) < 3.5
    assert _classes_for_nine_tenths(many) > 8
    shares = np.stack([histogram(TARGETS, part, 10) / 100 for part in many])
    # Dirichlet(100) has standard deviation 0.0095 a class, and the classes are drawn once more as whole images.
    assert np.abs(shares - 0.1).max() < 0.06


def test_shares_follow_the_dirichlet_distribution():
    """Mean squared share of a class: (alpha + 1) / (C (C alpha + 1)), where supply does not bind."""
    targets = np.repeat(np.arange(10), 20_000)
    parts = dirichlet(targets, np.arange(len(targets)), num_clients=400, alpha=0.5, samples=200, seed=5)
    shares = np.stack([histogram(targets, part, 10) / 200 for part in parts])
    expected = (0.5 + 1) / (10 * (10 * 0.5 + 1))
    assert (shares**2).mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("clients", "samples"), [(3000, None), (10, 201)])
def test_more_images_than_there_are_are_refused(clients, samples):
    with pytest.raises(InputError, match="2000 images"):
        dirichlet(TARGETS, IDS, num_clients=clients, alpha=1.0, samples=samples, seed=0)


def test_all_images_go_to_somebody_where_supply_binds():
    parts = dirichlet(TARGETS, IDS, num_clients=10, alpha=0.05, samples=200, seed=2)
    assert np.array_equal(np.sort(np.concatenate(parts)), IDS)


def test_shards_hold_few_classes_and_everything_is_dealt():
    parts = shards(TARGETS, IDS, num_clients=10, per_client=2, seed=0)
    assert np.array_equal(np.sort(np.concatenate(parts)), IDS)
    assert max(len(np.unique(TARGETS[part])) for part in parts) <= 4  # a shard of 100 may lie across two classes
    with pytest.raises(InputError, match="image a shard"):
        shards(TARGETS, IDS, num_clients=1001, per_client=2, seed=0)


def test_groups_are_the_values_of_a_column():
    parts = by_group(["b", "a", "b", 3, "a"], np.array([0, 1, 2, 3]))
    assert {name: part.tolist() for name, part in parts.items()} == {"3": [3], "a": [1], "b": [0, 2]}


@given(num=st.integers(1, 200), share=st.floats(0.05, 0.5), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_private_part_is_held_out(num, share, seed):
    kept, held = hold_private(TARGETS, IDS[:num], share=share, seed=seed, number=1, purpose=Draw.PRIVATE)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), IDS[:num])
    assert len(kept) >= 1
    assert len(held) == (min(num - 1, max(1, round(share * num))) if num > 1 else 0)


def test_held_out_images_are_spread_over_classes():
    kept, held = hold_private(TARGETS, IDS, share=0.2, seed=0, number=0, purpose=Draw.PRIVATE)
    shares = histogram(TARGETS, held, 10) / histogram(TARGETS, IDS, 10)
    assert np.abs(shares - 0.2).max() < 0.01
    assert len(kept) == 1600


def test_clients_hold_out_differently_and_validation_is_not_the_test():
    halves = [
        hold_private(TARGETS, IDS[:100], share=0.5, seed=0, number=number, purpose=purpose)[1]
        for number, purpose in ((0, Draw.PRIVATE), (1, Draw.PRIVATE), (0, Draw.TEST))
    ]
    assert not np.array_equal(halves[0], halves[1])
    assert not np.array_equal(halves[0], halves[2])


def test_no_image_held_out_of_one_and_none_of_none():
    for num in (0, 1):
        kept, held = hold_private(TARGETS, IDS[:num], share=0.2, seed=0, number=0, purpose=Draw.PRIVATE)
        assert (len(kept), len(held)) == (num, 0)


def test_the_transfer_set_is_apart_and_a_limit_shortens_it_only():
    chosen, left = take_transfer(1000, share=0.2, limit=None, seed=0)
    fewer, same = take_transfer(1000, share=0.2, limit=50, seed=0)
    assert len(chosen) == 200
    assert np.array_equal(np.sort(np.concatenate([chosen, left])), np.arange(1000))
    assert len(fewer) == 50
    assert set(fewer) <= set(chosen)
    assert len(same) == 950
