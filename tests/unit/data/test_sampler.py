import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.data import sampler
from crossdistill.data.sampler import class_balanced, most_often, num_steps, permutation, shuffled
from crossdistill.errors import InputError


def batches(num_samples, *, seed, epoch, **sizes):
    """Positions only, of every sample once."""
    steps = sampler.batches(shuffled(num_samples, seed=seed, epoch=epoch), **sizes)
    return [[micro[:, 0] for micro in step] for step in steps]


@st.composite
def plans(draw):
    world_size = draw(st.sampled_from([1, 2, 3]))
    batch_size = draw(st.integers(1, 12)) * (2 * world_size if world_size > 1 else 1)
    return {
        "num_samples": draw(st.integers(2 * world_size, 150)),
        "batch_size": batch_size,
        "world_size": world_size,
        "device_batch_size": draw(st.one_of(st.none(), st.integers(2, 20))),
        "drop_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**40)),
        "epoch": draw(st.integers(0, 300)),
    }


@given(plans())
def test_processes_and_micro_batches_share_out_each_batch_of_the_permutation(plan):
    by_rank = [batches(rank=rank, **plan) for rank in range(plan["world_size"])]
    order = permutation(plan["num_samples"], seed=plan["seed"], epoch=plan["epoch"])
    used = order
    if plan["drop_last"] and plan["num_samples"] > plan["batch_size"]:
        used = order[: len(order) // plan["batch_size"] * plan["batch_size"]]
    whole = [used[start : start + plan["batch_size"]] for start in range(0, len(used), plan["batch_size"])]
    assert {len(steps) for steps in by_rank} == {len(whole)}
    for step, expected in enumerate(whole):
        together = np.concatenate([micro for steps in by_rank for micro in steps[step]])
        np.testing.assert_array_equal(together, expected)


@given(plans())
def test_partners_stay_together_and_sizes_keep_their_limit(plan):
    order = permutation(plan["num_samples"], seed=plan["seed"], epoch=plan["epoch"])
    place = np.argsort(order)
    for rank in range(plan["world_size"]):
        for step in batches(rank=rank, **plan):
            for micro in step:
                limit = plan["device_batch_size"] or plan["batch_size"]
                # Only a single last sample may go over the limit, with the pair that it has joined.
                assert 1 <= len(micro) <= limit or (len(micro) == 3 and limit == 2 and micro is step[-1])
                assert len(micro) > 1 or len(step) == 1
                starts = place[micro] - place[micro][0]
                np.testing.assert_array_equal(starts, np.arange(len(micro)))
                # Inside its batch a micro-batch begins with the first of a pair; only the batch's end may be odd.
                assert place[micro][0] % plan["batch_size"] % 2 == 0
                ends_batch = (place[micro][-1] + 1) % plan["batch_size"] == 0 or place[micro][-1] + 1 == len(order)
                assert len(micro) % 2 == 0 or ends_batch


def test_full_steps_have_equal_shares_for_every_process():
    for rank in range(4):
        for step in batches(1000, seed=0, epoch=0, batch_size=64, rank=rank, world_size=4, device_batch_size=6):
            assert [len(micro) for micro in step] == [4, 6, 6]


def test_a_small_set_is_one_batch():
    (only,) = batches(7, seed=0, epoch=0, batch_size=64)
    assert sorted(np.concatenate(only)) == list(range(7))
    assert num_steps(7, 64) == 1


@pytest.mark.parametrize(("num_samples", "drop_last", "expected"), [(128, True, 2), (190, True, 2), (190, False, 3)])
def test_num_steps(num_samples, drop_last, expected):
    assert num_steps(num_samples, 64, drop_last=drop_last) == expected
    assert len(batches(num_samples, seed=0, epoch=0, batch_size=64, drop_last=drop_last)) == expected


@pytest.mark.parametrize(
    ("share", "limit", "expected"),
    [
        (64, None, [64]),
        (64, 64, [64]),
        (64, 63, [32, 32]),
        (16, 5, [4, 4, 4, 4]),
        (9, 4, [2, 4, 3]),
        (9, 3, [2, 2, 2, 3]),
        (9, 2, [2, 2, 2, 3]),
        (3, 2, [3]),
        (1, 2, [1]),
        (1, 1, [1]),
    ],
)
def test_sizes_of_micro_batches(share, limit, expected):
    (step,) = batches(share, seed=0, epoch=0, batch_size=share, device_batch_size=limit)
    assert [len(micro) for micro in step] == expected


def test_epochs_differ_and_repeat():
    first, again, second = (permutation(100, seed=3, epoch=epoch).tolist() for epoch in (0, 0, 1))
    assert first == again != second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 3}, "batch_size=66"),
        ({"world_size": 2, "batch_size": 6}, "batch_size=8"),
        ({"world_size": 32, "num_samples": 50}, "50 training images for 32 process"),
        ({"num_samples": 0}, "0 training images"),
        ({"device_batch_size": 1}, "at least 2"),
    ],
)
def test_sizes_that_cannot_be_shared_out_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        batches(**{"num_samples": 100, "batch_size": 64, "seed": 0, "epoch": 0} | changes)


@given(st.lists(st.integers(-1, 6), min_size=1, max_size=120), st.integers(0, 2**40), st.integers(0, 300))
def test_balanced_classes_come_equally_often_and_images_of_rare_ones_again(classes, seed, epoch):
    classes = np.array(classes)
    order = class_balanced(classes, seed=seed, epoch=epoch)
    counts = np.array([(classes[order[:, 0]] == one).sum() for one in np.unique(classes)])
    assert len(order) == len(classes)
    assert counts.max() - counts.min() <= 1
    assert len(np.unique(order, axis=0)) == len(order)  # an image that comes again is another occurrence
    for one, count in zip(np.unique(classes), counts, strict=True):
        shown = np.bincount(order[classes[order[:, 0]] == one, 0], minlength=len(classes))[classes == one]
        assert shown.max() - shown.min() <= 1
        assert shown.sum() == count
    assert most_often(classes) == np.bincount(order[:, 0]).max()
    for position in np.unique(order[:, 0]):
        occurrences = order[order[:, 0] == position, 1]
        assert sorted(occurrences) == list(range(len(occurrences)))


def test_a_balanced_epoch_is_a_function_of_seed_and_epoch_and_shows_all_of_a_large_class_in_time():
    classes = np.repeat([0, 1, 2], [90, 9, 1])
    first, again, second = (class_balanced(classes, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    seen = {int(i) for epoch in range(20) for i in class_balanced(classes, seed=1, epoch=epoch)[:, 0]}
    assert seen == set(range(100))
    # Neighbours are mixing partners: balanced classes must be mixed among each other, not each with itself.
    partners = classes[first[:, 0]].reshape(-1, 2)
    assert 0.4 < (partners[:, 0] != partners[:, 1]).mean() < 0.9
