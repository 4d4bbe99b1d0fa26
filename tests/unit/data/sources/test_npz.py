import numpy as np
import pytest

from crossdistill.data import open_source
from crossdistill.data.sources import npz
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


def open_at(path, **settings):
    return open_source(DataSettings(source=f"npz:{path}", **settings))


def test_the_layout_of_medmnist(tmp_path, write_npz, make_arrays):
    path = write_npz(tmp_path / "set.npz")
    splits = open_at(path)
    images, labels = make_arrays(6, seed=6)
    assert [len(one.targets) for one in (splits.train, splits.validation, splits.evaluation)] == [8, 4, 6]
    assert (splits.evaluation_name, splits.class_names, splits.train.mirror_safe) == ("test", ("0", "1"), True)
    assert splits.evaluation.targets.tolist() == labels.tolist()
    assert (splits.train.num_channels, splits.train.image_size) == (1, (6, 5))
    np.testing.assert_array_equal(splits.evaluation.read_batch(np.arange(6)).images[:, 0], images)
    assert splits.evaluation.describe(2) == f"{path} (test), image 2"


def test_colour_images_and_flat_labels(tmp_path, write_npz, make_arrays):
    images, labels = make_arrays(8, shape=(6, 5, 3))
    train = open_at(write_npz(tmp_path / "x.npz", train_images=images, train_labels=labels.astype(np.int64))).train
    assert (train.num_channels, train.image_size) == (3, (6, 5))
    np.testing.assert_array_equal(train.read(7).permute(1, 2, 0), images[7])


def test_splits_by_settings(tmp_path, write_npz, make_arrays):
    images, labels = make_arrays(10)
    path = write_npz(tmp_path / "x.npz", extra_images=images, extra_labels=labels)
    splits = open_at(path, train_split="extra", evaluation_split="val")
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.validation) == (10, 4, None)
    with pytest.raises(InputError, match="extra, test, train, val"):
        open_at(path, train_split="more")


def test_one_split_alone_is_divided(tmp_path, write_npz, make_arrays):
    images, labels = make_arrays(20)
    none = dict.fromkeys(["val_images", "val_labels", "test_images", "test_labels"])
    splits = open_at(write_npz(tmp_path / "x.npz", train_images=images, train_labels=labels, **none))
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (16, 4, "val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_labels": np.array([[-1], [0]] * 4)},
            r"(?s)label -1 of image 0 of .*train_labels \(4 such labels\)\n.*no negative",
        ),
        ({"train_labels": np.zeros((8, 1), np.uint8)}, "only one class, '0'"),
        ({"train_labels": np.linspace(0, 1, 8)}, r"type float64 and shape \(8,\)"),
        ({"train_labels": np.array(["cat", "dog"] * 4)}, r"type <U3"),
        ({"train_labels": np.ones((8, 14), np.uint8)}, r"shape \(8, 14\)(?s:.*)several labels an image"),
        ({"train_labels": np.array([0, 1, 0])}, "8 images and 3 labels"),
        (
            {"test_labels": np.full(6, 5)},
            r"label 5 of image 0 of .*test_labels \(6 such labels\)\n.*2 classes of the training data",
        ),
        ({"train_images": np.zeros((8, 6, 5), np.float32)}, r"type float32 and shape \(8, 6, 5\)"),
        ({"train_images": np.zeros((8, 6, 5, 4, 3), np.uint8)}, r"shape \(8, 6, 5, 4, 3\)"),
        ({"train_images": np.zeros((0, 6, 5), np.uint8)}, r"shape \(0, 6, 5\)"),
        ({"train_labels": None}, r"no train_labels; its arrays: train_images, val_images, val_labels"),
        (
            {"train_labels": np.array([{}, None] * 4)},
            "cannot be read: train_labels: it holds Python objects, which are never unpickled",
        ),
    ],
)
def test_wrong_arrays(tmp_path, write_npz, changes, message):
    path = write_npz(tmp_path / "x.npz", **changes)
    with pytest.raises(InputError, match=message) as caught:
        open_at(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path, write_npz):
    path = write_npz(tmp_path / "x.npz")
    whole = path.read_bytes()
    for broken, message in (
        (whole[: len(whole) // 2], ""),
        (whole[:-30], ""),
        (b"", "it is empty"),
        (b"hello, this is text", "it is no archive of arrays"),
        (whole.replace(whole[200:210], b"0123456789"), ""),
    ):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=rf"x\.npz, which cannot be read: {message}") as caught:
            open_at(path)
        assert "pickle" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        open_at(tmp_path / "gone.npz")
    with pytest.raises(InputError, match="is a folder"):
        open_at(tmp_path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="one array alone"):
        open_at(tmp_path / "one.npy")
    np.savez(tmp_path / "other.npz", x_train=np.zeros(3), y_train=np.zeros(3))
    with pytest.raises(InputError, match="no images; its arrays: x_train, y_train"):
        open_at(tmp_path / "other.npz")


def test_two_names_of_one_split(tmp_path, write_npz, make_arrays):
    images, labels = make_arrays(4)
    path = write_npz(tmp_path / "x.npz", validation_images=images, validation_labels=labels)
    with pytest.raises(InputError, match=r"x\.npz with 'val' and 'validation', which both mean the split 'val'"):
        open_at(path)


def test_every_array_is_read_once(tmp_path, write_npz, monkeypatch):
    path, read, read_array = write_npz(tmp_path / "x.npz"), [], npz._array
    monkeypatch.setattr(npz, "_array", lambda file, key: read.append(key) or read_array(file, key))
    open_at(path)
    assert sorted(read) == sorted(
        f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")
    )
