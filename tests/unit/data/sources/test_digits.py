import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from crossdistill.data import open_source
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

DIGITS = DataSettings(source="digits")


def test_split_is_fixed_stratified_and_complete():
    splits = open_source(DIGITS)
    assert splits.evaluation_name == "test"
    assert splits.class_names == tuple("0123456789")
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (1437, 360)
    whole = np.bincount(load_digits().target)
    assert np.abs(np.bincount(splits.evaluation.targets) - whole * 360 / 1797).max() < 1
    rows = [source.read_batch(np.arange(len(source.targets))).images for source in (splits.train, splits.evaluation)]
    ours = torch.cat(rows).flatten(1).numpy()
    theirs = np.rint(load_digits().data * 255 / 16)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.astype(int).tolist()))
    again = open_source(DIGITS)
    np.testing.assert_array_equal(again.train.targets, splits.train.targets)
    assert torch.equal(again.train.read(17), splits.train.read(17))


def test_facts():
    train = open_source(DIGITS).train
    assert (train.num_channels, train.image_size, train.mirror_safe) == (1, (8, 8), False)
    assert train.read(3).dtype == torch.uint8
    assert train.read(3).shape == (1, 8, 8)
    assert train.describe(3) == "digits train, image 3"


def test_splits_by_settings():
    turned = open_source(DataSettings(source="digits", train_split="test", evaluation_split="train"))
    assert (len(turned.train.targets), len(turned.evaluation.targets), turned.evaluation_name) == (360, 1437, "train")
    with pytest.raises(InputError, match="test, train"):
        open_source(DataSettings(source="digits", evaluation_split="val"))
