"""Every real data set that is kept beside the checkout opens with its published counts, classes and first images."""

import json

import numpy as np
import pytest

from crossdistill import cli
from crossdistill.data import open_source
from crossdistill.settings import DataSettings


def opened(source, **settings):
    return open_source(DataSettings(source=source, **settings))


@pytest.fixture
def data_folder(shared, tmp_path, monkeypatch):
    """Make CROSSDISTILL_DATA a folder in which sets lie under the names that are asked for."""

    def link(**folders):
        for name, folder in folders.items():
            (tmp_path / name).symlink_to(shared(f"data/{folder}"))
        monkeypatch.setenv("CROSSDISTILL_DATA", str(tmp_path))

    return link


def test_cifar100_by_its_name(data_folder):
    data_folder(cifar100="cifar100")
    splits = opened("cifar100")
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (50_000, 10_000)
    assert (splits.train.targets[0], splits.evaluation.targets[0]) == (19, 49)
    assert len(splits.class_names) == 100
    assert splits.class_names[19] == "cattle"
    assert splits.train.mirror_safe
    assert splits.train.read(0)[:, 0, 0].tolist() == [255, 255, 255]
    coarse = opened("cifar100", label_column="coarse_label")
    assert np.bincount(coarse.evaluation.targets).tolist() == [500] * 20


def test_splits_of_cifar100_by_settings(shared):
    source = f"parquet:{shared('data/cifar100')}"
    turned = opened(source, train_split="test", evaluation_split="train")
    assert (turned.train.targets[0], turned.evaluation.targets[0], turned.evaluation_name) == (49, 19, "train")
    alone = opened(f"{source}/test-*.parquet")
    assert (len(alone.train.targets), len(alone.evaluation.targets), alone.evaluation_name) == (8000, 2000, "val")


def test_mnist_by_its_name(data_folder):
    data_folder(mnist="mnist")
    splits = opened("mnist")
    assert np.bincount(splits.train.targets).tolist() == [
        *(5923, 6742, 5958, 6131, 5842),
        *(5421, 5918, 6265, 5851, 5949),
    ]
    assert splits.train.targets[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert splits.evaluation.targets[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert splits.class_names == tuple("0123456789")
    assert (splits.train.num_channels, splits.train.image_size) == (1, (28, 28))
    assert not splits.train.mirror_safe
    five = splits.train.read(0)
    assert five.shape == (1, 28, 28)
    assert five[0, 5, 12:20].tolist() == [3, 18, 18, 18, 126, 136, 175, 26]
    pixels = splits.train.source.images / np.float32(255)
    assert (pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)) == pytest.approx((0.1307, 0.3081), abs=5e-5)


def test_fashion_mnist_by_its_name(data_folder):
    data_folder(**{"fashion-mnist": "fashion-mnist-subset"})
    splits = opened("fashion_mnist")
    assert np.bincount(splits.train.targets).tolist() == [560, 643, 608, 612, 584, 594, 590, 617, 590, 602]
    assert np.bincount(splits.evaluation.targets).tolist() == [107, 105, 111, 93, 115, 87, 97, 95, 95, 95]
    assert splits.class_names[splits.train.targets[0]] == "Ankle boot"
    assert splits.train.mirror_safe


def test_imagenette_by_its_name(data_folder):
    data_folder(imagenette="imagenette-128")
    splits = opened("imagenette")
    assert np.bincount(splits.train.targets).tolist() == [260] * 10
    assert np.bincount(splits.evaluation.targets).tolist() == [90] * 10
    assert splits.evaluation_name == "val"
    assert splits.class_names[0] == "tench"
    assert min(splits.train.read(0).shape[1:]) == 128


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("raw", ([500, 0, 0, 150, 100], [96, 0, 0, 24, 26], [96, 0, 0, 41, 22])),
        ("clahe", ([50] * 5, [20] * 5, [10] * 5)),
    ],
)
def test_a_variant_of_the_knee_radiographs_by_a_pattern(shared, variant, counts):
    splits = opened(f"parquet:{shared('data/knee-kl')}/{variant}-*.parquet")
    for source, expected in zip((splits.train, splits.evaluation, splits.validation), counts, strict=True):
        assert np.bincount(source.targets, minlength=5).tolist() == expected
    assert splits.evaluation_name == "test"
    assert splits.class_names == ("KL0", "KL1", "KL2", "KL3", "KL4")
    assert splits.train.read(0).shape == (1, 224, 224)
    assert opened(f"parquet:{shared('data/knee-kl')}/{variant}-*", evaluation_split="val").validation is None


def test_pneumoniamnist(shared):
    splits = opened(f"npz:{shared('data/pneumoniamnist')}/pneumoniamnist_balanced.npz")
    assert [np.bincount(one.targets).tolist() for one in (splits.train, splits.validation, splits.evaluation)] == [
        [1214, 1214],
        [135, 135],
        [234, 234],
    ]
    assert (splits.evaluation_name, splits.class_names) == ("test", ("0", "1"))
    assert splits.train.read(0).shape == (1, 28, 28)


def test_parquet_files_through_the_datasets_library(shared, tmp_path):
    """The same rows as through our own reader, also from what ``save_to_disk`` writes."""
    datasets = pytest.importorskip("datasets")
    from datasets import Dataset, DatasetDict

    datasets.disable_progress_bars()
    folder = shared("data/knee-kl")
    parts = {
        split: Dataset.from_parquet(
            str(folder / f"clahe-{split}-00000-of-00001.parquet"), cache_dir=str(tmp_path / "c")
        )
        for split in ("train", "val", "test")
    }
    DatasetDict(parts).save_to_disk(str(tmp_path / "knee"))
    ours, theirs = opened(f"parquet:{folder}/clahe-*"), opened(f"hf:{tmp_path / 'knee'}")
    assert ours.class_names == theirs.class_names
    for one, other in ((ours.train, theirs.train), (ours.evaluation, theirs.evaluation)):
        np.testing.assert_array_equal(one.targets, other.targets)
        for index in (0, len(one.targets) - 1):
            assert one.read(index).equal(other.read(index))


def test_training_from_the_command_line(shared, tmp_path):
    data, out = f"idx:{shared('data/fashion-mnist-subset')}", tmp_path / "run"
    line = "train --model timm/test_resnet --image-size 32 --limit-train 20 --batch-size 10 --steps 2 --device cpu"
    assert cli.run([*line.split(), "--data", data, "--out", str(out), "data.evaluation_split=test"]) == 0
    told = json.loads((out / "results.json").read_text())["data"]
    assert (told["source"], told["num_classes"], told["num_evaluation"]) == (data, 10, 1000)
