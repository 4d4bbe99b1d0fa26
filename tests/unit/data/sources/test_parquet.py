import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossdistill.data import CorruptImage, open_source
from crossdistill.data.sources import parquet
from crossdistill.data.sources.parquet import open_parquet
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


def open_at(path, **settings):
    return open_source(DataSettings(source=f"parquet:{path}", **settings))


def test_cifar100(shared):
    """The complete CIFAR-100: order, classes and pixels as its README gives them."""
    splits = open_at(shared("data/cifar100"))
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (50_000, 10_000)
    assert splits.evaluation_name == "test"
    assert (splits.train.targets[0], splits.evaluation.targets[0]) == (19, 49)
    assert splits.class_names[19] == "cattle"
    assert np.bincount(splits.train.targets).tolist() == [500] * 100
    assert (splits.train.image_size, splits.train.num_channels) == ((32, 32), 3)
    assert splits.train.in_memory
    assert splits.train.describe(25_000).endswith("train-00001-of-00002.parquet, row 0")
    ids = np.concatenate([np.arange(1000), np.arange(49_000, 50_000)])
    images = splits.train.read_batch(ids).images
    assert images.shape == (2000, 3, 32, 32)
    means = images.double().div(255).mean((0, 2, 3)).numpy()
    # Standard error of 2,000 images' means (standard deviation of an image's mean about 0.18): 0.004.
    assert np.abs(means - [0.50707515923713, 0.48654887331495, 0.44091784336703]).max() < 4 * 0.004
    assert len(open_at(shared("data/cifar100"), label_column="coarse_label").class_names) == 20


def test_imagenette_has_photographs_of_many_sizes(shared):
    splits = open_at(shared("data/imagenette-128"))
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (2600, 900, "val")
    assert splits.train.image_size is None
    assert not splits.train.in_memory


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize(("split", "name"), [("test", "test"), ("val", "val"), ("validation", "val")])
def test_shards(tmp_path, write_parquet, make_picture, struct, split, name):
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 1], struct=struct)
    write_parquet(tmp_path / "train-1.parquet", [2, 0], struct=struct)
    write_parquet(tmp_path / f"{split}-0.parquet", [2, 1], struct=struct)
    splits = open_at(tmp_path)
    assert splits.evaluation_name == name
    assert splits.class_names == ("0", "1", "2")
    assert splits.train.targets.tolist() == [0, 1, 1, 2, 0]
    assert splits.evaluation.targets.tolist() == [2, 1]
    for index, seed in enumerate([0, 1, 2, 0, 1]):
        np.testing.assert_array_equal(splits.train.read(index).permute(1, 2, 0), np.asarray(make_picture(seed)))
    assert splits.train.describe(4) == f"{tmp_path / 'train-1.parquet'}, row 1"


@pytest.mark.parametrize("split", ["val", "validation"])
def test_val_beside_test_is_for_choosing_the_best_epoch(tmp_path, write_parquet, split):
    write_parquet(tmp_path / "train-0.parquet", ["a", "b"])
    write_parquet(tmp_path / "test-0.parquet", ["b"])
    assert open_at(tmp_path).validation is None
    path = write_parquet(tmp_path / f"{split}-0.parquet", ["b", "a", "b"])
    splits = open_at(tmp_path)
    assert (splits.evaluation_name, len(splits.evaluation.targets)) == ("test", 1)
    assert splits.validation.targets.tolist() == [1, 0, 1]
    assert splits.validation.describe(2) == f"{path}, row 2"
    write_parquet(path, ["b", "c"])
    with pytest.raises(InputError, match="'c'"):
        open_at(tmp_path)


