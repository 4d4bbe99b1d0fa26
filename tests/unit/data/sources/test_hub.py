import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from crossdistill.contracts import InputSpec
from crossdistill.data import CorruptImage, EvalLoader, open_source
from crossdistill.data.sources import hub
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """No network, no cache of the user's, and no bars."""
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def make_rows(make_picture):
    """Rows of PNG images and labels as a ``datasets.Dataset``."""

    def make(labels, *, column="image", label="label", names=("cat", "dog"), first_seed=0, broken=()):
        cells = []
        for row in range(len(labels)):
            file = io.BytesIO()
            make_picture(first_seed + row).save(file, "PNG")
            cells.append({"bytes": b"text" if row in broken else file.getvalue(), "path": None})
        kinds = {column: datasets.Image(decode=False)}
        if names:
            kinds[label] = datasets.ClassLabel(names=list(names))
        elif labels and isinstance(labels[0], str):
            kinds[label] = datasets.Value("string")
        else:
            kinds[label] = datasets.Value("float64" if any(isinstance(x, float) for x in labels) else "int64")
        rows = datasets.Dataset.from_dict({column: cells, label: labels}, features=datasets.Features(kinds))
        return rows.cast_column(column, datasets.Image())

    return make


@pytest.fixture
def save(tmp_path):
    """Write splits with ``save_to_disk``: ``save(train=rows, test=rows)``."""

    def save(**splits):
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def open_at(path, **settings):
    return open_source(DataSettings(source=f"hf:{path}", **settings))


def test_what_save_to_disk_writes(save, make_rows, make_picture):
    path = save(train=make_rows([0, 1, 1]), test=make_rows([1, 0], first_seed=10), validation=make_rows([0]))
    splits = open_at(path)
    assert (splits.class_names, splits.evaluation_name) == (("cat", "dog"), "test")
    assert [one.targets.tolist() for one in (splits.train, splits.evaluation, splits.validation)] == [
        *([0, 1, 1], [1, 0]),
        [0],
    ]
    assert (splits.train.num_channels, splits.train.image_size, splits.train.mirror_safe) == (3, (12, 12), True)
    for index in range(3):
        np.testing.assert_array_equal(splits.train.read(index).permute(1, 2, 0), np.asarray(make_picture(index)))
    assert splits.evaluation.describe(1) == f"hf:{path} (test), row 1"
    turned = open_at(path, train_split="test", evaluation_split="validation")
    assert (turned.train.targets.tolist(), turned.evaluation_name) == ([1, 0], "val")


def test_one_split_alone_is_divided(tmp_path, make_rows):
    make_rows([0, 1] * 10).save_to_disk(str(tmp_path / "one"))
    splits = open_at(tmp_path / "one")
    assert (len(splits.train.targets), len(splits.evaluation.targets), splits.evaluation_name) == (16, 4, "val")


def test_a_shuffled_set_keeps_its_own_order(save, make_rows, make_picture):
    rows = make_rows([0, 1, 0, 1]).select([3, 0, 2])
    train = open_at(save(train=rows, test=make_rows([0]))).train
    assert train.targets.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(train.read(0).permute(1, 2, 0), np.asarray(make_picture(3)))


def test_a_folder_of_images(tmp_path, write_tree, make_picture):
    for number, split in enumerate(["train", "test"]):
        write_tree(tmp_path / "set" / split, {"dog": 2, "cat": 3}, first_seed=10 * number)
    splits = open_at(tmp_path / "set")
    assert (splits.class_names, splits.evaluation_name) == (("cat", "dog"), "test")
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(splits.train.read(3).permute(1, 2, 0), np.asarray(make_picture(0)))


@pytest.mark.parametrize("struct", [True, False])
def test_a_folder_of_parquet_files(tmp_path, write_parquet, make_picture, struct):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", ["dog", "cat", "dog"], struct=struct)
    splits = open_at(tmp_path)
    assert (splits.class_names, splits.train.targets.tolist()) == (("cat", "dog"), [1, 0, 1])
    np.testing.assert_array_equal(splits.train.read(2).permute(1, 2, 0), np.asarray(make_picture(2)))


def test_columns(save, make_rows):
    path = save(train=make_rows([0, 1], column="img", label="fine_label"), test=make_rows([0], column="img"))
    with pytest.raises(InputError, match=r"column 'fine_label', which .*\(test\)(?s:.*)img, label"):
        open_at(path)
    path = save(train=make_rows([0, 1], column="scan"), test=make_rows([0], column="scan"))
    with pytest.raises(InputError, match=r"(?s)column 'image'.*its columns: scan, label.*data.image_column"):
        open_at(path)
    assert open_at(path, image_column="scan").train.read(0).shape == (3, 12, 12)
    with pytest.raises(InputError, match=r"image column 'label'.*which holds ClassLabel"):
        open_at(path, image_column="label")


