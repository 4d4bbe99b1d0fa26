import gzip
import pickle

import numpy as np
import pytest

from crossdistill.data import open_source
from crossdistill.data.sources import idx
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


def open_at(path, **settings):
    return open_source(DataSettings(source=f"idx:{path}", **settings))


@pytest.mark.parametrize("packed", [False, True])
def test_the_layout_of_mnist(tmp_path, write_idx, make_arrays, packed):
    splits = open_at(write_idx(tmp_path, packed=packed))
    images, labels = make_arrays(8)
    assert splits.train.targets.tolist() == labels.tolist()
    assert (len(splits.evaluation.targets), splits.evaluation_name, splits.class_names) == (4, "test", ("0", "1"))
    assert (splits.train.num_channels, splits.train.image_size, splits.train.mirror_safe) == (1, (6, 5), False)
    for index in range(8):
        np.testing.assert_array_equal(splits.train.read(index), images[index][None])
    np.testing.assert_array_equal(splits.train.read_batch(np.array([3, 1])).images[:, 0], images[[3, 1]])
    assert splits.train.describe(3) == f"{tmp_path} (train), image 3"


@pytest.mark.parametrize("axes", ["last", "second"])
def test_colour_images(tmp_path, write_idx, make_arrays, axes):
    images, labels = make_arrays(6, shape=(6, 5, 3))
    stored = images if axes == "last" else images.transpose(0, 3, 1, 2)
    train = open_at(write_idx(tmp_path, train=(stored, labels), test=(stored, labels))).train
    assert (train.num_channels, train.image_size) == (3, (6, 5))
    np.testing.assert_array_equal(train.read(2).permute(1, 2, 0), images[2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train)).read(2).permute(1, 2, 0), images[2])


def test_other_names_of_files_and_of_splits(tmp_path, write_idx, make_arrays):
    write_idx(tmp_path, **{"emnist-letters-train": make_arrays(8), "emnist-letters-test": make_arrays(6)})
    for file in tmp_path.iterdir():
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert len(open_at(tmp_path).evaluation.targets) == 6
    write_idx(tmp_path / "more", train=make_arrays(8), t10k=make_arrays(4), extra=make_arrays(20))
    assert len(open_at(tmp_path / "more", train_split="extra").train.targets) == 20
    assert open_at(tmp_path / "more", evaluation_split="extra").evaluation_name == "extra"
    with pytest.raises(InputError, match="extra, test, train"):
        open_at(tmp_path / "more", evaluation_split="val")


def test_numbers_with_gaps_and_one_split_alone(tmp_path, write_idx, make_arrays):
    images, labels = make_arrays(20)
    splits = open_at(write_idx(tmp_path, train=(images, 7 + 3 * labels)))
    assert splits.class_names == ("7", "10")
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (16, 4, "val")


def test_unpacked_files_are_taken_where_both_are_there(tmp_path, write_idx, make_arrays):
    images, labels = make_arrays(8)
    write_idx(tmp_path, train=(images, labels), t10k=(images, labels))
    write_idx(tmp_path, train=(images[:2], labels[:2]), t10k=(images[:2], labels[:2]), packed=True)
    assert len(open_at(tmp_path).train.targets) == 8


def changed(content, **bytes_at):
    values = bytearray(content)
    for place, value in bytes_at.items():
        values[int(place[1:])] = value
    return bytes(values)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "train-images-idx3-ubyte",
            lambda whole: whole[:-1],
            r"holds 239 values where its header \(8, 6, 5\) says 240",
        ),
        ("train-images-idx3-ubyte", lambda whole: whole + b"x", "holds 241 values"),
        ("train-images-idx3-ubyte", lambda whole: whole[:9], "no IDX header"),
        ("train-images-idx3-ubyte", lambda whole: b"", "begins with nothing"),
        ("train-images-idx3-ubyte", lambda whole: b"<html>", "begins with 3c 68 74 6d, which is no IDX header"),
        ("train-images-idx3-ubyte", lambda whole: changed(whole, _2=0x0D), "values of type 0x0d, not bytes"),
        ("train-images-idx3-ubyte", lambda whole: gzip.compress(whole)[:-12], "cannot be read"),
        ("train-images-idx3-ubyte", lambda whole: changed(gzip.compress(whole), _30=0, _31=255), "cannot be read"),
        ("train-labels-idx1-ubyte", lambda whole: changed(whole, _7=7)[:-1], "8 images and 7 labels"),
        ("train-labels-idx1-ubyte", lambda whole: whole[:8] + b"\3" * 8, "only one class, '3'"),
        (
            "t10k-labels-idx1-ubyte",
            lambda whole: changed(whole, _9=9),
            r"(?s)label 9 of image 1 of .*t10k-images-idx3-ubyte\n.*2 classes of the training",
        ),
        ("t10k-images-idx3-ubyte", lambda whole: changed(whole, _3=1)[:8] + b"xxxx", r"shape \(4,\)"),
    ],
)
def test_broken_files(tmp_path, write_idx, file, change, message):
    path = write_idx(tmp_path) / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        open_at(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_images_of_no_known_shape(tmp_path, write_idx, make_arrays):
    images, labels = make_arrays(4, shape=(6, 5, 4))
    with pytest.raises(InputError, match=r"shape \(4, 6, 5, 4\).*\n.*\(N, H, W, 3\)"):
        open_at(write_idx(tmp_path, train=(images, labels)))


def test_missing_files(tmp_path, write_idx, make_arrays):
    with pytest.raises(InputError, match=r"gone of IDX files, which does not exist.*\n.*train-images-idx3-ubyte"):
        open_at(tmp_path / "gone")
    with pytest.raises(InputError, match="which holds no images"):
        open_at(tmp_path)
    write_idx(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        open_at(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="no train-labels-idx1-ubyte beside"):
        open_at(tmp_path)
    write_idx(tmp_path / "two", train=make_arrays(4), **{"a-train": make_arrays(4)})
    with pytest.raises(InputError, match="a-train-images-idx3-ubyte, train-images-idx3-ubyte"):
        open_at(tmp_path / "two")


def test_every_file_is_read_once(tmp_path, write_idx, monkeypatch):
    write_idx(tmp_path, packed=True)
    read, unpacked = [], idx._unpacked
    monkeypatch.setattr(idx, "_unpacked", lambda file: read.append(file) or unpacked(file))
    open_at(tmp_path)
    assert sorted(read) == sorted(tmp_path.iterdir())