def test_the_shape_is_learnt_from_the_first_and_the_last_row_group(tmp_path, write_parquet, make_picture, monkeypatch):
    sizes = {"train-0": [(4, 4)] * 4 + [(9, 9)] * 4, "train-1": [(9, 9)] * 4 + [(4, 4)] * 4, "test-0": [(4, 4)] * 2}
    for name, shapes in sizes.items():
        files = [io.BytesIO() for _ in shapes]
        for file, shape in zip(files, shapes, strict=True):
            make_picture(0, shape).save(file, "PNG")
        path = write_parquet(
            tmp_path / f"{name}.parquet", [0, 1] * (len(shapes) // 2), images=[file.getvalue() for file in files]
        )
        pq.write_table(pq.read_table(path, partitioning=None), path, row_group_size=4)
    read = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **kwargs: read.append(i) or read_row_group(self, i, **kwargs)
    )
    train = open_parquet(str(tmp_path), DataSettings(source="parquet:")).train
    assert (train.image_size, train.num_channels) == ((4, 4), 3)
    assert read == [0, 1]
    assert train.read(5).shape == (3, 9, 9)


def test_one_file_is_split_for_good(tmp_path, write_parquet, make_picture):
    file = write_parquet(tmp_path / "everything.parquet", ["cat", "dog"] * 10)
    for path in (file, tmp_path):
        splits = open_parquet(str(path), DataSettings(source="parquet:"))
        assert splits.class_names == ("cat", "dog")
        assert np.bincount(splits.train.targets).tolist() == [8, 8]
        assert np.bincount(splits.evaluation.targets).tolist() == [2, 2]
        rows = [int(one.describe(i).split()[-1]) for one in (splits.train, splits.evaluation) for i in range(len(one))]
        assert sorted(rows) == list(range(20))
        for index in range(4):
            seed = rows[16 + index]
            assert splits.evaluation.targets[index] == seed % 2
            expected = np.asarray(make_picture(seed)).transpose(2, 0, 1)
            np.testing.assert_array_equal(splits.evaluation.read(index), expected)


def test_folder_of_a_hub_checkout(tmp_path, write_parquet):
    for split in ("train", "test"):
        write_parquet(tmp_path / "data" / f"{split}-0.parquet", [0, 1])
    assert open_at(tmp_path).evaluation_name == "test"


def test_numbers_with_gaps_are_classes_of_their_own(tmp_path, write_parquet):
    write_parquet(tmp_path / "train-0.parquet", [30, 7, 7])
    write_parquet(tmp_path / "test-0.parquet", [30])
    splits = open_at(tmp_path)
    assert splits.class_names == ("7", "30")
    assert splits.train.targets.tolist() == [1, 0, 0]


def test_class_names_of_hugging_face(tmp_path, write_parquet):
    names = {"info": {"features": {"label": {"names": ["zebra", "ape", "unseen"], "_type": "ClassLabel"}}}}
    for split in ("train", "test"):
        path = write_parquet(tmp_path / f"{split}-0.parquet", [1, 0])
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(names)}), path)
    splits = open_at(tmp_path)
    assert splits.class_names == ("zebra", "ape", "unseen")
    assert splits.train.targets.tolist() == [1, 0]


def test_other_columns(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "x.parquet", [0] * 8, grade=pa.array(["low", "high"] * 4))
    assert open_at(path, label_column="grade").class_names == ("high", "low")


def test_encoded_images_stay_behind_when_pickled(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "x.parquet", [0, 1] * 4)
    train = open_parquet(str(path), DataSettings(source="parquet:")).train
    size = len(pickle.dumps(train))
    expected = train.read(3)
    assert len(pickle.dumps(train)) == size
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train)).read(3), expected)


def test_a_row_without_bytes_is_corrupt(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [0, 1], images=[None, b"text"])
    write_parquet(tmp_path / "test.parquet", [0, 1])
    train = open_at(tmp_path).train
    for row, reason in enumerate(["no image bytes", "not an image"]):
        with pytest.raises(CorruptImage, match=f"{path}, row {row}: .*{reason}"):
            train.read(row)
    assert train.image_size is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_column": "imag"}, r"(?s)column 'imag'.*image, label.*data.image_column \(did you mean 'image'"),
        ({"label_column": "klass"}, r"(?s)column 'klass'.*image, label.*data.label_column \(known: image, label"),
        ({"image_column": "label"}, r"(?s)'label'.*holds int64.*encoded images"),
        ({"label_column": "image"}, r"(?s)'image'.*holds dict.*whole numbers or strings"),
    ],
)
def test_wrong_columns(tmp_path, write_parquet, settings, message):
    with pytest.raises(InputError, match=message):
        open_at(write_parquet(tmp_path / "x.parquet", [0, 1]), **settings)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "1 rows without a label.*row 1"),
        ([0, -1, 1], "-1"),
        ([0.5, 1.5], "holds float"),
        ([3, 3, 3], "only one class, '3'"),
    ],
)
def test_wrong_labels(tmp_path, write_parquet, labels, message):
    with pytest.raises(InputError, match=message):
        open_at(write_parquet(tmp_path / "x.parquet", labels))