def test_workers_and_threads_read_the_same(save, make_rows):
    path = save(train=make_rows([0, 1] * 8), test=make_rows([0, 1] * 4, first_seed=20))
    splits = open_at(path)
    assert len(pickle.dumps(splits.train.source)) < 20_000  # rows stay on the disk
    again = pickle.loads(pickle.dumps(splits.train.source))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(splits.train.read, list(range(16)) * 4))
    for index, image in enumerate(images):
        assert image.equal(again.read(index % 16))
    view = InputSpec((12, 12), 3, (0.5,) * 3, (0.5,) * 3)
    batches = [
        [batch.images["x"] for batch in EvalLoader(splits.evaluation, {"x": view}, batch_size=3, workers=workers)]
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert one.equal(other)


def test_images_that_cannot_be_read_are_counted(save, make_rows):
    train = open_at(save(train=make_rows([0, 1, 0], broken=[1]), test=make_rows([0, 1]))).train
    with pytest.raises(CorruptImage, match=r"\(train\), row 1: not an image"):
        train.read(1)
    reading = train.read_batch(np.arange(3))
    assert (reading.positions.tolist(), len(reading.corrupt)) == ([0, 2], 1)


def test_a_row_without_an_image(save):
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": [None, None], "label": [0, 1]}, features=features)
    with pytest.raises(CorruptImage, match="row 1: the row holds no image"):
        open_at(save(train=rows, test=rows)).train.read(1)


def test_a_file_that_is_gone(tmp_path, write_tree):
    for split in ("train", "test"):
        write_tree(tmp_path / "set" / split, {"cat": 2, "dog": 2})
    train = open_at(tmp_path / "set").train
    (tmp_path / "set" / "train" / "dog" / "000.png").unlink()
    with pytest.raises(CorruptImage, match="row 2: No such file"):
        train.read(2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "1 rows without a label in column 'label', the first is row 1"),
        ([0, -1, 1], r"(?s)label -1 of .*\(train\), row 1, column 'label'\n.*no negative number"),
        ([0.5, 1.5], "holds float"),
        ([3, 3], "only one class, '3'"),
    ],
)
def test_wrong_labels(save, make_rows, labels, message):
    path = save(train=make_rows(labels, names=None), test=make_rows([0, 1], names=None))
    with pytest.raises(InputError, match=message):
        open_at(path)


def test_labels_that_training_does_not_know(save, make_rows):
    path = save(train=make_rows(["a", "b"], names=None), test=make_rows(["c"], names=None))
    with pytest.raises(InputError, match=r"label 'c' of .*\(test\), row 0, column 'label'\n"):
        open_at(path)
    path = save(train=make_rows([0, 1]), test=make_rows([0, 1], names=("dog", "cat")))
    with pytest.raises(InputError, match=r"\(test\): 'dog' as class 0, but 'cat' in the training files"):
        open_at(path)


def test_files_that_cannot_be_read(tmp_path, write_parquet, save, make_rows):
    path = write_parquet(tmp_path / "set" / "train-0.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"data source hf:.*/set: (?s:.*)check the folder and its files"):
        open_at(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"hf:.*/empty: "):
        open_at(tmp_path / "empty")
    saved = save(train=make_rows([0, 1]), test=make_rows([0, 1]))
    next((saved / "train").glob("*.arrow")).write_bytes(b"text")
    with pytest.raises(InputError, match=r"hf:.*/saved: "):
        open_at(saved)


def test_code_that_comes_with_a_set_is_not_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="hf:"):
        open_at(tmp_path / "set")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing:plain", "nothing", "a/b/c", "no such/?"])
def test_a_set_that_cannot_be_reached(name):
    with pytest.raises(InputError, match=r"(?s)owner/name.*CROSSDISTILL_DATA") as caught:
        open_at(name)
    assert f"data source hf:{name}: " in str(caught.value)


def test_the_configuration_follows_the_id(monkeypatch, make_rows):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *given: asked.append(given) or {"train": make_rows([0, 1] * 5)}
    )
    assert len(open_at("owner/name:320px").train.targets) == 8
    open_at("owner/name")
    assert asked == [("owner/name", "320px"), ("owner/name", None)]


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install "crossdistill\[data\]"'):
        open_at("owner/name")


def test_a_file_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, write_parquet, write_npz):
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: pytest.fail("it was looked up"))
    (tmp_path / "notes.txt").write_text("text")
    for path, action in (
        (write_parquet(tmp_path / "x.parquet", [0, 1]), "give 'parquet:{}' instead"),
        (write_npz(tmp_path / "x.npz"), "give 'npz:{}' instead"),
        (tmp_path / "notes.txt", "give the folder that it lies in"),
    ):
        with pytest.raises(InputError, match=f"hf:{path}, which is a file\n(?s:.*){action.format(path)}"):
            open_at(path)


def test_two_names_of_one_split(save, make_rows):
    path = save(train=make_rows([0, 1]), dev=make_rows([0]), valid=make_rows([1]))
    with pytest.raises(InputError, match="saved with 'dev' and 'valid', which both mean the split 'val'"):
        open_at(path)


def test_labels_are_read_once(save, make_rows, monkeypatch):
    path, read, labels = save(train=make_rows([0, 1]), test=make_rows([0])), [], hub._labels
    monkeypatch.setattr(hub, "_labels", lambda rows, *given: read.append(len(rows)) or labels(rows, *given))
    open_at(path)
    assert read == [2, 1]
