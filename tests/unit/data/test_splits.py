import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.data import select_training
from crossdistill.data.splits import fixed_split
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

UNBALANCED = np.repeat([0, 1, 2], [50, 30, 20])


def choose(targets=UNBALANCED, seed=0, select_best=False, class_names=None, **settings):
    return select_training(targets, DataSettings(source="digits", **settings), seed, select_best, class_names)


def counts(ids, targets=UNBALANCED):
    return np.bincount(targets[ids], minlength=targets.max() + 1).tolist()


def test_all_images_and_labels_by_default():
    chosen = choose()
    np.testing.assert_array_equal(chosen.train_ids, np.arange(100))
    assert chosen.labelled.all()
    assert len(chosen.val_ids) == 0


def test_limit_keeps_the_proportions():
    assert counts(choose(limit_train=10).train_ids) == [5, 3, 2]
    assert counts(choose(limit_train=4).train_ids) == [2, 1, 1]
    assert counts(choose(limit_train=100).train_ids) == [50, 30, 20]


def test_validation_is_held_out_of_the_training_images():
    chosen = choose(select_best=True, val_share=0.2)
    assert counts(chosen.val_ids) == [10, 6, 4]
    assert counts(chosen.train_ids) == [40, 24, 16]
    assert not set(chosen.val_ids) & set(chosen.train_ids)


def test_limit_comes_before_validation():
    chosen = choose(select_best=True, val_share=0.2, limit_train=50)
    assert (len(chosen.train_ids), len(chosen.val_ids)) == (40, 10)


def test_labels_per_class_leaves_the_images():
    chosen = choose(labels_per_class=5, select_best=True, val_share=0.2)
    labelled = chosen.train_ids[chosen.labelled[chosen.train_ids]]
    assert counts(labelled) == [5, 5, 5]
    assert len(chosen.train_ids) == 80
    assert chosen.labelled[chosen.val_ids].all()


def test_unlabelled_images_stay_unlabelled():
    targets = np.where(np.arange(100) % 2 == 0, UNBALANCED, -1)
    chosen = choose(targets, labels_per_class=3)
    assert counts(np.flatnonzero(chosen.labelled)) == [3, 3, 3]
    assert (targets[chosen.labelled] >= 0).all()


def test_more_labels_extend_fewer():
    few, many = (set(np.flatnonzero(choose(labels_per_class=n).labelled)) for n in (5, 10))
    assert few < many


@pytest.mark.parametrize("setting", [{"limit_train": 30}, {"labels_per_class": 5}, {"select_best": True}])
def test_choices_depend_on_the_seed_alone(setting):
    def chosen(seed):
        selection = choose(seed=seed, **setting)
        return selection.train_ids.tolist(), selection.labelled.tolist(), selection.val_ids.tolist()

    assert chosen(1) == chosen(1) != chosen(2)


@given(st.lists(st.integers(2, 60), min_size=2, max_size=12), st.floats(0.01, 0.99))
def test_fixed_split_is_a_stratified_partition(sizes, share):
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, held_out = fixed_split(targets, round(share * len(targets)))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(targets)))
    wanted = np.clip(round(share * len(targets)), len(sizes), len(targets) - len(sizes))
    assert len(held_out) == wanted
    chosen = np.bincount(targets[held_out], minlength=len(sizes))
    assert (chosen >= 1).all()
    assert (chosen <= np.array(sizes) - 1).all()
    exact = np.array(sizes) * wanted / len(targets)
    if (np.floor(exact) >= 1).all() and (np.ceil(exact) < sizes).all():
        assert (np.abs(chosen - exact) < 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit_train": 2}, "one image a class"),
        ({"limit_train": 101}, "limit_train=101 for 100"),
        ({"labels_per_class": 21}, "class 'fox' has 20 images"),
        ({"labels_per_class": 3, "limit_train": 10}, "class 'fox' has 2 images"),
    ],
)
def test_too_few_images_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        choose(class_names=("cat", "dog", "fox"), **settings)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(InputError, match=r"class 1 with 1 image"):
        choose(np.array([0, 0, 0, 1]), select_best=True)