def test_labels_that_training_does_not_know(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", ["a", "b"])
    write_parquet(tmp_path / "test-0.parquet", ["a", "b", "a"])
    second = write_parquet(tmp_path / "test-1.parquet", ["a", "c", "c", "d"])
    told = rf"label 'c' of {second}, row 1, column 'label' \(3 such labels: 'c', 'd'\)\n.* one of the 2 classes"
    with pytest.raises(InputError, match=told):
        open_at(tmp_path)


def test_negative_labels_are_no_class(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [7, 0, 1, -1])
    write_parquet(tmp_path / "test.parquet", [0, 5])
    with pytest.raises(InputError, match=rf"label -1 of {path}, row 3, column 'label'\n.*: no negative number"):
        open_at(tmp_path)
    write_parquet(path, [7, 0, 1, 1])
    with pytest.raises(InputError, match=r"label 5 of .*test\.parquet, row 1(?s:.*)one of the 3 classes"):
        open_at(tmp_path)


def test_a_column_of_labels_is_read_once(tmp_path, write_parquet, monkeypatch):
    paths = [write_parquet(tmp_path / f"{split}.parquet", [0, 1]) for split in ("train", "test", "val")]
    read, read_column = [], parquet.read_column
    monkeypatch.setattr(parquet, "read_column", lambda file, column: read.append(file) or read_column(file, column))
    open_at(tmp_path)
    assert read == paths


def test_files_of_two_words_for_a_split_are_one_split(tmp_path, write_parquet):
    for name in ("train", "training", "test"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1])
    assert len(open_at(tmp_path).train.targets) == 4


def test_files_that_cannot_be_read(tmp_path, write_parquet):
    with pytest.raises(InputError, match="does not exist"):
        open_at(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds no \.parquet file"):
        open_at(tmp_path)
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(InputError, match=r"a\.parquet, b\.parquet"):
        open_at(tmp_path)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.parquet"):
        open_at(tmp_path / "a.parquet")


def test_a_pattern_takes_one_set_of_several(tmp_path, write_parquet):
    for name in ("raw", "clahe"):
        for split, labels in (("train", [0, 1, 2]), ("val", [1]), ("test", [2, 0])):
            write_parquet(tmp_path / f"{name}-{split}-00000-of-00001.parquet", labels)
    splits = open_at(tmp_path / "raw-*.parquet")
    assert [len(one.targets) for one in (splits.train, splits.evaluation, splits.validation)] == [3, 2, 1]
    assert splits.train.describe(0) == f"{tmp_path / 'raw-train-00000-of-00001.parquet'}, row 0"
    with pytest.raises(InputError, match=r"(?s)several sets.*clahe-\*, raw-\*.*'parquet:.*/raw-\*\.parquet'"):
        open_at(tmp_path)
    with pytest.raises(InputError, match="fits no file"):
        open_at(tmp_path / "grey-*.parquet")


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "set[1]" / "train-0.parquet", [0, 1] * 5)
    for given in (path, path.parent):
        assert len(open_at(given).train.targets) == 8


