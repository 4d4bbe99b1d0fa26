from pathlib import Path

import numpy as np
import pytest

from crossdistill.data.sources.arrays import ArraySource
from crossdistill.data.sources.split_names import Chosen, by_split, choose_splits, prefix, split_name, split_words
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


def choose(*present, **settings):
    reported = settings.pop("reported", ("test", "val"))
    return choose_splits(present, DataSettings(source="x", **settings), "here", reported=reported)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("raw-train-00000.parquet", "train"),
        ("imagenet-val-000012.tar", "val"),
        ("t10k-images-idx3-ubyte.gz", "test"),
        ("imagenet1k-validation-00.tar", "val"),
        ("dev_3.tar.gz", "val"),
        ("TRAINING.parquet", "train"),
        ("test0.tar", "test"),
        ("set.valid.0001.tar", "val"),
        ("train/0000.parquet", "train"),
        ("Validation/shard-3.tar", "val"),
        ("train/test-0.parquet", "test"),
        ("unlabeled-00000-of-00004-9f8e7d.parquet", "unlabeled"),
        ("shard-000012.tar", "shard"),
        ("svhn-extra-3.tar", "svhn-extra"),
        ("trains-0.tar", "trains"),
        ("pictures/0000.tar", "pictures"),
        ("0000.tar", "all"),
    ],
)
def test_the_split_of_one_file(name, split):
    assert by_split([Path(name)]) == {split: [Path(name)]}


def test_files_keep_their_order_and_unknown_folders_are_splits():
    files = [Path(name) for name in ("extra/b-1.tar", "train/b-2.tar", "extra/a-1.tar", "train/a-2.tar")]
    assert by_split(files) == {"extra": [files[0], files[2]], "train": [files[1], files[3]]}


def test_what_stands_before_the_split():
    assert [prefix(Path(name)) for name in ("raw-train-0.parquet", "train-0.parquet", "a1-b-test.tar", "x7.tar")] == [
        *("raw", "", "a-b"),
        "x",
    ]


def test_words_for_splits():
    assert [split_name(word) for word in ("Train", "testing", "dev", "Extra")] == ["train", "test", "val", "Extra"]


def test_one_word_for_each_split():
    assert split_words(["Train", "dev", "extra"], "here") == {"train": "Train", "val": "dev", "extra": "extra"}
    for words in (["train", "extra", "training"], ["val", "validation"], ["Test", "test"]):
        with pytest.raises(InputError, match=f"here with '{words[0]}' and '{words[-1]}', which both mean the split"):
            split_words(words, "here")


@pytest.mark.parametrize(
    ("present", "settings", "chosen"),
    [
        (["train", "test"], {}, Chosen("train", "test")),
        (["train", "val"], {}, Chosen("train", "val")),
        (["test", "val", "train", "extra"], {}, Chosen("train", "test", "val")),
        (["train", "extra"], {}, Chosen("train")),
        (["train"], {}, Chosen("train")),
        (["shard"], {}, Chosen("shard")),
        (["test"], {}, Chosen("test")),
        (["train", "val", "test"], {"evaluation_split": "validation"}, Chosen("train", "val")),
        (["train", "val", "extra"], {"evaluation_split": "extra"}, Chosen("train", "extra", "val")),
        (["train", "test", "extra"], {"train_split": "extra"}, Chosen("extra", "test")),
        (["train", "test"], {"train_split": "test"}, Chosen("test")),
        (["a", "b"], {"train_split": "b", "evaluation_split": "a"}, Chosen("b", "a")),
        (["train", "val", "test"], {"reported": ("val", "test")}, Chosen("train", "val")),
        (["train", "test"], {"reported": ("val", "test")}, Chosen("train", "test")),
        (["train", "dev"], {"evaluation_split": "dev"}, Chosen("train", "dev")),
    ],
)
def test_which_splits_are_used(present, settings, chosen):
    assert choose(*present, **settings) == chosen


@pytest.mark.parametrize(
    ("present", "settings", "message"),
    [
        (["a", "b"], {}, "here with the splits a, b"),
        (["test", "val"], {}, "here with the splits test, val"),
        (["all"], {"evaluation_split": "test"}, "here with the splits all"),
        ([], {}, "splits none"),
        (["train", "test"], {"train_split": "extra"}, r"train_split='extra'.*here.*\n.*one of its splits: test, train"),
        (["train", "test"], {"evaluation_split": "val"}, r"evaluation_split='val'.*\n.*test, train"),
        (["train", "val"], {"evaluation_split": "train"}, "'train' both to train on and to report on"),
        (["train", "val"], {"train_split": "val", "evaluation_split": "dev"}, "'val' both"),
    ],
)
def test_splits_that_cannot_be_used(present, settings, message):
    with pytest.raises(InputError, match=message):
        choose(*present, **settings)


def source(name, labels):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource(name, images, np.array(labels, dtype=np.int64), ("a", "b"), mirror_safe=False)


def test_a_split_alone_is_divided_for_good():
    splits = Chosen("only").open(lambda name: source(name, [0, 1] * 10))
    assert (splits.evaluation_name, splits.train.name, splits.evaluation.name) == ("val", "only (train)", "only (val)")
    held = [int(one.read(index)) for one in (splits.train, splits.evaluation) for index in range(len(one))]
    assert sorted(held) == list(range(20))
    assert [index % 2 for index in held] == [*splits.train.targets, *splits.evaluation.targets]
    assert (np.bincount(splits.evaluation.targets).tolist(), splits.train.mirror_safe) == ([2, 2], False)
    assert splits.evaluation.describe(0) == f"only, image {held[16]}"
    assert (splits.train.num_channels, splits.train.image_size) == (1, (1, 1))


def test_only_the_splits_in_use_are_opened():
    opened = []

    def open_split(name):
        opened.append(name)
        return source(name, [0, 1])

    splits = Chosen("train", "test", "val").open(open_split)
    assert opened == ["train", "test", "val"]
    assert (splits.evaluation.name, splits.validation.name, splits.class_names) == ("test", "val", ("a", "b"))


def test_one_class_to_train_on_and_nothing_to_report_on():
    with pytest.raises(InputError, match="train: only one class, 'b'"):
        Chosen("train", "test").open(lambda name: source(name, [1, 1]))
    for empty in ("test", "val"):
        with pytest.raises(InputError, match=f"{empty}, which holds no image"):
            Chosen("train", "test", "val").open(lambda name, empty=empty: source(name, [] if name == empty else [0, 1]))