def test_splits_by_settings_and_by_folder(tmp_path, write_parquet):
    for split, count in (("train", 4), ("test", 6), ("extra", 8)):
        write_parquet(tmp_path / split / "0000.parquet", [0, 1] * (count // 2))
    assert [len(one.targets) for one in (open_at(tmp_path).train, open_at(tmp_path).evaluation)] == [4, 6]
    splits = open_at(tmp_path, train_split="extra", evaluation_split="train")
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (8, 4, "train")
    with pytest.raises(InputError, match="extra, test, train"):
        open_at(tmp_path, evaluation_split="val")


def test_a_split_that_is_not_used_is_not_read(tmp_path, write_parquet):
    for split, labels in (("train", [0, 1]), ("val", [1, 0]), ("test", [-1, -1])):
        write_parquet(tmp_path / f"{split}-0.parquet", labels)
    assert open_at(tmp_path, evaluation_split="val").evaluation_name == "val"
    with pytest.raises(InputError, match="-1"):
        open_at(tmp_path)


def test_one_set_without_a_split_in_its_name_may_have_several_files(tmp_path, write_parquet):
    for number in range(2):
        write_parquet(tmp_path / f"part-{number}.parquet", [0, 1] * 5)
    assert len(open_at(tmp_path).train.targets) == 16


@pytest.mark.parametrize(
    ("columns", "image_column", "label_column"),
    [
        (["img", "fine_label", "coarse_label"], "img", "fine_label"),
        (["label", "img", "image", "fine_label"], "image", "label"),
        (["jpg", "class"], "jpg", "class"),
    ],
)
def test_usual_columns_are_found(tmp_path, write_parquet, columns, image_column, label_column):
    path = write_parquet(tmp_path / "x.parquet", [0, 1] * 5)
    whole = pq.read_table(path)
    cells = {"image": whole["image"], "label": whole["label"], "other": pa.array([0] * 10)}
    kinds = {image_column: "image", label_column: "label"}
    pq.write_table(pa.table({name: cells[kinds.get(name, "other")] for name in columns}), path)
    train = open_at(path).train
    assert train.class_names == ("0", "1")
    assert train.read(0).shape == (3, 12, 12)


@pytest.mark.parametrize("rename", [{"image": "photo"}, {"label": "klass"}])
def test_columns_without_a_usual_name_must_be_named(tmp_path, write_parquet, rename):
    path = write_parquet(tmp_path / "x.parquet", [0, 1] * 5)
    whole = pq.read_table(path)
    pq.write_table(whole.rename_columns([rename.get(name, name) for name in whole.column_names]), path)
    ((key, column),) = rename.items()
    with pytest.raises(InputError, match=rf"(?s)column '{key}'.*its columns: .*{column}.*set data\.{key}_column"):
        open_at(path)
    assert len(open_at(path, **{f"{key}_column": column}).train.targets) == 8


def test_splits_whose_numbers_stand_for_other_classes(tmp_path, write_parquet):
    for split, names in (("train", ["ape", "zebra"]), ("test", ["zebra", "ape"])):
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        path = write_parquet(tmp_path / f"{split}-0.parquet", [1, 0])
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    with pytest.raises(InputError, match=r"test-0\.parquet: 'zebra' as class 0, but 'ape' in the training files"):
        open_at(tmp_path)


def test_a_shard_that_breaks_off(tmp_path, write_parquet):
    for number in range(2):
        path = write_parquet(tmp_path / f"train-{number}.parquet", [0, 1])
    write_parquet(tmp_path / "test-0.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"train-1\.parquet.*(?s:.*)a complete parquet file"):
        open_at(tmp_path)


def test_a_shard_that_lacks_the_column(tmp_path, write_parquet):
    write_parquet(tmp_path / "train-0.parquet", [0, 1])
    path = write_parquet(tmp_path / "test-0.parquet", [0, 1])
    pq.write_table(pq.read_table(path).rename_columns(["image", "grade"]), path)
    with pytest.raises(InputError, match=r"column 'label', which .*test-0\.parquet does not have(?s:.*)image, grade"):
        open_at(tmp_path)


def test_no_rows(tmp_path, write_parquet):
    for split, labels in (("train", [0, 1]), ("test", [])):
        write_parquet(tmp_path / f"{split}-0.parquet", pa.array(labels, pa.int64()))
    with pytest.raises(InputError, match=r"test.*holds no image"):
        open_at(tmp_path)
